"""Measure what the options of `predict` change: mIoU, Boundary IoU, and time.

    python examples/measure_quality.py VOCdevkit/VOC2012 --list trainaug --classes sheep,sofa

All options answer the same queries with the same encoded supports. Times are ratios: the time of
all queries over that of the first option, which is `predict` without options.
"""

import argparse
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hdmnet import Augment, HDMNet, load_mask
from hdmnet.data import VOID, EpisodeSampler, PascalVOC
from hdmnet.metrics import FewShotIoU, boundary_region
from hdmnet.preprocess import IGNORE

logger = logging.getLogger(__name__)

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "flip": {"augment": Augment()},
    "scales 0.75, 1, 1.25": {"augment": Augment(flip=False, scales=(0.75, 1.0, 1.25))},
    "scales 1, 1.25, 1.5": {"augment": Augment(flip=False, scales=(1.0, 1.25, 1.5))},
    "flip, scales 0.75, 1, 1.25": {"augment": Augment(scales=(0.75, 1.0, 1.25))},
    "tile": {"tile": 256},
    "refine": {"refine": True},
    "flip, refine": {"augment": Augment(), "refine": True},
    "self-support": {"self_support": True},
    "flip, self-support": {"augment": Augment(), "self_support": True},
}


def main() -> None:
    """Parse the command line, answer the queries with each option, and log a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a VOC2012 folder")
    parser.add_argument("--classes", required=True, help="names, with commas between them")
    parser.add_argument("--list", default="val", help="list of images")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=[*OPTIONS], metavar="NAME")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--largest", type=float, default=1.0, help="share of the query, object")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = PascalVOC(args.root, args.list)
    names = args.classes.split(",")
    labels = [source.classes.index(name) + 1 for name in names]
    model = HDMNet.from_pretrained(args.model).fused()
    sampler = EpisodeSampler(
        source, labels, shots=args.shots, length=args.episodes, seed=args.seed, order="balanced"
    )
    compared = {name: OPTIONS[name] for name in ("none", *args.options)}
    masks = {name: FewShotIoU(names) for name in compared}
    borders = {name: FewShotIoU(names) for name in compared}
    seconds: dict[str, float] = defaultdict(float)
    for episode in tqdm(sampler, "episodes"):
        truth = torch.from_numpy(source.label(episode.query)).long()
        target = (truth == episode.label).long().masked_fill(truth == VOID, IGNORE)[None]
        if (target == 1).float().mean() > args.largest:
            continue
        label = torch.tensor([labels.index(episode.label)])
        supports = [source.image(i) for i in episode.supports]
        given = [
            load_mask(source.label(i), label=episode.label, ignore=VOID) for i in episode.supports
        ]
        encoded = model.encode_supports(supports, given)
        query = source.image(episode.query)
        for name, options in compared.items():
            start = time.perf_counter()
            answer = model.predict(query, encoded, **options)
            seconds[name] += time.perf_counter() - start
            mask = answer.mask[None].long()
            masks[name].update(mask, target, label)
            # What is ignored is so in both: else it would be the outside of one of them only.
            mask = mask.masked_fill(target == IGNORE, IGNORE)
            regions = boundary_region(mask), boundary_region(target)
            borders[name].update(regions[0].masked_fill(target == IGNORE, 0), regions[1], label)
    logger.info("| option | mIoU | Boundary IoU | time |\n|---|---|---|---|")
    for name in compared:
        whole, border = (m[name].compute()["final/mIoU"] for m in (masks, borders))
        ratio = seconds[name] / seconds["none"]
        logger.info("| %s | %.3f | %.3f | %.2f |", name, whole, border, ratio)


if __name__ == "__main__":
    main()
