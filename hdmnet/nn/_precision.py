"""Numerical precision under autocast and in half-precision models."""

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is float16 or bfloat16, otherwise unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which matrix products keep the precision of their operands.

    Cosines are divided by a temperature of 0.1 and exponentiated. The three digits of bfloat16 are
    not enough for that.
    """
    return torch.autocast(x.device.type, enabled=False)
