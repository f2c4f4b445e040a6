"""Measure what one call with several classes gives, where a query shows two of them.

    python examples/measure_classes.py VOCdevkit/VOC2012 --pairs cat:sofa,person:sheep --absent 1

Each query shows both classes of a pair, and its supports show one of the two each. With `--absent`,
it is also asked for classes of other pairs that it does not show. Labels come from separate calls
and the highest probability, or from one call with all classes, which compete if the model has a
`ClassEvidence`.
"""

import argparse
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hdmnet import HDMNet, load_mask
from hdmnet.data import VOID, PascalVOC
from hdmnet.metrics import FewShotIoU
from hdmnet.options import PredictOptions
from hdmnet.preprocess import IGNORE

logger = logging.getLogger(__name__)

WAYS = ("separate calls", "one call")


def main() -> None:
    """Parse the command line, draw the scenes, and log a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="a VOC2012 folder")
    parser.add_argument("--pairs", required=True, help="CLASS:CLASS, with commas between them")
    parser.add_argument("--list", default="val", help="list of images")
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--scenes", type=int, default=30, help="most scenes of each pair")
    parser.add_argument("--absent", type=int, default=0, help="more classes, which are not there")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--min-area", type=int, default=1024, help="pixels of what is shown")
    parser.add_argument("--presence-threshold", type=float, help="as for predict")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source = PascalVOC(args.root, args.list)
    areas, rng = source.areas(), np.random.default_rng(args.seed)
    model = HDMNet.from_pretrained(args.model).fused()
    pairs = [tuple(pair.split(":")) for pair in args.pairs.split(",")]
    names = sorted({name for pair in pairs for name in pair})
    label_of = {name: source.classes.index(name) + 1 for name in names}

    def showing(*names: str) -> list[int]:
        """List the images that show enough of each of these classes."""
        return [
            i
            for i, a in enumerate(areas)
            if all(a.get(label_of[n], 0) >= args.min_area for n in names)
        ]

    scenes_of = {pair: showing(*pair) for pair in pairs}
    scenes = [
        (int(query), pair)
        for pair, listed in scenes_of.items()
        for query in rng.permutation(listed)[: args.scenes]
    ]
    metrics = {(k, way): FewShotIoU(names) for k in args.shots for way in WAYS}
    for query, pair in tqdm(scenes, "scenes"):
        truth = torch.from_numpy(source.label(query)).long()
        image = source.image(query)
        others = [name for name in names if label_of[name] not in areas[query]]
        drawn = np.random.default_rng((args.seed, query)).permutation(others)
        absent = [str(name) for name in drawn[: args.absent]]
        encoded = {}
        for name in (*pair, *absent):
            apart = [i for i in showing(name) if i not in scenes_of[pair]]
            encoded[name] = [
                model.encode_supports(
                    source.image(i), load_mask(source.label(i), label=label_of[name], ignore=VOID)
                )
                for i in map(int, rng.choice(apart, max(args.shots), replace=False))
            ]
        for k in args.shots:
            sets = {name: each[0].merge(*each[1:k]) for name, each in encoded.items()}
            options: PredictOptions = {"presence_threshold": args.presence_threshold}
            separate = [model.predict(image, s, **options) for s in sets.values()]
            alone = torch.stack([answer.probability for answer in separate])
            best, index = alone.max(dim=0)
            answers = {
                "separate calls": (index + 1) * (best > 0.5),
                "one call": model.predict(image, sets, **options).labels,
            }
            for way, labels in answers.items():
                for number, name in enumerate(encoded, start=1):
                    target = (truth == label_of[name]).long().masked_fill(truth == VOID, IGNORE)
                    which = torch.tensor([names.index(name)])
                    metrics[k, way].update((labels == number)[None], target[None], which)
    logger.info("%s", dict(Counter("+".join(pair) for _, pair in scenes)))
    logger.info("| shots | %s |\n|---|---|---|", " | ".join(WAYS))
    for k in args.shots:
        scores = [metrics[k, way].compute()["final/mIoU"] for way in WAYS]
        logger.info("| %d | %.3f | %.3f |", k, *scores)


if __name__ == "__main__":
    main()
