"""How well supports agree."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hdmnet.preprocess import IGNORE


@dataclass(frozen=True)
class SupportRating:
    """How well a support agrees with the others."""

    index: int
    """Its place among the supports given, from 0."""
    agreement: float
    """In [0, 1], higher is better. It orders the supports of one call: with another model, or with
    other supports beside it, the same support has another value."""


def compare(probability: Tensor, label: Tensor, own: int) -> tuple[Tensor, Tensor]:
    """Compare the answers of K supports on the image of one of them.

    Correlations are over the pixels that the mask does not ignore. A constant map has correlation 0
    with all others.

    Args:
        probability: (K, H, W) answers of each support, in [0, 1].
        label: (H, W) mask of the image: 1 = object, 0 and 2 = background, 255 = ignore.
        own: The support whose image it is.

    Returns:
        (K,) correlations of the answers with the mask, and the mean correlation () of the answers
        of two other supports: 1 if there is only one other.
    """
    truth = (label == 1)[None].to(probability.dtype)
    maps = torch.cat([probability, truth])[:, label != IGNORE].double()
    maps = maps - maps.mean(dim=1, keepdim=True)
    maps = maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-9)
    *answers, mask = maps @ maps.T
    others = [i for i in range(len(answers)) if i != own]
    between = torch.stack(answers)[others][:, others]
    pairs = between[~torch.eye(len(others), dtype=torch.bool)]
    return mask[:-1], pairs.mean() if len(pairs) else pairs.new_ones(())


def rate(
    correlations: Tensor, easiness: Tensor, likeness: Tensor | None = None
) -> list[SupportRating]:
    """Rate supports by the formula of `FewShotModel.rate_supports`.

    Args:
        correlations: (K, K) c_ij, of the answer of support j with the mask of image i.
        easiness: (K,) d_i, how well the answers of the others on image i agree.
        likeness: (K, K) e_ij in [0, 1], how alike objects i and j look. None: not known.

    Returns:
        The ratings, best first.
    """

    def mean_of_others(pairs: Tensor, dim: int) -> Tensor:
        return (pairs.sum(dim=dim) - pairs.diagonal()) / (len(pairs) - 1)

    found, finds = (mean_of_others(correlations, dim) for dim in (1, 0))
    values = (4 * found + 4 * finds + 3 * correlations.diagonal() - 2 * easiness) / 9
    if likeness is not None:
        values = (9 * values + 4 * mean_of_others(likeness, 1)) / 13
    order = values.argsort(descending=True, stable=True).tolist()
    return [SupportRating(i, min(max(values[i].item(), 0.0), 1.0)) for i in order]
