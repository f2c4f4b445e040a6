"""The network against outputs of the released model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hdmnet import EpisodeLoss, HDMNet, convert

CASES = (
    "resnet50_coco_1shot",
    "resnet50_pascal_5shot",
    "vgg16_coco_5shot",
    "vgg16_pascal_1shot",
)


def official_state(folder: Path, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Make the official state dict of a case. Return it with the arguments of the case."""
    from synthetic import tensor_for

    with safe_open(folder / f"{case}.safetensors", "pt") as file:
        arguments = {key: json.loads(value) for key, value in file.metadata().items()}
    layouts = json.loads((folder / "official_keys.json").read_text())
    backbone = "vgg16" if arguments.get("vgg") else "resnet50"
    shapes = dict(layouts[f"{backbone}_coco_1shot"])
    classes = 16 if arguments["data"] == "pascal" else 61
    for key in ("base_learnear.2.weight", "base_learnear.2.bias"):
        shapes[key] = [classes, *shapes[key][1:]]
    if arguments["shot"] == 5:
        five = layouts["resnet50_coco_5shot"]
        shapes |= {key: five[key] for key in five if key.startswith("kshot_rw")}
    state = {
        key: torch.from_numpy(tensor_for(key, tuple(shape), salt=arguments["wsalt"]))
        if shape
        else torch.tensor(0)
        for key, shape in shapes.items()
    }
    return state, arguments


def load(folder: Path, case: str) -> tuple[HDMNet, dict[str, Any], dict[str, Tensor]]:
    """Load the model of a case, its arguments and its expected tensors."""
    state, arguments = official_state(folder, case)
    return convert.from_official(state), arguments, load_file(folder / f"{case}.safetensors")


def inputs(arguments: dict[str, Any]) -> list[Tensor]:
    """Make query, supports and masks of a case."""
    from synthetic import episode

    arrays = episode(
        arguments["batch"], arguments["shot"], tuple(arguments["size"]), arguments.get("salt", 0)
    )
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("case", CASES)
def test_outputs(reference: Path, case: str) -> None:
    model, arguments, expected = load(reference, case)
    seen: dict[str, Tensor] = {}
    tokens: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    model.cascade.classifier.register_forward_hook(lambda *args: seen.update(meta_low=args[2]))
    model.base_learner.register_forward_hook(lambda *args: seen.update(base_low=args[2]))
    with torch.inference_mode():
        output = model(*inputs(arguments))
    *support_tokens, seen["query_tokens"] = tokens  # one call for each support, then the query
    seen["support_tokens"] = torch.stack(support_tokens, dim=1).flatten(0, 1)
    seen |= {"final": output.final, "meta": output.meta, "prior": output.prior}
    seen |= {f"correlation_{i}": c for i, c in enumerate(output.correlations)}
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert_same(seen[name], value)


def test_training_step(reference: Path) -> None:
    case = "train_resnet50_coco_1shot"
    model, arguments, expected = load(reference, case)
    model.freeze_backbone()
    output = model(*inputs(arguments), expected["cat_idx"].long())
    losses = EpisodeLoss()(output, expected["y_m"], expected["y_b"])
    assert torch.equal(output.final.argmax(1), expected["prediction"].long())
    for actual, name in (
        (losses.segmentation, "loss_final_plus_meta"),
        (losses.distillation, "loss_distillation"),
        (losses.base, "loss_base"),
    ):
        assert_same(actual.double(), expected[name], 1e-5)
    losses.total.backward()
    trainable = {p.data_ptr(): p for p in model.parameters() if p.requires_grad}
    official = {
        key: trainable[value.data_ptr()]
        for key, value in convert.to_official(model).items()
        if value.data_ptr() in trainable
    }
    names = arguments["grad_norm_names"]
    assert set(official) == set(names)
    norms = torch.stack([official[name].grad.double().norm() for name in names])
    relative = (norms - expected["grad_norms"]).abs() / expected["grad_norms"]
    assert relative.max() < 1e-4, names[int(relative.argmax())]
    for key, value in expected.items():
        if key.startswith("grad:"):
            assert_same(official[key.removeprefix("grad:")].grad, value)
