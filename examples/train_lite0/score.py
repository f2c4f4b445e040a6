"""Measure a trained model and two baselines on episodes of the held-out folders.

Support and query show different photographs of one folder, and every query also shows an object of
another held-out folder. One-shot and five-shot use the same queries. The pictures are composites:
do not compare the figures with PASCAL-5i or COCO-20i. To measure the third baseline, the recipe
without distillation, run this command on that model.

    python score.py DATA MODEL
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from catalogue import Cutout, load_catalogue
from PIL import Image
from scenes import compose, load_backgrounds, load_cutout
from torch.nn.functional import interpolate
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.images import load_image

logger = logging.getLogger(__name__)

SCENE = 473
"""Side of the composed pictures in pixels; `predict` resizes them."""
SHOTS = 5
THRESHOLDS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Episode:
    """Query and supports (H, W, 3) uint8, target and masks (H, W) bool."""

    category: str
    query: np.ndarray
    target: np.ndarray
    supports: list[np.ndarray]
    masks: list[np.ndarray]


class HeldOut:
    """Episodes of a split. The seed and the number determine an episode."""

    def __init__(self, data: Path, split: str, seed: int) -> None:
        self._seed = seed
        self._backgrounds = load_backgrounds(data)
        self._members: dict[str, list[Cutout]] = defaultdict(list)
        for cutout in load_catalogue(data):
            if cutout.split == split:
                self._members[cutout.category].append(cutout)
        self._images: dict[str, Image.Image] = {
            c.path: load_cutout(data / c.path)
            for members in self._members.values()
            for c in members
        }
        self.categories = sorted(c for c, members in self._members.items() if len(members) > 1)

    def __getitem__(self, number: int) -> Episode:
        rng = np.random.default_rng((self._seed, number))
        category = self.categories[number % len(self.categories)]
        members = [
            self._members[category][i] for i in rng.permutation(len(self._members[category]))
        ]
        query, query_mask = self._scene(rng, members[0])
        others = members[1:]
        pairs = [self._scene(rng, others[k % len(others)]) for k in range(SHOTS)]
        images, masks = zip(*pairs, strict=True)
        return Episode(category, query, query_mask, list(images), list(masks))

    def _scene(self, rng: np.random.Generator, target: Cutout) -> tuple[np.ndarray, np.ndarray]:
        strangers = [name for name in self._members if name != target.category]
        chosen = rng.choice(strangers, int(rng.integers(1, 3)), replace=False)
        distractors = [self._members[c][rng.integers(len(self._members[c]))] for c in chosen]
        images = [self._images[c.path] for c in (target, *distractors)]
        scene = compose(rng, images, self._backgrounds, SCENE)
        return scene.image, scene.instances == 1


class IoU:
    """Class mIoU: sum intersections and unions per class, then average the IoUs over classes."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, category: str, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add one mask (H, W), or a stack of masks (N, H, W) at N thresholds."""
        inter = (predicted & target).sum((-2, -1))
        union = (predicted | target).sum((-2, -1))
        self._sums[category] = self._sums.get(category, 0) + np.stack([inter, union])

    def per_class(self) -> dict[str, np.ndarray]:
        """Return the IoU of each class."""
        return {name: inter / union for name, (inter, union) in sorted(self._sums.items())}

    def mean(self) -> np.ndarray:
        """Return the mean IoU over classes."""
        return np.mean(list(self.per_class().values()), axis=0)


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
        iou.add(episode.category, np.ones_like(episode.target), episode.target)
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
        maps = interpolate(prior, episode.target.shape, mode="bilinear")[0].numpy()
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

    held_out = HeldOut(args.data, args.split, args.seed)
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
