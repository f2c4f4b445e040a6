"""Draw episodes from cached scenes: K masked supports, and queries of the same class."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from features import IGNORE, SUPPORTS_PER_SCENE
from groups import draw_category, keep_categories
from torch import Tensor

MIN_PIXELS = 0.005
"""Smallest share of the query that its object covers."""
OBJECT = 1
ROUGH = 0.2
"""Usual share of the episodes whose supports may have rough masks."""
SELF = ("box", "points")
"""Kinds of rough masks whose object is looked for in the support itself."""

Mode = Literal["across", "same", "self"]
"""across: supports and queries show different objects, or photographs, of one category.
same: they show the same object in different scenes, or crops of one photograph.
self: the support is the first query with a box or points as mask, as in `HDMNet.pseudo_mask`."""


@dataclass(frozen=True)
class Batch:
    """Features, masks and targets of G episodes with K supports and Q queries each."""

    supports: Tensor  # (G K, C, h, w)
    masks: Tensor  # (G, K, H, W)
    queries: Tensor  # (G Q, C, h, w)
    targets: Tensor  # (G Q, H, W)
    categories: list[str]  # of the G episodes
    rivals: Tensor  # (G M K, C, h, w), supports of M other classes of each episode
    rival_masks: Tensor  # (G M, K, H, W)

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Join batches with the same K and Q."""
        tensors = {
            field.name: torch.cat([getattr(batch, field.name) for batch in batches])
            for field in fields(cls)
            if field.name != "categories"
        }
        return cls(categories=[name for batch in batches for name in batch.categories], **tensors)


@dataclass(frozen=True)
class Draw:
    """One episode, as numbers."""

    rows: list[int]  # of the supports
    scenes: list[int]  # of the queries
    category: str
    wanted: set[int] | None  # the items that the queries ask for; None: the whole category


