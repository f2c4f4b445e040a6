"""Training-free comparisons of support and query features (arXiv 2303.14652)."""

import torch
from einops import rearrange
from torch import Tensor

from hdmnet._ops import inner_products, keep_foreground, nearest, no_autocast, upcast, upsample

EPS = 1e-7  # added to the product of two norms


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


def foreground_features(support: Tensor, mask: Tensor) -> Tensor:
    """The part of `cosine_prior` that does not depend on the query.

    Args:
        support: (B, K, C, h, w), as for `cosine_prior`.
        mask: (B, K, H, W), as for `cosine_prior`.

    Returns:
        (B, K, n, C) features inside of the masks, and 0 in the place of all outside.
    """
    support = upcast(support)
    m = nearest(mask.to(support.dtype), support.shape[-2:])
    # One background position of each shot stands for all of them.
    s, m = keep_foreground(
        rearrange(support, "b k c h w -> b k (h w) c"),
        rearrange(m, "b k h w -> b k (h w)"),
        spare=1,
    )
    return s * m[..., None]


def max_cosine(query: Tensor, support: Tensor) -> Tensor:
    """`cosine_prior` of a query (B, C, h, w) and what `foreground_features` returned."""
    with no_autocast(query):
        query = upcast(query)
        query_norm = query.norm(dim=1).flatten(1)[..., None, None]
        # One shot at a time, so that memory does not grow with K; a compiled graph must not depend
        # on K, and takes all at once.
        parts = [support] if torch.compiler.is_compiling() else support.split(1, dim=1)
        similarities = [_best_cosine(query, query_norm, s.to(query.dtype)) for s in parts]
        similarity = torch.cat(similarities, dim=2).mean(dim=2)
    return rearrange(similarity, "b (h w) -> b h w", h=query.shape[-2])


def _best_cosine(query: Tensor, query_norm: Tensor, support: Tensor) -> Tensor:
    """(B, C, h, w), its norms (B, h · w, 1, 1), and (B, K, n, C) → (B, h · w, K)."""
    norm = support.norm(dim=-1)
    if _is_eps_negligible(query_norm, norm):
        # Then one division for each query position will do, after the maximum.
        support = support / norm.where(norm > 0, 1)[..., None]
        products = inner_products(query, support.flatten(1, 2))
        return products.unflatten(2, norm.shape[1:]).amax(dim=-1) / query_norm[..., 0]
    products = inner_products(query, support.flatten(1, 2)).unflatten(2, norm.shape[1:])
    return products.div_(query_norm * norm[:, None] + EPS).amax(dim=-1)


def _is_eps_negligible(query_norm: Tensor, norm: Tensor) -> bool:
    """Whether `EPS` changes no digit of the product of any two of these norms."""
    if torch.compiler.is_compiling() or norm.dtype != torch.float32:
        return False
    smallest = norm.where(norm > 0, torch.inf).amin()  # a support of norm 0 stays 0 either way
    return bool(query_norm.amin() * smallest > EPS * 2**24)


def gram_matrix(features: Tensor) -> Tensor:
    """Cosines between the channels of a map: its style.

    Args:
        features: (…, C, h, w) features.

    Returns:
        (…, C, C) cosines in [-1, 1].

    Source: BAM (arXiv 2203.07615), ensemble module.
    """
    with no_autocast(features):
        f = rearrange(upcast(features), "... h w -> ... (h w)")
        norm = f.norm(dim=-1, keepdim=True)
        return f @ f.mT / (norm * norm.mT + EPS)


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
