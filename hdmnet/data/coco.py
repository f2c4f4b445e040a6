"""COCO, and one's own data in its format."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.source import VOID, LabelledImages, require_files


class CocoInstances(LabelledImages):
    """Images with an instances JSON, such as COCO 2014's, as labels of classes.

    Where instances overlap, the smaller one is seen: it is the one in front more often.

    Args:
        images: Folder of the images, such as `val2014`.
        annotations: The JSON, such as `instances_val2014.json`. Classes are its categories in the
            order of their ids, images are in the order of theirs; an image may have no instance.
        crowd: What a crowd (`iscrowd`, a region that holds many instances) is: `ignore`, left out
            of scores; `class`, pixels of its class; or `background`. The papers do not say which.

    Raises:
        FileNotFoundError: If the JSON or any image is missing.
        ImportError: If the extra is not installed.
        ValueError: If the JSON is damaged, holds no images, or an instance has no mask.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        crowd: Literal["ignore", "class", "background"] = "ignore",
    ) -> None:
        try:
            from pycocotools.coco import COCO
        except ImportError as error:
            raise ImportError("COCO needs: pip install 'hdmnet[eval]'") from error
        labels_of_crowds = ("ignore", "class", "background")
        if crowd not in labels_of_crowds:
            raise ValueError(f"crowd must be one of {labels_of_crowds}, got {crowd!r}")
        require_files([Path(annotations)], "COCO")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
                self._coco = COCO(str(annotations))
            self._images = self._coco.loadImgs(sorted(self._coco.imgs))
            names = [image["file_name"] for image in self._images]
            categories = sorted(self._coco.cats)
            classes = [self._coco.cats[category]["name"] for category in categories]
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{annotations} is no COCO file of instances: {error!r}") from error
        self._label_of = {category: label for label, category in enumerate(categories, start=1)}
        self._crowd = crowd
        if bad := [str(a["id"]) for a in self._coco.anns.values() if not a.get("segmentation")]:
            raise ValueError(
                f"{annotations}: {len(bad)} annotations have no segmentation, such as "
                f"{', '.join(bad[:5])}: boxes alone are no masks"
            )
        files = [Path(images) / name for name in names]
        require_files(files, "COCO")
        super().__init__(classes, names, files)

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`."""
        image = self._images[index]
        label = np.zeros((image["height"], image["width"]), np.int32)
        instances = self._coco.imgToAnns[image["id"]]
        # Crowds first: an instance that is outlined is better known than the crowd around it.
        for annotation in sorted(instances, key=self._depth):
            mask = self._coco.annToMask(annotation) > 0
            label[mask] = self._value(annotation)
        return label

    def _depth(self, annotation: dict[str, Any]) -> tuple[bool, float]:
        return not annotation.get("iscrowd"), -float(annotation.get("area", 0))

    def _value(self, annotation: dict[str, Any]) -> int:
        if annotation.get("iscrowd") and self._crowd != "class":
            return VOID if self._crowd == "ignore" else 0
        return self._label_of[annotation["category_id"]]
