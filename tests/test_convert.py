"""Conversion of all released variants, from the names and shapes of their keys."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hdmnet import HDMNet, convert

LAYOUTS = {  # name: backbone, base classes, shots, shot_hidden_dim, image_size
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
    # Each key has its own value, so this would find two keys that were swapped.
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
    if key == "kshot_rw.weight":  # without this key, it is a one-shot model
        assert convert.from_official(official).config["shots"] == 1
        return
    with pytest.raises(ValueError, match=f"keys missing: {key}$"):
        convert.from_official(official)


def test_not_a_checkpoint() -> None:
    with pytest.raises(ValueError, match="not an official HDMNet checkpoint"):
        convert.from_official({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"base_learnear.2.weight has shape \(\)"):
        convert.from_official({"base_learnear.2.weight": torch.tensor(1.0)})


class TestBaseLearner:
    """Files of a base learner: no matching network, another classifier key, the backbone twice."""

    @pytest.fixture
    def base(self) -> dict[str, Tensor]:
        _, official = small()
        kept = {k: v for k, v in official.items() if k.startswith(("layer", "ppm.", "cls."))}
        twins = {"encoder." + k[5:]: v.clone() for k, v in kept.items() if k.startswith("layer")}
        classifier = {f"cls.4.{x}": official[f"base_learnear.2.{x}"] for x in ("weight", "bias")}
        return kept | twins | classifier

    def test_fills_the_frozen_parts(self, base: dict[str, Tensor]) -> None:
        conversion = convert.convert(base)
        model = conversion.model
        assert (conversion.kind, model.config["base_classes"]) == ("base learner", 15)
        assert torch.equal(model.base_learner.classifier.weight, base["cls.4.weight"])
        assert torch.equal(model.backbone.body.features_0.weight, base["encoder.0.0.weight"])
        assert torch.equal(model.psp.fuse[0].weight, base["cls.0.weight"])
        assert set(conversion.dropped) == {k for k in base if k.startswith("encoder.")}
        assert len(conversion.mapped) + len(conversion.dropped) == len(base)
        frozen = [model.backbone, model.psp, model.base_learner]
        filled = {id(p) for part in frozen for p in part.parameters()}
        rest = {key for key, p in model.named_parameters() if id(p) not in filled}
        assert rest == set(conversion.missing) & dict(model.named_parameters()).keys()

    @pytest.mark.parametrize("layout", ["base_learner_resnet50_coco", "base_learner_vgg16_pascal"])
    def test_layouts(self, reference: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
        shapes = json.loads((reference / "official_keys.json").read_text())[layout]
        numbers = {
            key: i for i, key in enumerate(k for k in shapes if not k.startswith("encoder."))
        }
        state = {
            key: torch.zeros((), dtype=torch.long)
            if key.endswith("num_batches_tracked")
            else torch.full(shape, float(numbers[key.replace("encoder.", "layer")]))
            for key, shape in shapes.items()
        }
        model = convert.from_official(state)
        assert "the matching network must be trained" in caplog.text
        back = convert.to_official(model)
        for key, value in state.items():
            theirs = key.replace("encoder.", "layer").replace("cls.4.", "base_learnear.2.")
            assert torch.equal(back[theirs], value)

    def test_backbones_that_differ(self, base: dict[str, Tensor]) -> None:
        base["encoder.0.0.weight"] += 1
        with pytest.raises(
            ValueError, match=r"encoder\.0\.0\.weight differs from layer0\.0\.weight"
        ):
            convert.from_official(base)

    def test_a_missing_key(self, base: dict[str, Tensor]) -> None:
        del base["layer1.0.weight"], base["encoder.1.0.weight"]
        with pytest.raises(ValueError, match=r"base learner.*missing: layer1\.0\.weight"):
            convert.from_official(base)


def test_absurd_sizes_take_no_memory() -> None:
    """A tensor that repeats one number can have any shape, but takes no memory."""
    _, official = small()
    official["base_learnear.2.weight"] = torch.zeros(1).expand(10**6, 512, 1, 1)
    with pytest.raises(ValueError, match=r"of another shape: base_learnear\.2\.bias"):
        convert.from_official(official)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite(value: float) -> None:
    _, official = small()
    official["gram_merge.weight"] = torch.full((1, 2, 1, 1), value)
    with pytest.raises(ValueError, match=r"NaN or infinity in gram_merge\.weight"):
        convert.from_official(official)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet18"},
        {"base_classes": 0},
        {"contrast": True},
        {"high_level": True},
        {"heads": (2, 4)},
    ],
)
def test_no_official_counterpart(options: dict[str, object]) -> None:
    model = HDMNet(**({"backbone": "vgg16", "base_classes": 2} | options))
    with pytest.raises(ValueError, match="official counterpart"):
        convert.to_official(model)
