"""Correlation distillation: each stage teaches the next finer one (HDMNet, arXiv 2303.14652)."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from hdmnet.nn._checks import check_order, check_shapes
from hdmnet.nn._precision import upcast
from hdmnet.nn._resize import upsample


class CorrelationDistillation(nn.Module):
    """Kullback-Leibler divergence between correlation maps of neighbouring stages.

    For a stage with correlation map C and teacher map T, resized bilinearly to the grid of C:

        D = mean_B Σ_i softmax(T)_i (log(softmax(T)_i + 1e-12) − log(softmax(C)_i + 1e-12))

    with softmax and sum over the positions i of the grid. The teacher of the coarsest stage is the
    label: 1 on the object and -1e9 elsewhere. The teacher of a finer stage is the next coarser C,
    detached.

    Example:
        >>> maps = [torch.rand(2, 15, 15), torch.rand(2, 30, 30), torch.rand(2, 60, 60)]
        >>> loss = CorrelationDistillation()(maps, torch.ones(2, 473, 473))

    Source: HDMNet (arXiv 2303.14652), correlation map distillation.
    """

    def forward(self, correlations: Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the mean of D over the stages.

        Args:
            correlations: S maps (B, h_s, w_s), coarsest first.
            target: (B, H, W) query labels: 1 = object, any other value (255 too) = not the object.

        Returns:
            A scalar, at least 0 except for rounding errors.

        Raises:
            ValueError: If `correlations` is empty or not coarsest first, or a shape does not fit.
        """
        if not correlations:
            raise ValueError("correlations is empty: expected at least one map (B, h, w)")
        for correlation in correlations:
            check_shapes("B, H, W; B, h, w", target=target, correlation=correlation)
        check_order("correlations", correlations, "coarsest first")
        students = [upcast(correlation) for correlation in correlations]
        # Fill first, then resize: a cell that samples any background drops out of the softmax.
        label = torch.where(target == 1, 1.0, -1e9).to(students[0].dtype)
        teachers = [label, *(student.detach() for student in students[:-1])]
        losses = [_divergence(t, s) for t, s in zip(teachers, students, strict=True)]
        return torch.stack(losses).mean()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    teacher = upsample(teacher[:, None], student.shape[-2:], align_corners=False)
    p = rearrange(teacher, "b 1 h w -> b (h w)").softmax(dim=1)
    q = rearrange(student, "b h w -> b (h w)").softmax(dim=1)
    return (p * ((p + 1e-12).log() - (q + 1e-12).log())).sum(dim=1).mean()
