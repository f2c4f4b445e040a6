"""Several views of one query, and one answer from them: flips, scales and tiles."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
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
        flip: Whether to segment the mirrored query too, at each scale. It is on unless you give
            False, also if you give `scales` only.
        scales: Factors of `image_size`. The query is segmented at each of these sizes. A size must
            not be below the model's `smallest_size`. The answers are averaged at the first one.

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
            _checks.check_type("each of scales", scale, Real, "a number")
            if isinstance(scale, bool):  # a bool is a Real
                raise TypeError(f"each of scales must be a number, got {scale!r}")
        if not self.scales or not all(0 < scale <= LARGEST_SCALE for scale in self.scales):
            raise ValueError(
                f"scales is {tuple(self.scales)}: expected at least one number above 0 and at most "
                f"{LARGEST_SCALE}"
            )
        # NumPy's float16 would round image_size. A frozen dataclass allows no plain assignment.
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))


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
        self.size = (height, width)
        self.whole: Part = (0, 0, height, width)
        self.grid = (sides[0], sides[0])
        """Height and width of the answer."""
        tiles: list[Part] = []
        if tile is not None and max(size) > tile:
            tiles = list(_tiles(height, width, tile))
            scale = min(1.0, sides[0] / tile)
            self.grid = (math.ceil(height * scale), math.ceil(width * scale))
        flips = (False, True) if flip else (False,)
        self._views = [
            View(part, side, flipped)
            for part in [self.whole, *tiles]
            for side in sides
            for flipped in flips
        ]

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def place(self, part: Part) -> tuple[slice, slice]:
        """Return the rows and columns of the grid that a part of the query covers."""
        (height, width), (rows, columns) = self.size, self.grid
        top, left, tall, wide = part
        return (
            slice(round(top / height * rows), round((top + tall) / height * rows)),
            slice(round(left / width * columns), round((left + wide) / width * columns)),
        )


class Merger:
    """Merges the answers to the views of a query, one after the other, so it keeps one of them.

    The probabilities and the doubt are weighted means. A tile counts less towards its border. The
    whole query counts as much as all tiles together. Presence is the mean over the views of the
    whole query. Everything else is that of the first view.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._matches: list[Matches] = []  # only the first
        self._presence: list[Tensor] = []
        self._means = {True: _Mean(views.grid), False: _Mean(views.grid)}  # whole, tiles
        self._doubts = {True: _Mean(views.grid), False: _Mean(views.grid)}

    def add(self, view: View, match: Matches) -> None:
        """Add the answer to the next view, with N = 1."""
        self._matches = self._matches or [match]
        if len(self._views) == 1:
            return
        whole = view.part == self._views.whole
        if whole and match.presence is not None:
            self._presence.append(match.presence)
        place = self._views.place(view.part)
        p = object_probability(match.scores.float())
        self._means[whole].add(p.flip(-1) if view.flipped else p, place)
        if (doubt := match.doubt) is not None:
            self._doubts[whole].add(doubt.flip(-1) if view.flipped else doubt, place)

    def result(self) -> Matches:
        """Return the merged answer. That to a single view is not changed."""
        first = self._matches[0]
        if len(self._views) == 1:
            return first
        p, doubt = (_mean_of(maps.values()) for maps in (self._means, self._doubts))
        assert p is not None
        presence = torch.stack(self._presence).mean(dim=0) if self._presence else None
        scores = torch.stack([1 - p, p], dim=1)
        return first._replace(scores=scores, presence=presence, doubt=doubt)


class _Mean:
    """A weighted mean of maps, (1, h, w) on a grid."""

    def __init__(self, grid: tuple[int, int]) -> None:
        self.count = 0
        self._grid = grid
        self._total, self._weights = torch.zeros(0), torch.zeros(0)

    def add(self, p: Tensor, place: tuple[slice, slice]) -> None:
        """Add a map (1, H, W) of a place on the grid."""
        if not self.count:
            self._total = torch.zeros(1, *self._grid, device=p.device)
            self._weights = torch.zeros(self._grid, device=p.device)
        rows, columns = place
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        weight = _hat(shape[0]).outer(_hat(shape[1])).to(p.device)
        self._total[:, rows, columns] += weight * resize_scores(p[:, None], shape)[:, 0]
        self._weights[rows, columns] += weight
        self.count += 1

    def value(self) -> Tensor:
        """Return the mean."""
        return self._total / self._weights


def _mean_of(maps: Iterable[_Mean]) -> Tensor | None:
    values = [mean.value() for mean in maps if mean.count]
    return torch.stack(values).mean(dim=0) if values else None


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
