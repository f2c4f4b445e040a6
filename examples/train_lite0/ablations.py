"""Train the network without one idea at a time, and draw what each is worth.

    python ablations.py DATA RUNS

Each variant is trained from ImageNet features with the same settings and, for the same seed, on the
same episodes. RUNS gets a folder for each run, `ablations.md` and `ablations.png`. A command that
was interrupted and is repeated goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import stats
from train import Run, Settings

mpl.use("Agg")
logger = logging.getLogger(__name__)

FULL = "the network"
VARIANTS = {
    FULL: [],
    "without distillation": ["distillation=0"],
    "one stage, not three": ["stages=1"],
    "dot product and row softmax": ["matching=dot"],
    "one prototype, no dense matching": ["matching=prototype"],
    "without the prior": ["prior=0"],
}
MEASURED = ("VOC2012_1shot", "VOC2012_5shot", "CCP_1shot", "CCP_5shot")
"""Class mIoUs of the log of a run, whose mean is its score."""
ALL = [
    "init=",
    "contrast=0",
    "dice=0",
    "learning_rate=5e-4",
    "absent=0.12",
    "real=1",
    "shots=1",
    "average=0.97",
    "feature_dropout=0.5",
]
"""Settings of all runs, as in the paper: network, loss, one shot, real photographs only, from
ImageNet features. The moving average of the weights is short: with 0.998, a run of 200 steps would
keep two thirds of its random first weights."""
VALIDATION = ("VOC2012", "CCP")
RED, GRAY = "#d1495b", "#8d96a3"


def folder_of(runs: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return runs / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def read_score(folder: Path) -> float:
    """Read the final score of a run."""
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return float(np.mean([last[key] for key in MEASURED]))


def interval(differences: np.ndarray) -> float:
    """Return half of the 95 % interval of Student's t around the mean of n seeds; NaN for one."""
    n = len(differences)
    if n == 1:
        return float("nan")
    return float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))


def report(scores: dict[str, np.ndarray], seeds: Sequence[int], runs: Path) -> None:
    """Write the table and the plot of the scores (seeds,) of each variant."""
    heads = ["", *(f"seed {seed}" for seed in seeds), "mean", f"mean, less than {FULL}"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    _, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for place, (name, found) in enumerate(scores.items()):
        cells = [name, *(f"{value:.3f}" for value in (*found, found.mean())), ""]
        if name != FULL:
            lost = scores[FULL] - found
            cells[-1] = f"{lost.mean():.3f} ± {interval(lost):.3f}"
            axis.plot(lost, [place] * len(lost), "o", color=GRAY, ms=4)
            axis.errorbar(lost.mean(), place, xerr=interval(lost), fmt="D", color=RED, capsize=4)
        rows.append(f"| {' | '.join(cells)} |")
    axis.axvline(0, color=GRAY, lw=1)
    axis.set_yticks(range(1, len(scores)), list(scores)[1:])
    axis.invert_yaxis()
    axis.set_xlabel("class mIoU lost (dots: seeds; diamond: mean and 95 % interval)")
    axis.spines[["top", "right"]].set_visible(False)
    plt.savefig(runs / "ablations.png", dpi=110)
    (runs / "ablations.md").write_text("\n".join(rows) + "\n")
    logger.info("%s", "\n".join(rows))


def main() -> None:
    """Parse the command line, train what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder with the features of cache.py")
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=VARIANTS,
        default=[*VARIANTS],
        metavar="NAME",
        help="those beside the network; default: all",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all runs"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    variants = {k: v for k, v in VARIANTS.items() if k in (FULL, *args.variants)}
    for seed in args.seeds:
        for name, changes in variants.items():
            settings = [*ALL, f"steps={args.steps}", f"seed={seed}", *changes, *args.set]
            logger.info("%s, seed %d", name, seed)
            folder = folder_of(args.runs, name, seed)
            run = Run(args.data, folder, Settings.parse(settings), validation=VALIDATION)
            run.train(args.steps)
    scores = {
        name: np.array([read_score(folder_of(args.runs, name, seed)) for seed in args.seeds])
        for name in variants
    }
    report(scores, args.seeds, args.runs)


if __name__ == "__main__":
    main()
