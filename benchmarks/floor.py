"""A lower bound of the time: the operations of a call, and the rate of this machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import SIZE, make_episode
from measure import cpu_seconds
from torch.utils.flop_counter import FlopCounterMode

from hdmnet import HDMNet


def count_flops(model: HDMNet) -> dict[str, int]:
    """Count the floating point operations of parts of a call; a multiply-add counts as two."""
    episode = make_episode(5)
    with torch.inference_mode():
        supports = model.encode_supports(episode.supports, episode.masks)
        image = torch.randn(1, 3, SIZE, SIZE)
        features = model.backbone(image)
        mask = torch.from_numpy(episode.masks[0])[None, None]
        parts: dict[str, Callable[[], object]] = {
            "backbone of a picture": lambda: model.backbone(image),
            "f5 of a query": lambda: model.psp(features[2]) if model.psp else None,
            "query against a 5-shot set, all": lambda: model.scores(image, supports),
            "a support, all": lambda: model.encode(image[None], mask),
        }
        counted = {}
        for name, call in parts.items():
            counter = FlopCounterMode(display=False)
            with counter:
                call()
            counted[name] = counter.get_total_flops()
    return counted


def matmul_rate(size: int = 2048, rounds: int = 9) -> float:
    """Measure operations per CPU second on a large 1 × 1 convolution, the reference rate."""
    x = torch.randn(1, size, 60, 60).to(memory_format=torch.channels_last)
    weight = torch.randn(512, size, 1, 1)

    @torch.inference_mode()
    def product() -> object:
        return torch.nn.functional.conv2d(x, weight)

    return 2 * 512 * size * 3600 / cpu_seconds({"product": product}, rounds=rounds)["product"]
