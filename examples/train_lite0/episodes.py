"""Draw episodes from cached scenes: K masked supports, and queries of the same class."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cache import SUPPORTS_PER_SCENE, draw_category, keep_categories
from torch import Tensor

MIN_PIXELS = 0.005
"""Smallest share of the query that its object covers."""
OBJECT, IGNORE = 1, 255


@dataclass(frozen=True)
class Batch:
    """Features, masks and targets of G episodes with K supports and Q queries each."""

    supports: Tensor  # (G K, C, h, w)
    masks: Tensor  # (G, K, H, W)
    queries: Tensor  # (G Q, C, h, w)
    targets: Tensor  # (G Q, H, W)
    categories: list[str]  # of the G episodes


class Episodes:
    """Sampler of episodes from the files that `cache.py` wrote for one split."""

    def __init__(self, folder: Path) -> None:
        table = json.loads((folder / "index.json").read_text())
        self.items = table["items"]
        self.objects: list[list[int]] = [scene["objects"] for scene in table["scenes"]]
        self._scenes = np.load(folder / "scenes.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")
        self._supports = np.load(folder / "supports.npy", mmap_mode="r")
        self._shown = [scene["supports"] for scene in table["scenes"]]
        self._supports_of: dict[int, list[int]] = defaultdict(list)  # item → rows of supports
        self._queries_of: dict[int, list[int]] = defaultdict(list)  # item → scenes
        for scene, (objects, shown) in enumerate(zip(self.objects, self._shown, strict=True)):
            for position, instance in enumerate(shown):
                self._supports_of[objects[instance]].append(SUPPORTS_PER_SCENE * scene + position)
            areas = np.bincount(self._labels[scene].ravel(), minlength=len(objects) + 1)[1:]
            for item, area in zip(objects, areas, strict=True):
                if area >= MIN_PIXELS * self._labels[scene].size:
                    self._queries_of[item].append(scene)
        self._groups: dict[str, dict[str, list[int]]] = {}  # source → category → items
        of_category: dict[str, list[int]] = defaultdict(list)
        for item, rows in self._supports_of.items():
            if len(set(self._queries_of[item])) > 1 and len(rows) > 1:
                of_category[self.items[item]["category"]].append(item)
        for category, members in of_category.items():
            kind = self.items[members[0]]["kind"]
            self._groups.setdefault(kind, {})[category] = members

    def draw(
        self, rng: np.random.Generator, *, shots: int, queries: int, across: bool
    ) -> tuple[list[int], list[int], str, set[int]]:
        """Draw one episode.

        Args:
            rng: Random number generator.
            shots: Number of supports.
            queries: Number of queries.
            across: True if supports and queries show different objects of one category, False if
                they show the same object in different scenes.

        Returns:
            Rows of the supports, scenes of the queries, the category, and the items that the
            queries ask for.
        """
        groups = self._groups
        if across:
            groups = keep_categories(groups, lambda _, members: len(members) > 1)
        while True:
            kind, category = draw_category(rng, groups)
            members = rng.permutation(groups[kind][category])
            cut = int(rng.integers(1, len(members))) if across else 0
            wanted = {int(m) for m in (members[:cut] if across else members[:1])}
            shown = {int(m) for m in (members[cut:] if across else members[:1])}
            scenes = [
                s
                for item in wanted
                for s in self._queries_of[item]
                if not across or not shown & set(self.objects[s])
            ]
            if len(set(scenes)) < queries:
                continue
            chosen = [int(s) for s in rng.choice(scenes, queries, replace=False)]
            rows = [
                row
                for item in shown
                for row in self._supports_of[item]
                if row // SUPPORTS_PER_SCENE not in chosen
            ]
            if rows and len(set(chosen)) == queries:
                supports = rng.choice(rows, shots, replace=len(rows) < shots)
                return [int(row) for row in supports], chosen, category, wanted

    def target(self, scene: int, category: str, wanted: set[int], *, across: bool) -> np.ndarray:
        """Make the target (H, W) of a query.

        1 = the wanted items (with `across`, the whole category), 255 = other objects of the
        category, which are ignored, 0 = background.
        """
        values = np.zeros(256, np.uint8)
        for label, item in enumerate(self.objects[scene], start=1):
            if item in wanted or (across and self.items[item]["category"] == category):
                values[label] = OBJECT
            elif self.items[item]["category"] == category:
                values[label] = IGNORE
        return values[self._labels[scene]]

    def batch(
        self, rng: np.random.Generator, *, groups: int, shots: int, queries: int, across: float
    ) -> Batch:
        """Draw a batch of episodes; `across` is the probability of different objects in one."""
        supports, scenes, masks, targets, categories = [], [], [], [], []
        for _ in range(groups):
            mode = bool(rng.random() < across)
            rows, chosen, category, wanted = self.draw(
                rng, shots=shots, queries=queries, across=mode
            )
            supports += rows
            scenes += chosen
            categories.append(category)
            for row in rows:
                scene, position = divmod(row, SUPPORTS_PER_SCENE)
                masks.append(self._labels[scene] == self._shown[scene][position] + 1)
            targets += [self.target(s, category, wanted, across=mode) for s in chosen]
        mask = torch.from_numpy(np.stack(masks)).float()
        return Batch(
            supports=torch.from_numpy(self._supports[supports]).float(),
            masks=mask.unflatten(0, (groups, shots)),
            queries=torch.from_numpy(self._scenes[scenes]).float(),
            targets=torch.from_numpy(np.stack(targets)),
            categories=categories,
        )
