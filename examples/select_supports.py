"""Measure what `select_supports` gains over supports drawn at random.

    python examples/select_supports.py VOCdevkit/VOC2012 --list trainaug --pool 15 --choose 5

A pool holds photographs of one class. The chosen supports, and as many drawn at random, segment the
class in other photographs of it. Pools go through the classes in turn. The interval of the gain has
a confidence of 95 %: it is the bootstrap over pools.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from rate_supports import class_mask, listed_by_class
from scipy.stats import bootstrap
from tqdm import tqdm

from hdmnet import FewShotModel, HDMNet
from hdmnet.data import VOID, LabelledImages, PascalVOC


def intersections(
    model: FewShotModel,
    source: LabelledImages,
    number: int,
    supports: list[int],
    queries: list[int],
) -> list[tuple[int, int]]:
    """Segment the class `number` in the queries: pixels of the intersection and of the union."""
    images = [source.image(i) for i in supports]
    encoded = model.encode_supports(images, [class_mask(source.label(i), number) for i in supports])
    counted = []
    for query in queries:
        label = source.label(query)
        found = model.predict(source.image(query), encoded).mask.numpy() & (label != VOID)
        true = label == number
        counted.append((int((found & true).sum()), int((found | true).sum())))
    return counted


def main() -> None:
    """Draw the pools, choose supports, and print the scores of both choices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="a folder with the layout of PASCAL VOC 2012")
    parser.add_argument("--list", default="trainaug", help="name or path of the list of images")
    parser.add_argument("--classes", help="names, with commas between them; default: all")
    parser.add_argument("--model", default="hdmnet-lite0", help="a name, a folder or a repository")
    parser.add_argument("--pools", type=int, default=30)
    parser.add_argument("--pool", type=int, default=15, help="photographs of a pool")
    parser.add_argument("--choose", type=int, default=5, help="supports to choose of them")
    parser.add_argument("--queries", type=int, default=10, help="for each pool")
    args = parser.parse_args()

    model = HDMNet.from_pretrained(args.model).fused()
    source = PascalVOC(args.root, args.list)
    wanted = args.classes.split(",") if args.classes else source.classes
    shown = {
        number: images
        for number, images in listed_by_class(source).items()
        if len(images) >= args.pool + args.queries and source.classes[number - 1] in wanted
    }
    scores: dict[str, list[np.ndarray]] = {"chosen": [], "random": []}
    numbers = []
    for n in tqdm(range(args.pools), "pools"):
        rng, number = random.Random(n), list(shown)[n % len(shown)]
        drawn = rng.sample(shown[number], args.pool + args.queries)
        pool, queries = drawn[: args.pool], drawn[args.pool :]
        images = [source.image(i) for i in pool]
        masks = [class_mask(source.label(i), number) for i in pool]
        chosen = [pool[i] for i in model.select_supports(images, masks, args.choose)]
        for name, supports in {"chosen": chosen, "random": rng.sample(pool, args.choose)}.items():
            counted = intersections(model, source, number, supports, queries)
            scores[name].append(np.array(counted))
        numbers.append(number)
    for name, counts in scores.items():
        sums = {
            c: sum(x.sum(0) for x, i in zip(counts, numbers, strict=True) if i == c)
            for c in set(numbers)
        }
        print(f"{name}: class mIoU {np.mean([a / b for a, b in sums.values()]):.3f}")
    ious = [[(x[:, 0] / x[:, 1]).mean() for x in counts] for counts in scores.values()]
    gains = np.array(ious[0]) - np.array(ious[1])
    low, high = bootstrap((gains,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    print(f"gain in the mean IoU of a query: {gains.mean():.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
