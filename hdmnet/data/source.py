"""The base class of all collections of labelled images."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hdmnet._files import write_whole
from hdmnet.images import load_image, open_image

logger = logging.getLogger(__name__)

VOID = -1
"""Label of pixels to ignore: neither a class nor background.

Not 255, as in files and tensors, because here 255 may be a class: FSS-1000 has a thousand.
"""
AREAS = "hdmnet areas 1"
_LISTED = 10


class LabelledImages(ABC):
    """Images with a label for every pixel. Subclass it and write `label` to read other data.

    Args:
        classes: Names of the classes. A pixel of `classes[c - 1]` has the label c.
        ids: Names of the images.
        files: Path of each image.
        about: Settings that change the labels. A cache of `areas` is read only if they are equal.

    Raises:
        ValueError: If there are no images, or two images or two classes have the same name.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ids: Sequence[str],
        files: Sequence[Path],
        *,
        about: Sequence[str | int] = (),
    ) -> None:
        if not ids:
            raise ValueError(f"{type(self).__name__} found no images: expected at least one")
        for what, names in (("image", ids), ("class", classes)):
            name, count = Counter(names).most_common(1)[0] if names else ("", 0)
            if count > 1:
                raise ValueError(f"the {what} {name!r} is listed more than once: list it once")
        self._about = list(about)
        self.classes = tuple(classes)
        self.ids = tuple(ids)
        self.files = tuple(files)
        self._areas: list[dict[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Tensor:
        """Load an image.

        Args:
            index: 0 to the number of images - 1.

        Returns:
            (3, H, W) float32 RGB in [0, 1].

        Raises:
            ValueError: If the file is damaged.
        """
        return load_image(self.files[index])

    @abstractmethod
    def label(self, index: int) -> NDArray[np.int32]:
        """Load the labels of an image.

        Args:
            index: 0 to the number of images - 1.

        Returns:
            (H, W): 0 = background, c = `classes[c - 1]`, `VOID` = ignore.

        Raises:
            ValueError: If the file is damaged, or holds other labels.
        """

    def areas(self, cache: str | os.PathLike[str] | None = None) -> list[dict[int, int]]:
        """Count the pixels of each class in each image, which reads all labels once.

        Args:
            cache: JSON file to keep the counts in, for a large collection. If it was written for
                other images, classes or settings, the labels are read again and it is replaced.
                Changes in the label files are not noticed: delete the cache after a change.

        Returns:
            For each image, label → number of pixels. Only classes that the image shows.

        Raises:
            ValueError: If `cache` exists and is not a cache of areas, or a label cannot be read.
        """
        if self._areas is None:
            self._areas = self._scan() if cache is None else self._cached(Path(cache))
        return self._areas

    def _scan(self) -> list[dict[int, int]]:
        areas = []
        for index in tqdm(range(len(self)), desc="reading labels", leave=False, delay=2):
            labels, counts = np.unique(self.label(index), return_counts=True)
            found = zip(labels.tolist(), counts.tolist(), strict=True)
            areas.append({label: count for label, count in found if label > 0})
        return areas

    def _cached(self, cache: Path) -> list[dict[int, int]]:
        of = json.dumps([type(self).__name__, self.classes, self.ids, self._about])
        key = hashlib.sha256(of.encode()).hexdigest()
        if cache.exists():
            try:
                kept = json.loads(cache.read_text(encoding="utf-8"))
                if kept["format"] != AREAS:
                    raise ValueError(f"its format is {kept['format']!r}, not {AREAS!r}")
                if kept["images"] == key:
                    return [
                        {int(c): count for c, count in areas.items()} for areas in kept["areas"]
                    ]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{cache} is not a cache of areas ({error!r}): name another, or delete it"
                ) from error
            logger.info("%s is for other images or settings: reading the labels again", cache)
        cache.parent.mkdir(parents=True, exist_ok=True)
        areas = self._scan()
        text = json.dumps({"format": AREAS, "images": key, "areas": areas})
        write_whole(cache, lambda path: path.write_text(text, encoding="utf-8"))
        return areas


def read_pixels(path: Path, mode: str | None = None) -> NDArray[Any]:
    """Read the pixels of a label file as they are stored: a palette image gives its indices.

    Args:
        path: The file.
        mode: Pillow mode to convert to. None: no conversion.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with open(path, "rb") as file:
            image = open_image(file)
            return np.array(image.convert(mode) if mode else image)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"{path} cannot be decoded ({error}): expected a complete image file"
        ) from error


def require_files(files: Iterable[Path], what: str) -> None:
    """Check that all files exist.

    Args:
        files: The files.
        what: Name of the collection, for the error.

    Raises:
        FileNotFoundError: If files are missing. It names up to 10 of them.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f"\nand {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = "\n".join(missing[:_LISTED])
        raise FileNotFoundError(f"{len(missing)} files of {what} are missing:\n{listed}{more}")
