"""An inference-only copy of a model with fewer operations and the same answers."""

import copy
import logging
from collections import Counter
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.nn.functional as F
from einops import einsum
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from hdmnet.model import HDMNet

logger = logging.getLogger(__name__)


def fuse(model: "HDMNet") -> "HDMNet":
    """Copy a model for inference, see `HDMNet.fused`."""
    fingerprint, fused = model.fingerprint(), model.is_fused
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if fused:
        return model
    roots = [model.backbone.body, *model.cascade.parse, model.cascade.classifier]
    roots += [stage.get_submodule("fuse") for stage in model.cascade.stages]
    roots += [] if model.psp is None else [*model.psp.branches, model.psp.fuse]
    for root in roots:
        fold_norms(root)
    model.cascade.parse = nn.ModuleList(map(collapse, model.cascade.parse))
    model.cascade.classifier = nn.Sequential(collapse(model.cascade.classifier))
    model._fused_fingerprint = fingerprint
    model.to(memory_format=torch.channels_last)
    if model.psp is not None:
        model.psp.prepare()
    return model


def fold_norms(root: nn.Module) -> None:
    """Fold, in place, every BatchNorm in eval mode into the convolution that alone feeds it."""
    try:
        nodes = list(_Tracer().trace(root).nodes)
    except Exception as error:  # fx fails in many ways on code that depends on values
        logger.info("%s keeps its norms: it cannot be traced (%s)", type(root).__name__, error)
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        if node.op != "call_module" or calls[node.target] > 1:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, conv = root.get_submodule(str(node.target)), root.get_submodule(str(source.target))
        if not _is_foldable_norm(norm) or not _is_plain_convolution(conv):
            continue
        if calls[source.target] > 1 or len(source.users) > 1:
            continue
        rest = getattr(norm, "act", nn.Identity())  # timm has norms with an activation
        root.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
        root.set_submodule(str(node.target), rest)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's own classes of convolutions and norms are to be seen as such.
        known = isinstance(m, nn.Conv2d | _BatchNorm)
        return known or super().is_leaf_module(m, module_qualified_name)


def _is_foldable_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    # Not a subclass, nor a parametrised one: these change their weight before they use it.
    return type(module) in (nn.Conv2d, Conv2dSame) and "weight" in dict(module.named_parameters())


class CollapsedBottleneck(nn.Module):
    """Convolutions 1 × 1, 3 × 3 and 1 × 1 with nothing between them, as one 3 × 3 convolution.

    The first bias is absent where the 3 × 3 kernel hangs over the border: its share of the output
    is a convolution of ones.
    """

    def __init__(self, first: nn.Conv2d, middle: nn.Conv2d, last: nn.Conv2d) -> None:
        super().__init__()
        # On the CPU: not every device has float64.
        w1, w2, w3 = (conv.weight.cpu().double() for conv in (first, middle, last))
        b1, b2, b3 = (_bias(conv).cpu().double() for conv in (first, middle, last))
        w1, w3 = w1[:, :, 0, 0], w3[:, :, 0, 0]
        outer = einsum(w3, w2, "o m, m n i j -> o n i j")
        composed = {
            "weight": einsum(outer, w1, "o n i j, n c -> o c i j"),
            "ones_weight": einsum(outer, b1, "o n i j, n -> o i j")[:, None],
            "bias": w3 @ b2 + b3,
        }
        for name, value in composed.items():
            self.register_buffer(name, value.to(first.weight))

    weight: Tensor
    ones_weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C', h, w)."""
        ones = x.new_ones(1, 1, *x.shape[-2:])
        return F.conv2d(x, self.weight, self.bias, padding=1) + F.conv2d(
            ones, self.ones_weight, padding=1
        )


def collapse(bottleneck: nn.Module) -> nn.Module:
    """Collapse a bottleneck of `CascadeMatching`, unless something is left between convolutions."""
    first, middle, last, *rest = (m for m in bottleneck.children() if type(m) is not nn.Identity)
    if not all(_is_plain_convolution(m) for m in (first, middle, last)):
        return bottleneck
    collapsed = CollapsedBottleneck(
        cast(nn.Conv2d, first), cast(nn.Conv2d, middle), cast(nn.Conv2d, last)
    )
    return nn.Sequential(collapsed, *rest)


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
