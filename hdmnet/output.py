"""What `HDMNet` computes: of a query alone, and of a query with its supports."""

from typing import NamedTuple

from torch import Tensor

Features = tuple[Tensor, Tensor, Tensor]
"""f2, f3, f4 of a backbone: each (B, C, h, w)."""


class HDMNetOutput(NamedTuple):
    """Scores, correlation maps and priors of B queries of H × W whose feature grid is h × w."""

    final: Tensor
    """(B, 2, H, W) merged scores, background first. They are not logits: their argmax decides."""
    meta: Tensor
    """(B, 2, H, W) logits of the matching network."""
    base: Tensor | None
    """(B, 1 + base_classes, H, W) logits of the base learner. None when base_classes is 0."""
    correlations: tuple[Tensor, ...]
    """(B, h_s, w_s) per stage, coarsest first, in [-10, 10]."""
    prior: Tensor
    """(B, 2, h, w) cosines in [-1, 1], of f5 (of f3 without base learner) and of f4."""


class QueryFeatures(NamedTuple):
    """Everything about B queries that does not depend on the supports."""

    prior: tuple[Tensor, Tensor]
    """f5 and f4, which the priors compare."""
    reduced: Tensor
    """The reduced features q."""
    base: Tensor | None
    """Logits of the base learner."""
    gram: Tensor | None
    """Gram matrix of f2."""
