"""Measure what a negative support changes where a query shows a relative of the class.

    python examples/measure_negatives.py VOCdevkit/VOC2012 --pairs cat:dog,dog:cat,sofa:chair

For each pair CLASS:RELATIVE, episodes ask for the class in two queries: one that shows the relative
without it, where every pixel found is wrong, and one that shows the class without the relative. The
negative is another photograph of the relative: as a whole, or with its mask.
"""

import argparse
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hdmnet import HDMNet, load_mask
from hdmnet.data import VOID, PascalVOC

logger = logging.getLogger(__name__)

PAIRS = "cat:dog,dog:cat,sofa:chair,chair:sofa,sheep:dog,sheep:cat,cat:sheep,dog:sheep"


def main() -> None:
    """Parse the command line, draw the episodes, and log a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a VOC2012 folder")
    parser.add_argument("--pairs", default=PAIRS, help="CLASS:RELATIVE, with commas between them")
    parser.add_argument("--list", default="val", help="list of images")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--episodes", type=int, default=15, help="for each pair")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--min-area", type=int, default=2048, help="pixels of what is shown")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = PascalVOC(args.root, args.list)
    areas, rng = source.areas(), np.random.default_rng(args.seed)
    model = HDMNet.from_pretrained(args.model).fused()

    def with_but_without(shown: int, hidden: int) -> list[int]:
        """List the images that show one label, and nothing of another."""
        return [
            i for i, a in enumerate(areas) if a.get(shown, 0) >= args.min_area and hidden not in a
        ]

    def mask(index: int, label: int) -> torch.Tensor:
        return load_mask(source.label(index), label=label, ignore=VOID)

    false_area, iou = defaultdict(list), defaultdict(list)
    pairs = [[source.classes.index(n) + 1 for n in p.split(":")] for p in args.pairs.split(",")]
    for label, relative in tqdm([pair for pair in pairs for _ in range(args.episodes)], "episodes"):
        own, others = with_but_without(label, relative), with_but_without(relative, label)
        *supports, query = (int(i) for i in rng.choice(own, args.shots + 1, replace=False))
        wrong, negative = (int(i) for i in rng.choice(others, 2, replace=False))
        images = [source.image(i) for i in supports]
        masks = [mask(i, label) for i in supports]
        image = source.image(negative)
        given = {"none": None, "image": [image], "mask": [(image, mask(negative, relative))]}
        for name, negatives in given.items():
            encoded = model.encode_supports(images, masks, negatives)
            false_area[name].append(model.predict(source.image(wrong), encoded).mask.float().mean())
            truth = torch.from_numpy(source.label(query))
            found = model.predict(source.image(query), encoded).mask[truth != VOID]
            true = truth[truth != VOID] == label
            iou[name].append((found & true).sum() / (found | true).sum().clamp(min=1))
    logger.info("| negative | false area on a relative | mean IoU on the class |\n|---|---|---|")
    for name in false_area:
        values = (torch.stack(kept[name]).mean() for kept in (false_area, iou))
        logger.info("| %s | %.3f | %.3f |", name, *values)


if __name__ == "__main__":
    main()
