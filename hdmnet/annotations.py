"""Cheap annotations of an object: a box, some points, some strokes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

Point: TypeAlias = Sequence[float]
"""(x, y) in pixels of the image."""

UNKNOWN = 255


@dataclass(frozen=True)
class Box:
    """A box around the object, in place of a mask.

    x points to the right and y down, in pixels of the upright image; x1 and y1 are exclusive.

    Raises:
        TypeError: If a coordinate is not a number.
        ValueError: If a coordinate is not finite, or the box has no area.

    Example:
        >>> model.predict(query, photo, Box(40, 30, 220, 180))
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        corners = (self.x0, self.y0, self.x1, self.y1)
        _check_corners(corners, f"Box{corners}")
        for name, value in zip(("x0", "y0", "x1", "y1"), np.asarray(corners).tolist(), strict=True):
            object.__setattr__(self, name, value)  # plain numbers, which JSON can hold

    def to_dict(self) -> dict[str, Any]:
        """Return values that `json.dump` can write and `annotation_from_dict` reads."""
        return {"kind": "box", **asdict(self)}

    def seeds(self, size: tuple[int, int]) -> Tensor:
        """Draw what is known: (H, W) uint8, 0 outside the box and 255 inside it.

        Args:
            size: (H, W) of the image.

        Raises:
            ValueError: If the box is outside the image.
        """
        return box_mask((self.x0, self.y0, self.x1, self.y1), size) * UNKNOWN


@dataclass(frozen=True)
class Points:
    """Points on the object, and perhaps points beside it, in place of a mask.

    Args:
        positive: One or more (x, y) on the object: x to the right and y down, in pixels of the
            upright image. (0, 0) is the upper left corner.
        negative: Any number of (x, y) on the background.

    Raises:
        TypeError: If it does not hold pairs of numbers.
        ValueError: If there is no positive point, or a number is not finite.

    Example:
        >>> model.predict(query, photo, Points([(120, 90)], negative=[(10, 10)]))
    """

    positive: Sequence[Point]
    negative: Sequence[Point] = ()

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            points = _points(getattr(self, name), f"Points: {name}", "a list of (x, y)")
            object.__setattr__(self, name, points)
        _require_positive("Points", self.positive)

    def to_dict(self) -> dict[str, Any]:
        """Return values that `json.dump` can write and `annotation_from_dict` reads."""
        return {"kind": "points", **asdict(self)}

    def seeds(self, size: tuple[int, int]) -> Tensor:
        """Draw what is known: (H, W) uint8, 1 = object, 0 = background, 255 = unknown.

        Args:
            size: (H, W) of the image.

        Raises:
            ValueError: If a point is outside the image, or negative ones cover all positive ones.
        """
        positive, negative = [[p] for p in self.positive], [[p] for p in self.negative]
        return _draw("Points", positive, negative, size)


@dataclass(frozen=True)
class Scribble:
    """Strokes on the object, and perhaps strokes beside it, in place of a mask.

    Args:
        positive: One or more polylines on the object, each a list of (x, y), as for `Points`.
        negative: Any number of polylines on the background.

    Raises:
        TypeError: If it does not hold lists of pairs of numbers.
        ValueError: If there is no positive stroke, or a number is not finite.

    Example:
        >>> model.predict(query, photo, Scribble([[(60, 80), (150, 95)]]))
    """

    positive: Sequence[Sequence[Point]]
    negative: Sequence[Sequence[Point]] = ()

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            what, meaning = f"Scribble: {name}", "a list of polylines [(x, y), …]"
            lines = tuple(
                _points(line, what, meaning) for line in _items(getattr(self, name), what, meaning)
            )
            if not all(lines):
                raise ValueError(f"{what} has a polyline without points: leave it out")
            object.__setattr__(self, name, lines)
        _require_positive("Scribble", self.positive)

    def to_dict(self) -> dict[str, Any]:
        """Return values that `json.dump` can write and `annotation_from_dict` reads."""
        return {"kind": "scribble", **asdict(self)}

    def seeds(self, size: tuple[int, int]) -> Tensor:
        """Draw what is known: (H, W) uint8, 1 = object, 0 = background, 255 = unknown.

        Args:
            size: (H, W) of the image.

        Raises:
            ValueError: If a stroke leaves the image, or negative ones cover all positive ones.
        """
        return _draw("Scribble", self.positive, self.negative, size)


Annotation: TypeAlias = Box | Points | Scribble

_KINDS: dict[str, type[Annotation]] = {"box": Box, "points": Points, "scribble": Scribble}


