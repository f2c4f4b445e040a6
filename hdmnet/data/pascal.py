"""PASCAL VOC 2012, with the labels of SBD where they have been added."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.folds import PASCAL_CLASSES
from hdmnet.data.source import VOID, LabelledImages, read_pixels, require_files

_BORDER = 255


class PascalVOC(LabelledImages):
    """The tree `VOC2012` of the development kit.

    Labels are read from `SegmentationClassAug`, which is where the labels of SBD (Hariharan et al.,
    ICCV 2011) are commonly put beside VOC's own, or from `SegmentationClass` if there is no such
    folder.

    Args:
        root: The folder `VOC2012`, or one that holds it as it is or within `VOCdevkit`.
        split: Name of a list in `ImageSets/Segmentation`, or path of one. A line's first word names
            an image, by its id or by the path of its file; the rest is ignored.
        labels: Folder of the labels, beside `JPEGImages`.

    Raises:
        FileNotFoundError: If the tree, the list or any file that it names is missing.
        ValueError: If the list is empty, or names an image twice.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | os.PathLike[str] = "val",
        labels: str | None = None,
    ) -> None:
        places = [Path(root) / tail for tail in ("", "VOC2012", "VOCdevkit/VOC2012")]
        found = [place for place in places if (place / "JPEGImages").is_dir()]
        if not found:
            raise FileNotFoundError(
                f"{root} is no VOC2012 tree: expected a folder JPEGImages in it, in its VOC2012 or "
                "in its VOCdevkit/VOC2012"
            )
        self.root = found[0]
        if labels is None:
            augmented = (self.root / "SegmentationClassAug").is_dir()
            labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        named = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed = named if named.is_file() else Path(split)
        if not listed.is_file():
            raise FileNotFoundError(f"there is no list {named}, nor a file {split}")
        lines = listed.read_text(encoding="utf-8").splitlines()
        ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
        images = [self.root / "JPEGImages" / f"{name}.jpg" for name in ids]
        self._labels = [self.root / labels / f"{name}.png" for name in ids]
        require_files([*images, *self._labels], "PASCAL VOC")
        super().__init__(PASCAL_CLASSES, ids, images, about=(labels,))

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`; the 255 of borders is `VOID`."""
        path = self._labels[index]
        values = read_pixels(path).astype(np.int32)
        if values.ndim != 2:
            raise ValueError(
                f"{path} has {values.shape[-1]} channels: expected a label PNG with a palette or "
                "one channel, whose values are the classes"
            )
        values[values == _BORDER] = VOID
        if values.max() > len(self.classes):
            raise ValueError(f"{path} has the label {values.max()}: expected 0 to 20, or 255")
        return values
