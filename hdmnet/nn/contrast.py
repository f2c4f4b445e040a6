"""Telling the classes of one query apart, by what each place of it looks like."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.nn._checks import check_shapes
from hdmnet.nn._resize import upsample
from hdmnet.nn.presence import SURE, object_probability

SCALE = 6.0
"""The factor β: logits that a difference of 1 between two likenesses moves."""


def set_apart(scores: Tensor, likeness: Tensor) -> Tensor:
    """Let the classes of one query compete.

    p'_k = σ(logit p_k − β max_{j ≠ k} o_jk p_j (s_j − s_k))
    o_jk = (p_j · p_k)² / (|p_j|² |p_k|²), over all pixels

    Two relatives are both found where one of them is, so their overlap o is near 1. There, the one
    that looks less like it loses and the other one gains, by as much as the rival was found. A cat
    and the sofa under it hardly overlap, and leave each other alone.

    Args:
        scores: (n, 2, H, W) scores of background and object, at least 0, of n classes. They give
            the probabilities p.
        likeness: (n, h, w) in [0, 1]: how much the surroundings of each place look like the objects
            of each class, the s. `Presence.likeness` computes it.

    Returns:
        Scores of the probabilities p', with the same sums. A class alone keeps its scores.

    Raises:
        ValueError: If a shape does not fit.

    Source: this project.
    """
    check_shapes("n, 2, H, W; n, h, w", scores=scores, likeness=likeness)
    if len(scores) < 2:
        return scores
    p = object_probability(scores)
    s = upsample(likeness[:, None].to(p.dtype), scores.shape[-2:], align_corners=True)[:, 0]
    directions = F.normalize(p.flatten(1), dim=1)
    overlap = (directions @ directions.T).square()
    apart = torch.empty_like(p)
    for k in range(len(p)):
        rivals = [j for j in range(len(p)) if j != k]
        lead = (overlap[rivals, k, None, None] * p[rivals] * (s[rivals] - s[k])).amax(dim=0)
        apart[k] = (p[k].logit(eps=SURE) - SCALE * lead).sigmoid()
    total = scores.clamp(min=0).sum(dim=1)
    return torch.stack([(1 - apart) * total, apart * total], dim=1)
