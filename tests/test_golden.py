"""Outputs of small models against stored ones, so that no change alters them by accident.

After a change that must alter them, run `python tests/test_golden.py`, and explain the change in
the commit.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, fill
from safetensors.torch import load_file, save_file
from torch import Tensor

from hdmnet import EpisodeLoss, HDMNet

FILE = Path(__file__).parent / "golden.safetensors"
CASES: dict[str, tuple[dict[str, object], int]] = {
    "base": ({}, 1),
    "three_shots": ({"shots": 3}, 3),
    "other_shots": ({"shots": 3}, 2),
    "no_base": ({"base_classes": 0, "heads": (2, 4)}, 2),
}


def inputs(shots: int, size: tuple[int, int] = (40, 56)) -> tuple[Tensor, Tensor, Tensor]:
    """Draw random images and block masks, from a generator whose stream never changes."""
    rng = np.random.RandomState(7)

    def images(*shape: int) -> Tensor:
        blocks = rng.standard_normal((*shape, 3, size[0] // 8, size[1] // 8))
        return torch.from_numpy(blocks.repeat(8, -2).repeat(8, -1)).float()

    masks = np.zeros((1, shots, *size))
    for k in range(shots):
        y, x = rng.randint(0, 16), rng.randint(0, 24)
        masks[0, k, y : y + 20, x : x + 26] = 1
        masks[0, k, y : y + 2, x : x + 26] = 255
    return images(1), images(1, shots), torch.from_numpy(masks).float()


def compute(case: str) -> dict[str, Tensor]:
    """Compute every output of a case, and the losses."""
    options, shots = CASES[case]
    defaults = {"backbone": "resnet18", "base_classes": 3, "image_size": 64}
    model = HDMNet(**(defaults | options))
    fill(model)
    query, supports, masks = inputs(shots)
    with torch.inference_mode():
        output = model.eval()(query, supports, masks)
        losses = EpisodeLoss()(output, masks[:, 0])
    named = {"final": output.final, "meta": output.meta, "prior": output.prior}
    named |= {f"correlation_{i}": c for i, c in enumerate(output.correlations)}
    named |= {"segmentation": losses.segmentation, "distillation": losses.distillation}
    if output.base is not None:
        named["base"] = output.base
    return {f"{case}.{name}": value.contiguous() for name, value in named.items()}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case: str) -> None:
    golden = {k: v for k, v in load_file(FILE).items() if k.split(".")[0] == case}
    actual = compute(case)
    assert actual.keys() == golden.keys()
    for name, value in golden.items():
        assert_same(actual[name], value)


if __name__ == "__main__":
    save_file({k: v for case in CASES for k, v in compute(case).items()}, FILE)
