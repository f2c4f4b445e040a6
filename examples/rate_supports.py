"""Measure how often `rate_supports` finds the one wrong mask among five.

    python examples/rate_supports.py VOCdevkit/VOC2012 --list trainaug --trials 110

A trial takes five photographs of a class, and corrupts the mask of one of them in three ways: it
shows another object of the photograph, it is shifted by a third of the object's width and height,
or it is inverted. Trials go through the classes in turn. A trial succeeds if the corrupted support
comes last.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hdmnet import FewShotModel, HDMNet
from hdmnet.data import VOID, LabelledImages, PascalVOC
from hdmnet.data.episodes import MIN_AREA

SUPPORTS = 5
LEAST_OF_CLASS = 16  # photographs
LEAST_OTHER = 1024  # pixels of the other object


def class_mask(label: NDArray[np.int32], number: int) -> NDArray[np.uint8]:
    """Make a mask of one class: 1 = object, 255 = ignore."""
    return np.where(label == VOID, 255, label == number).astype(np.uint8)


def shifted(mask: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Shift a mask by a third of its width and height, to where most of it stays in the image."""
    rows, columns = np.nonzero(mask == 1)
    down, right = (round((np.ptp(x) + 1) / 3) for x in (rows, columns))
    ways = [(down, right), (down, -right), (-down, right), (-down, -right)]
    rng.shuffle(ways)
    height, width = mask.shape
    best = np.zeros_like(mask)
    for y, x in ways:
        moved = np.zeros_like(mask)
        inside = (rows + y >= 0) & (rows + y < height) & (columns + x >= 0) & (columns + x < width)
        moved[rows[inside] + y, columns[inside] + x] = 1
        if moved.sum() > best.sum():
            best = moved
    return best


def trial(
    model: FewShotModel, source: LabelledImages, shown: dict[int, list[int]], seed: int
) -> tuple[int, dict[str, bool]]:
    """Corrupt one of five masks in each way. Return the class, and whether the mask was found."""
    rng, areas = random.Random(1000 + seed), source.areas()
    number = list(shown)[seed % len(shown)]

    def others(i: int) -> list[int]:
        return [c for c, n in areas[i].items() if c not in (number, VOID) and n >= LEAST_OTHER]

    bad = rng.choice([i for i in shown[number] if others(i)])
    indices = [bad, *rng.sample([i for i in shown[number] if i != bad], SUPPORTS - 1)]
    images, labels = [source.image(i) for i in indices], [source.label(i) for i in indices]
    right, *rest = (class_mask(label, number) for label in labels)
    wrong = {
        "another object": class_mask(labels[0], rng.choice(others(bad))),
        "shifted": shifted(right, rng),
        "inverted": np.where(right == 255, 255, right == 0).astype(np.uint8),
    }
    ratings = {kind: model.rate_supports(images, [mask, *rest]) for kind, mask in wrong.items()}
    return number, {kind: rated[-1].index == 0 for kind, rated in ratings.items()}


def listed_by_class(source: LabelledImages) -> dict[int, list[int]]:
    """List the photographs of each class that has enough of them."""
    listed = {
        c: [i for i, n in enumerate(source.areas()) if n.get(c, 0) >= MIN_AREA]
        for c in range(1, len(source.classes) + 1)
    }
    return {c: images for c, images in listed.items() if len(images) >= LEAST_OF_CLASS}


def report(
    source: LabelledImages, shown: dict[int, list[int]], trials: list[tuple[int, dict[str, bool]]]
) -> None:
    """Print the share of trials in which the corrupted support came last."""
    for kind in trials[0][1]:
        by_class = {
            c: [found[kind] for number, found in trials if number == c]
            for c in shown
            if any(number == c for number, _ in trials)
        }
        share = {c: float(np.mean(hits)) for c, hits in by_class.items()}
        photographs = [len(shown[c]) for c in share]
        weighted = np.average(list(share.values()), weights=photographs)
        print(f"{kind}: {np.mean(list(share.values())):.3f} of {len(trials)} trials, the mean over")
        print(f"  classes; {weighted:.3f} if each class counts by its photographs. By class:")
        print("  " + ", ".join(f"{source.classes[c - 1]} {x:.2f}" for c, x in share.items()))


def main() -> None:
    """Run the trials and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="a folder with the layout of PASCAL VOC 2012")
    parser.add_argument("--list", default="trainaug", help="name or path of the list of images")
    parser.add_argument("--classes", help="names, with commas between them; default: all")
    parser.add_argument("--model", default="hdmnet-lite0", help="a name, a folder or a repository")
    parser.add_argument("--trials", type=int, default=110)
    args = parser.parse_args()

    model = HDMNet.from_pretrained(args.model).fused()
    source = PascalVOC(args.root, args.list)
    wanted = args.classes.split(",") if args.classes else source.classes
    shown = {c: x for c, x in listed_by_class(source).items() if source.classes[c - 1] in wanted}
    report(source, shown, [trial(model, source, shown, n) for n in tqdm(range(args.trials))])


if __name__ == "__main__":
    main()
