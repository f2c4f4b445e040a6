"""The answer to a query as one more support: the query is matched again.

    p' = model(query, supports + (query, m)), with m, the mask of the first answer

The object of the query resembles itself more than it resembles the supports, so the second answer
fills what the first one left out, and drops what is unlike the rest.

Source: self-support matching, arXiv 2207.11549. There, prototypes of the answer are trained; here
the answer becomes a support like any other, and nothing is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from hdmnet.supports import SupportSet


def join_answers(
    encode: Callable[[Tensor, Tensor], SupportSet],
    query: Tensor,
    masks: Sequence[Tensor],
    sets: Sequence[SupportSet],
) -> list[SupportSet]:
    """Join the answers to a query to the supports that found them.

    Args:
        encode: Encodes supports (B, K, 3, H, W) with masks (B, K, H, W).
        query: (1, 3, H, W), normalised.
        masks: (H, W) bool, what was found of each of n classes. An empty one is no support.
        sets: The supports of each class, of one episode.

    Returns:
        The supports of each class, one more where something was found.
    """
    joined = []
    for supports, mask in zip(sets, masks, strict=True):
        own = supports
        if mask.any():
            own = encode(query[None], mask[None, None].to(query))
            own = supports.merge(replace(own, fingerprint=supports.fingerprint))
        joined.append(own)
    return joined
