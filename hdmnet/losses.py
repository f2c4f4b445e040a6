"""The training objective of HDMNet (arXiv 2303.14652)."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.nn._checks import check_shapes
from hdmnet.nn._precision import upcast
from hdmnet.nn.distillation import CorrelationDistillation
from hdmnet.output import HDMNetOutput
from hdmnet.preprocess import IGNORE


class EpisodeLosses(NamedTuple):
    """Scalar losses of one training step. Call `backward()` on `total`."""

    total: Tensor
    segmentation: Tensor
    distillation: Tensor
    base: Tensor | None


class EpisodeLoss(nn.Module):
    """Cross-entropy of both predictions plus correlation distillation.

        total = CE(final, y) + CE(meta, y) + mean over stages of D

    CE is the mean over all pixels that are not 255. It takes the scores `final` as if they were
    logits. D is the divergence of `CorrelationDistillation`.

    Example:
        >>> losses = EpisodeLoss()(model(query, supports, masks), target)
        >>> losses.total.backward()

    Source: HDMNet (arXiv 2303.14652), training objective.
    """

    def __init__(self) -> None:
        super().__init__()
        self.distillation = CorrelationDistillation()

    def forward(
        self, output: HDMNetOutput, target: Tensor, base_target: Tensor | None = None
    ) -> EpisodeLosses:
        """Compute the losses of a batch of episodes.

        Args:
            output: The output of `HDMNet.forward` for B episodes with H × W queries.
            target: (B, H, W) query labels: 0 = background, 1 = object, 255 = ignore.
            base_target: (B, H, W) labels of the base classes: 0 = background, 1 … n = base classes,
                255 = ignore. With it, `base` is the loss for training a base learner.

        Returns:
            segmentation = CE(final, y) + CE(meta, y);
            distillation = mean over stages of D;
            total = segmentation + distillation;
            base = CE(base, base_target), not part of `total`, or None without `base_target`.

        Raises:
            ValueError: If a target does not have the size of the output, or `base_target` is given
                but the model has no base learner.
        """
        axes = "B, 2, H, W; B, 2, H, W; B, H, W"
        check_shapes(axes, final=output.final, meta=output.meta, target=target)
        target = target.long()
        segmentation = _cross_entropy(output.final, target) + _cross_entropy(output.meta, target)
        distillation = self.distillation(output.correlations, target)
        base = None
        if base_target is not None:
            if output.base is None:
                raise ValueError("base_target was given, but the model has base_classes=0")
            check_shapes("B, 1 + n, H, W; B, H, W", base=output.base, base_target=base_target)
            base = _cross_entropy(output.base, base_target.long())
        return EpisodeLosses(segmentation + distillation, segmentation, distillation, base)


def _cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    # Not reduction="mean": it gives NaN if all pixels are ignored, and this gives 0.
    total = F.cross_entropy(upcast(scores), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)
