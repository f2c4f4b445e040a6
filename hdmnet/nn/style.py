"""Difference in style between the query image and the support images (BAM, arXiv 2203.07615)."""

import torch
from einops import rearrange
from torch import Tensor

from hdmnet.nn._checks import check_shapes
from hdmnet.nn._precision import no_autocast, upcast
from hdmnet.nn.priors import EPS

TINY = torch.finfo(torch.float32).tiny


def gram_matrix(features: Tensor) -> Tensor:
    """Compute the cosines between the channels of a map: its style.

    G_cd = f_c · f_d / (|f_c| |f_d| + 1e-7), with f_c the h · w values of channel c.

    Args:
        features: (…, C, h, w) features f.

    Returns:
        (…, C, C) cosines in [-1, 1].

    Raises:
        ValueError: If the shape does not fit.

    Example:
        >>> gram_matrix(torch.rand(2, 512, 60, 60)).shape
        torch.Size([2, 512, 512])

    Source: BAM (arXiv 2203.07615), ensemble module.
    """
    check_shapes("…, C, h, w", features=features)
    with no_autocast(features):
        # bfloat16 stays: the distance averages its rounding errors. float16 would overflow.
        bfloat16 = features.dtype == torch.bfloat16
        f = rearrange(features if bfloat16 else upcast(features), "... h w -> ... (h w)")
        products = upcast(f @ f.mT)
        # The clamp keeps the gradient finite: that of a root is infinite at 0.
        norm = products.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).sqrt()
        return products / (norm[..., None] * norm[..., None, :] + EPS)


def gram_distance(query: Tensor, support: Tensor) -> Tensor:
    """Compute the distance in style between the query image and each support image.

    e_k = ‖G_q − G_k‖_F / C, with the Frobenius norm.

    Args:
        query: (B, C, C) Gram matrices G_q of the queries.
        support: (B, K, C, C) Gram matrices G_k of the supports.

    Returns:
        (B, K) distances, at least 0.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> query, support = torch.rand(1, 512, 60, 60), torch.rand(1, 5, 512, 60, 60)
        >>> gram_distance(gram_matrix(query), gram_matrix(support)).shape
        torch.Size([1, 5])

    Source: BAM (arXiv 2203.07615), ensemble module.
    """
    check_shapes("B, C, C; B, K, C, C", query=query, support=support)
    difference = query[:, None] - support.to(query.dtype)
    return torch.linalg.matrix_norm(difference) / query.shape[-1]
