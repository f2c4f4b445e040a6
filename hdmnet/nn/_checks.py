"""Checks of constructor arguments and of the shapes of tensors."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor


def check_type(name: str, value: object, kind: type | tuple[type, ...], meaning: str) -> None:
    """Raise TypeError unless `value` is of type `kind`, which the error calls `meaning`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {meaning}, got {value!r}")


def check_integer(name: str, value: int, least: int, most: int) -> None:
    """Refuse an integer out of its range: it would fail later, or take memory without bound.

    Raises:
        TypeError: If the value is not an int.
        ValueError: If the value is out of its range.
    """
    check_type(name, value, int, "an int")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_integers(
    name: str, values: Sequence[int], least: int, most: int, *, longest: int
) -> None:
    """Refuse a sequence that is empty, too long, or holds integers out of their range.

    Raises:
        TypeError: If it is not a list or tuple of int.
        ValueError: If its length or a value is out of its range.
    """
    check_type(name, values, (list, tuple), "a sequence of int")
    check_integer(f"number of {name}", len(values), 1, longest)
    for i, value in enumerate(values):
        check_integer(f"{name}[{i}]", value, least, most)


def check_probabilities(**arguments: float) -> None:
    """Refuse values outside of [0, 1].

    Raises:
        TypeError: If a value is not a number.
        ValueError: If a value is out of its range.
    """
    for name, value in arguments.items():
        check_type(name, value, (int, float), "a probability")
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_shapes(axes: str, **tensors: Tensor) -> None:
    """Refuse tensors whose shapes do not fit together.

    A compiled graph checks nothing, because it serves any size.

    Args:
        axes: The axes of each tensor, such as "B, C, h, w; B, K, C, h', w'". An axis has the same
            size wherever its name stands. A number is a size, and "…" in front is any axes.
        **tensors: The tensors by name, in the same order.

    Raises:
        ValueError: If a tensor has another number of axes, or an axis another size.
    """
    if torch.compiler.is_compiling():
        return
    each, numbers = _parse(axes)
    sizes = dict(numbers)
    for names, (name, tensor) in zip(each, tensors.items(), strict=True):
        own, shape = names, tensor.shape
        if names[0] == "…":
            own, shape = names[1:], shape[1 - len(names) :]
        # A forward pass makes fifty checks: `map` is the fastest way.
        if len(shape) != len(own) or shape != tuple(map(sizes.setdefault, own, shape)):
            known = [str(sizes.get(axis, axis)) for axis in names]
            equal = f" = ({', '.join(known)})" if known != names else ""
            raise ValueError(
                f"{name} must be ({', '.join(names)}){equal}, got {tuple(tensor.shape)}"
            )


@cache
def _parse(axes: str) -> tuple[list[list[str]], dict[str, int]]:
    """Return the names of each tensor's axes, and the sizes of those that are numbers."""
    each = [[axis.strip() for axis in part.split(",")] for part in axes.split(";")]
    return each, {axis: int(axis) for names in each for axis in names if axis.isdecimal()}


def check_order(name: str, maps: Sequence[Tensor], order: str) -> None:
    """Refuse maps (…, h, w) that are not in the `order` "finest first" or "coarsest first".

    A compiled graph checks nothing, because it serves any size.
    """
    if torch.compiler.is_compiling():
        return
    grids = [tuple(x.shape[-2:]) for x in maps]
    for fine, coarse in pairwise(grids if order == "finest first" else grids[::-1]):
        if fine[0] < coarse[0] or fine[1] < coarse[1]:
            raise ValueError(f"{name} must be {order}, got the grids {grids}")


def check_images(name: str, images: Tensor, axes: str, smallest: int) -> None:
    """Refuse batches of another shape than `axes`, such as "B, 3, H, W", and too small images.

    Raises:
        ValueError: If the shape does not fit, or height or width is below `smallest`.
    """
    if images.ndim != axes.count(",") + 1 or images.shape[-3] != 3 or 0 in images.shape[:2]:
        least = " with B, K ≥ 1" if "K" in axes else " with B ≥ 1"
        raise ValueError(f"{name} must be ({axes}){least}, got {tuple(images.shape)}")
    if min(images.shape[-2:]) < smallest:
        raise ValueError(
            f"{name} images of {images.shape[-2]} × {images.shape[-1]} pixels are too small for "
            f"the coarsest stage: height and width must be at least {smallest}"
        )


def check_masks(masks: Tensor, supports: Tensor) -> None:
    """Raise ValueError unless masks (B, K, H, W) have the shape of supports (B, K, 3, H, W)."""
    if masks.shape != supports.shape[:2] + supports.shape[3:]:
        raise ValueError(
            f"masks must be (B, K, H, W) of the supports {tuple(supports.shape)}, got "
            f"{tuple(masks.shape)}"
        )


def check_episodes(query: Tensor, supports: Tensor) -> None:
    """Raise ValueError unless queries and supports hold the same number of episodes B."""
    if query.ndim == 4 and query.shape[0] != supports.shape[0]:
        raise ValueError(
            "query and supports must hold the same number of episodes B, got "
            f"{tuple(query.shape)} and {tuple(supports.shape)}"
        )
