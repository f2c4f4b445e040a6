"""Episodes of classes that training never showed: composed scenes, and real photographs.

Support and query show different objects, or different photographs. All numbers of shots have the
same queries.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from catalogue import Cutout, load_catalogue
from features import IGNORE
from photos import PhotoScenes
from PIL import Image
from scenes import compose, load_backgrounds, load_cutout

SCENE = 473
"""Side of the composed pictures in pixels; `predict` resizes them."""
SHOTS = 5


@dataclass(frozen=True)
class Episode:
    """Query and supports (H, W, 3) uint8, target and masks (H, W) uint8: 1, 0, or 255 = ignore."""

    category: str
    query: np.ndarray
    target: np.ndarray
    supports: list[np.ndarray]
    masks: list[np.ndarray]


class Episodes(Protocol):
    """A sequence without end. The seed and the number determine an episode."""

    categories: list[str]

    def __getitem__(self, number: int) -> Episode: ...


class ComposedEpisodes:
    """Episodes of the objects of a split.

    Every query also shows an object of another category of the split. The pictures are composites:
    do not compare scores with PASCAL-5i or COCO-20i.
    """

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
        return scene.image, (scene.instances == 1).astype(np.uint8)


class PhotoEpisodes:
    """Episodes of the validation classes of a folder of photographs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._scenes = PhotoScenes(folder, "val", SCENE)
        self._of: dict[str, list[int]] = defaultdict(list)  # category → photographs
        for row, items in enumerate(self._scenes.items_of):
            for item in items.values():
                self._of[self._scenes.items[item].category].append(row)
        self.categories = sorted(self._of)

    def __getitem__(self, number: int) -> Episode:
        rng = np.random.default_rng((self._seed, number))
        category = self.categories[number % len(self.categories)]
        rows = rng.choice(self._of[category], SHOTS + 1, replace=False)
        pairs = [self._photograph(int(row), category) for row in rows]
        (query, target), *supports = pairs
        images, masks = zip(*supports, strict=True)
        return Episode(category, query, target, list(images), list(masks))

    def _photograph(self, row: int, category: str) -> tuple[np.ndarray, np.ndarray]:
        scene = self._scenes.draw(np.random.default_rng(), row)
        values = np.zeros(256, np.uint8)
        values[IGNORE] = IGNORE
        for label, item in enumerate(scene.objects, start=1):
            values[label] = self._scenes.items[item].category == category
        return scene.image, values[scene.labels]


class IoU:
    """Class mIoU: sum intersections and unions per class, then average the IoUs over classes."""

    def __init__(self) -> None:
        self._counts: dict[str, list[np.ndarray]] = defaultdict(list)
        self.each: list[np.ndarray] = []
        """IoU of each episode."""

    def add(self, category: str, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add one mask (H, W) bool, or a stack of masks (N, H, W) at N thresholds."""
        inter = (predicted & (target == 1)).sum((-2, -1))
        union = ((predicted | (target == 1)) & (target != IGNORE)).sum((-2, -1))
        self._counts[category].append(np.stack([inter, union]))
        self.each.append(inter / union)

    def per_class(self) -> dict[str, np.ndarray]:
        """Return the IoU of each class."""
        sums = {name: np.sum(counts, axis=0) for name, counts in sorted(self._counts.items())}
        return {name: inter / union for name, (inter, union) in sums.items()}

    def mean(self) -> np.ndarray:
        """Return the mean IoU over classes."""
        return np.mean(list(self.per_class().values()), axis=0)

    def at(self, place: int) -> IoU:
        """Take one of the N thresholds."""
        taken = IoU()
        taken.each = [each[place] for each in self.each]
        for name, counts in self._counts.items():
            taken._counts[name] = [count[:, place] for count in counts]
        return taken

    def interval(self, rounds: int = 1000) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of `mean`: episodes are drawn again in each class."""
        rng = np.random.default_rng(0)
        means = np.zeros(rounds)
        for counts in self._counts.values():
            drawn = rng.integers(len(counts), size=(rounds, len(counts)))
            inter, union = np.array(counts)[drawn].sum(axis=1).T
            means += inter / union / len(self._counts)
        low, high = np.quantile(means, (0.025, 0.975))
        return float(low), float(high)
