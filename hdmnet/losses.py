"""The training objective (arXiv 2303.14652)."""

from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet._ops import upcast
from hdmnet.distillation import CorrelationDistillation

if TYPE_CHECKING:
    from hdmnet.model import HDMNetOutput

IGNORE = 255


class EpisodeLosses(NamedTuple):
    """Scalars of one training step; `total` is what to call `backward()` on."""

    total: Tensor
    segmentation: Tensor
    distillation: Tensor
    base: Tensor | None


class EpisodeLoss(nn.Module):
    """Cross-entropy of both predictions plus correlation distillation.

    Source: HDMNet, training objective. The scores of the ensemble enter the cross-entropy as if
    they were logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.distillation = CorrelationDistillation()

    def forward(
        self, output: "HDMNetOutput", target: Tensor, base_target: Tensor | None = None
    ) -> EpisodeLosses:
        """Loss of a batch of episodes.

        Args:
            output: What `HDMNet.forward` returned for B episodes of H × W queries.
            target: (B, H, W) query labels: 0 background, 1 object, 255 ignored.
            base_target: (B, H, W) labels of the base classes: 0 background, 1 … n, 255 ignored.
                Gives `base`, the loss of a base learner in training; not part of `total`.

        Returns:
            segmentation = CE(final) + CE(meta); distillation = mean over stages;
            total = segmentation + distillation; base is None without `base_target`.

        Raises:
            ValueError: If a target's size is not that of the output, or `base_target` is given for
                a model without base learner.
        """
        target = _check(target, output.final, "target")
        segmentation = _cross_entropy(output.final, target) + _cross_entropy(output.meta, target)
        distillation = self.distillation(output.correlations, target)
        base = None
        if base_target is not None:
            if output.base is None:
                raise ValueError("base_target was given, but the model has base_classes=0")
            base = _cross_entropy(output.base, _check(base_target, output.base, "base_target"))
        return EpisodeLosses(segmentation + distillation, segmentation, distillation, base)


def _check(target: Tensor, scores: Tensor, name: str) -> Tensor:
    expected = (scores.shape[0], *scores.shape[2:])
    if target.shape != expected:
        raise ValueError(f"{name} must be (B, H, W) = {expected}, got {tuple(target.shape)}")
    return target.long()


def _cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    # The mean over no pixel at all is 0 here, and would be NaN in F.cross_entropy.
    total = F.cross_entropy(upcast(scores), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)
