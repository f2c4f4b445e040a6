"""The classes of PASCAL-5i and COCO-20i, and the novel classes of each fold."""

from typing import Literal

FOLDS = 4
PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
COCO_CLASS_COUNT = 80


def pascal_fold(fold: int) -> tuple[int, ...]:
    """Return the novel classes of a fold of PASCAL-5i: 5f + 1 … 5f + 5.

    Args:
        fold: f, 0 to 3.

    Returns:
        Labels from 1 to 20, in the order of `PASCAL_CLASSES`: 1 is aeroplane.

    Raises:
        ValueError: If `fold` is not 0, 1, 2 or 3.

    Example:
        >>> pascal_fold(1)
        (6, 7, 8, 9, 10)

    Source: Shaban et al., One-Shot Learning for Semantic Segmentation (arXiv 1709.03410).
    """
    _check(fold)
    size = len(PASCAL_CLASSES) // FOLDS
    return tuple(range(size * fold + 1, size * (fold + 1) + 1))


def coco_fold(
    fold: int, split: Literal["interleaved", "contiguous"] = "interleaved"
) -> tuple[int, ...]:
    """Return the novel classes of a fold of COCO-20i.

    Args:
        fold: f, 0 to 3.
        split: `interleaved`: f + 1, f + 5, …, as in HDMNet, PFENet and HSNet. `contiguous`:
            20f + 1 … 20f + 20.

    Returns:
        Labels from 1 to 80, in the order of the category ids.

    Raises:
        ValueError: If there is no such fold or split.

    Example:
        >>> coco_fold(1)[:3]
        (2, 6, 10)

    Source: interleaved split of Nguyen and Todorovic (arXiv 1909.13140).
    """
    _check(fold)
    if split == "interleaved":
        return tuple(range(fold + 1, COCO_CLASS_COUNT + 1, FOLDS))
    if split == "contiguous":
        size = COCO_CLASS_COUNT // FOLDS
        return tuple(range(size * fold + 1, size * (fold + 1) + 1))
    raise ValueError(f"split must be 'interleaved' or 'contiguous', got {split!r}")


def _check(fold: int) -> None:
    if fold not in range(FOLDS):
        raise ValueError(f"fold must be 0, 1, 2 or 3, got {fold!r}")
