"""Plain vision transformers (ViTs): three blocks as a pyramid."""

from collections.abc import Sequence
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn


class PlainViT(nn.Module):
    """The patches after three blocks of a plain ViT, as maps.

    The default takes the blocks at a half, three quarters and all of the depth: of 12 blocks,
    numbers 5, 8 and 11. They are the last three of the four blocks that DPT reads. In the paper's
    ResNet-50, f2, f3 and f4 end at similar depths: after 7, 13 and 16 of 16 blocks. Features from
    the middle of a network serve new classes better than the last ones (CANet, PFENet), so f2 and
    f3, which become tokens, come from there. f4 gives a prior, and the input of the base learner.

    Class and register tokens are dropped. Position embeddings are interpolated to the grid. The
    network's last norm is applied to every level, as in DINOv2's own evaluations of frozen
    features: without it, a few very large channels (arXiv 2402.17762) could decide every cosine.

    Args:
        model: A network of timm whose blocks all work on the grid of patches.
        out_indices: Numbers of the three blocks, rising. Empty for the default.
        output_fmt: Not used: the maps are always NCHW. timm passes the layout of the network.

    Source: DPT (arXiv 2103.13413), DINOv2 (arXiv 2304.07193), CANet (arXiv 1903.02351), PFENet
    (arXiv 2008.01449).
    """

    def __init__(self, model: Any, out_indices: Sequence[int], output_fmt: str = "NCHW") -> None:
        super().__init__()
        model = getattr(model, "encoder", model)  # some networks are a classifier around it
        depth = len(model.blocks)
        default = (depth // 2 - 1, depth * 3 // 4 - 1, depth - 1)
        if isinstance(getattr(model, "norm", None), nn.Identity):
            # Networks that pool first have their last norm here, and pruning would drop it.
            model.norm = model.fc_norm
        self.has_norm = hasattr(model, "norm")
        self.layers: list[int] = model.prune_intermediate_layers(
            list(out_indices or default), prune_norm=not self.has_norm
        )
        self.model = model
        self.feature_info = FeatureInfo(model.feature_info, self.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) of whole patches of p pixels → three maps (B, C, H / p, W / p)."""
        levels: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.layers, norm=self.has_norm, intermediates_only=True
        )
        return levels
