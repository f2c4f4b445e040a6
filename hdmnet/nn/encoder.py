"""The hierarchical self-attention encoder that query and supports share (arXiv 2303.14652)."""

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from hdmnet.nn import _fast
from hdmnet.nn._checks import check_shapes
from hdmnet.nn.attention import MixFFN, SpatialReductionAttention


class PatchEmbed(nn.Module):
    """Convolution and LayerNorm at the beginning of a stage.

    Args:
        in_channels: Channels of the input map.
        dim: Channels of the output map.
        stride: 1 keeps the grid (1 × 1 kernel), 2 halves it and rounds up (3 × 3 kernel).

    Example:
        >>> PatchEmbed(64, 64, stride=2)(torch.rand(1, 64, 15, 15)).shape
        torch.Size([1, 64, 8, 8])

    Source: HDMNet, section 3.2.
    """

    def __init__(self, in_channels: int, dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.in_channels = in_channels
        kernel = 1 if stride == 1 else 3
        self.projection = nn.Conv2d(in_channels, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, dim, ⌈h / stride⌉, ⌈w / stride⌉).

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes(f"B, {self.in_channels}, h, w", x=x)
        return self.norm(self.projection(x))


class SelfAttentionBlock(nn.Module):
    """Pre-norm transformer block: x += Attn(LN(x)); x += FFN(LN(x))."""

    def __init__(self, dim: int, heads: int, *, reduction: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.attention = SpatialReductionAttention(dim, heads, reduction=reduction, dropout=dropout)
        self.norm2 = LayerNorm2d(dim)
        self.ffn = MixFFN(dim, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the map `x` (B, C, h, w); same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class SelfAttentionStage(nn.Module):
    """Patch embedding, transformer blocks, LayerNorm: one level of the hierarchy.

    Args:
        in_channels: Channels of the input map.
        dim: Channels C of the output map.
        heads: Attention heads of each block.
        stride: Stride of the patch embedding, 1 or 2.
        reduction: Spatial reduction of keys and values in each block.
        depth: Number of blocks.
        dropout: Dropout probability in the blocks.

    Attributes:
        grad_checkpointing: Whether the backward pass computes the activations of the blocks again.

    Example:
        >>> SelfAttentionStage(64, 64, 4, stride=2, reduction=2)(torch.rand(1, 64, 60, 60)).shape
        torch.Size([1, 64, 30, 30])

    Source: HDMNet, section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        heads: int,
        *,
        stride: int = 1,
        reduction: int = 1,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, dim, stride=stride)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(dim, heads, reduction=reduction, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = LayerNorm2d(dim)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, dim, ⌈h / stride⌉, ⌈w / stride⌉).

        Raises:
            ValueError: If the shape does not fit.
        """
        x = self.patch_embed(x)
        for block in self.blocks:
            again = self.grad_checkpointing and self.training
            x = _fast.recompute(block, x) if again else block(x)
        return self.norm(x)


class HierarchicalEncoder(nn.Module):
    """Self-attention stages, each on half the grid of the one before.

    x_0 = stage_0(x) and x_s = stage_s(x_{s-1}). Stage s has the spatial reduction 2^(S - 1 - s).

    Args:
        dim: Channels C of the input and of every level.
        heads: Attention heads of each stage, finest first. Its length is the number of stages S.
        dropout: Dropout probability in the blocks.

    Attributes:
        min_grid: The smallest height and width of the input, 2^(S - 1). The spatial reduction of
            the first stage needs that many rows and columns.

    Example:
        >>> [tuple(x.shape) for x in HierarchicalEncoder()(torch.rand(1, 64, 60, 60))]
        [(1, 64, 60, 60), (1, 64, 30, 30), (1, 64, 15, 15)]

    Source: HDMNet, section 3.2.
    """

    def __init__(
        self, dim: int = 64, heads: Sequence[int] = (2, 4, 8), *, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.dim = dim
        self.min_grid = 2 ** (len(heads) - 1)
        self.stages = nn.ModuleList(
            SelfAttentionStage(
                dim,
                dim,
                stage_heads,
                stride=1 if level == 0 else 2,
                reduction=self.min_grid // 2**level,
                dropout=dropout,
            )
            for level, stage_heads in enumerate(heads)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode a map into a pyramid.

        Args:
            x: (B, C, h, w) with h and w at least `min_grid`.

        Returns:
            S maps (B, C, ⌈h / 2^s⌉, ⌈w / 2^s⌉), finest first.

        Raises:
            ValueError: If the shape does not fit, or the grid is smaller than `min_grid`.
        """
        check_shapes(f"B, {self.dim}, h, w", x=x)
        if min(x.shape[-2:]) < self.min_grid:
            raise ValueError(
                f"the feature grid is {x.shape[-2]} × {x.shape[-1]}, but {len(self.stages)} stages "
                f"need at least {self.min_grid} × {self.min_grid}: use a larger input"
            )
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return tuple(pyramid)


def conv_relu(inputs: int, outputs: int, *rest: nn.Module) -> nn.Sequential:
    """Make a 1 × 1 convolution without bias, a ReLU, and what follows them."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU(inplace=True), *rest)
