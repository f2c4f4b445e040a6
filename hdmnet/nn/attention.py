"""The attention and feed-forward layers of HDMNet (arXiv 2303.14652)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from hdmnet._ops import keep_foreground, no_autocast, upcast


class SpatialReductionAttention(nn.Module):
    """Multi-head self-attention whose keys and values come from a spatially reduced map.

    Args:
        dim: Number of channels C, a multiple of `heads`.
        heads: Number of attention heads.
        reduction: Kernel and stride of the convolution that reduces keys and values; 1 for none.
            A remainder of rows or columns is dropped (13 → 3 at reduction 4).
        dropout: Probability of dropping an output element.

    Raises:
        ValueError: If `dim` is not a multiple of `heads`.

    Source: HDMNet, hierarchical self-attention, with the spatial reduction attention of PVT
    (arXiv 2102.12122).
    """

    def __init__(self, dim: int, heads: int, *, reduction: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.reduce = (
            nn.Sequential(nn.Conv2d(dim, dim, reduction, stride=reduction), LayerNorm2d(dim))
            if reduction > 1
            else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the map `x` (B, C, h, w), h and w at least `reduction`; same shape."""
        tokens = rearrange(x, "b c h w -> b (h w) c")
        reduced = rearrange(self.reduce(x), "b c h w -> b (h w) c")
        attended = F.scaled_dot_product_attention(
            split_heads(self.query(tokens), self.heads),
            split_heads(self.key(reduced), self.heads),
            split_heads(self.value(reduced), self.heads),
        )
        out = self.dropout(self.out(rearrange(attended, "b heads n d -> b n (heads d)")))
        return rearrange(out, "b (h w) c -> b c h w", h=x.shape[-2])


class SupportTokens(NamedTuple):
    """What `MatchingAttention` needs of K supports; n counts the positions that a mask covers."""

    key: Tensor
    """(B, heads, n, d) of unit length."""
    value: Tensor
    """(B, heads, n, d), times the mask."""
    key_sum: Tensor
    """(B, heads, d): Σ mask · key."""
    area: Tensor
    """(B,): Σ mask."""


class MatchingAttention(nn.Module):
    """Cosine cross-attention from support to query, normalised over the *query* positions.

    Every foreground support position distributes one unit of attention over the query, so an
    object that fills many support positions cannot be outvoted by the background of the query.

    `forward` is `encode`, which does not depend on the query, and then `match`.

    Args:
        dim: Number of channels C, a multiple of `heads`.
        heads: Number of attention heads.
        shots: Number of shots K_t the weights are trained with. With K shots the attention output
            is multiplied by K_t / K, so that identical shots give the output of one.
        temperature: Divisor of the cosines, at least 0.02.
        dropout: Probability of dropping an output element.

    Raises:
        ValueError: If `dim` is not a multiple of `heads`, or `temperature` is too small.

    Source: HDMNet, matching module.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 2,
        *,
        shots: int = 1,
        temperature: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        if temperature < 0.02:
            raise ValueError(
                f"temperature must be at least 0.02, for exp(1 / temperature) to fit float32, "
                f"got {temperature}"
            )
        self.heads = heads
        self.shots = shots
        self.temperature = temperature
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Match a query map against K masked support maps.

        Args:
            query: (B, C, h, w) query tokens.
            support: (B, K, C, h', w') support tokens.
            mask: (B, K, h', w') support masks in [0, 1], 1 on the object.

        Returns:
            The attended values (B, C, h, w), and the correlation map (B, h, w): the mean over heads
            and foreground support positions of cosine / temperature.
        """
        return self.match(query, self.encode(support, mask), shots=support.shape[1])

    def encode(self, support: Tensor, mask: Tensor) -> SupportTokens:
        """Project K masked support maps, as for `forward`, to keys and values."""
        tokens, m = keep_foreground(
            rearrange(support, "b k c h w -> b (k h w) c"),
            rearrange(mask.to(support.dtype), "b k h w -> b (k h w)"),
        )
        key = upcast(split_heads(self.key(tokens), self.heads))
        value = upcast(split_heads(self.value(tokens), self.heads))
        m = rearrange(upcast(m), "b n -> b 1 n 1")
        key = F.normalize(key, dim=-1, eps=1e-12)
        return SupportTokens(key, m * value, (m * key).sum(dim=-2), m.sum(dim=(1, 2, 3)))

    def match(self, query: Tensor, support: SupportTokens, *, shots: int) -> tuple[Tensor, Tensor]:
        """`forward` against what `encode` returned for `shots` supports."""
        q = split_heads(self.query(rearrange(query, "b c h w -> b (h w) c")), self.heads)
        with no_autocast(query):
            q = F.normalize(upcast(q), dim=-1, eps=1e-12) / self.temperature
            attended = _attend(q, support.key, support.value) * (self.shots / shots)
            # The sum over support positions commutes with the product: no N × N matrix for C.
            mean_key = support.key_sum / (support.area[:, None, None] + 1e-9)
            correlation = (q @ mean_key[..., None].to(q.dtype)).squeeze(-1).mean(dim=1)
        out = rearrange(attended, "b heads n d -> b n (heads d)").to(self.out.weight.dtype)
        out = self.dropout(self.out(out))
        height = query.shape[-2]
        return (
            rearrange(out, "b (h w) c -> b c h w", h=height),
            rearrange(correlation, "b (h w) -> b h w", h=height),
        )


class MixFFN(nn.Module):
    """Feed-forward layer with a depth-wise 3 × 3 convolution in place of positional encoding.

    Args:
        dim: Number of channels C.
        expansion: Hidden channels per input channel.
        dropout: Probability of dropping an element, after the activation and after the output.

    Source: HDMNet, hierarchical self-attention, with the Mix-FFN of SegFormer (arXiv 2105.15203).
    """

    def __init__(self, dim: int, *, expansion: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        hidden = dim * expansion
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, dim, 1)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the map `x` (B, C, h, w); same shape."""
        hidden = self.activation(self.depthwise(self.expand(x)))
        return self.dropout(self.project(self.dropout(hidden)))


CHUNK = 128
"""Support positions whose attention is in memory at a time: few enough for a processor's cache."""


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax over query positions of query · key, times value.

    The scores are bounded by 1 / temperature, so exp needs no maximum subtracted, and the softmax's
    divisor, one for each support position, divides the value in place of the larger matrix.
    """
    chunks = [(key, value)]
    if not torch.compiler.is_compiling():  # a compiled graph must not depend on their number
        chunks = list(zip(key.split(CHUNK, dim=-2), value.split(CHUNK, dim=-2), strict=True))
    out = torch.zeros_like(query)
    for k, v in chunks:
        attention = (query @ k.to(query.dtype).mT).exp_()
        out = out + attention @ (v.to(query.dtype) / attention.sum(dim=-2)[..., None])
    return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads · d) → (B, heads, N, d)."""
    return rearrange(x, "b n (heads d) -> b heads n d", heads=heads)


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError unless `dim` splits evenly into `heads`."""
    if heads < 1 or dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
