"""Frozen features: three levels of any timm model, on one grid."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hdmnet._ops import upsample

PAPER_BACKBONES = {"resnet50": "resnet50s", "resnet101": "resnet101s", "vgg16": "vgg16_bn"}
"""The paper's names and the timm models that hold the same parameters."""


class FeaturePyramid(nn.Module):
    """The last three feature levels f2, f3, f4 of a backbone, on one grid.

    `resnet50`, `resnet101` and `vgg16` follow the paper's rules: stride 8 by dilation for ResNet,
    the grid of f3 (stride 16) for VGG. Any other name is a timm model with a feature pyramid:
    stride 8 by dilation where timm can dilate it, else resized to the grid of f2.

    Args:
        name: One of the paper's names, or a timm model name.
        pretrained: Whether to download timm's ImageNet weights for it.

    Attributes:
        channels: Channels of f2, f3, f4.
        mean: Per-channel mean that images in [0, 1] are normalised with, R, G, B.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: If timm has no such model, or makes no pyramid of three feature levels of it.

    Source: HDMNet, implementation details; dilation after PSPNet (arXiv 1612.01105).
    """

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        self.body = _create_body(PAPER_BACKBONES.get(name, name), pretrained=pretrained)
        c2, c3, c4 = self.body.feature_info.channels()
        self.channels: tuple[int, int, int] = (c2, c3, c4)
        self.mean: tuple[float, ...] = tuple(self.body.default_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.body.default_cfg["std"])
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        if name in ("resnet50", "resnet101"):
            _dilate_first_blocks(self.body)
        elif name == "vgg16":
            _round_pools_up(self.body)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images (B, 3, H, W) → f2, f3, f4, each (B, channels[i], h, w)."""
        levels = self.body(images)
        if self.name == "vgg16":
            levels = [*(F.max_pool2d(x, 2, ceil_mode=True) for x in levels[:2]), levels[2]]
        if self._channels_last:
            levels = [rearrange(x, "b h w c -> b c h w") for x in levels]
        f2, f3, f4 = levels
        grid = f3.shape[-2:] if self.name == "vgg16" else f2.shape[-2:]
        f2, f3, f4 = (_to_grid(x, grid) for x in (f2, f3, f4))
        return f2, f3, f4

    def normalise(self, images: Tensor) -> Tensor:
        """(…, 3, H, W) RGB in [0, 1] → the same, as `forward` expects it."""
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std

    @torch.no_grad()
    def smallest_size(self, grid: int) -> int:
        """The smallest height and width of an image whose features fill `grid` × `grid`.

        Raises:
            ValueError: If the backbone takes images of one size only.
        """
        was_training = self.training
        self.eval()
        stride = 16 if self.name == "vgg16" else self.body.feature_info.reduction()[0]
        # Strided convolutions round the grid up in most networks, and down in those that cut the
        # image into patches.
        for size in ((grid - 1) * stride + 1, grid * stride):
            try:
                features = self(next(self.parameters()).new_zeros(1, 3, size, size))[0]
            except (RuntimeError, AssertionError):
                continue
            if min(features.shape[-2:]) >= grid:
                self.train(was_training)
                return size
        raise ValueError(f"backbone {self.name!r} takes images of one size only: choose another")


def _to_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    same = tuple(x.shape[-2:]) == tuple(grid)
    return x if same else upsample(x, grid, align_corners=True)


def _create_body(name: str, *, pretrained: bool) -> Any:  # timm gives three classes
    if not timm.is_model(name):
        raise ValueError(
            f"unknown backbone {name!r}: expected one of {', '.join(PAPER_BACKBONES)}, or a name "
            "from timm.list_models()"
        )
    # VGG's last level is the pool after f4.
    levels = (2, 3, 4) if name == "vgg16_bn" else (-3, -2, -1)
    # Dilation for most convolutional networks; any image size for most transformers.
    for extra in ({"output_stride": 8}, {"strict_img_size": False}, {"dynamic_img_size": True}, {}):
        options: dict[str, Any] = {"features_only": True, "out_indices": levels, **extra}
        try:
            body = timm.create_model(name, **options)
        except Exception as error:  # timm says in many ways that a model lacks an option
            reason = error
            continue
        if "output_stride" in extra and body.feature_info.reduction()[-1] > 16:
            continue  # older versions take the option for transformers too, and do nothing
        return timm.create_model(name, pretrained=True, **options) if pretrained else body
    raise ValueError(f"timm makes no pyramid of three levels of {name!r}: {reason}") from reason


def _dilate_first_blocks(body: nn.Module) -> None:
    # timm gives the first block of a dilated stage the dilation of the stage before it.
    for layer, dilation in (("layer3", 2), ("layer4", 4)):
        conv: Any = body.get_submodule(f"{layer}.0.conv2")
        conv.dilation = conv.padding = (dilation, dilation)


def _round_pools_up(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
