"""What every collection of labelled images can do, whatever its files look like."""

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
"""Label of pixels that belong to no class and not to the background.

The 255 of files and of tensors, where it may be a class here: FSS-1000 has a thousand.
"""
AREAS = "hdmnet areas 1"
_LISTED = 10


class LabelledImages(ABC):
    """Images with a label for every pixel.

    Args:
        classes: Names. A pixel of `classes[c - 1]` has the label c.
        ids: Of the images, in the order of the list.
        files: Path of each image.
        about: What else the labels depend on, as JSON holds it; see `areas`.

    Raises:
        ValueError: If there are no images, or two images or classes of one name.
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
            raise ValueError(f"{type(self).__name__} found no images")
        for what, names in (("image", ids), ("class", classes)):
            name, count = Counter(names).most_common(1)[0] if names else ("", 0)
            if count > 1:
                raise ValueError(f"the {what} {name!r} is listed more than once")
        self._about = list(about)
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

    def areas(self, cache: str | os.PathLike[str] | None = None) -> list[dict[int, int]]:
        """Pixels of each class that each image shows, found by reading every label once.

        Args:
            cache: JSON file to keep them in, for a large collection. It is written anew if it is of
                other images, classes or settings; but what is in the files of the labels is not
                looked at again: delete it when these have changed.

        Raises:
            ValueError: If the file is there and is none of these, or a label cannot be read.
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
                    raise ValueError(f"its format is {kept['format']!r}")
                if kept["images"] == key:
                    return [
                        {int(c): count for c, count in areas.items()} for areas in kept["areas"]
                    ]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{cache} is no file of areas ({error!r}): name another, or delete it"
                ) from error
            logger.info("%s is of other images: reading the labels again", cache)
        cache.parent.mkdir(parents=True, exist_ok=True)
        areas = self._scan()
        text = json.dumps({"format": AREAS, "images": key, "areas": areas})
        write_whole(cache, lambda path: path.write_text(text, encoding="utf-8"))
        return areas


def read_pixels(path: Path, mode: str | None = None) -> NDArray[Any]:
    """Pixels of a label file as they are, palette indices included, or in a mode of Pillow.

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
    """Refuse a collection with holes, and say all that is missing at once.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f"\nand {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = "\n".join(missing[:_LISTED])
        raise FileNotFoundError(f"{len(missing)} files of {what} are missing:\n{listed}{more}")
