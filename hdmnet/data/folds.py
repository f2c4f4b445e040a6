"""The classes of PASCAL-5i and COCO-20i, and which of them each fold keeps for testing."""

from typing import Literal

FOLDS = 4
PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
COCO_CLASS_COUNT = 80


def pascal_fold(fold: int) -> tuple[int, ...]:
    """Novel classes of a fold of PASCAL-5i: 5f + 1 … 5f + 5, where class 1 is aeroplane.

    Args:
        fold: f, 0 to 3.

    Raises:
        ValueError: If there is no such fold.

    Source: Shaban et al., One-Shot Learning for Semantic Segmentation (arXiv 1709.03410).
    """
    _check(fold)
    size = len(PASCAL_CLASSES) // FOLDS
    return tuple(range(size * fold + 1, size * (fold + 1) + 1))


def coco_fold(
    fold: int, split: Literal["interleaved", "contiguous"] = "interleaved"
) -> tuple[int, ...]:
    """Novel classes of a fold of COCO-20i, counted from 1 in the order of the category ids.

    Args:
        fold: f, 0 to 3.
        split: `interleaved`: f + 1, f + 5, …, as HDMNet, PFENet and HSNet have it (from Nguyen and
            Todorovic, arXiv 1909.13140); or `contiguous`: 20f + 1 … 20f + 20.

    Raises:
        ValueError: If there is no such fold or split.
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
