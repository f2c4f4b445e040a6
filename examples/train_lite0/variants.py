"""Networks without one of the paper's ideas, for the ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from features import build_model
from torch import Tensor

from hdmnet import HDMNet, SupportSet
from hdmnet.nn import MatchingAttention, MatchingStage
from hdmnet.nn.attention import SupportTokens
from hdmnet.output import QueryFeatures

HEADS = (2, 4, 8)
OUTSIDE = -1e4
"""Similarity of positions outside of the mask."""


class DotProductAttention(MatchingAttention):
    """Usual cross-attention in place of the paper's matching.

    S_ij = q_i · k_j / √d, A_ij = exp(S_ij) / Σ_j' exp(S_ij') over the object positions j' of the
    supports, out_i = W_o Σ_j A_ij v_j: each query position, not each support position, distributes
    one unit of attention. The correlation map is the mean of S_ij over the object.
    """

    def encode(self, support: Tensor, mask: Tensor) -> SupportTokens:
        """Project the supports. Positions outside of the mask get a key of 0."""
        tokens = rearrange(support, "b k c h w -> b (k h w) c")
        m = rearrange(mask, "b k h w -> b 1 (k h w) 1")
        k, v = (
            rearrange(part(tokens), "b n (heads d) -> b heads n d", heads=self.heads)
            for part in (self.key, self.value)
        )
        k = m * k / k.shape[-1] ** 0.5
        return SupportTokens(k, m * v, k.sum(dim=-2), m.sum(dim=(1, 2, 3)))

    def match(self, query: Tensor, support: SupportTokens, *, shots: int) -> tuple[Tensor, Tensor]:
        """Attend from the query to the supports."""
        q = self.query(rearrange(query, "b c h w -> b (h w) c"))
        q = rearrange(q, "b n (heads d) -> b heads n d", heads=self.heads)
        outside = (support.key == 0).all(dim=-1)[:, :, None]
        out = (q @ support.key.mT).masked_fill(outside, OUTSIDE).softmax(dim=-1) @ support.value
        mean_key = support.key_sum / (support.area[:, None, None] + 1e-9)
        correlation = (q @ mean_key[..., None]).squeeze(-1).mean(dim=1)
        out = self.dropout(self.out(rearrange(out, "b heads n d -> b n (heads d)")))
        height = query.shape[-2]
        return (
            rearrange(out, "b (h w) c -> b c h w", h=height),
            rearrange(correlation, "b (h w) -> b h w", h=height),
        )


class PrototypeAttention(MatchingAttention):
    """One prototype in place of dense matching.

    The keys and values of all object positions are replaced by their means, so a query position is
    compared with one vector per head.
    """

    def encode(self, support: Tensor, mask: Tensor) -> SupportTokens:
        """Project the supports and average them."""
        tokens = super().encode(support, mask)
        key = F.normalize(tokens.key_sum, dim=-1)[:, :, None]
        return tokens._replace(key=key, value=tokens.value.sum(dim=2, keepdim=True))


ATTENTIONS = {"dot": DotProductAttention, "prototype": PrototypeAttention}
"""In place of `MatchingAttention`. Their weights have the same names and shapes."""


class WithoutPrior(HDMNet):
    """The network with a prior of 0 everywhere."""

    def _prior(self, query: QueryFeatures, supports: SupportSet) -> Tensor:
        return torch.zeros_like(super()._prior(query, supports))


class OnePrototype(HDMNet):
    """The network with `PrototypeAttention`, also for `predict`."""

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """Encode all shots at once. One at a time, each would have a prototype of its own."""
        masked = supports * (masks == 1)[:, :, None]
        features = self.backbone(rearrange(masked, "b k c h w -> (b k) c h w"))
        return self.encode_features(features, masks)


def load_prototypes(folder: Path) -> HDMNet:
    """Load the network that a run of `train.py` with `matching=prototype` saved."""
    model = HDMNet.from_pretrained(folder)
    model.__class__ = OnePrototype
    for stage in model.cascade.stages:
        assert isinstance(stage, MatchingStage)
        stage.attention.__class__ = PrototypeAttention
    return model


def build_variant(
    backbone: str, *, stages: int, matching: str, prior: bool, **options: Any
) -> HDMNet:
    """Make the network, or one without an idea.

    Args:
        backbone: As for `build_model`.
        stages: Number of stages, 1 to 3.
        matching: `cosine` as in the paper, `dot` or `prototype`.
        prior: Whether the network sees the prior.
        **options: Arguments of `HDMNet`.
    """
    model = build_model(backbone, heads=HEADS[:stages], **options)
    if not prior:
        model.__class__ = WithoutPrior
    for stage in model.cascade.stages if matching != "cosine" else ():
        assert isinstance(stage, MatchingStage)
        stage.attention.__class__ = ATTENTIONS[matching]
    return model
