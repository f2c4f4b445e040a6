"""What a network computes: of a query alone, and of a query with its supports."""

from typing import NamedTuple, Self

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
    """(B, 2, h, w) cosines in [-1, 1], of f5 (of f3 without base learner) and of f4; with
    `contrast=True`, (B, 3, h, w): the third is `contrast_prior`."""


class Matches(NamedTuple):
    """What `predict` takes from a network: N pairs of a query and a set of supports."""

    scores: Tensor
    """(N, 2, H, W) scores, at least 0, background first."""
    presence: Tensor | None = None
    """(N,) in [0, 1]: does the query show any of the class? None: the highest probability."""
    correlations: tuple[Tensor, ...] = ()
    """(N, h_s, w_s) per stage, coarsest first. A network without such maps leaves them out."""
    prior: Tensor | None = None
    """(N, P, h, w) cosines in [-1, 1], P priors."""
    prior_names: tuple[str, ...] = ()
    """The names of the P priors, such as ("f5", "f4") or ("f3", "f4", "contrast")."""
    base: Tensor | None = None
    """(N, 1 + n, h, w) logits of n base classes, background first. None without base learner."""
    doubt: Tensor | None = None
    """(N, h, w), at most 0: what to add to the logits where an answer looks unlike the class."""

    def split(self) -> list[Self]:
        """Return the N pairs, each with N = 1."""
        return [
            type(self)(
                scores=self.scores[i : i + 1],
                presence=None if self.presence is None else self.presence[i : i + 1],
                correlations=tuple(level[i : i + 1] for level in self.correlations),
                prior=None if self.prior is None else self.prior[i : i + 1],
                prior_names=self.prior_names,
                base=None if self.base is None else self.base[i : i + 1],
                doubt=None if self.doubt is None else self.doubt[i : i + 1],
            )
            for i in range(len(self.scores))
        ]


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


class Look(NamedTuple):
    """What `look_at` computes of B queries, for several matches."""

    features: QueryFeatures
    size: tuple[int, int]
    """Height and width of the queries."""
