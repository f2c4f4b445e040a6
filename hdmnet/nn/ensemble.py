"""The base learner, and how its prediction is merged (BAM, arXiv 2203.07615)."""

import torch
from torch import Tensor, nn

from hdmnet.nn._checks import check_shapes
from hdmnet.nn._precision import no_autocast, upcast


class BaseLearner(nn.Module):
    """Pixel classifier of the base classes, on the feature f5 of `PyramidPooling`.

    logits = conv1×1(Dropout2d(ReLU(f5))).

    Args:
        in_channels: Channels of f5.
        classes: Number of base classes n, without the background.
        dropout: Probability of dropping a channel.

    Example:
        >>> BaseLearner(512, 15)(torch.rand(2, 512, 60, 60)).shape
        torch.Size([2, 16, 60, 60])

    Source: BAM (arXiv 2203.07615), base learner.
    """

    def __init__(self, in_channels: int, classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(in_channels, 1 + classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → logits (B, 1 + n, h, w), background first.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes(f"B, {self.in_channels}, h, w", x=x)
        return self.classifier(self.dropout(x.relu()))


class ShotWeighting(nn.Module):
    """Weighted mean of the K distances between query and supports.

    e = Σ_k w_k e_k, with w = softmax(layers(sort(e_1 … e_K))). The layers are K → hidden_dim → K
    with bias and a ReLU between, or one layer K → K without bias.

    The weights are learned for the number of shots of the training. Any other K gets uniform
    weights w_k = 1 / K. One shot gets w = 1.

    Args:
        shots: Number of shots K_t that the weights are trained with.
        hidden_dim: Hidden channels of the layers. 0 means a single layer without bias.

    Example:
        >>> ShotWeighting(5)(torch.rand(2, 5)).shape
        torch.Size([2])

    Source: BAM (arXiv 2203.07615), K-shot setting.
    """

    def __init__(self, shots: int, *, hidden_dim: int = 2) -> None:
        super().__init__()
        self.shots = shots
        self.weight: nn.Module
        if shots == 1:
            self.weight = nn.Identity()
        elif hidden_dim == 0:
            self.weight = nn.Conv2d(shots, shots, 1, bias=False)
        else:
            self.weight = nn.Sequential(
                nn.Conv2d(shots, hidden_dim, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden_dim, shots, 1),
            )

    def forward(self, distances: Tensor) -> Tensor:
        """(B, K) distances e_k, K ≥ 1 → (B,) weighted means e.

        Raises:
            ValueError: If the shape does not fit.
        """
        check_shapes("B, K", distances=distances)
        if self.shots == 1 or distances.shape[1] != self.shots:
            return distances.mean(dim=1)
        with no_autocast(distances):
            # Quirk kept for parity: the weights stay in sorted order, the distances in their own.
            ordered = distances.sort(dim=1).values[:, :, None, None]
            ordered = ordered.to(next(self.weight.parameters()).dtype)
            weight = upcast(self.weight(ordered)).softmax(dim=1)[:, :, 0, 0]
        return (weight * distances).sum(dim=1)


class BaseMetaEnsemble(nn.Module):
    """Merges the prediction of the matching network with that of the base learner.

    With (b, f) = softmax(meta), the base map g = Σ_{c ≥ 1} softmax(base)_c and the distance e of
    `ShotWeighting`:

        b' = G([b, e]),  f' = G([f, e]),  b'' = E([b', g]),  final = [b'', f'].

    G and E are 1 × 1 convolutions 2 → 1 without bias, which start as (1, 0). A base class in the
    query counts as background, because the novel class cannot be there.

    Args:
        shots: Number of shots that the weights are trained with.
        shot_hidden_dim: `hidden_dim` of the `ShotWeighting`.

    Example:
        >>> meta, base = torch.rand(1, 2, 60, 60), torch.rand(1, 16, 60, 60)
        >>> BaseMetaEnsemble()(meta, base, torch.rand(1, 1)).shape
        torch.Size([1, 2, 60, 60])

    Source: BAM (arXiv 2203.07615), ensemble module.
    """

    def __init__(self, shots: int = 1, *, shot_hidden_dim: int = 2) -> None:
        super().__init__()
        self.shot_weighting = ShotWeighting(shots, hidden_dim=shot_hidden_dim)
        self.gram_merge = nn.Conv2d(2, 1, 1, bias=False)
        self.base_merge = nn.Conv2d(2, 1, 1, bias=False)
        for merge in (self.gram_merge, self.base_merge):
            with torch.no_grad():
                merge.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))

    def forward(
        self, meta: Tensor, base: Tensor, distances: Tensor, base_class: Tensor | None = None
    ) -> Tensor:
        """Merge two predictions on the same grid.

        Args:
            meta: (B, 2, h, w) logits of the matching network.
            base: (B, 1 + n, h, w) logits of the base learner.
            distances: (B, K) distances of `gram_distance`.
            base_class: (B,) long in 0 … n - 1, for training: the base class that each episode asks
                for. The base map g leaves it out.

        Returns:
            (B, 2, h, w) scores of background and object. They are not logits.

        Raises:
            TypeError: If `base_class` does not hold integers.
            ValueError: If a shape does not fit, or `base_class` is out of range.
        """
        axes = "B, 2, h, w; B, 1 + n, h, w; B, K"
        check_shapes(axes, meta=meta, base=base, distances=distances)
        if base_class is not None:
            _check_base_class(base_class, base)
        b, f = upcast(meta).softmax(dim=1).split(1, dim=1)
        probability = upcast(base).softmax(dim=1)
        g = probability[:, 1:].sum(dim=1, keepdim=True)
        if base_class is not None:
            own = (base_class + 1).view(-1, 1, 1, 1).expand(-1, 1, *base.shape[-2:])
            g = g - probability.gather(1, own)
        e = self.shot_weighting(distances).view(-1, 1, 1, 1).expand_as(g)
        with no_autocast(meta):
            b, f, g, e = (x.to(self.gram_merge.weight.dtype) for x in (b, f, g, e))
            b = self.gram_merge(torch.cat([b, e], dim=1))
            f = self.gram_merge(torch.cat([f, e], dim=1))
            b = self.base_merge(torch.cat([b, g], dim=1))
        return torch.cat([b, f], dim=1)


def _check_base_class(base_class: Tensor, base: Tensor) -> None:
    if base_class.shape != base.shape[:1]:
        raise ValueError(
            f"base_class must be (B,) = ({base.shape[0]},), got {tuple(base_class.shape)}"
        )
    if base_class.is_floating_point() or base_class.dtype == torch.bool:
        raise TypeError(f"base_class must hold integers, got {base_class.dtype}")
    if torch.compiler.is_compiling():
        return  # a compiled graph must not depend on values
    classes = base.shape[1] - 1
    if not ((base_class >= 0) & (base_class < classes)).all():
        raise ValueError(
            f"base_class must be in 0 … {classes - 1}, the background not counted, got "
            f"{base_class.tolist()}"
        )
