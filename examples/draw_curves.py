"""Draw the curves of the fine-tuning examples: docs/fine-tuning.png.

    python examples/draw_curves.py RUNS docs/fine-tuning.png

RUNS contains the output folders of the examples: torch, lightning, accelerate, base, full, adapted
and reused. docs/fine-tuning.md lists the commands that write them.
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("Agg")

FINETUNED = {
    "torch": "finetune_torch.py",
    "lightning": "finetune_lightning.py",
    "accelerate": "finetune_accelerate.py",
}
OTHERS = {
    "base": ("train_base_learner.py", "mIoU of base kinds, val"),
    "full": ("finetune_torch.py, with it", "mIoU of held-out kinds"),
    "reused": ("reuse_blocks.py", "mIoU of held-out kinds"),
}
RED, BLUE, GRAY = "#d1495b", "#30638e", "#8d96a3"


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """Read the (step, score) pairs of a run."""
    if (folder / "curve.json").is_file():
        return [(step, score) for step, score in json.loads((folder / "curve.json").read_text())]
    with next(folder.glob("log/*/metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["held_out/mIoU"]]
    return [(int(row["step"]), float(row["held_out/mIoU"])) for row in rows]


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
    for (name, title), color in zip(FINETUNED.items(), (RED, BLUE, GRAY), strict=True):
        axes[0].plot(
            *zip(*read_curve(args.runs / name), strict=True), "o-", color=color, label=title
        )
    axes[0].set(title="hdmnet-lite0, fine-tuned", ylabel="mIoU of held-out kinds")
    axes[0].legend(frameon=False, fontsize=8)
    for axis, (name, (title, label)) in zip(axes[1:4], OTHERS.items(), strict=True):
        axis.plot(*zip(*read_curve(args.runs / name), strict=True), "o-", color=RED)
        axis.set(title=title, ylabel=label)
    for axis in axes[:4]:
        axis.set(xlabel="steps", ylim=(0, None))
    results = json.loads((args.runs / "adapted" / "results.json").read_text())
    for place, (before, after) in enumerate(results.values()):
        axes[4].bar(place - 0.2, before, 0.4, color=GRAY, label=None if place else "before")
        axes[4].bar(place + 0.2, after, 0.4, color=RED, label=None if place else "after")
    axes[4].set(title="adapt_to_supports.py", ylabel="IoU, 5 shots")
    axes[4].set_xticks(range(len(results)), list(results), rotation=30)
    axes[4].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.picture, dpi=100)


if __name__ == "__main__":
    main()
