"""Training-free comparisons of support and query features (arXiv 2303.14652)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from hdmnet._ops import inner_products, keep_foreground, nearest, no_autocast, upcast, upsample

EPS = 1e-7  # added to the product of two norms
TINY = torch.finfo(torch.float32).tiny
POSITIONS = 2048  # of supports, that are compared at a time


def masked_average_pool(features: Tensor, mask: Tensor) -> Tensor:
    """Mean feature of the object: the prototype of each shot.

    Args:
        features: (B, K, C, h, w) support features.
        mask: (B, K, H, W) masks in {0, 1}, at any resolution.

    Returns:
        (B, K, C) prototypes; 0 where a mask is empty.

    Source: the prototype of PFENet (arXiv 2008.01449), which HDMNet takes over.
    """
    features = upcast(features)
    weight = upsample(mask.to(features.dtype), features.shape[-2:], align_corners=True)[:, :, None]
    return (features * weight).sum((-2, -1)) / (weight.sum((-2, -1)) + 5e-4)


def cosine_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of each query position to the most similar support position.

    Background support positions take part with similarity 0, so the prior is negative only where a
    mask covers its whole support.

    Args:
        query: (B, C, h, w) query features.
        support: (B, K, C, h', w') features of the masked support images.
        mask: (B, K, H, W) masks in {0, 1}, at any resolution.

    Returns:
        (B, h, w) similarities in [-1, 1], the mean over shots.

    Source: the prior mask of PFENet (arXiv 2008.01449), which HDMNet takes over.
    """
    return max_cosine(query, foreground_features(support, mask))


class PriorFeatures(NamedTuple):
    """What `cosine_prior` needs of K supports, at n positions: those that a mask covers, and one.

    That one stands for all others.
    """

    unit: Tensor
    """(B, K, n, C) of unit length, and 0 outside of the masks."""
    norm: Tensor
    """(B, K, n), the length they had."""


def foreground_features(support: Tensor, mask: Tensor) -> PriorFeatures:
    """The part of `cosine_prior` that does not depend on the query, with arguments like there."""
    support = upcast(support)
    m = nearest(mask.to(support.dtype), support.shape[-2:])
    s, m = keep_foreground(
        rearrange(support, "b k c h w -> b k (h w) c"),
        rearrange(m, "b k h w -> b k (h w)"),
        spare=1,
    )
    s = s * m[..., None]
    norm = s.norm(dim=-1)
    return PriorFeatures(s / _nonzero(norm)[..., None], norm)


def max_cosine(query: Tensor, support: PriorFeatures) -> Tensor:
    """`cosine_prior` of a query (B, C, h, w) and what `foreground_features` returned."""
    with no_autocast(query):
        full = upcast(query)
        unit, norm = (x.to(full.dtype) for x in support)
        query_norm = full.norm(dim=1).flatten(1)[..., None]
        units = _shots(unit)
        if not _is_eps_negligible(query_norm, norm):
            guards = (EPS / _nonzero(n)[:, None] for n in _shots(norm))
            pairs = zip(units, guards, strict=True)
            best = [(_products(full, u) / (query_norm[..., None] + g)).amax(-1) for u, g in pairs]
        elif query.dtype == full.dtype:
            # Then one division for each query position will do, after the maximum.
            best = [_products(full, u).amax(-1) / query_norm for u in units]
        else:
            # Products in half precision come rounded to its few digits. So they are taken of what
            # differs from the mean support, and the mean's are added in full.
            inside = (norm > 0).sum(dim=(1, 2)).clamp(min=1)
            mean = unit.sum(dim=(1, 2)) / inside[:, None]
            common = inner_products(full, mean[:, None])
            rest = (_products(query, (u - mean[:, None, None]).to(query.dtype)) for u in units)
            # The maximum of bfloat16 takes CPUs several times as long.
            best = [(upcast(r).amax(-1) + common) / query_norm for r in rest]
        similarity = torch.cat(best, dim=2).mean(dim=2)
    return rearrange(similarity, "b (h w) -> b h w", h=query.shape[-2])


def _is_eps_negligible(query_norm: Tensor, norm: Tensor) -> bool:
    """Whether `EPS` changes no digit of the product of any two of these norms."""
    if torch.compiler.is_compiling() or norm.dtype != torch.float32:
        return False
    smallest = norm.where(norm > 0, torch.inf).amin()  # a support of norm 0 stays 0 either way
    return bool(query_norm.amin() * smallest > EPS * 2**24)


def _shots(x: Tensor) -> Sequence[Tensor]:
    """(B, K, n, …) a few shots at a time, so that memory does not grow with K.

    A compiled graph must not depend on K, and takes all at once.
    """
    together = max(1, POSITIONS // (x.shape[0] * x.shape[2]))
    return [x] if torch.compiler.is_compiling() else x.split(together, dim=1)


def _nonzero(norm: Tensor) -> Tensor:
    """Norms to divide by: of what is 0, any number will do."""
    return norm.where(norm > 0, 1)


def _products(query: Tensor, support: Tensor) -> Tensor:
    """(B, C, h, w) and (B, K, n, C) → (B, h · w, K, n)."""
    return inner_products(query, support.flatten(1, 2)).unflatten(2, support.shape[1:3])


def gram_matrix(features: Tensor) -> Tensor:
    """Cosines between the channels of a map: its style.

    Args:
        features: (…, C, h, w) features.

    Returns:
        (…, C, C) cosines in [-1, 1].

    Source: BAM (arXiv 2203.07615), ensemble module.
    """
    with no_autocast(features):
        # bfloat16 rounds each cosine, but distances are means over many. float16 would overflow.
        half = features.dtype == torch.bfloat16
        f = rearrange(features if half else upcast(features), "... h w -> ... (h w)")
        products = upcast(f @ f.mT)
        # At least something, for the root's gradient at 0 is infinite.
        norm = products.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).sqrt()
        return products / (norm[..., None] * norm[..., None, :] + EPS)


def gram_distance(query: Tensor, support: Tensor) -> Tensor:
    """Difference in style between the query image and each support image.

    Args:
        query: (B, C, C) Gram matrix of the query.
        support: (B, K, C, C) Gram matrices of the supports.

    Returns:
        (B, K) Frobenius norms of the differences, divided by C; at least 0.

    Source: BAM (arXiv 2203.07615), ensemble module.
    """
    difference = query[:, None] - support.to(query.dtype)
    return torch.linalg.matrix_norm(difference) / query.shape[-1]