def annotation_from_dict(value: Mapping[str, Any]) -> Annotation:
    """Read a box, points or a scribble from the result of its `to_dict`.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If the kind or the fields are not known, or a value is out of its range.

    Example:
        >>> annotation_from_dict(json.loads(json.dumps(Box(40, 30, 220, 180).to_dict())))
        Box(x0=40, y0=30, x1=220, y1=180)
    """
    if not isinstance(value, Mapping) or value.get("kind") not in tuple(_KINDS):
        raise ValueError(
            f"the annotation is {value!r}: expected a dict with kind = {', '.join(_KINDS)}"
        )
    fields = {name: x for name, x in value.items() if name != "kind"}
    kind = _KINDS[value["kind"]]
    expected = list(kind.__dataclass_fields__)
    if fields.keys() != set(expected):
        raise ValueError(
            f"the annotation has the fields {sorted(fields)}: expected {expected} beside kind"
        )
    return kind(**fields)


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
        ValueError: If the box is not four finite numbers, has no area, is outside the image, or
            holds shares of the image in place of pixels.

    Example:
        >>> box_mask((1, 0, 3, 2), size=(2, 4)).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    x0, y0, x1, y1 = _check_corners(box, f"box is {box!r}")
    height, width = size
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        fits_swapped = min(x0, y0) >= 0 and x1 <= height and y1 <= width
        hint = "; is size swapped? expected (height, width)" if fits_swapped else ""
        raise ValueError(
            f"box is {box!r}, outside its image of {height} x {width} (height x width): "
            f"expected (x0, y0, x1, y1) in pixels of that image{hint}"
        )
    shares = min(x0, y0) >= 0 and max(x1, y1) <= 1
    if shares and not all(value.is_integer() for value in (x0, y0, x1, y1)):
        raise ValueError(
            f"box is {box!r}, less than a pixel: expected pixels; multiply shares by {width} "
            f"(width) and {height} (height)"
        )
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[_span(y0, y1, height), _span(x0, x1, width)] = 1
    return mask


def _check_corners(box: Sequence[float], name: str) -> tuple[float, float, float, float]:
    corners = np.asarray(box)
    if corners.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected four numbers (x0, y0, x1, y1)")
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise ValueError(f"{name}: expected four finite numbers (x0, y0, x1, y1)")
    x0, y0, x1, y1 = map(float, corners)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"{name}: expected (x0, y0, x1, y1) with x0 < x1 and y0 < y1; "
            "turn (x, y, width, height) into (x, y, x + width, y + height)"
        )
    return x0, y0, x1, y1


def _span(low: float, high: float, length: int) -> slice:
    low, high = max(low, 0), min(high, length)
    start, stop = math.floor(low + 0.5), math.floor(high + 0.5)
    if start == stop:  # thinner than a pixel: take the pixel at its middle
        start = min(math.floor((low + high) / 2), length - 1)
    return slice(start, max(stop, start + 1))


def _items(values: Any, name: str, meaning: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} is {values!r}: expected {meaning}")
    return list(values)


def _points(values: Any, name: str, meaning: str) -> tuple[tuple[float, float], ...]:
    points = []
    for value in _items(values, name, meaning):
        pair = np.asarray(value) if isinstance(value, Sequence | np.ndarray) else None
        if pair is None or pair.dtype.kind not in "iuf" or pair.shape != (2,):
            raise TypeError(f"{name} holds {value!r}: expected {meaning}")
        if not np.isfinite(pair).all():
            raise ValueError(f"{name} holds {value!r}: expected finite numbers")
        points.append((pair[0].item(), pair[1].item()))
    return tuple(points)


def _require_positive(name: str, positive: Sequence[Any]) -> None:
    if not positive:
        raise ValueError(f"{name}: positive is empty: expected something on the object")


def _draw(
    name: str,
    positive: Sequence[Sequence[Point]],
    negative: Sequence[Sequence[Point]],
    size: tuple[int, int],
) -> Tensor:
    height, width = size
    picture = Image.new("L", (width, height), UNKNOWN)
    draw = ImageDraw.Draw(picture)
    for lines, value in ((positive, 1), (negative, 0)):
        for line in lines:
            for x, y in line:
                if not (0 <= x < width and 0 <= y < height):
                    hint = "; are x and y swapped?" if 0 <= y < width and 0 <= x < height else ""
                    raise ValueError(
                        f"{name} has the point ({x:g}, {y:g}), outside its image of {height} x "
                        f"{width} (height x width): expected (x, y) in pixels of that image{hint}"
                    )
            pixels = [(math.floor(x), math.floor(y)) for x, y in line]
            draw.line(pixels, fill=value) if len(pixels) > 1 else draw.point(pixels, fill=value)
    seeds = torch.from_numpy(np.array(picture))
    if not (seeds == 1).any():
        raise ValueError(
            f"{name}: negative covers all of positive: expected a pixel of the object that nothing "
            "negative covers"
        )
    return seeds
