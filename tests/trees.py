"""Small data sets in the file formats of the benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

Box = tuple[int, int, int, int]
PALETTE = [value for c in range(256) for value in (c * 7 % 256, c * 31 % 256, c * 89 % 256)]


def photo(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write a smooth random JPEG of `size` (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    image.save(path, format="JPEG")


def boxes_label(size: tuple[int, int], boxes: Mapping[Box, int]) -> NDArray[np.uint8]:
    """Make a label (H, W) with one value in each box (x0, y0, x1, y1)."""
    label = np.zeros(size, np.uint8)
    for (x0, y0, x1, y1), value in boxes.items():
        label[y0:y1, x0:x1] = value
    return label


def palette_png(path: Path, label: NDArray[np.uint8]) -> None:
    """Write a PNG whose palette indices are the classes, as in PASCAL VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label, mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def voc(root: Path, labels: Mapping[str, NDArray[np.uint8]], split: str = "val") -> Path:
    """Write `VOCdevkit/VOC2012` with a list of all images. Return `root`."""
    tree = root / "VOCdevkit" / "VOC2012"
    for seed, (name, label) in enumerate(labels.items()):
        photo(tree / "JPEGImages" / f"{name}.jpg", (label.shape[0], label.shape[1]), seed)
        palette_png(tree / "SegmentationClassAug" / f"{name}.png", label)
    lists = tree / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in labels), encoding="utf-8")
    return root


def polygon(box: Box) -> list[list[float]]:
    """Return the outline of a box."""
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def crowd(size: tuple[int, int], box: Box) -> dict[str, Any]:
    """Return the uncompressed RLE of a box, as COCO stores crowds: column by column."""
    mask = boxes_label(size, {box: 1}).T.ravel()
    changes = np.flatnonzero(np.diff(mask)) + 1
    edges = [0, *changes.tolist(), mask.size]
    counts = np.diff(edges).tolist()
    return {"size": list(size), "counts": counts if mask[0] == 0 else [0, *counts]}


def compressed(size: tuple[int, int], box: Box) -> dict[str, Any]:
    """Return the compressed RLE of a box."""
    coded = rle.encode(np.asfortranarray(boxes_label(size, {box: 1})))
    return {"size": list(size), "counts": coded["counts"].decode()}


def coco(
    root: Path,
    images: Sequence[tuple[str, tuple[int, int], Sequence[tuple[int, Any, bool]]]],
    categories: Mapping[int, str],
) -> tuple[Path, Path]:
    """Write images (name, (H, W), [(category, segmentation, crowd)]) and their COCO JSON file.

    Returns:
        The folder of images and the JSON file.
    """
    table: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for number, (name, size, instances) in enumerate(images, start=1):
        photo(root / "images" / name, size, number)
        entry = {"id": number * 10, "file_name": name, "height": size[0], "width": size[1]}
        table["images"].append(entry)
        for category, segmentation, is_crowd in instances:
            coded = segmentation
            if isinstance(segmentation, list):
                coded = rle.merge(rle.frPyObjects(segmentation, *size))
            elif isinstance(segmentation["counts"], list):
                coded = rle.frPyObjects(segmentation, *size)
            table["annotations"].append(
                {
                    "id": len(table["annotations"]) + 1,
                    "image_id": number * 10,
                    "category_id": category,
                    "segmentation": segmentation,
                    "area": float(rle.area(coded)),
                    "iscrowd": int(is_crowd),
                }
            )
    table["categories"] = [{"id": c, "name": name} for c, name in categories.items()]
    path = root / "instances.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return root / "images", path


def fss(root: Path, classes: Sequence[str], count: int = 10, size: int = 32) -> Path:
    """Write images `class/1.jpg` and masks `class/1.png`, as FSS-1000 has them: grey RGB values."""
    for seed, name in enumerate(classes):
        for number in range(1, count + 1):
            photo(root / name / f"{number}.jpg", (size, size), 100 * seed + number)
            mask = boxes_label((size, size), {(4, 4, 20 + seed, 24): 250})
            mask[4:24, 3] = 90
            Image.fromarray(mask).convert("RGB").save(root / name / f"{number}.png")
    return root


def mask_folders(
    root: Path, classes: Mapping[str, Box], count: int = 4, size: tuple[int, int] = (48, 64)
) -> Path:
    """Write `class/images/name.jpg` and masks `class/masks/name.png`, where 255 is the object."""
    for seed, (name, box) in enumerate(classes.items()):
        for number in range(count):
            photo(root / name / "images" / f"bild {number}.jpg", size, 10 * seed + number)
            (root / name / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(boxes_label(size, {box: 255}))
            mask.save(root / name / "masks" / f"bild {number}.png")
    return root
