"""The attention and feed-forward layers of HDMNet (arXiv 2303.14652)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from hdmnet.nn import _fast
from hdmnet.nn._checks import check_shapes
from hdmnet.nn._precision import no_autocast, upcast

TO_HEADS = "b n (heads d) -> b heads n d"
FROM_HEADS = "b heads n d -> b n (heads d)"


class SpatialReductionAttention(nn.Module):
    """Multi-head self-attention whose keys and values come from a spatially reduced map.

    out_i = W_o Σ_j softmax_j(q_i · k_j / √d) v_j per head, with q = W_q x, k = W_k r, v = W_v r and
    r = LN(conv(x)), a convolution whose kernel and stride are `reduction`.

    Args:
        dim: Number of channels C, a multiple of `heads`.
        heads: Number of attention heads.
        reduction: Kernel and stride of the convolution; 1 leaves it out (r = x). A remainder of
            rows or columns is dropped (13 → 3 with reduction 4).
        dropout: Probability of dropping an output element.

    Raises:
        ValueError: If `dim` is not a multiple of `heads`.

    Example:
        >>> SpatialReductionAttention(64, 2, reduction=4)(torch.rand(1, 64, 60, 60)).shape
        torch.Size([1, 64, 60, 60])

    Source: HDMNet, section 3.2, with the spatial reduction attention of PVT (arXiv 2102.12122).
    """

    def __init__(self, dim: int, heads: int, *, reduction: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.dim = dim
        self.heads = heads
        self.reduction = reduction
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
        """Attend within the map `x` (B, C, h, w), h and w at least `reduction`; same shape.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes(f"B, {self.dim}, h, w", x=x)
        if not torch.compiler.is_compiling() and min(x.shape[-2:]) < self.reduction:
            raise ValueError(
                f"x must have at least {self.reduction} rows and columns, got {tuple(x.shape)}"
            )
        tokens = rearrange(x, "b c h w -> b (h w) c")
        reduced = rearrange(self.reduce(x), "b c h w -> b (h w) c")
        q = rearrange(self.query(tokens), TO_HEADS, heads=self.heads)
        k = rearrange(self.key(reduced), TO_HEADS, heads=self.heads)
        v = rearrange(self.value(reduced), TO_HEADS, heads=self.heads)
        out = self.out(rearrange(F.scaled_dot_product_attention(q, k, v), FROM_HEADS))
        return rearrange(self.dropout(out), "b (h w) c -> b c h w", h=x.shape[-2])


class SupportTokens(NamedTuple):
    """The supports' part of `MatchingAttention`: n positions that hold all foreground of K shots.

    With the unit keys k_j, the values v_j and the mask m_j of the support positions j:
    """

    key: Tensor
    """(B, heads, n, d): k_j."""
    value: Tensor
    """(B, heads, n, d): m_j v_j."""
    key_sum: Tensor
    """(B, heads, d): Σ_j m_j k_j."""
    area: Tensor
    """(B,): Σ_j m_j."""


