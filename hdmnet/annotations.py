"""Cheap annotations as masks: a box becomes a filled box."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def box_mask(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Draw a filled box as a mask.

    Args:
        box: (x0, y0, x1, y1) in pixels, x to the right and y down; x1 and y1 are exclusive. The box
            is clipped to the image. Fractions are rounded to the nearest pixel edge, but at least
            one pixel stays.
        size: (H, W) of the image. The `size` of a PIL image is (W, H).

    Returns:
        (H, W) uint8: 1 inside the box, 0 outside.

    Raises:
        TypeError: If the box does not hold numbers.
        ValueError: If the box is not four finite numbers, has no area, or is outside the image.

    Example:
        >>> box_mask((1, 0, 3, 2), size=(2, 4)).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    corners = np.asarray(box)
    if corners.dtype.kind not in "iuf":
        raise TypeError(f"box is {box!r}: expected four numbers (x0, y0, x1, y1)")
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise ValueError(f"box is {box!r}: expected four finite numbers (x0, y0, x1, y1)")
    x0, y0, x1, y1 = map(float, corners)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"box is {box!r}: expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1; "
            "turn (x, y, width, height) into (x, y, x + width, y + height)"
        )
    height, width = size
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        fits_swapped = min(x0, y0) >= 0 and x1 <= height and y1 <= width
        hint = "; is size swapped? expected (height, width)" if fits_swapped else ""
        raise ValueError(
            f"box is {box!r}, outside its image of {height} x {width} (height x width): "
            f"expected (x0, y0, x1, y1) in pixels of that image{hint}"
        )
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[_span(y0, y1, height), _span(x0, x1, width)] = 1
    return mask


def _span(low: float, high: float, length: int) -> slice:
    low, high = max(low, 0), min(high, length)
    start, stop = math.floor(low + 0.5), math.floor(high + 0.5)
    if start == stop:  # thinner than a pixel: take the pixel at its middle
        start = min(math.floor((low + high) / 2), length - 1)
    return slice(start, max(stop, start + 1))
