"""COCO, and your own data in COCO format."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdmnet.data.source import VOID, LabelledImages, read_pixels, require_files
from hdmnet.images import load_image

CROWDS = ("ignore", "class", "background")


class CocoInstances(LabelledImages):
    """Images and labels of COCO, from a JSON file of instances.

    Where instances overlap, the smaller one gives the label, because more often it is the one in
    front. Images are not turned by their EXIF orientation, because the JSON describes the pixels
    as they are stored. A JSON that hdmnet wrote says in its `info` that it describes upright
    images: there, they are turned.

    Args:
        images: Folder of the images, such as `val2014`.
        annotations: Path of the JSON, such as `instances_val2014.json`. Its categories are the
            classes. Classes and images are in the order of their ids. An image may have no
            instances.
        crowd: Label of a crowd (`iscrowd`: a region with many instances). `ignore`: `VOID`, which
            is not scored. `class`: its class. `background`: background. The papers do not say
            which one they use.

    Raises:
        FileNotFoundError: If the JSON or any image is missing.
        ImportError: If pycocotools is not installed.
        ValueError: If `crowd` has another value, or the JSON is damaged or lists no images; or if
            an instance has no segmentation, or a category or image that the JSON does not list.

    Example:
        >>> source = CocoInstances("val2014", "annotations/instances_val2014.json")
        >>> image, label = source.image(0), source.label(0)
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        crowd: Literal["ignore", "class", "background"] = "ignore",
    ) -> None:
        try:
            import pycocotools.mask
        except ImportError as error:
            raise ImportError(
                "COCO needs pycocotools: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
            ) from error
        if crowd not in CROWDS:
            raise ValueError(f"crowd must be one of {CROWDS}, got {crowd!r}")
        self._rle, self._crowd = pycocotools.mask, crowd
        path = Path(annotations)
        require_files([path], "COCO")
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            listed = sorted(table["images"], key=lambda image: image["id"])
            categories = sorted(table["categories"], key=lambda category: category["id"])
            names = [str(image["file_name"]) for image in listed]
            self._sizes = [(int(image["height"]), int(image["width"])) for image in listed]
            classes = [str(category["name"]) for category in categories]
            label_of = {category["id"]: c for c, category in enumerate(categories, start=1)}
            info = table.get("info")
            self._upright = isinstance(info, dict) and info.get("upright") is True
            instances: dict[Any, list[Any]] = {image["id"]: [] for image in listed}
            annotated = [
                (a["id"], a["image_id"], a["category_id"], a) for a in table["annotations"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a COCO file of instances: {error!r}") from error
        for number, image, category, annotation in annotated:
            for what, known in (
                ("no segmentation: a box is not enough", annotation.get("segmentation")),
                (f"category {category}, which is not listed", category in label_of),
                (f"image {image}, which is not listed", image in instances),
            ):
                if not known:
                    raise ValueError(f"{path}: annotation {number} has {what}")
            depth = bool(annotation.get("iscrowd")), float(annotation.get("area", 0))
            one = *depth, label_of[category], annotation["segmentation"]
            instances[image].append(one)
        # One bytes object: every worker that reads millions of small objects would copy them.
        texts = [json.dumps(instances[image["id"]]).encode() for image in listed]
        self._ends = np.cumsum([0, *map(len, texts)])
        self._instances = b"".join(texts)
        files = [Path(images) / name for name in names]
        require_files(files, "COCO")
        super().__init__(classes, names, files, about=(crowd, path.stat().st_size))

    def image(self, index: int) -> Tensor:
        """See `LabelledImages.image`."""
        if self._upright:
            return load_image(self.files[index])
        return load_image(torch.from_numpy(read_pixels(self.files[index], "RGB")).permute(2, 0, 1))

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`."""
        label = np.zeros(self._sizes[index], np.int32)
        text = self._instances[self._ends[index] : self._ends[index + 1]]
        # Crowds first: the outline of an instance is more exact than the crowd around it.
        for crowd, _, value, segmentation in sorted(
            json.loads(text), key=lambda one: (not one[0], -one[1])
        ):
            if crowd and self._crowd != "class":
                value = VOID if self._crowd == "ignore" else 0
            label[self._decode(segmentation, self._sizes[index])] = value
        return label

    def _decode(self, segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Turn polygons, or RLE (a list of numbers or compressed), into a mask (H, W)."""
        coded = segmentation
        if isinstance(segmentation, list):
            coded = self._rle.merge(self._rle.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            coded = self._rle.frPyObjects(segmentation, *size)
        return np.asarray(self._rle.decode(coded)) > 0
