"""The measured calls: synthetic weights, random pictures, masks of a given coverage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import timm
import torch
from torch import Tensor, nn

from hdmnet import EpisodeLoss, HDMNet

SIZE = 473


@dataclass(frozen=True)
class Episode:
    """A query (S, S, 3) uint8, and K supports of the same form with masks (S, S) bool."""

    query: np.ndarray
    supports: list[np.ndarray]
    masks: list[np.ndarray]


def make_episode(shots: int, *, size: int = SIZE, coverage: float = 0.1) -> Episode:
    """Make smooth random pictures. Each mask is a disc that covers the share `coverage`."""
    generator = torch.Generator().manual_seed(0)

    def picture() -> np.ndarray:
        coarse = torch.rand(1, 3, 24, 24, generator=generator)
        fine = nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        return (255 * fine[0]).byte().permute(1, 2, 0).numpy()

    return Episode(picture(), [picture() for _ in range(shots)], [disc(size, coverage)] * shots)


def disc(size: int, coverage: float) -> np.ndarray:
    """Mark the pixels closest to the centre: the share `coverage` of (size, size)."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    distance = x**2 + y**2
    return distance <= np.quantile(distance, coverage)


def make_model(image_size: int = SIZE) -> HDMNet:
    """Make the paper's network on ResNet-50, with random weights that keep the input's variance.

    With such weights, predicted masks contain object and background: needed for `agreement`.
    """
    torch.manual_seed(0)
    model = HDMNet("resnet50", image_size=image_size)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(0, 0.1)
                module.get_buffer("running_var").normal_(0, 0.2).exp_()
        for name, parameter in model.named_parameters():
            if name.startswith("ensemble"):
                continue
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.1)
    return model.eval()


def bare_backbone(name: str = "resnet50s", *, size: int = SIZE) -> Callable[[], object]:
    """Make the yardstick: one forward pass of the timm backbone on one image, features only."""
    body = timm.create_model(name, features_only=True, output_stride=8).eval()
    image = torch.randn(1, 3, size, size)

    @torch.no_grad()
    def call() -> list[Tensor]:
        return body(image)

    return call


@cache
def fused_model(size: int = SIZE) -> HDMNet:
    """Make the model once, and return its fused copy."""
    return make_model(size).fused()


def query(model: HDMNet, episode: Episode) -> Callable[[], object]:
    """Make a call that segments one picture with an encoded support set."""
    supports = model.encode_supports(episode.supports, episode.masks)
    return lambda: model.predict(episode.query, supports)


def cold(model: HDMNet, episode: Episode) -> Callable[[], object]:
    """Make a call that encodes the supports and segments one picture."""
    return lambda: model.predict(episode.query, episode.supports, episode.masks)


def training_step(
    shots: int, batch: int, *, size: int = SIZE, coverage: float = 0.1
) -> Callable[[], object]:
    """Make a call of forward, loss, backward and optimiser step, with a frozen backbone."""
    model = make_model().freeze_backbone().train()
    optimiser = torch.optim.AdamW(model.param_groups(1e-4), weight_decay=0.01)
    loss_of = EpisodeLoss()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 3, size, size, generator=generator)
    supports = torch.randn(batch, shots, 3, size, size, generator=generator)
    mask = torch.from_numpy(disc(size, coverage))
    masks = mask.expand(batch, shots, -1, -1).float()
    target = mask.expand(batch, -1, -1).long()
    base_class = torch.zeros(batch, dtype=torch.long)

    def call() -> None:
        loss = loss_of(model(query, supports, masks, base_class), target).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return call


KINDS = ("query", "cold", "step")


def make_call(
    kind: str, shots: int = 1, size: int = SIZE, coverage: float = 0.1
) -> Callable[[], object]:
    """Make a call of a kind: one of `KINDS`, or "bare" for the backbone alone."""
    if kind == "bare":
        return bare_backbone(size=size)
    if kind == "step":
        return training_step(shots, 1, size=size, coverage=coverage)
    episode = make_episode(shots, size=size, coverage=coverage)
    return {"query": query, "cold": cold}[kind](fused_model(size), episode)