class MatchingAttention(nn.Module):
    """Cosine cross-attention from support to query, normalised over the *query* positions.

    Per head, with query positions i and support positions j:

        S_ij = cos(q_i, k_j) / temperature
        A_ij = exp(S_ij) / Σ_i' exp(S_i'j)
        out_i = W_o Σ_j A_ij m_j v_j
        C_i = mean over heads of Σ_j m_j S_ij / (Σ_j m_j + 1e-9)

    Every foreground support position j distributes one unit of attention over the query. The
    background of the query can therefore not outvote an object that covers many support positions.

    `forward` is `encode`, which does not depend on the query, followed by `match`.

    Args:
        dim: Number of channels C, a multiple of `heads`.
        heads: Number of attention heads.
        shots: Number of shots K_t that the weights are trained with. With K shots, Σ_j A_ij m_j v_j
            is multiplied by K_t / K, so K identical shots give the output of one.
        temperature: Divisor of the cosines, at least 0.02.
        dropout: Probability of dropping an output element.

    Attributes:
        fast: Whether to take the exact shortcuts. False computes the formulas as written.

    Raises:
        ValueError: If `dim` is not a multiple of `heads`, or `temperature` is below 0.02.

    Example:
        >>> query, support = torch.rand(1, 64, 30, 30), torch.rand(1, 5, 64, 30, 30)
        >>> out, correlation = MatchingAttention(64)(query, support, torch.ones(1, 5, 30, 30))
        >>> out.shape, correlation.shape
        (torch.Size([1, 64, 30, 30]), torch.Size([1, 30, 30]))

    Source: HDMNet, section 3.3, matching module.
    """

    fast = True

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
        self.dim = dim
        if temperature < 0.02:
            raise ValueError(
                f"temperature must be at least 0.02, because exp(1 / temperature) must fit into "
                f"float32, got {temperature}"
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
            The attended values (B, C, h, w) and the correlation map C (B, h, w).

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes(f"B, {self.dim}, h, w; B, K, {self.dim}, h', w'", query=query, support=support)
        return self.match(query, self.encode(support, mask), shots=support.shape[1])

    def encode(self, support: Tensor, mask: Tensor) -> SupportTokens:
        """Project K masked support maps, as for `forward`, to keys and values."""
        check_shapes(f"B, K, {self.dim}, h', w'; B, K, h', w'", support=support, mask=mask)
        tokens = rearrange(support, "b k c h w -> b (k h w) c")
        m = rearrange(mask.to(support.dtype), "b k h w -> b (k h w)")
        if self.fast:
            tokens, m = _fast.keep_foreground(tokens, m)
        k = upcast(rearrange(self.key(tokens), TO_HEADS, heads=self.heads))
        v = upcast(rearrange(self.value(tokens), TO_HEADS, heads=self.heads))
        m = rearrange(upcast(m), "b n -> b 1 n 1")
        k = F.normalize(k, dim=-1, eps=1e-12)
        return SupportTokens(k, m * v, (m * k).sum(dim=-2), m.sum(dim=(1, 2, 3)))

    def match(self, query: Tensor, support: SupportTokens, *, shots: int) -> tuple[Tensor, Tensor]:
        """Match a query map against the result of `encode` for `shots` supports."""
        check_shapes(f"B, {self.dim}, h, w; B, {self.heads}, n, d", query=query, key=support.key)
        q = self.query(rearrange(query, "b c h w -> b (h w) c"))
        q = upcast(rearrange(q, TO_HEADS, heads=self.heads))
        with no_autocast(query):
            q = F.normalize(q, dim=-1, eps=1e-12) / self.temperature
            if self.fast:
                out = _fast.attend(q, support.key, support.value)
            else:
                k, mv = support.key.to(q.dtype), support.value.to(q.dtype)
                out = (q @ k.mT).softmax(dim=-2) @ mv
            out = out * (self.shots / shots)
            # Σ_j m_j S_ij = q_i · Σ_j m_j k_j: the correlation map needs no S.
            mean_k = support.key_sum / (support.area[:, None, None] + 1e-9)
            correlation = (q @ mean_k[..., None].to(q.dtype)).squeeze(-1).mean(dim=1)
        out = self.dropout(self.out(rearrange(out, FROM_HEADS).to(self.out.weight.dtype)))
        height = query.shape[-2]
        return (
            rearrange(out, "b (h w) c -> b c h w", h=height),
            rearrange(correlation, "b (h w) -> b h w", h=height),
        )


class MixFFN(nn.Module):
    """Feed-forward layer with a depth-wise 3 × 3 convolution in place of a position encoding.

    out = conv1×1(GELU(depthwise3×3(conv1×1(x)))).

    Args:
        dim: Number of channels C.
        expansion: Hidden channels per input channel.
        dropout: Probability of dropping an element, after the activation and after the output.

    Example:
        >>> MixFFN(64)(torch.rand(1, 64, 60, 60)).shape
        torch.Size([1, 64, 60, 60])

    Source: HDMNet, section 3.2, with the Mix-FFN of SegFormer (arXiv 2105.15203).
    """

    def __init__(self, dim: int, *, expansion: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim = dim
        hidden = dim * expansion
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, dim, 1)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the map `x` (B, C, h, w); same shape.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes(f"B, {self.dim}, h, w", x=x)
        hidden = self.activation(self.depthwise(self.expand(x)))
        return self.dropout(self.project(self.dropout(hidden)))


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError unless `dim` splits evenly into `heads`."""
    if heads < 1 or dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
