"""What every collection of labelled images can do, whatever its files look like."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hdmnet._files import write_whole
from hdmnet.images import load_image

logger = logging.getLogger(__name__)

VOID = -1
"""Label of pixels that belong to no class and not to the background: the 255 of VOC's files."""
_LISTED = 10


class LabelledImages(ABC):
    """Images with a label for every pixel.

    Args:
        classes: Names. A pixel of `classes[c - 1]` has the label c.
        ids: Of the images, in the order of the list.
        files: Path of each image.

    Raises:
        ValueError: If there are no images, or two of one id.
    """

    def __init__(self, classes: Sequence[str], ids: Sequence[str], files: Sequence[Path]) -> None:
        if not ids:
            raise ValueError(f"{type(self).__name__} found no images")
        if len(set(ids)) < len(ids):
            double = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"the image {double!r} is listed more than once")
        self.classes = tuple(classes)
        self.ids = tuple(ids)
        self.files = tuple(files)
        self._areas: list[dict[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1].

        Raises:
            ValueError: If the file is damaged.
        """
        return load_image(self.files[index])

    @abstractmethod
    def label(self, index: int) -> NDArray[np.int32]:
        """(H, W): 0 background, c for `classes[c - 1]`, and `VOID` where nobody can say.

        Raises:
            ValueError: If the file is damaged, or holds other labels.
        """

    def areas(self, cache: Path | None = None) -> list[dict[int, int]]:
        """Pixels of each class that each image shows, found by reading every label once.

        Args:
            cache: JSON file to keep them in, for a large collection. One of other images or
                classes is written anew.
        """
        if self._areas is None:
            self._areas = self._cached(cache) if cache else self._scan()
        return self._areas

    def _scan(self) -> list[dict[int, int]]:
        areas = []
        for index in tqdm(range(len(self)), desc="reading labels", leave=False, delay=2):
            labels, counts = np.unique(self.label(index), return_counts=True)
            found = zip(labels.tolist(), counts.tolist(), strict=True)
            areas.append({label: count for label, count in found if label > 0})
        return areas

    def _cached(self, cache: Path) -> list[dict[int, int]]:
        key = hashlib.sha256(json.dumps([self.classes, self.ids]).encode()).hexdigest()
        if cache.is_file():
            kept = json.loads(cache.read_text(encoding="utf-8"))
            if kept["images"] == key:
                return [{int(c): count for c, count in areas.items()} for areas in kept["areas"]]
            logger.info("%s is of other images: reading the labels again", cache)
        areas = self._scan()
        text = json.dumps({"images": key, "areas": areas})
        write_whole(cache, lambda path: path.write_text(text, encoding="utf-8"))
        return areas


def read_pixels(path: Path, mode: str | None = None) -> NDArray[Any]:
    """Pixels of a label file as they are, palette indices included, or in a mode of Pillow.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"{path} cannot be decoded ({error}): expected a complete image file"
        ) from error


def require_files(files: Iterable[Path], what: str) -> None:
    """Refuse a collection with holes, and say all that is missing at once.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f"\nand {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = "\n".join(missing[:_LISTED])
        raise FileNotFoundError(f"{len(missing)} files of {what} are missing:\n{listed}{more}")
