"""The answer to a query as one more support: the query is matched again.

    m = p > 0.5, where p is the first answer
    p' = model(query, supports + (query, m))

The object of the query resembles itself more than it resembles the supports, so the second answer
fills what the first one left out, and drops what is unlike the rest.

Source: self-support matching, arXiv 2207.11549. There, prototypes of the answer are trained; here
the answer becomes a support like any other, and nothing is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from hdmnet.classes import Groups, group_by_shots
from hdmnet.nn.presence import object_probability
from hdmnet.output import Matches
from hdmnet.preprocess import resize_scores
from hdmnet.supports import SupportSet

THRESHOLD = 0.5


def match_again(
    encode: Callable[[Tensor, Tensor], SupportSet],
    match: Callable[[Tensor, Groups], Iterator[Matches]],
    query: Tensor,
    sets: Sequence[SupportSet],
    matches: Sequence[Matches],
    most: int,
) -> list[Matches]:
    """Replace the scores of a query by those of a second match. A set that found nothing stays.

    Everything else stays that of the first match: with itself as a support, any query would seem to
    show the class.

    Args:
        encode: Encodes supports (B, K, 3, H, W) with masks (B, K, H, W).
        match: Matches a query with groups of sets.
        query: (1, 3, H, W), normalised.
        sets: The sets of n classes, each of one episode.
        matches: The first match of each, N = 1.
        most: Largest number of sets that are matched at once.
    """
    joined = []
    for supports, first in zip(sets, matches, strict=True):
        found = object_probability(resize_scores(first.scores, query.shape[-2:])) > THRESHOLD
        own = supports
        if found.any():
            own = encode(query[:, None], found[:, None].to(query.dtype))
            own = supports.merge(replace(own, fingerprint=supports.fingerprint))
        joined.append(own)
    order, groups = group_by_shots(joined, most)
    again = [pair for group in match(query, groups) for pair in group.split()]
    scores = {i: pair.scores for i, pair in zip(order, again, strict=True)}
    return [first._replace(scores=scores[i]) for i, first in enumerate(matches)]
