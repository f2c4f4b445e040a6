"""COCO, and your own data in COCO format."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hdmnet.data.source import VOID, LabelledImages, require_files
from hdmnet.images import load_image

CROWDS = ("ignore", "class", "background")


class CocoInstances(LabelledImages):
    """Images and labels of COCO, from a JSON file of instances.

    Where instances overlap, the smaller one gives the label, because more often it is the one in
    front. An instance without `area` is as large as its segmentation. Images are not turned by
    their EXIF orientation, because the JSON describes the pixels as they are stored. A JSON that
    hdmnet wrote says in its `info` that it describes upright images: there, they are turned.

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
            `label` raises it if a segmentation cannot be read or has another size than its image.

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
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "COCO needs pycocotools: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
            ) from error
        if crowd not in CROWDS:
            raise ValueError(f"crowd must be one of {CROWDS}, got {crowd!r}")
        self._crowd = crowd
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
                (a["id"], a["image_id"], a["category_id"], float(a.get("area") or 0), a)
                for a in table["annotations"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a COCO file of instances: {error!r}") from error
        for number, image, category, area, annotation in annotated:
            for what, known in (
                ("no segmentation: a box is not enough", annotation.get("segmentation")),
                (f"category {category}, which is not listed", category in label_of),
                (f"image {image}, which is not listed", image in instances),
            ):
                if not known:
                    raise ValueError(f"{path}: annotation {number} has {what}")
            depth = bool(annotation.get("iscrowd")), area
            instances[image].append((*depth, label_of[category], annotation["segmentation"]))
        # One bytes object: every worker that reads millions of small objects would copy them.
        texts = [json.dumps(instances[image["id"]]).encode() for image in listed]
        self._ends = np.cumsum([0, *map(len, texts)])
        self._instances = b"".join(texts)
        files = [Path(images) / name for name in names]
        require_files(files, "COCO")
        super().__init__(classes, names, files, about=(crowd, path.stat().st_size))

    def image(self, index: int) -> Tensor:
        """See `LabelledImages.image`."""
        return load_image(self.files[index], upright=self._upright)

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`."""
        from pycocotools import mask as rle

        size = self._sizes[index]
        text = self._instances[self._ends[index] : self._ends[index + 1]]
        label = np.zeros(size, np.int32)
        instances = []
        for crowd, area, value, segmentation in json.loads(text):
            try:
                coded = _encode(segmentation, size)
                instances.append((crowd, area or float(rle.area(coded)), value, coded))
            except Exception as error:  # pycocotools raises many kinds
                raise ValueError(
                    f"a segmentation of {self.classes[value - 1]!r} in {self.ids[index]} cannot be "
                    f"read ({error!r}): expected polygons, or RLE of {size[0]} x {size[1]} (height "
                    "x width)"
                ) from error
        # Crowds first: the outline of an instance is more exact than the crowd around it.
        for crowd, _, value, coded in sorted(instances, key=lambda one: (not one[0], -one[1])):
            if crowd and self._crowd != "class":
                value = VOID if self._crowd == "ignore" else 0
            label[rle.decode(coded) > 0] = value
        return label


def _encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Turn polygons, or RLE (a list of numbers or compressed), into compressed RLE."""
    from pycocotools import mask as rle

    if isinstance(segmentation, list):
        polygons = [one for one in segmentation if len(one) >= 6]  # two points have no area
        coded = rle.merge(rle.frPyObjects(polygons, *size)) if polygons else None
        return coded or rle.encode(np.zeros(size, np.uint8, order="F"))
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"its size is {segmentation['size']}")
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, *size)
    return segmentation
