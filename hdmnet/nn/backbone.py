"""Backbone features: three levels of any timm model, on one grid."""

from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models import is_model_in_modules
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hdmnet.nn import _checks, _fast
from hdmnet.nn._resize import upsample
from hdmnet.nn.vit import PlainViT

PAPER_BACKBONES = {"resnet50": "resnet50s", "resnet101": "resnet101s", "vgg16": "vgg16_bn"}
"""The paper's names, and timm's names of the models with the same parameters."""

# What the families of timm offer, by the name of timm's module. A model in no list keeps its own
# strides, and takes the image sizes that it was made for.
_DILATED = (  # stride 8 by dilation, `output_stride`
    *("byoanet", "byobnet", "convnext", "cspnet", "cspnext", "efficientnet", "hardcorenas"),
    *("inception_next", "mobilenetv3", "mobilevit", "nfnet", "regnet", "res2net", "resnest"),
    *("resnet", "resnetv2", "rexnet", "sknet", "xception_aligned"),
)
_WINDOWED = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
_VITS = ("deit", "eva", "vision_transformer", "vision_transformer_hybrid", "vitamin")
_VITS_OF_ANY_SIZE = ("deepseek_vit", "naflexvit", "qwen3_vit", "vision_transformer_sam", "xcit")
_VIT: dict[str, Any] = {"feature_cls": PlainViT, "out_indices": ()}
_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (_DILATED, {"output_stride": 8}),
    (_WINDOWED, {"strict_img_size": False}),
    (_VITS, {"dynamic_img_size": True, **_VIT}),
    (_VITS_OF_ANY_SIZE, _VIT),
)
# They fail, or cut something off, unless the image has whole cells of the coarsest level.
_WHOLE_CELLS = (
    *(*_VITS, *_VITS_OF_ANY_SIZE, "swin_transformer", "swin_transformer_v2"),
    *("csatv2", "dla", "hieradet_sam2", "hrnet", "tresnet"),
)
_ANTIALIASED = ("resnetaa", "resnextaa", "_clip", "resnet50_mlp")  # the same, by name


