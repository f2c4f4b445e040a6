"""From the network's scores to probabilities: decision threshold and temperature."""

import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from hdmnet.nn._checks import check_shapes, check_type
from hdmnet.nn._precision import upcast

TINY = 1e-12
"""Guard of a division by a sum."""


class Calibration(nn.Module):
    """Move and stretch the probabilities of a network.

    p' = σ((logit p − logit t) / T)
       = ((1 − t) f)^(1/T) / (((1 − t) f)^(1/T) + (t b)^(1/T)),   p = f / (b + f)

    with the scores b of the background and f of the object. So p' is above 0.5 where p is above the
    threshold t, and a temperature T above 1 makes sure answers less sure.

    Args:
        temperature: T, above 0.
        threshold: t, between 0 and 1.

    Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), temperature
    scaling. `examples/train_lite0/export.py` fits both; presence is fitted after them.
    """

    def __init__(self, temperature: float = 1.0, threshold: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.threshold = threshold

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Self:
        """Make the module of a constructor argument of the network.

        Args:
            config: A dict of `temperature` and `threshold`. None: the scores stay as they are.

        Raises:
            TypeError: If `config` is not a dict, or a value has the wrong type.
            ValueError: If a key is unknown or missing, or a value is out of its range.
        """
        if config is None:
            return cls()
        check_type("calibration", config, Mapping, "a dict of temperature and threshold")
        if config.keys() != {"temperature", "threshold"}:
            raise ValueError(
                f"calibration has the keys {sorted(config)}: expected temperature and threshold"
            )
        temperature, threshold = config["temperature"], config["threshold"]
        for value in (temperature, threshold):
            check_type("each value of calibration", value, (int, float), "a number")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"calibration['temperature'] is {temperature}: expected above 0")
        if not 0 < threshold < 1:
            raise ValueError(
                f"calibration['threshold'] is {threshold}: expected between 0 and 1, both excluded"
            )
        return cls(temperature, threshold)

    def forward(self, scores: Tensor) -> Tensor:
        """Calibrate scores.

        Args:
            scores: (B, 2, H, W), at least 0, background first.

        Returns:
            (B, 2, H, W): 1 − p' and p'. Without temperature and threshold: the scores themselves.

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes("B, 2, H, W", scores=scores)
        if self.temperature == 1.0 and self.threshold == 0.5:
            return scores
        scores = upcast(scores)
        weights = scores.new_tensor([self.threshold, 1 - self.threshold])[:, None, None]
        weighted = scores.clamp(min=0) * weights
        # Relative to the larger one: a power of two small numbers could be 0 for both.
        relative = weighted / weighted.amax(dim=1, keepdim=True).clamp(min=TINY)
        powers = relative ** (1 / self.temperature)
        return powers / powers.sum(dim=1, keepdim=True).clamp(min=TINY)
