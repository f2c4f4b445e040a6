"""Draw a source, then a category, then an object, so that no category dominates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SOURCES = {"photo": 0.62, "drawing": 0.24, "texture": 0.14, "real": 1.0}
"""Probability of each source. Composed scenes use the first three, real photographs the last."""

Groups = Mapping[str, Mapping[str, Sequence[int]]]
"""Source → category → indices of its objects."""


def draw_category(rng: np.random.Generator, groups: Groups) -> tuple[str, str]:
    """Draw a source, and one of its categories.

    The probability of a source is in `SOURCES`; that of a category is proportional to the square
    root of its number of objects.
    """
    weights = np.array([SOURCES[kind] for kind in groups])
    kind = str(rng.choice(list(groups), p=weights / weights.sum()))
    sizes = np.sqrt([len(members) for members in groups[kind].values()])
    return kind, str(rng.choice(list(groups[kind]), p=sizes / sizes.sum()))


def keep_categories(
    groups: Groups, keep: Callable[[str, Sequence[int]], bool]
) -> dict[str, dict[str, list[int]]]:
    """Keep the categories where `keep(name, objects)` is true, and drop empty sources."""
    kept = {
        kind: {name: list(members) for name, members in group.items() if keep(name, members)}
        for kind, group in groups.items()
    }
    return {kind: group for kind, group in kept.items() if group}
