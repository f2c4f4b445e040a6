"""The example of a network on `FewShotModel`: what it inherits works, and its formula is right."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_same
from torch import nn

import hdmnet
from hdmnet import FeaturePyramid, FewShotModel, HDMNet, SupportSet
from hdmnet.images import load_image, load_mask

EXAMPLES = Path(__file__).parents[1] / "examples"
FISH = EXAMPLES / "data" / "fish"
SUPPORT = FISH / "support_1.jpg", FISH / "support_1.png"
QUERY = FISH / "query_1.jpg"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> FewShotModel:
    """The example's network, with the ImageNet features of the bundled model."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from own_network import PrototypeNet

    model = PrototypeNet().eval()
    model.backbone = HDMNet.from_pretrained("hdmnet-lite0").backbone
    return model


def test_is_short() -> None:
    assert len((EXAMPLES / "own_network.py").read_text(encoding="utf-8").splitlines()) < 60


def test_predicts_by_its_formula(network: FewShotModel) -> None:
    result = network.predict(QUERY, *SUPPORT)
    assert result.mask.shape == load_image(QUERY).shape[-2:]
    assert 0.02 < result.mask.float().mean() < 0.7  # a part of the picture, not all or nothing

    def resized(image: torch.Tensor) -> torch.Tensor:
        image = nn.functional.interpolate(image[None], (257, 257), mode="bilinear", antialias=True)
        return network.backbone.normalise(image)

    support = load_image(SUPPORT[0])
    mask = load_mask(SUPPORT[1], tuple(support.shape[-2:]))[None, None].float()
    mask = nn.functional.interpolate(mask, (257, 257))
    with torch.no_grad():
        s, q = (
            network.backbone(resized(support))[1],
            network.backbone(resized(load_image(QUERY)))[1],
        )
        m = nn.functional.interpolate(mask, s.shape[-2:], mode="bilinear", align_corners=True)
        sides = [(s * w).sum((-2, -1)) / (w.sum() + 5e-4) for w in (1 - m, m)]
        cosine = torch.stack([torch.cosine_similarity(q, p[..., None, None]) for p in sides], dim=1)
        scores = nn.functional.interpolate((20 * cosine).softmax(1), (257, 257), mode="bilinear")
        size = load_image(QUERY).shape[-2:]
        expected = nn.functional.interpolate(scores, size, mode="bilinear")[0, 1]
    assert_same(result.probability, expected, 1e-4)


def test_encodes_once_and_knows_its_supports(network: FewShotModel, tmp_path: Path) -> None:
    one = network.encode_supports(*SUPPORT)
    one.save(tmp_path / "fish.safetensors")
    loaded = SupportSet.load(tmp_path / "fish.safetensors")
    expected = network.predict(QUERY, *SUPPORT).probability
    assert torch.equal(network.predict(QUERY, loaded).probability, expected)
    assert_same(network.predict(QUERY, loaded.merge(one)).probability, expected)
    other = HDMNet.from_pretrained("hdmnet-lite0")
    with pytest.raises(ValueError, match="another model encoded"):
        other.predict(QUERY, loaded)
    with pytest.raises(ValueError, match="another model encoded"):
        network.predict(QUERY, other.encode_supports(*SUPPORT))


def test_saves_loads_and_fuses(network: FewShotModel, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "net")
    loaded = type(network).from_pretrained(tmp_path / "net")
    expected = network.predict(QUERY, *SUPPORT).probability
    assert torch.equal(loaded.predict(QUERY, *SUPPORT).probability, expected)
    card = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")
    assert "from own_network import PrototypeNet" in card
    fused = network.fused()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert_same(fused.predict(QUERY, *SUPPORT).probability, expected, 1e-3)


def test_trains(network: FewShotModel) -> None:
    network.train()
    groups = network.param_groups(1e-3)
    assert [group["name"] for group in groups] == ["backbone"]
    supports = network.encode(torch.randn(2, 3, 3, 65, 65), torch.ones(2, 3, 65, 65))
    network.scores(torch.randn(2, 3, 65, 65), supports)[:, 1].sum().backward()
    assert all(p.grad is not None for p in groups[0]["params"][:3])
    network.freeze_backbone().train()
    assert not network.backbone.training
    assert not network.param_groups(1e-3)


def test_must_implement_both_methods() -> None:
    class Half(FewShotModel):
        def encode(self, supports: torch.Tensor, masks: torch.Tensor) -> SupportSet:
            return SupportSet(supports)

    with pytest.raises(TypeError, match="scores"):
        Half()


class Fixed(FewShotModel):
    """A network whose input size is no argument."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.image_size, self.scale = FeaturePyramid("resnet18"), 65, scale

    def encode(self, supports: torch.Tensor, masks: torch.Tensor) -> SupportSet:
        return SupportSet(supports.mean((-2, -1)) * self.scale)

    def scores(self, query: torch.Tensor, supports: SupportSet) -> torch.Tensor:
        return query[:, :2].relu()


class Open(HDMNet):
    """A network whose arguments have no names."""

    def __init__(self, **options: object) -> None:
        super().__init__("resnet18", base_classes=0, **options)


def test_saves_named_arguments_only(tmp_path: Path) -> None:
    Fixed(2.0).save_pretrained(tmp_path / "fixed")
    assert Fixed.from_pretrained(tmp_path / "fixed").scale == 2
    card = (tmp_path / "fixed" / "README.md").read_text(encoding="utf-8")
    assert "| input | 65 × 65 pixels |" in card
    assert "base classes" not in card
    with pytest.raises(TypeError, match=r"arguments of Open: options\. Name each"):
        Open(dim=32).save_pretrained(tmp_path / "open")
    assert not (tmp_path / "open").exists()


def test_evaluate(network: FewShotModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")
    import trees

    network.save_pretrained(tmp_path / "net")
    trees.mask_folders(tmp_path / "data", {"nut": (5, 5, 25, 25), "bolt": (30, 8, 60, 40)})
    arguments = [
        *("folders", tmp_path / "data", "--network", "own_network:PrototypeNet"),
        *("--model", tmp_path / "net", "--out", tmp_path / "out", "--episodes", 4),
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / "evaluate.py"), run_name="__main__")
    assert not stop.value.code
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < results["scores"]["final/mIoU"] <= 1
    assert "meta/mIoU" not in results["scores"]
    assert results["model fingerprint"] == network.fingerprint()


def test_is_public() -> None:
    assert hdmnet.FewShotModel is FewShotModel