class Episodes:
    """Sampler of episodes from one folder that `write_features` wrote."""

    def __init__(self, folder: Path) -> None:
        self.items = json.loads((folder / "items.json").read_text())
        index = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        self.objects: list[list[int]] = [scene["objects"] for scene in index]
        self._scenes = np.load(folder / "scenes.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")
        self._supports = np.load(folder / "supports.npy", mmap_mode="r")
        self._masks = np.load(folder / "masks.npy", mmap_mode="r")
        self._kind_of: dict[int, str] = {}  # row of a support → kind of rough mask, or ""
        self._item_of: dict[int, int] = {}  # row of a support → item
        self._supports_of: dict[int, list[int]] = defaultdict(list)  # item → rows of supports
        self._queries_of: dict[int, list[int]] = defaultdict(list)  # item → scenes
        for scene, entry in enumerate(index):
            objects = entry["objects"]
            for place, (label, kind) in enumerate(entry["supports"]):
                row = SUPPORTS_PER_SCENE * scene + place
                self._kind_of[row], self._item_of[row] = kind, objects[label - 1]
                self._supports_of[objects[label - 1]].append(row)
            areas = np.bincount(self._labels[scene].ravel(), minlength=256)[1:IGNORE]
            for item, area in zip(objects, areas, strict=False):
                if area >= MIN_PIXELS * self._labels[scene].size:
                    self._queries_of[item].append(scene)
        self._by_kind: dict[str, dict[str, list[int]]] = {}  # source → category → items
        for number, item in enumerate(self.items):
            if self._supports_of[number] and self._queries_of[number]:
                self._by_kind.setdefault(item["kind"], {}).setdefault(item["category"], []).append(
                    number
                )

    def draw(
        self,
        rng: np.random.Generator,
        *,
        shots: int,
        queries: int,
        mode: Mode,
        rough: float = ROUGH,
    ) -> Draw:
        """Draw one episode; a set without boxes and points as masks has `across` for `self`."""
        if mode == "self" and not set(self._kind_of.values()) & set(SELF):
            mode = "across"
        groups = keep_categories(self._by_kind, lambda _, m: mode == "same" or len(m) > 1)
        may_be_rough = mode == "self" or rng.random() < rough
        while True:
            kind, category = draw_category(rng, groups)
            members = rng.permutation(groups[kind][category])
            cut = int(rng.integers(1, len(members))) if mode != "same" else 0
            shown = {int(m) for m in (members[cut:] if mode != "same" else members[:1])}
            wanted = {int(m) for m in (members[:cut] if mode != "same" else members[:1])}
            rows = [r for item in shown for r in self._supports_of[item]]
            rows = [r for r in rows if may_be_rough or not self._kind_of[r]]
            scenes = {s for item in wanted for s in self._queries_of[item]}
            first: list[int] = []
            if mode == "same":
                # One scene is left for the supports.
                scenes -= {int(rng.choice(rows)) // SUPPORTS_PER_SCENE} if rows else set()
            else:
                scenes = {s for s in scenes if not shown & set(self.objects[s])}
            if mode == "self":
                rows = [r for r in rows if self._kind_of[r] in SELF]
                rows = [int(r) for r in rng.permutation(rows)[:1]]
                first = [row // SUPPORTS_PER_SCENE for row in rows]
            if not rows or len(scenes) < queries - len(first):
                continue
            chosen = rng.choice(sorted(scenes), queries - len(first), replace=False)
            scenes_drawn = first + [int(s) for s in chosen]
            if mode != "self":
                rows = [r for r in rows if r // SUPPORTS_PER_SCENE not in scenes_drawn]
            if rows:
                supports = rng.choice(rows, shots, replace=len(rows) < shots)
                asked = None if mode == "across" else wanted | {self._item_of[r] for r in rows}
                return Draw([int(r) for r in supports], scenes_drawn, category, asked)

    def _absent(self, rng: np.random.Generator, category: str) -> int:
        """Draw a scene that shows nothing of a category."""
        while True:
            scene = int(rng.integers(len(self.objects)))
            if all(self.items[item]["category"] != category for item in self.objects[scene]):
                return scene

    def _rivals(
        self, rng: np.random.Generator, drawn: Draw, scenes: list[int], count: int
    ) -> list[list[int]]:
        """Draw rows of exact supports of other categories, where possible of what scenes show."""
        shots = len(drawn.rows)
        rows: list[list[int]] = []
        seen = {self.items[i]["category"] for scene in scenes for i in self.objects[scene]}
        candidates = [str(name) for name in rng.permutation(sorted(seen - {drawn.category}))]
        every = [name for group in self._by_kind.values() for name in group]
        candidates += [str(name) for name in rng.permutation(every) if name != drawn.category]
        members = {name: items for group in self._by_kind.values() for name, items in group.items()}
        for name in dict.fromkeys(candidates):
            found = [
                row
                for item in members.get(name, ())
                for row in self._supports_of[item]
                if not self._kind_of[row] and row // SUPPORTS_PER_SCENE not in scenes
            ]
            if found and len(rows) < count:
                rows.append([int(r) for r in rng.choice(found, shots, replace=len(found) < shots)])
        return rows

    def mean(self, scenes: int) -> np.ndarray:
        """Average the features (C,) over the first scenes."""
        return self._scenes[:scenes].mean(axis=(0, 2, 3), dtype=np.float32)

    def target(self, scene: int, category: str, wanted: set[int] | None) -> np.ndarray:
        """Make the target (H, W) of a query.

        1 = the wanted items, 255 = other objects of the category, which are ignored, and what the
        scene ignores, 0 = background.
        """
        values = np.zeros(256, np.uint8)
        values[IGNORE] = IGNORE
        for label, item in enumerate(self.objects[scene], start=1):
            if self.items[item]["category"] == category:
                values[label] = OBJECT if wanted is None or item in wanted else IGNORE
        return values[self._labels[scene]]

    def episode(
        self,
        rng: np.random.Generator,
        *,
        shots: int,
        queries: int,
        mode: Mode = "across",
        rivals: int = 0,
        absent: float = 0.0,
        rough: float = ROUGH,
        flip: bool = True,
    ) -> Batch:
        """Draw one episode (G = 1).

        Args:
            rng: Random number generator.
            shots: Number K of supports.
            queries: Number Q of queries.
            mode: What supports and queries have in common.
            rivals: Number M of other classes.
            absent: Share of the queries that do not show the class.
            rough: Share of the episodes whose supports may have rough masks.
            flip: Whether to flip supports and queries at random. This is exact, see `SIZE`.
        """
        drawn = self.draw(rng, shots=shots, queries=queries, mode=mode, rough=rough)
        scenes = [
            self._absent(rng, drawn.category)
            if rng.random() < absent and not (mode == "self" and place == 0)
            else scene
            for place, scene in enumerate(drawn.scenes)
        ]
        targets = [self.target(s, drawn.category, drawn.wanted) for s in scenes]
        supports = torch.from_numpy(self._supports[drawn.rows]).float()
        masks = torch.from_numpy(self._masks[drawn.rows]).float()
        features = torch.from_numpy(self._scenes[scenes]).float()
        target = torch.from_numpy(np.stack(targets))
        for pair in ((supports, masks), (features, target)) if flip else ():
            turned = torch.from_numpy(rng.random(len(pair[0])) < 0.5)
            for x in pair:
                x[turned] = x[turned].flip(-1)
        others = self._rivals(rng, drawn, scenes, rivals)
        rows = [row for other in others for row in other]
        return Batch(
            supports,
            masks[None],
            features,
            target,
            [drawn.category],
            rivals=torch.from_numpy(self._supports[rows]).float(),
            rival_masks=torch.from_numpy(self._masks[rows])
            .float()
            .reshape(len(others), shots, *masks.shape[1:]),
        )


class Mixture:
    """Sampler of episodes from several folders.

    Args:
        folders: Each folder and the share of its episodes.
    """

    def __init__(self, folders: Mapping[Path, float]) -> None:
        self._sets = [Episodes(folder) for folder in folders]
        self._shares = np.array(list(folders.values())) / sum(folders.values())

    def mean_f4(self, channels: int, scenes: int = 300) -> list[float]:
        """Average f4, the last channels, over some scenes of each folder, by the shares."""
        means = [episodes.mean(scenes)[-channels:] for episodes in self._sets]
        return [round(float(x), 3) for x in self._shares @ np.stack(means)]

    def batch(
        self,
        rng: np.random.Generator,
        *,
        groups: int,
        shots: int,
        queries: int,
        modes: Mapping[Mode, float],
        rivals: int = 0,
        absent: float = 0.0,
        rough: float = ROUGH,
    ) -> Batch:
        """Draw a batch of `groups` episodes; `modes` has the probability of each mode."""
        drawn = []
        for _ in range(groups):
            chosen = self._sets[int(rng.choice(len(self._sets), p=self._shares))]
            mode: Mode = rng.choice(list(modes), p=list(modes.values()))
            drawn.append(
                chosen.episode(
                    rng,
                    shots=shots,
                    queries=queries,
                    mode=mode,
                    rivals=rivals,
                    absent=absent,
                    rough=rough,
                )
            )
        return Batch.join(drawn)
