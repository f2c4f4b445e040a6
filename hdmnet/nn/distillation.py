"""Correlation distillation: each stage teaches the next finer one (arXiv 2303.14652)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from hdmnet._ops import upcast, upsample


class CorrelationDistillation(nn.Module):
    """Kullback-Leibler divergence between correlation maps of neighbouring stages.

    The label teaches the coarsest stage, and every stage, detached, teaches the next finer one.
    Maps are compared as distributions over the grid of the finer of the two.

    Source: HDMNet, correlation map distillation.
    """

    def forward(self, correlations: Sequence[Tensor], target: Tensor) -> Tensor:
        """Mean over stages of the divergence from teacher to student.

        Args:
            correlations: S maps (B, h_s, w_s), coarsest first.
            target: (B, H, W) query labels: 1 is the object; anything else, 255 included, is not.

        Returns:
            A scalar, at least 0 but for rounding.

        Raises:
            ValueError: If `correlations` is empty.
        """
        if not correlations:
            raise ValueError("correlations is empty: expected at least one map (B, h, w)")
        students = [upcast(correlation) for correlation in correlations]
        # Filled before it is resized: a cell that samples any background drops out of the softmax.
        label = torch.where(target == 1, 1.0, -1e9).to(students[0].dtype)
        teachers = [label, *(student.detach() for student in students[:-1])]
        losses = [_divergence(t, s) for t, s in zip(teachers, students, strict=True)]
        return torch.stack(losses).mean()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    teacher = upsample(teacher[:, None], student.shape[-2:], align_corners=False)
    p = rearrange(teacher, "b 1 h w -> b (h w)").softmax(dim=1)
    q = rearrange(student, "b h w -> b (h w)").softmax(dim=1)
    return (p * ((p + 1e-12).log() - (q + 1e-12).log())).sum(dim=1).mean()
