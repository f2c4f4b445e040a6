"""The answer to a query as one more support: the query is matched again.

    p' = model(query, supports + (query, m)), with m, the mask of the first answer

The object of the query resembles itself more than it resembles the supports, so the second answer
fills what the first one left out, and drops what is unlike the rest.

Source: self-support matching, arXiv 2207.11549. There, prototypes of the answer are trained; here
the answer becomes a support like any other, and nothing is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

from torch import Tensor

from hdmnet.classes import Groups, group_by_shots
from hdmnet.output import Matches
from hdmnet.supports import SupportSet


def match_again(
    encode: Callable[[Tensor, Tensor], SupportSet],
    match: Callable[[Tensor, Groups], Iterator[Matches]],
    query: Tensor,
    masks: Sequence[Tensor],
    sets: Sequence[SupportSet],
    most: int,
) -> list[Tensor]:
    """Match a query with sets that have its first answers as supports.

    Args:
        encode: Encodes supports (B, K, 3, H, W) with masks (B, K, H, W).
        match: Matches a query with groups of sets.
        query: (1, 3, H, W), normalised.
        masks: (H, W) bool, what was found of each of n classes. An empty one is no support.
        sets: The sets of the classes, each of one episode.
        most: Largest number of sets that are matched at once.

    Returns:
        The scores (1, 2, H, W) of each class.
    """
    joined = []
    for supports, mask in zip(sets, masks, strict=True):
        own = supports
        if mask.any():
            own = encode(query[None], mask[None, None].to(query))
            own = supports.merge(replace(own, fingerprint=supports.fingerprint))
        joined.append(own)
    order, groups = group_by_shots(joined, most)
    again = [pair.scores for group in match(query, groups) for pair in group.split()]
    return [scores for _, scores in sorted(zip(order, again, strict=True), key=itemgetter(0))]
