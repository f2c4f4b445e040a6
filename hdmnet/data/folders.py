"""Collections with one folder for each class: FSS-1000, and your own data."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet._formats import SUFFIXES
from hdmnet.data.source import VOID, LabelledImages, read_pixels, require_files
from hdmnet.images import load_mask
from hdmnet.preprocess import IGNORE


class _ClassFolders(LabelledImages):
    """Images that each show one class."""

    def __init__(self, members: Sequence[tuple[str, Path, Path]], root: Path, what: str) -> None:
        """Take the class, the image and the mask of each member."""
        require_files([mask for *_, mask in members], what)
        classes = sorted({name for name, *_ in members})
        label_of = {name: label for label, name in enumerate(classes, start=1)}
        self._values = [label_of[name] for name, *_ in members]
        self._masks = [mask for *_, mask in members]
        ids = [image.relative_to(root).as_posix() for _, image, _ in members]
        super().__init__(classes, ids, [image for _, image, _ in members])

    def label(self, index: int) -> NDArray[np.int32]:
        """See `LabelledImages.label`."""
        mask = self._mask(index)
        label = np.where(mask == 1, self._values[index], 0)
        label[mask == IGNORE] = VOID
        return label.astype(np.int32)

    def _mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W): 0 = background, 1 = the class, 255 = ignore."""
        return load_mask(self._masks[index]).numpy()


class MaskFolders(_ClassFolders):
    """Your own data: `CLASS/images/NAME.jpg` with `CLASS/masks/NAME.png`.

    An image and its mask have the same name, except for the suffix. Masks are read by `load_mask`:
    bool, {0, 1}, {0, 255} or {0, 1, 255}, turned upright by their EXIF orientation, as images are.

    Args:
        root: The folder that holds the class folders.
        classes: Names of the class folders to read. None: all that have a folder `images`.

    Raises:
        FileNotFoundError: If a folder or any mask is missing.
        ValueError: If there are no images.

    Example:
        >>> source = MaskFolders("my_data")  # my_data/cat/images/1.jpg, my_data/cat/masks/1.png
        >>> image, label = source.image(0), source.label(0)
    """

    def __init__(self, root: str | os.PathLike[str], classes: Sequence[str] | None = None) -> None:
        root = Path(root)
        if classes is None:
            classes = sorted(path.parent.name for path in root.glob("*/images"))
            if not classes:
                raise FileNotFoundError(
                    f"there is no folder CLASS/images in {root}: expected one for each class"
                )
        members = []
        for name in classes:
            folder = root / name / "masks"
            masks = {path.stem: path for path in (_images(folder) if folder.is_dir() else ())}
            for image in _images(root / name / "images"):
                members.append((name, image, masks.get(image.stem, folder / f"{image.stem}.png")))
        super().__init__(members, root, "the folders of masks")


class FSS1000(_ClassFolders):
    """FSS-1000: `CLASS/1.jpg` with `CLASS/1.png`, ten of each class.

    Args:
        root: The folder that holds the class folders.
        classes: Names of the class folders to read, such as the 240 test classes, or the path of a
            text file with one name on each line. None: all.

    Raises:
        FileNotFoundError: If a folder, the text file or any mask is missing.
        ValueError: If there are no images.

    Example:
        >>> source = FSS1000("FSS-1000", classes=["abacus", "zebra"])
        >>> image, label = source.image(0), source.label(0)

    Source: Li et al., CVPR 2020.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str] | os.PathLike[str] | None = None,
    ) -> None:
        root = Path(root)
        if isinstance(classes, str | os.PathLike):
            lines = Path(classes).read_text(encoding="utf-8").splitlines()
            classes = [line.strip() for line in lines if line.strip()]
        if classes is None:
            classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        members = [
            (name, image, image.with_suffix(".png"))
            for name in classes
            for image in sorted(_images(root / name, {".jpg"}), key=_number)
        ]
        super().__init__(members, root, "FSS-1000")

    def _mask(self, index: int) -> NDArray[np.uint8]:
        # Some masks hold grey values too, so a threshold decides.
        return (read_pixels(self._masks[index], mode="L") >= 128).astype(np.uint8)


def _images(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return sorted(found, key=lambda path: path.name)  # Path order ignores case on Windows


def _number(path: Path) -> tuple[int, str]:
    return len(path.stem), path.stem
