"""Cascade matching: query against supports, coarse to fine (arXiv 2303.14652)."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from hdmnet.nn import _fast
from hdmnet.nn._checks import check_order, check_shapes
from hdmnet.nn._resize import nearest, upsample
from hdmnet.nn.attention import MatchingAttention, MixFFN, SupportTokens


class MatchingStage(nn.Module):
    """One level of matching: cross-attention block, then fusion with the prior.

    With the query tokens q, the support tokens s and their mask m:

        out, C = MatchingAttention(LN(q), LN(s), m)
        x = q + out
        x = x + FFN(LN(x))
        z = ReLU(BN(conv3×3([x, prior])))

    Args:
        dim: Channels C of the tokens.
        heads: Heads of the matching attention.
        prior_channels: Channels P of the prior.
        shots: Number of shots that the weights are trained with, see `MatchingAttention`.
        dropout: Dropout probability in the block.

    Attributes:
        grad_checkpointing: Whether the backward pass computes the activations of the block again.

    Example:
        >>> query, support = torch.rand(1, 64, 9, 9), torch.rand(1, 5, 64, 9, 9)
        >>> mask, prior = torch.ones(1, 5, 72, 72), torch.rand(1, 2, 9, 9)
        >>> z, correlation = MatchingStage()(query, support, mask, prior)
        >>> z.shape, correlation.shape
        (torch.Size([1, 64, 9, 9]), torch.Size([1, 9, 9]))

    Source: HDMNet, section 3.3.
    """

    def __init__(
        self,
        dim: int = 64,
        heads: int = 2,
        *,
        prior_channels: int = 2,
        shots: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.prior_channels = prior_channels
        self.norm1 = LayerNorm2d(dim)
        self.attention = MatchingAttention(dim, heads, shots=shots, dropout=dropout)
        self.norm2 = LayerNorm2d(dim)
        self.ffn = MixFFN(dim, dropout=dropout)
        self.fuse = nn.Sequential(
            nn.Conv2d(dim + prior_channels, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
        )
        self.grad_checkpointing = False

    def forward(
        self, query: Tensor, support: Tensor, mask: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Match one level of the query pyramid against the same level of the supports.

        Args:
            query: (B, C, h, w) query tokens.
            support: (B, K, C, h', w') support tokens.
            mask: (B, K, H, W) support masks in {0, 1}, at any resolution.
            prior: (B, P, H', W') prior maps, at any resolution.

        Returns:
            The matched features z (B, C, h, w) and the correlation map (B, h, w).

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes(f"B, {self.dim}, h, w; B, K, {self.dim}, h', w'", query=query, support=support)
        return self.match(query, self.encode(support, mask), prior, shots=support.shape[1])

    def encode(self, support: Tensor, mask: Tensor) -> SupportTokens:
        """Compute the part of `forward` that does not depend on the query."""
        check_shapes(f"B, K, {self.dim}, h', w'; B, K, H, W", support=support, mask=mask)
        mask = nearest(mask.to(support.dtype), support.shape[-2:])
        support = rearrange(support, "b k c h w -> (b k) c h w")
        # The same LayerNorm serves query and supports.
        support = rearrange(self.norm1(support), "(b k) c h w -> b k c h w", k=mask.shape[1])
        return self.attention.encode(support, mask)

    def match(
        self, query: Tensor, support: SupportTokens, prior: Tensor, *, shots: int
    ) -> tuple[Tensor, Tensor]:
        """Compute `forward` from the result of `encode` for `shots` supports."""
        axes = f"B, {self.dim}, h, w; B, {self.prior_channels}, H', W'"
        check_shapes(axes, query=query, prior=prior)
        if self.grad_checkpointing and self.training:
            # Without `fuse`: computed again, its BatchNorm would count every batch twice.
            x, correlation = _fast.recompute(self._block, query, support, shots)
        else:
            x, correlation = self._block(query, support, shots)
        prior = upsample(prior, x.shape[-2:], align_corners=True)
        return self.fuse(torch.cat([x, prior.to(x.dtype)], dim=1)), correlation

    def _block(self, query: Tensor, support: SupportTokens, shots: int) -> tuple[Tensor, Tensor]:
        out, correlation = self.attention.match(self.norm1(query), support, shots=shots)
        x = query + out
        return x + self.ffn(self.norm2(x)), correlation

    def fuse_(self) -> None:
        """Fold the norm behind the convolution in place, for inference."""
        _fast.fold_norms(self.fuse)


class CascadeMatching(nn.Module):
    """Matching stages from coarse to fine, each refining the last, then a pixel classifier.

    With z_s of the `MatchingStage` of level s, from the coarsest level S - 1 to the finest level 0:

        y_{S-1} = parse(z_{S-1})
        y_s = up(y_{s+1}) + parse(z_s + up(y_{s+1}))
        logits = conv1×1(BN(conv3×3(BN(conv1×1(y_0)))))

    Each level has its own parse = ReLU(BN(conv1×1(BN(conv3×3(BN(conv1×1(·))))))). up resizes
    bilinearly to the next finer grid.

    Args:
        dim: Channels C of the tokens.
        stages: Number of levels S.
        heads: Heads of the matching attention of every level.
        hidden_dim: Hidden channels of the parsing blocks and of the classifier.
        prior_channels: Channels P of the prior.
        shots: Number of shots that the weights are trained with, see `MatchingAttention`.
        dropout: Dropout probability in the matching blocks.

    Example:
        >>> query = [torch.rand(1, 64, n, n) for n in (36, 18, 9)]
        >>> support = [torch.rand(1, 5, 64, n, n) for n in (36, 18, 9)]
        >>> mask, prior = torch.ones(1, 5, 288, 288), torch.rand(1, 2, 36, 36)
        >>> logits, correlations = CascadeMatching()(query, support, mask, prior)
        >>> logits.shape, [tuple(c.shape) for c in correlations]
        (torch.Size([1, 2, 36, 36]), [(1, 9, 9), (1, 18, 18), (1, 36, 36)])

    Source: HDMNet, section 3.3.
    """

    def __init__(
        self,
        dim: int = 64,
        stages: int = 3,
        *,
        heads: int = 2,
        hidden_dim: int = 256,
        prior_channels: int = 2,
        shots: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.stages = nn.ModuleList(
            MatchingStage(dim, heads, prior_channels=prior_channels, shots=shots, dropout=dropout)
            for _ in range(stages)
        )
        self.parse = nn.ModuleList(
            nn.Sequential(
                *_bottleneck(dim, hidden_dim, dim), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)
            )
            for _ in range(stages)
        )
        self.classifier = nn.Sequential(*_bottleneck(dim, hidden_dim, 2))

    def forward(
        self, query: Sequence[Tensor], support: Sequence[Tensor], mask: Tensor, prior: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Segment the query.

        Args:
            query: S maps (B, C, h_s, w_s), finest first, as `HierarchicalEncoder` returns them.
            support: S maps (B, K, C, h'_s, w'_s), finest first.
            mask: (B, K, H, W) support masks in {0, 1}, at full resolution.
            prior: (B, P, h, w) prior maps.

        Returns:
            Logits (B, 2, h_0, w_0) on the finest grid, background first; and the correlation map
            (B, h_s, w_s) of each stage, *coarsest first*.

        Raises:
            ValueError: If a shape or the number of levels does not fit, or levels are not finest
                first.
        """
        for q, s in zip(query, support, strict=False):  # `encode` and `match` count the levels
            check_shapes(f"B, {self.dim}, h, w; B, K, {self.dim}, h', w'", query=q, support=s)
        return self.match(query, self.encode(support, mask), prior, shots=mask.shape[1])

    def encode(self, support: Sequence[Tensor], mask: Tensor) -> tuple[SupportTokens, ...]:
        """Compute the part of `forward` that does not depend on the query, for each level."""
        self._check_count("support", support)
        check_order("support", support, "finest first")
        pairs = zip(self.stages, support, strict=True)
        return tuple(cast(MatchingStage, stage).encode(level, mask) for stage, level in pairs)

    def match(
        self,
        query: Sequence[Tensor],
        support: Sequence[SupportTokens],
        prior: Tensor,
        *,
        shots: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute `forward` from the result of `encode` for `shots` supports."""
        self._check_count("query", query)
        self._check_count("support", support)
        check_order("query", query, "finest first")
        correlations = []
        y: Tensor | None = None
        for level in reversed(range(len(self.stages))):
            stage = cast(MatchingStage, self.stages[level])
            z, correlation = stage.match(query[level], support[level], prior, shots=shots)
            if y is None:
                y = self.parse[level](z)
            else:
                y = upsample(y, z.shape[-2:], align_corners=False)
                y = y + self.parse[level](z + y)
            correlations.append(correlation)
        return self.classifier(y), tuple(correlations)

    def _check_count(self, name: str, levels: Sequence[object]) -> None:
        if len(levels) != len(self.stages):
            raise ValueError(
                f"{name} must have {len(self.stages)} levels, one for each stage, got {len(levels)}"
            )

    def fuse_(self) -> None:
        """Fold the norms and collapse the bottlenecks in place, for inference."""
        for part in (*self.parse, self.classifier):
            _fast.fold_norms(part)
        self.parse = nn.ModuleList(map(_fast.collapse, self.parse))
        self.classifier = nn.Sequential(_fast.collapse(self.classifier))


def _bottleneck(in_channels: int, hidden: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, out_channels, 1),
    )
