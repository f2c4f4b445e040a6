"""Training-free comparison of query and support features: prototype and prior mask."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hdmnet.nn import _fast
from hdmnet.nn._checks import check_shapes
from hdmnet.nn._precision import no_autocast, upcast
from hdmnet.nn._resize import nearest, upsample

EPS = 1e-7
"""Guard of a division by the product of two norms."""
SAME = 0.01
"""Two mean features that differ by less, as a share of their norm, are the same."""


def masked_average_pool(features: Tensor, mask: Tensor) -> Tensor:
    """Average the features of the object: the prototype of each shot.

    p = Σ_j m_j s_j / (Σ_j m_j + 5e-4), over the positions j of a shot.

    Args:
        features: (B, K, C, h, w) support features s.
        mask: (B, K, H, W) masks m in {0, 1}, at any resolution: they are stretched to the features.

    Returns:
        (B, K, C) prototypes. The prototype of an empty mask is 0.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> masked_average_pool(torch.rand(1, 5, 256, 60, 60), torch.ones(1, 5, 473, 473)).shape
        torch.Size([1, 5, 256])

    Source: PFENet (arXiv 2008.01449), section 3.3. HDMNet uses the same prototype.
    """
    check_shapes("B, K, C, h, w; B, K, H, W", features=features, mask=mask)
    features = upcast(features)
    weight = upsample(mask.to(features.dtype), features.shape[-2:], align_corners=True)[:, :, None]
    return (features * weight).sum((-2, -1)) / (weight.sum((-2, -1)) + 5e-4)


def cosine_prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """Compare every query position with its most similar support position.

    prior_i = mean_k max_j (q_i · s_kj m_kj) / (|q_i| |s_kj m_kj| + 1e-7).

    Support positions outside of the mask have similarity 0. The prior is therefore negative only
    where a mask covers its whole support.

    Args:
        query: (B, C, h, w) query features q.
        support: (B, K, C, h', w') features s of the masked support images.
        mask: (B, K, H, W) masks m in {0, 1}, at any resolution: they are stretched to the features.

    Returns:
        (B, h, w) similarities in [-1, 1].

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> query, support = torch.rand(1, 64, 30, 30), torch.rand(1, 5, 64, 30, 30)
        >>> cosine_prior(query, support, torch.ones(1, 5, 237, 237)).shape
        torch.Size([1, 30, 30])

    Source: the prior mask of PFENet (arXiv 2008.01449), section 3.2, which HDMNet uses.
    """
    axes = "B, C, h, w; B, K, C, h', w'; B, K, H, W"
    check_shapes(axes, query=query, support=support, mask=mask)
    return max_cosine(query, foreground_features(support, mask))


class PriorFeatures(NamedTuple):
    """The supports' part of `cosine_prior`: n positions that hold all foreground.

    Every shot also keeps one background position, if it has any. It stands for all the others.
    """

    unit: Tensor
    """(B, K, n, C) features s m / |s m|, and 0 outside of the mask."""
    norm: Tensor
    """(B, K, n) norms |s m|."""


def foreground_features(support: Tensor, mask: Tensor) -> PriorFeatures:
    """Compute the part of `cosine_prior` that does not depend on the query."""
    support = upcast(support)
    m = nearest(mask.to(support.dtype), support.shape[-2:])
    s, m = _fast.keep_foreground(
        rearrange(support, "b k c h w -> b k (h w) c"),
        rearrange(m, "b k h w -> b k (h w)"),
        spare=1,
    )
    s = s * m[..., None]
    norm = s.norm(dim=-1)
    # Zero norms become 1: their numerator is 0.
    return PriorFeatures(s / norm.where(norm > 0, 1)[..., None], norm)


def max_cosine(query: Tensor, support: PriorFeatures) -> Tensor:
    """Compute `cosine_prior` of a query (B, C, h, w) and the result of `foreground_features`."""
    with no_autocast(query):
        dtype = torch.promote_types(query.dtype, torch.float32)
        unit, norm = support.unit.to(dtype), support.norm.to(dtype)
        if torch.compiler.is_compiling():
            q = rearrange(query.to(dtype), "b c h w -> b 1 (h w) c")
            s = unit * norm[..., None]
            cosine = q @ s.mT / (q.norm(dim=-1, keepdim=True) * norm[:, :, None] + EPS)
            best = rearrange(cosine.amax(dim=-1), "b k n -> b n k")
        else:
            best = _fast.max_cosine(query, unit, norm, EPS)
    return rearrange(best.mean(dim=-1), "b (h w) -> b h w", h=query.shape[-2])


def mean_feature(support: PriorFeatures) -> Tensor:
    """Average the features of the object over all positions of all shots: (B, C)."""
    unit, norm = upcast(support.unit), upcast(support.norm)
    total = (unit * norm[..., None]).sum(dim=(1, 2))
    return total / (norm > 0).sum(dim=(1, 2), keepdim=True)[..., 0].clamp(min=1)


def contrast_prior(query: Tensor, own: Tensor, rivals: Tensor | None, center: Tensor) -> Tensor:
    """Compare every query position with a class and with the classes that it could be taken for.

    contrast_i = min_d cos(q_i − μ, m − m_d)

    with the mean feature m of the class and m_d of each rival. The mean feature μ of many images
    is always one of the rivals: it stands for anything. The other priors say which position of the
    query resembles the class most. This one also says how much: it is low everywhere if the query
    does not show the class. A rival with |m − m_d| below |m| / 100 is the class itself, and none.

    Args:
        query: (B, C, h, w) query features q.
        own: (B, C) mean features m, from `mean_feature`.
        rivals: (B, M, C) mean features m_d of M other classes. None: there are none.
        center: (C,) mean feature μ.

    Returns:
        (B, h, w) in [-1, 1].

    Raises:
        ValueError: If a shape does not fit.

    Source: this project.
    """
    rivals = own.new_zeros(own.shape[0], 0, own.shape[-1]) if rivals is None else rivals
    axes = "B, C, h, w; B, C; B, M, C; C"
    check_shapes(axes, query=query, own=own, rivals=rivals, center=center)
    q, center = upcast(query), center.to(own.dtype)
    everything = torch.cat([center.expand(own.shape[0], 1, -1), rivals.to(own.dtype)], dim=1)
    q = F.normalize(q - center.to(q.dtype)[:, None, None], dim=1)
    direction = own[:, None] - everything
    distance = direction.norm(dim=-1, keepdim=True)
    same = distance <= SAME * own.norm(dim=-1)[:, None, None]
    same[:, 0] = False
    direction = direction / distance.clamp(min=EPS)
    with no_autocast(q):
        cosines = direction.to(q.dtype) @ rearrange(q, "b c h w -> b c (h w)")
    cosines = cosines.masked_fill(same, 1.0)
    return rearrange(cosines.amin(dim=1), "b (h w) -> b h w", h=q.shape[-2])
