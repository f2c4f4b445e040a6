"""Composed scenes: objects of a split, pasted on backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from catalogue import load_catalogue
from features import Item, LabelledScene
from groups import SOURCES, draw_category, keep_categories
from PIL import Image
from scenes import compose, load_backgrounds, load_cutout, texture_cutout

TEXTURES = 250
"""Number of artificial objects: blobs cut out of backgrounds."""
SECOND_OF_CATEGORY = 0.12
"""Probability of a second object of the target's category, if it has another."""
DISTRACTORS = (0.4, 0.4, 0.2)
"""Probability of 1, 2, 3 objects of other categories."""
HARD_DISTRACTOR = 0.4
"""Probability that the first distractor is from the target's family (one animal beside another), if
the family has another category. The model must then learn more than "an animal"."""


class ComposedScenes:
    """Scenes of the objects of a split. In `train`, texture blobs are objects too.

    Args:
        data: The folder that `fetch.py` wrote.
        split: `train`, `val` or `test`.
        size: Height and width of a scene.
    """

    def __init__(self, data: Path, split: str, size: int) -> None:
        self.size = size
        self._backgrounds = load_backgrounds(data)
        cutouts = [c for c in load_catalogue(data) if c.split == split]
        self._images = [load_cutout(data / c.path) for c in cutouts]
        self.items = [Item(c.path, c.category, c.kind) for c in cutouts]
        if split == "train":
            rng = np.random.default_rng(0)
            for i in range(TEXTURES):
                self._images.append(texture_cutout(rng, self._backgrounds))
                self.items.append(Item(f"texture{i}", f"texture{i}", "texture"))
        self._sampler = ObjectSampler(self.items)

    def draw(self, rng: np.random.Generator, _row: int) -> LabelledScene:
        """Draw a scene."""
        objects = self._sampler.scene(rng)
        images: list[Image.Image] = [self._images[i] for i in objects]
        scene = compose(rng, images, self._backgrounds, self.size)
        return LabelledScene(scene.image, scene.instances, objects)


def _family(category: str) -> str:
    """Return the top folder of a category."""
    return category.split("/")[0]


class ObjectSampler:
    """Sampler of a source, then a category, then an object, so that no category dominates."""

    def __init__(self, items: Sequence[Item]) -> None:
        groups: dict[str, dict[str, list[int]]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.kind, {}).setdefault(item.category, []).append(index)
        self._items = items
        self._groups = {kind: groups[kind] for kind in SOURCES if kind in groups}

    def draw(self, rng: np.random.Generator, exclude: set[str], *, family: str = "") -> int:
        """Draw an object whose category is not in `exclude`, from `family` where possible."""
        others = keep_categories(self._groups, lambda name, _: name not in exclude)
        others = keep_categories(others, lambda name, _: _family(name) == family) or others
        kind, name = draw_category(rng, others)
        return int(rng.choice(others[kind][name]))

    def scene(self, rng: np.random.Generator) -> list[int]:
        """Draw the objects of one scene, the target first."""
        target = self.draw(rng, set())
        category = self._items[target].category
        chosen, seen = [target], {category}
        same = [
            i for i, item in enumerate(self._items) if item.category == category and i != target
        ]
        if same and rng.random() < SECOND_OF_CATEGORY:
            chosen.append(int(rng.choice(same)))
        hard = rng.random() < HARD_DISTRACTOR
        for number in range(1 + rng.choice(len(DISTRACTORS), p=DISTRACTORS)):
            family = _family(category) if hard and number == 0 else ""
            other = self.draw(rng, seen, family=family)
            seen.add(self._items[other].category)
            chosen.append(other)
        return chosen