class FeaturePyramid(nn.Module):
    """Three feature levels f2, f3, f4 of a backbone, on one grid.

    `resnet50`, `resnet101` and `vgg16` follow the paper: ResNet has stride 8 by dilation, VGG the
    grid of f3 (stride 16). Any other name is a timm model.

    * A network with a feature pyramid gives its last three levels. It has stride 8 by dilation if
      its family is listed in this file. Otherwise f3 and f4 are resized to the grid of f2.
    * A plain ViT gives its patches after three blocks (`hdmnet.nn.vit.PlainViT`).

    ViTs, Swin, HRNet and a few others take only images of whole cells. For them, other images are
    resized to the next larger size. (Padding would shift the answer.)

    Args:
        name: One of the paper's names, or a timm model name.
        layers: Numbers of the levels or blocks to take f2, f3 and f4 from, rising. The first is 0,
            the last -1. None takes the default.
        pretrained: Whether to download timm's weights.

    Attributes:
        channels: Channels of f2, f3, f4.
        mean: Mean of each channel R, G, B that images in [0, 1] are normalised with.
        std: Standard deviation of each channel.

    Raises:
        ConnectionError: If the weights are not in the cache and cannot be downloaded.
        ValueError: If timm does not know the model, or cannot give three feature levels of it; or
            if it has no such layers.

    Example:
        >>> [tuple(x.shape) for x in FeaturePyramid("resnet50")(torch.rand(1, 3, 473, 473))]
        [(1, 512, 60, 60), (1, 1024, 60, 60), (1, 2048, 60, 60)]
        >>> dino = FeaturePyramid("vit_small_patch14_dinov2", layers=(3, 7, 11))

    Source: HDMNet, section 4.1; dilation as in PSPNet (arXiv 1612.01105).
    """

    def __init__(
        self, name: str, *, layers: Sequence[int] | None = None, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        if layers is not None and name in PAPER_BACKBONES:
            raise ValueError(
                f"backbone {name!r} has the layers of the paper: leave layers out, or take timm's "
                f"{PAPER_BACKBONES[name]!r}"
            )
        timm_name = PAPER_BACKBONES.get(name, name)
        self.body = _create_body(timm_name, layers, pretrained=pretrained)
        c2, c3, c4 = self.body.feature_info.channels()
        self.channels: tuple[int, int, int] = (c2, c3, c4)
        self._multiple = 1
        if _takes_whole_cells(timm_name):
            self._multiple = self.body.feature_info.reduction()[-1]
        self.mean: tuple[float, ...] = tuple(self.body.default_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.body.default_cfg["std"])
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        if name in ("resnet50", "resnet101"):
            _dilate_first_blocks(self.body)
        elif name == "vgg16":
            _round_pools_up(self.body)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images (B, 3, H, W) → f2, f3, f4, each (B, channels[i], h, w).

        Raises:
            ValueError: If the shape does not fit.
        """
        _checks.check_shapes("B, 3, H, W", images=images)
        levels = self.body(_whole_cells(images, self._multiple))
        if self.name == "vgg16":  # timm returns the levels before their pools
            levels = [*(F.max_pool2d(x, 2, ceil_mode=True) for x in levels[:2]), levels[2]]
        if self._channels_last:
            levels = [rearrange(x, "b h w c -> b c h w") for x in levels]
        grid = levels[1 if self.name == "vgg16" else 0].shape[-2:]
        f2, f3, f4 = (
            x if x.shape[-2:] == grid else upsample(x, grid, align_corners=True) for x in levels
        )
        return f2, f3, f4

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise (…, 3, H, W) RGB in [0, 1] with `mean` and `std`, as `forward` expects it."""
        return normalise(images, self.mean, self.std)

    @torch.no_grad()
    def smallest_size(self, grid: int) -> int:
        """Return the smallest height and width of an image whose features fill `grid` × `grid`.

        Raises:
            ValueError: If the backbone takes images of certain sizes only.
        """
        was_training = self.training
        self.eval()
        stride, *_, last = self.body.feature_info.reduction()
        stride = 16 if self.name == "vgg16" else stride
        # Most networks round the grid up, others down. The rest lose some cells at the borders.
        whole = -(-grid * stride // last) * last
        for size in ((grid - 1) * stride + 1, grid * stride, *(whole + i * last for i in range(4))):
            # A width that a network of certain sizes does not take.
            image = next(self.parameters()).new_zeros(1, 3, size, size + last + 3)
            try:
                features = self(image)[0]
            except (RuntimeError, AssertionError, IndexError, ValueError):  # a wrong image size
                continue
            if min(features.shape[-2:]) >= grid:
                self.train(was_training)
                return size
        raise ValueError(
            f"backbone {self.name!r} takes images of certain sizes only: choose another"
        )

    def fuse_(self) -> None:
        """Fold the norms in place, for inference."""
        _fast.fold_norms(self.body)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (x - mean) / std of each channel of (…, 3, H, W).

    Raises:
        TypeError: If the images do not hold floats.
        ValueError: If the shape does not fit.
    """
    _checks.check_shapes("…, 3, H, W", images=images)
    if not images.is_floating_point():
        raise TypeError(f"images must hold floats in [0, 1], got {images.dtype}: divide by 255")
    means, stds = (
        torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return (images - means) / stds


def _takes_whole_cells(name: str) -> bool:
    if is_model_in_modules(name, ("byobnet", "resnet")):
        return any(part in name for part in _ANTIALIASED)
    return is_model_in_modules(name, _WHOLE_CELLS)


def _whole_cells(images: Tensor, multiple: int) -> Tensor:
    """Resize images so that height and width are multiples."""
    if multiple == 1:
        return images
    size = [-(-side // multiple) * multiple for side in images.shape[-2:]]
    same = size == [*images.shape[-2:]]
    return images if same else upsample(images, size, align_corners=False)


def _create_body(name: str, layers: Sequence[int] | None, *, pretrained: bool) -> Any:
    if not timm.is_model(name):
        raise ValueError(
            f"unknown backbone {name!r}: expected one of {', '.join(PAPER_BACKBONES)}, or a name "
            "from timm.list_models()"
        )
    # The last level of VGG is a pool after f4.
    default = (2, 3, 4) if name == "vgg16_bn" else (-3, -2, -1)
    options = next((x for modules, x in _OPTIONS if is_model_in_modules(name, modules)), {})
    options = {"features_only": True, "out_indices": default, **options}
    try:
        body = timm.create_model(name, **options)
    except (AssertionError, RuntimeError) as error:  # no three levels, or no such weights
        raise ValueError(f"timm has no pyramid of three levels of {name!r}: {error}") from error
    if layers is not None:
        options["out_indices"] = _check_layers(layers, len(body.feature_info), name)
    elif not pretrained:
        return body
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:  # of the Hub's client or of urllib
        if error.errno is not None:  # such as a full disk
            raise
        raise ConnectionError(
            f"timm's weights of {name!r} are not in the cache, and cannot be downloaded "
            f"({type(error).__name__}): check the network, HF_HUB_OFFLINE and HF_ENDPOINT, or do "
            "without pretrained weights"
        ) from error


def _check_layers(layers: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """Return the layers, counted from the first, which is 0."""
    _checks.check_type("layers", layers, (list, tuple), "a sequence of int")
    _checks.check_integer("number of layers", len(layers), 3, 3)
    for i, layer in enumerate(layers):
        _checks.check_type(f"layers[{i}]", layer, int, "an int")
    counted = tuple(layer + count if layer < 0 else layer for layer in layers)
    if not 0 <= counted[0] < counted[1] < counted[2] < count:
        raise ValueError(
            f"backbone {name!r} has {count} layers: layers must be rising numbers from 0 to "
            f"{count - 1}, or from {-count} to -1, got {tuple(layers)}"
        )
    return counted


def _dilate_first_blocks(body: nn.Module) -> None:
    # timm gives the first block of a dilated stage the dilation of the stage before it.
    for layer, dilation in (("layer3", 2), ("layer4", 4)):
        conv: Any = body.get_submodule(f"{layer}.0.conv2")
        conv.dilation = conv.padding = (dilation, dilation)


def _round_pools_up(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True


def needs_all_at_once(parts: Iterable[nn.Module]) -> bool:
    """Whether features must be computed for all shots and the whole grid at once.

    A norm that takes statistics of the batch needs all of it. A compiled graph would hold the
    network K times, and must not depend on the masks.
    """
    if torch.compiler.is_compiling():
        return True
    modules = (module for part in parts for module in part.modules())
    return any(isinstance(module, _BatchNorm) and module.training for module in modules)
