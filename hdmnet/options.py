"""The options of `predict` that concern the answers."""

from typing import NamedTuple, TypedDict

from hdmnet.nn import _checks
from hdmnet.views import SMALLEST_TILE, Augment


class PredictOptions(TypedDict, total=False):
    """Arguments of `predict` that do not change the type of the answer."""

    batch_size: int | None
    presence_threshold: float
    augment: Augment | None
    tile: int | None
    refine: bool


class Options(NamedTuple):
    """Arguments of `predict` that concern the answers, with their defaults."""

    batch_size: int | None = None
    presence_threshold: float = 0.0
    augment: Augment | None = None
    tile: int | None = None
    refine: bool = False
    generalized: bool = False

    def check(self) -> None:
        """Check types and ranges.

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option is out of its range.
        """
        if self.batch_size is not None:
            _checks.check_integer("batch_size", self.batch_size, 1, 2**16)
        _checks.check_probabilities(presence_threshold=self.presence_threshold)
        if self.augment is not None:
            _checks.check_type("augment", self.augment, Augment, "an Augment")
        if self.tile is not None:
            _checks.check_integer("tile", self.tile, SMALLEST_TILE, 2**16)
        _checks.check_type("refine", self.refine, bool, "a bool")
