"""Real photographs with label maps as scenes: the whole of each, or a random crop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from features import IGNORE, Item, LabelledScene
from groups import draw_category
from PIL import Image
from scenes import jitter_colours

from hdmnet.data.folds import PASCAL_CLASSES

VALIDATION: Mapping[str, frozenset[str]] = {
    "VOC2012": frozenset({"bottle", "sheep", "sofa", "tvmonitor"}),
    "CCP": frozenset({"shorts", "skirt", "vest"}),
    "CarParts": frozenset(),
}
"""Validation classes of each folder. Training uses no photograph that shows one of them. Empty: all
classes. Training never sees this domain."""
SMALLEST = 0.005
"""Smallest share of a photograph that a class covers."""
WHOLE = 0.4
"""Share of the training scenes that show the whole photograph, as `predict` sees it."""
CROP = (0.6, 1.0)
"""Height and width of the others, as shares of the photograph's."""
RECOLOURED = 0.5
"""Share of the training scenes whose colours are changed a little."""


def read_classes(folder: Path) -> dict[int, str]:
    """Return the name of each label: of `classes.json`, or else of PASCAL VOC."""
    file = folder / "classes.json"
    if not file.exists():
        return dict(enumerate(PASCAL_CLASSES, start=1))
    return {
        int(label): name for label, name in json.loads(file.read_text()).items() if label != "0"
    }


class PhotoScenes:
    """Scenes of the photographs of a folder, laid out like PASCAL VOC with SBD's masks.

    In `val`, scene i is photograph i as a whole, and only the validation classes are labelled.

    Args:
        folder: Holds `JPEGImages`, `SegmentationClassAug` and, except for VOC, `classes.json`.
        split: `train` or `val`.
        size: Height and width of a scene.
    """

    def __init__(self, folder: Path, split: str, size: int) -> None:
        self._folder, self._split, self.size = folder, split, size
        classes = read_classes(folder)
        held_out = VALIDATION[folder.name] or frozenset(classes.values())
        self.names: list[str] = []
        self.items: list[Item] = []
        self.items_of: list[dict[int, int]] = []  # photograph → label → item
        for path in sorted((folder / "SegmentationClassAug").glob("*.png")):
            labels = np.asarray(Image.open(path))
            areas = np.bincount(labels.ravel(), minlength=256) / labels.size
            shown = [label for label in classes if areas[label] > 0]
            in_validation = any(classes[label] in held_out for label in shown)
            wanted = [
                label
                for label in shown
                if areas[label] >= SMALLEST and (classes[label] in held_out) == (split == "val")
            ]
            if in_validation == (split == "val") and wanted:
                self.items_of.append({})
                for label in wanted:
                    self.items_of[-1][label] = len(self.items)
                    self.items.append(Item(path.stem, f"{folder.name}/{classes[label]}", "real"))
                self.names.append(path.stem)
        self._groups: dict[str, dict[str, list[int]]] = {"real": {}}
        for photo, items in enumerate(self.items_of):
            for item in items.values():
                self._groups["real"].setdefault(self.items[item].category, []).append(photo)

    def draw(self, rng: np.random.Generator, row: int) -> LabelledScene:
        """Draw a photograph by its classes in `train`, or take number `row` in `val`."""
        training = self._split == "train"
        if training:
            kind, category = draw_category(rng, self._groups)
            row = int(rng.choice(self._groups[kind][category]))
        name = self.names[row]
        with Image.open(self._folder / "JPEGImages" / f"{name}.jpg") as file:
            image = file.convert("RGB")
        with Image.open(self._folder / "SegmentationClassAug" / f"{name}.png") as file:
            labels = file.copy()
        box = (0.0, 0.0, float(image.width), float(image.height))
        if training and rng.random() > WHOLE:
            shares = rng.uniform(*CROP, size=2)
            left, top = rng.uniform(0, 1 - shares) * image.size
            width, height = shares * image.size
            box = (left, top, left + width, top + height)
        size = (self.size, self.size)
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        if training and rng.random() < RECOLOURED:
            image = jitter_colours(rng, image, 0.5)
        given = np.asarray(labels.resize(size, Image.Resampling.NEAREST, box=box))
        table = np.zeros(256, np.uint8)
        table[IGNORE] = IGNORE
        for number, label in enumerate(self.items_of[row], start=1):
            table[label] = number
        return LabelledScene(np.array(image), table[given], list(self.items_of[row].values()))
