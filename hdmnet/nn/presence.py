"""Does a query show any of the class? The features of what was found against the supports'."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hdmnet.nn._checks import check_shapes, check_type
from hdmnet.nn._precision import no_autocast, upcast
from hdmnet.nn.priors import PriorFeatures


class Presence(nn.Module):
    """Estimate whether a query shows any of the class.

    presence = σ(a cos(f, d) + b)
    f = Σ_i p_i² u(q_i − μ), what was found in the query, with the probability p_i
    d = Σ_kj u(s_kj − μ), over the object positions j of all shots k
    u(x) = x / |x|

    The square counts sure positions more than a large unsure area.

    Args:
        scale: The slope a.
        bias: The bias b.
        center: The mean μ of the features over many images. Empty: 0.

    Source: this project. `examples/fit_presence.py` fits a, b and μ.
    """

    def __init__(
        self, scale: float = 10.0, bias: float = -5.0, center: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.scale = scale
        self.bias = bias
        # No buffer: that would change the model's fingerprint, but it changes no encoded support.
        self.center = tuple(center)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, channels: int) -> Self:
        """Make the module of a constructor argument of the network.

        Args:
            config: A dict of `scale`, `bias` and `center`. None: the defaults, which fit no network
                in particular.
            channels: Channels of the features.

        Raises:
            TypeError: If `config` is not a dict, or a value has the wrong type.
            ValueError: If a key is unknown or missing, or `center` has another length.
        """
        if config is None:
            return cls()
        check_type("presence", config, Mapping, "a dict of scale, bias and center")
        if config.keys() != {"scale", "bias", "center"}:
            raise ValueError(
                f"presence has the keys {sorted(config)}: expected scale, bias and center"
            )
        scale, bias, center = config["scale"], config["bias"], config["center"]
        for name, value in (("scale", scale), ("bias", bias)):
            check_type(f"presence[{name!r}]", value, (int, float), "a number")
        check_type("presence['center']", center, (list, tuple), "a list of numbers")
        if len(center) not in (0, channels) or not all(isinstance(x, int | float) for x in center):
            raise ValueError(
                f"presence['center'] has {len(center)} entries: expected {channels} numbers, the "
                "channels of f4, or none"
            )
        return cls(scale, bias, center)

    def forward(
        self, query: Tensor, probability: Tensor, supports: Sequence[PriorFeatures]
    ) -> Tensor:
        """Compute the presence of each class in each query.

        Args:
            query: (B, C, h, w) features q.
            probability: (B, N, H, W) probabilities p of N classes, at any resolution.
            supports: Features s from `foreground_features`: of N classes, each of one episode; or
                of one class, of one episode or of B.

        Returns:
            (B, N) in [0, 1].

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes("B, C, h, w; B, N, H, W", query=query, probability=probability)
        q = rearrange(upcast(query), "b c h w -> b (h w) c")
        p = F.interpolate(upcast(probability), query.shape[-2:], mode="area").flatten(2)
        with no_autocast(q):
            found = p.to(q.dtype) ** 2 @ self._direction(q)
        classes = torch.cat([self._mean_direction(s).to(q.dtype) for s in supports])
        classes = classes.repeat_interleave(max(len(q) // len(classes), 1), dim=0)
        cosine = F.cosine_similarity(found, classes.unflatten(0, (len(q), -1)), dim=-1)
        return (self.scale * cosine + self.bias).sigmoid()

    def _direction(self, x: Tensor) -> Tensor:
        center = torch.tensor(self.center or 0.0, dtype=x.dtype, device=x.device)
        return F.normalize(x - center, dim=-1)

    def _mean_direction(self, support: PriorFeatures) -> Tensor:
        unit, norm = upcast(support.unit), upcast(support.norm)
        inside = (norm > 0)[..., None]
        return (self._direction(unit * norm[..., None]) * inside).sum(dim=(1, 2))
