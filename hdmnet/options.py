"""The options of `predict` that concern the answers."""

from numbers import Integral, Real
from typing import Any, NamedTuple, Self, TypedDict

from hdmnet.nn import _checks
from hdmnet.views import SMALLEST_TILE, Augment


class PredictOptions(TypedDict, total=False):
    """Arguments of `predict` that do not change the type of the answer."""

    batch_size: int | None
    presence_threshold: float | None
    augment: Augment | None
    tile: int | None
    refine: bool
    self_support: bool


class Options(NamedTuple):
    """Arguments of `predict` that concern the answers, with their defaults."""

    batch_size: int | None = None
    presence_threshold: float | None = None
    augment: Augment | None = None
    tile: int | None = None
    refine: bool = False
    self_support: bool = False
    generalized: bool = False

    def checked(self) -> Self:
        """Check types and ranges, and turn NumPy's numbers into those of Python.

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option is out of its range.
        """
        threshold: Any = self.presence_threshold
        if threshold is not None:
            threshold = float(threshold) if isinstance(threshold, Real) else threshold
            _checks.check_probabilities(presence_threshold=threshold)
        if self.augment is not None:
            _checks.check_type("augment", self.augment, Augment, "an Augment")
        for name in ("refine", "self_support", "generalized"):
            _checks.check_type(name, getattr(self, name), bool, "a bool")
        return self._replace(
            presence_threshold=threshold,
            batch_size=None
            if self.batch_size is None
            else as_integer("batch_size", self.batch_size, 1),
            tile=None if self.tile is None else as_integer("tile", self.tile, SMALLEST_TILE),
        )


def as_integer(name: str, value: Any, least: int) -> int:
    """Return an integer of Python or NumPy as one of Python."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    _checks.check_integer(name, int(value), least, 2**16)
    return int(value)
