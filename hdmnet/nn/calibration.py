"""From the network's scores to probabilities: decision threshold and temperature."""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from hdmnet.nn._checks import check_shapes, check_type
from hdmnet.nn._precision import upcast

TINY = 1e-12
"""Guard of a division by a sum."""


class Calibration(nn.Module):
    """Move and stretch the probabilities of a network.

    p' = σ((logit p − logit t_K) / T),   logit t_K = logit t + g ln K,   p = f / (b + f)
       = ((1 − t) f)^(1/T) / (((1 − t) f)^(1/T) + (t K^g b)^(1/T))

    with the scores b of the background and f of the object, and K supports. So p' is above 0.5
    where p is above the threshold t_K, and a temperature T above 1 makes sure answers less sure.
    The threshold may grow with K, because more supports make a network surer of what it finds.

    Args:
        temperature: T, above 0.
        threshold: t with one support, between 0 and 1.
        growth: g, how much logit t grows when K grows e-fold.

    Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), temperature
    scaling. The growth is of this project. `examples/train_lite0/export.py` fits all three;
    presence is fitted after them.
    """

    def __init__(
        self, temperature: float = 1.0, threshold: float = 0.5, growth: float = 0.0
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.threshold = threshold
        self.growth = growth

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Self:
        """Make the module of a constructor argument of the network.

        Args:
            config: A dict of `temperature`, `threshold` and, if it is there, `growth`. None: the
                scores stay as they are.

        Raises:
            TypeError: If `config` is not a dict, or a value has the wrong type.
            ValueError: If a key is unknown or missing, or a value is out of its range.
        """
        if config is None:
            return cls()
        check_type("calibration", config, Mapping, "a dict of temperature and threshold")
        if config.keys() | {"growth"} != {"temperature", "threshold", "growth"}:
            raise ValueError(
                f"calibration has the keys {sorted(config)}: expected temperature, threshold and, "
                "if you like, growth"
            )
        temperature, threshold = config["temperature"], config["threshold"]
        growth = config.get("growth", 0.0)
        for value in (temperature, threshold, growth):
            check_type("each value of calibration", value, (int, float), "a number")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"calibration['temperature'] is {temperature}: expected above 0")
        if not 0 < threshold < 1:
            raise ValueError(
                f"calibration['threshold'] is {threshold}: expected between 0 and 1, both excluded"
            )
        if not math.isfinite(growth):
            raise ValueError(f"calibration['growth'] is {growth}: expected a finite number")
        return cls(temperature, threshold, growth)

    def forward(self, scores: Tensor, shots: int = 1) -> Tensor:
        """Calibrate scores.

        Args:
            scores: (B, 2, H, W), at least 0, background first.
            shots: Number K of supports.

        Returns:
            (B, 2, H, W): 1 − p' and p'. Without arguments: the scores themselves.

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes("B, 2, H, W", scores=scores)
        if self.temperature == 1.0 and self.threshold == 0.5 and self.growth == 0.0:
            return scores
        scores = upcast(scores)
        # A tensor: K of an exported graph is no number.
        background = self.threshold * (scores.new_ones(()) * shots) ** self.growth
        weights = torch.stack([background, scores.new_tensor(1 - self.threshold)])[:, None, None]
        weighted = scores.clamp(min=0) * weights
        # Relative to the larger one: a power of two small numbers could be 0 for both.
        relative = weighted / weighted.amax(dim=1, keepdim=True).clamp(min=TINY)
        powers = relative ** (1 / self.temperature)
        return powers / powers.sum(dim=1, keepdim=True).clamp(min=TINY)
