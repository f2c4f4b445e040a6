"""Adapt a model to one class with a few gradient steps on its supports alone.

In training, each support in turn is the query and the others are its supports, with random
augmentation. The model sees no other picture of the class. Other pictures of it are scored.

    python examples/adapt_to_supports.py DATA RUN
"""

import json
import logging
from argparse import Namespace
from copy import deepcopy

import torch
from particles import (
    arguments,
    choose_device,
    make,
    open_split,
    parse,
    resizing,
    score,
    segmenter,
)
from torch.utils.data import DataLoader
from tqdm import tqdm

from hdmnet import EpisodeLoss, HDMNet
from hdmnet.data import Episode, EpisodeDataset, EpisodeList, TrainTransform

logger = logging.getLogger(__name__)


def adapt(model: HDMNet, supports: EpisodeList, args: Namespace) -> HDMNet:
    """Return a copy of the model, trained on episodes among the supports."""
    model = deepcopy(model).train()
    mean, std = model.backbone.mean, model.backbone.std
    dataset = EpisodeDataset(supports, TrainTransform(args.size, mean=mean, std=std))
    optimiser = torch.optim.AdamW(model.param_groups(args.lr), weight_decay=0.01)
    loss_of = EpisodeLoss()
    bar = tqdm(total=args.steps, desc="adapting", leave=False)
    while bar.n < args.steps:
        dataset.set_epoch(bar.n)
        for batch in DataLoader(dataset, args.batch):
            batch = {name: value.to(choose_device()) for name, value in batch.items()}
            output = model(batch["query"], batch["supports"], batch["masks"])
            losses = loss_of(output, batch["target"])
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
            bar.update()
            if bar.n == args.steps:
                break
    return model


def main() -> None:
    """Adapt to every held-out kind, and measure the IoU before and after."""
    parser = arguments(__doc__, steps=30, batch=5, lr=1e-4)
    parser.add_argument("--model", default="hdmnet-lite0", help="name, folder or Hub repository")
    parser.add_argument("--shots", type=int, default=5, help="supports per class")
    args = parse(parser)
    if args.shots < 2:
        parser.error(f"--shots must be at least 2, got {args.shots}: each takes a turn as query")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    make(args.data, args.count)
    source = open_split(args.data, "test")
    model = HDMNet.from_pretrained(args.model).freeze_backbone().to(choose_device())
    results = {}
    for label, kind in enumerate(source.classes, start=1):
        shown = [i for i, areas in enumerate(source.areas()) if label in areas]
        supports, others = tuple(shown[: args.shots]), shown[args.shots :][: args.episodes]
        among = [Episode(i, tuple(s for s in supports if s != i), label) for i in supports]
        adapted = adapt(model, EpisodeList(source, among), args)
        queries = EpisodeList(source, [Episode(i, supports, label) for i in others])
        before, after = (score(segmenter(m), queries, resizing(m)) for m in (model, adapted))
        results[kind] = before, after
        logger.info("%-10s IoU %.3f before, %.3f after", kind, before, after)
    before, after = (sum(scores) / len(results) for scores in zip(*results.values(), strict=True))
    logger.info("%-10s IoU %.3f before, %.3f after", "mean", before, after)
    (args.run / "results.json").write_text(json.dumps(results | {"mean": (before, after)}))


if __name__ == "__main__":
    main()
