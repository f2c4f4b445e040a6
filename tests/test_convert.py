"""The authors' key layouts, from their names and shapes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hdmnet import HDMNet, convert

LAYOUTS = {
    "resnet50_coco_1shot": ("resnet50", 60, 1, 2, 633),
    "resnet50_pascal_1shot": ("resnet50", 15, 1, 2, 473),
    "resnet50_coco_5shot": ("resnet50", 60, 5, 2, 633),
    "resnet50_coco_5shot_ktd0": ("resnet50", 60, 5, 0, 633),
    "vgg16_coco_1shot": ("vgg16", 60, 1, 2, 633),
    "vgg16_pascal_5shot": ("vgg16", 15, 5, 2, 473),
    "resnet101_coco_1shot": ("resnet101", 60, 1, 2, 633),
}


def small(**options: object) -> tuple[HDMNet, dict[str, Tensor]]:
    model = HDMNet("vgg16", base_classes=15, **options)
    return model, convert.to_official(model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_layouts(reference: Path, layout: str, prefix: str) -> None:
    shapes = json.loads((reference / "official_keys.json").read_text())[layout]
    state = {
        prefix + key: torch.zeros((), dtype=torch.long)
        if key.endswith("num_batches_tracked")
        else torch.full(shape, float(i))
        for i, (key, shape) in enumerate(shapes.items())
    }
    model = convert.from_official(state)
    config = model.config
    assert LAYOUTS[layout] == tuple(
        config[name]
        for name in ("backbone", "base_classes", "shots", "shot_hidden_dim", "image_size")
    )
    assert not model.training
    # Every tensor has a place of its own, and the way back finds it.
    back = convert.to_official(model)
    assert back.keys() == shapes.keys()
    assert all(torch.equal(value, state[prefix + key]) for key, value in back.items())


@pytest.mark.parametrize("shots", [1, 5])
def test_round_trip(shots: int) -> None:
    model, official = small(shots=shots)
    again = convert.from_official(official)
    assert again.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_stage_0_is_the_finest() -> None:
    model, official = small()
    finest = model.encoder.stages[0].blocks[0].attention.reduce[0].weight
    key = "transformer.mix_transformer.down_sample_layers.0.1.attn.sr.weight"
    assert torch.equal(official[key], finest)
    assert finest.shape[-1] == 4


def test_problems_are_named() -> None:
    _, official = small()
    del official["gram_merge.weight"]
    official["extra.weight"] = torch.zeros(1)
    official["cls_merge.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing: gram_merge\.weight") as caught:
        convert.from_official(official)
    assert "left over: extra.weight" in str(caught.value)
    assert "of another shape: cls_merge.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"shots": 5}, "kshot_rw.0.weight"),
        ({"shots": 5, "shot_hidden_dim": 0}, "kshot_rw.weight"),
        ({}, "base_learnear.2.weight"),
        ({}, "query_merge.0.weight"),
        ({"backbone": "resnet50"}, "layer1.0.conv1.weight"),
        ({"backbone": "resnet101"}, "layer3.22.conv1.weight"),
    ],
)
def test_a_missing_key_is_named(options: dict[str, object], key: str) -> None:
    official = convert.to_official(HDMNet(**{"backbone": "vgg16", "base_classes": 15} | options))
    del official[key]
    if key == "kshot_rw.weight":  # the only key of its kind: without it, this is a one-shot model
        assert convert.from_official(official).config["shots"] == 1
        return
    with pytest.raises(ValueError, match=f"keys missing: {key}$"):
        convert.from_official(official)


def test_not_a_checkpoint() -> None:
    with pytest.raises(ValueError, match="not an official HDMNet checkpoint"):
        convert.from_official({"weight": torch.zeros(1)})


@pytest.mark.parametrize("options", [{"backbone": "resnet18"}, {"base_classes": 0}])
def test_no_official_counterpart(options: dict[str, object]) -> None:
    model = HDMNet(**({"backbone": "vgg16"} | options))
    with pytest.raises(ValueError, match="official counterpart"):
        convert.to_official(model)
