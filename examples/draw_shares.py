"""Draw what it gives to average the weights before and after fine-tuning: docs/car-parts.png.

    python examples/draw_shares.py RESULTS docs/car-parts.png

RESULTS contains the folders of `hdmnet evaluate`, each named after a share of the fine-tuned
weights from 0 to 1. docs/fine-tuning.md lists the commands that write them.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("Agg")

RED, GRAY = "#d1495b", "#8d96a3"


def main() -> None:
    """Parse the command line and draw a line for each class, and one for their mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of the results")
    parser.add_argument("picture", type=Path, help="file to write")
    args = parser.parse_args()
    scores = {
        float(path.parent.name): json.loads(path.read_text())["scores"]
        for path in args.results.glob("*/results.json")
    }
    if not scores:
        parser.error(f"{args.results} has no SHARE/results.json of `hdmnet evaluate`")
    shares = sorted(scores)
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for key in scores[shares[0]]:
        if key.startswith("final/IoU/"):
            line = [scores[share][key] for share in shares]
            axis.plot(shares, line, "o-", color=GRAY, ms=3, lw=1)
            name = key.removeprefix("final/IoU/").replace("_", " ")
            axis.annotate(name, (1.02, line[-1]), color=GRAY, va="center", fontsize=9)
    mean = [scores[share]["final/mIoU"] for share in shares]
    axis.plot(shares, mean, "o-", color=RED, lw=2)
    for share, value in zip(shares, mean, strict=True):
        axis.annotate(f"{value:.3f}", (share, 0.01), color=RED, ha="center", fontsize=9)
    axis.set(xlabel="share of the fine-tuned weights", ylabel="IoU, one shot")
    axis.set_title("each class in grey, their mean in red", fontsize=10)
    axis.set(xlim=(-0.05, 1.2), ylim=(0, None), xticks=shares)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
