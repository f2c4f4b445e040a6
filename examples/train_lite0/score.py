"""Measure a trained model and two baselines on episodes of held-out objects.

    python score.py DATA MODEL

The pictures are composites: do not compare the figures with PASCAL-5i or COCO-20i.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from held_out import ComposedEpisodes, Episode, IoU
from torch.nn.functional import interpolate
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.images import load_image

logger = logging.getLogger(__name__)

THRESHOLDS = np.linspace(0, 1, 101)


def measure(model: HDMNet, episodes: list[Episode], shots: int) -> IoU:
    """Measure the class mIoU of `predict`."""
    iou = IoU()
    for episode in tqdm(episodes, desc=f"{shots}-shot"):
        result = model.predict(episode.query, episode.supports[:shots], episode.masks[:shots])
        iou.add(episode.category, result.mask.numpy(), episode.target)
    return iou


def measure_all_foreground(episodes: list[Episode]) -> float:
    """Measure the class mIoU of predicting foreground everywhere."""
    iou = IoU()
    for episode in episodes:
        iou.add(episode.category, np.ones(episode.target.shape, bool), episode.target)
    return float(iou.mean())


def measure_prior(model: HDMNet, episodes: list[Episode]) -> float:
    """Measure the training-free one-shot prior: the better of f3 and f4, at its best threshold."""
    ious = (IoU(), IoU())  # priors of f3 and f4
    for episode in tqdm(episodes, desc="prior"):
        supports = model.encode_supports(episode.supports[0], episode.masks[0])
        image = load_image(episode.query)[None]
        image = interpolate(image, (model.image_size,) * 2, mode="bilinear", antialias=True)
        with torch.inference_mode():
            prior = model.match(model.backbone.normalise(image), supports).prior
        maps = interpolate(prior[:, :2], episode.target.shape, mode="bilinear")[0].numpy()
        for iou, values in zip(ious, maps, strict=True):
            above = np.stack([values > threshold for threshold in THRESHOLDS])
            iou.add(episode.category, above, episode.target)
    return float(max(iou.mean().max() for iou in ious))


def main() -> None:
    """Parse the command line, measure, and log the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("model", help="name, folder or Hub repository")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--one-shot", type=int, default=420, help="number of one-shot episodes")
    parser.add_argument("--five-shot", type=int, default=210, help="episodes repeated at 5 shots")
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    held_out = ComposedEpisodes(args.data, args.split, args.seed)
    episodes = [held_out[i] for i in tqdm(range(args.one_shot), desc="episodes")]
    same = episodes[: args.five_shot]
    model = HDMNet.from_pretrained(args.model)
    one, one_same, five = (
        measure(model, subset, shots) for subset, shots in ((episodes, 1), (same, 1), (same, 5))
    )
    figures = {
        "one-shot": float(one.mean()),
        "one-shot, queries of five-shot": float(one_same.mean()),
        "five-shot": float(five.mean()),
        "all foreground": measure_all_foreground(episodes),
        "thresholded prior": measure_prior(model, episodes),
    }
    for name, figure in figures.items():
        logger.info("%-32s %.3f", name, figure)
    for name, value in one.per_class().items():
        logger.info("  %-30s %.3f one-shot, %.3f five-shot", name, value, five.per_class()[name])
    if args.out:
        classes = {name: float(value) for name, value in one.per_class().items()}
        args.out.write_text(json.dumps(figures | {"per class, one-shot": classes}, indent=1))


if __name__ == "__main__":
    main()
