"""PASCAL VOC 2012, with the labels of SBD if they were added."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet._formats import SUFFIXES
from hdmnet.data.folds import PASCAL_CLASSES
from hdmnet.data.source import VOID, LabelledImages, read_pixels, require_files

_BORDER = 255


class PascalVOC(LabelledImages):
    """PASCAL VOC 2012, in the folders of its development kit.

    Args:
        root: The folder `VOC2012`, or a folder that holds `VOC2012` or `VOCdevkit/VOC2012`.
        split: Name of a list in `ImageSets/Segmentation`, or path of a list. The first word of a
            line names an image, by its id or by the path of its file. The rest is ignored.
        labels: Name of the folder of the labels, beside `JPEGImages`. None: `SegmentationClassAug`,
            the usual name for VOC's labels together with those of SBD (Hariharan et al., ICCV
            2011), or `SegmentationClass` if that folder does not exist.

    Raises:
        FileNotFoundError: If a folder, the list or any file that it names is missing.
        ValueError: If the list is empty, or names an image twice.

    Example:
        >>> source = PascalVOC("VOCdevkit", split="val")
        >>> image, label = source.image(0), source.label(0)
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
                f"{root} does not hold VOC2012: expected a folder JPEGImages in it, in its VOC2012 "
                "or in its VOCdevkit/VOC2012"
            )
        self.root = found[0]
        if labels is None:
            augmented = (self.root / "SegmentationClassAug").is_dir()
            labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        named = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed = named if named.is_file() else Path(split)
        if not listed.is_file():
            raise FileNotFoundError(f"there is neither a list {named} nor a file {split}")
        lines = listed.read_text(encoding="utf-8").splitlines()
        named_files = [Path(line.split()[0]) for line in lines if line.strip()]
        ids = [file.stem if file.suffix.lower() in SUFFIXES else file.name for file in named_files]
        images = [self.root / "JPEGImages" / f"{name}.jpg" for name in ids]
        self._labels = [self.root / labels / f"{name}.png" for name in ids]
        require_files([*images, *self._labels], "PASCAL VOC")
        super().__init__(PASCAL_CLASSES, ids, images, about=(labels,))

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`. Object borders, 255 in the files, are `VOID`."""
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
