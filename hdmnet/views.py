"""Several views of one query, and one answer from them: flips, scales and tiles."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from hdmnet.nn import _checks
from hdmnet.nn.presence import object_probability
from hdmnet.output import Matches
from hdmnet.preprocess import resize_image, resize_scores

OVERLAP = 0.25
"""Share of a tile's side that the next tile covers as well, at least."""
LARGEST_SCALE = 4.0
SMALLEST_TILE = 32
"""Pixels. Smaller tiles show nothing that could be recognised."""


@dataclass(frozen=True)
class Augment:
    """Test-time augmentation: the mean of the answers to several versions of the query.

    Args:
        flip: Whether to segment the mirrored query too.
        scales: Factors of `image_size`. The query is segmented at each of these sizes.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no scale, or one is not above 0 and at most 4.

    Example:
        >>> model.predict(query, supports, masks, augment=Augment(flip=True, scales=(1.0, 1.25)))
    """

    flip: bool = True
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        _checks.check_type("flip", self.flip, bool, "a bool")
        _checks.check_type("scales", self.scales, (list, tuple), "a list of numbers")
        for scale in self.scales:
            _checks.check_type("each of scales", scale, (int, float), "a number")
        if not self.scales or not all(0 < scale <= LARGEST_SCALE for scale in self.scales):
            raise ValueError(
                f"scales is {tuple(self.scales)}: expected at least one number above 0 and at most "
                f"{LARGEST_SCALE}"
            )


Part: TypeAlias = tuple[int, int, int, int]
"""Top, left, height and width of a part, in pixels of the query."""


class View(NamedTuple):
    """What the network sees of a query: a part of it, resized to a square, maybe mirrored."""

    part: Part
    size: int
    """Height and width that the part is resized to."""
    flipped: bool

    def of(self, image: Tensor) -> Tensor:
        """Return the view of an image (3, H, W)."""
        top, left, height, width = self.part
        shown = image[:, top : top + height, left : left + width]
        resized = resize_image(shown, (self.size, self.size))
        return resized.flip(-1) if self.flipped else resized


class Views:
    """The views of a query of H × W pixels, in order: the first shows the whole of it.

    Args:
        size: Height and width of the query.
        sides: Heights and widths that each part is resized to, at least one. The first sets the
            resolution of the answer.
        flip: Whether each part is mirrored too.
        tile: Side in pixels of square tiles, in addition to the whole. None: no tiles.
    """

    def __init__(
        self, size: Sequence[int], sides: Sequence[int], *, flip: bool, tile: int | None
    ) -> None:
        height, width = size
        tiles: list[Part] = []
        self._grid = (sides[0], sides[0])
        if tile is not None and max(size) > tile:
            tiles = list(_tiles(height, width, tile))
            scale = min(1.0, sides[0] / tile)
            self._grid = (math.ceil(height * scale), math.ceil(width * scale))
        self._size = (height, width)
        flips = (False, True) if flip else (False,)
        self._views = [
            View(part, side, flipped)
            for part in [(0, 0, height, width), *tiles]
            for side in sides
            for flipped in flips
        ]
        self._whole = len(sides) * len(flips)  # number of views of the whole query

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    def merge(self, matches: Sequence[Matches]) -> Matches:
        """Merge the answers to each view, with N = 1.

        The probabilities are a weighted mean. A tile counts less towards its border. The whole
        query counts as much as all tiles together. Presence is the mean over the views of the whole
        query. Everything else is that of the first view.
        """
        if len(matches) == 1:
            return matches[0]
        pairs = list(zip(self._views, matches, strict=True))
        p = self._mean(pairs[: self._whole])
        if len(pairs) > self._whole:
            p = (p + self._mean(pairs[self._whole :])) / 2
        known = [m.presence for m in matches[: self._whole] if m.presence is not None]
        presence = torch.stack(known).mean(dim=0) if known else None
        return matches[0]._replace(scores=torch.stack([1 - p, p], dim=1), presence=presence)

    def _mean(self, pairs: Sequence[tuple[View, Matches]]) -> Tensor:
        """Average the probabilities: (1, h, w) on the grid."""
        device = pairs[0][1].scores.device
        total = torch.zeros(1, *self._grid, device=device)
        weights = torch.zeros(self._grid, device=device)
        for view, match in pairs:
            rows, columns = self._place(view.part)
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            p = object_probability(match.scores.float())
            p = resize_scores((p.flip(-1) if view.flipped else p)[:, None], shape)[:, 0]
            weight = _hat(shape[0]).outer(_hat(shape[1])).to(device)
            total[:, rows, columns] += weight * p
            weights[rows, columns] += weight
        return total / weights

    def _place(self, part: Part) -> tuple[slice, slice]:
        """Return the rows and columns of the grid that a part of the query covers."""
        (height, width), (rows, columns) = self._size, self._grid
        top, left, tall, wide = part
        return (
            slice(round(top / height * rows), round((top + tall) / height * rows)),
            slice(round(left / width * columns), round((left + wide) / width * columns)),
        )


def _hat(length: int) -> Tensor:
    """(length,) weights that fall from 1 in the middle towards the ends, but not to 0."""
    positions = (torch.arange(length) + 0.5) / length
    return 1 - (2 * positions - 1).abs() * 0.98


def _tiles(height: int, width: int, side: int) -> Iterator[Part]:
    """Yield equally spaced tiles (top, left, height, width) that cover the query and overlap."""
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield top, left, min(side, height), min(side, width)


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]
