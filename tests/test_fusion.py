"""`fused()`, the copy for inference only, gives the same answers."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import assert_same, assert_same_output, episode, fill, make
from test_predict import picture
from timm.layers import StdConv2d, convert_sync_batchnorm
from torch import nn

from hdmnet import HDMNet, PyramidPooling, box_mask, convert
from hdmnet.nn._fast import CollapsedBottleneck, Window, fold_norms


@pytest.mark.parametrize("base_classes", [0, 3])
@pytest.mark.parametrize(
    "backbone",
    ["resnet50", "vgg16", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"],
)
def test_same_answers_without_norms(backbone: str, base_classes: int) -> None:
    model = make(backbone=backbone, base_classes=base_classes, shots=2)
    fused = model.fused()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    inputs = episode(2, 2, (72, 89))
    with torch.inference_mode():
        assert_same_output(fused(*inputs), model(*inputs))


@pytest.mark.parametrize("backbone", ["convnext_atto", "hgnetv2_b0"])
def test_other_backbones(backbone: str) -> None:
    model = make(backbone=backbone, base_classes=0)
    inputs = episode(1, 1, (96, 96))
    with torch.inference_mode():
        assert_same(model.fused()(*inputs).meta, model(*inputs).meta)


def test_predict_and_encoded_supports(model: HDMNet) -> None:
    fused = model.fused()
    support = picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80))
    expected = model.predict(picture(), *support).probability
    assert_same(fused.predict(picture(), *support).probability, expected)
    for encoder, matcher in ((model, fused), (fused, model)):
        supports = encoder.encode_supports(*support)
        assert_same(matcher.predict(picture(), supports).probability, expected)


def test_the_original_does_not_change(fresh: HDMNet) -> None:
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    fresh.train()
    fused = fresh.fused()
    assert fresh.training
    assert not fused.training
    with torch.no_grad():
        for tensor in (*fused.parameters(), *fused.buffers()):
            tensor.zero_()
    after = fresh.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_is_for_inference_only(model: HDMNet, tmp_path: Path) -> None:
    fused = model.fused()
    assert not any(p.requires_grad for p in fused.parameters())
    with pytest.raises(RuntimeError, match="train the original"):
        fused.train()
    assert fused.eval() is fused
    with pytest.raises(RuntimeError, match="save the original"):
        fused.save_pretrained(tmp_path / "x")


def test_what_cannot_be_folded_stays(fresh: HDMNet) -> None:
    """SyncBatchNorm folds like BatchNorm. Other norms and the layers around them stay."""
    inputs = episode(1, 2)
    with torch.inference_mode():
        expected = fresh(*inputs).final
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(fresh)
        assert_same(converted.fused()(*inputs).final, expected)
        activated = make(backbone="tf_efficientnet_lite0", base_classes=0)
        expected = activated(*inputs).final
        converted = convert_sync_batchnorm(activated)
        assert_same(converted.fused()(*inputs).final, expected)
    fresh.cascade.parse[0][1] = nn.GroupNorm(4, 256)
    fresh.cascade.classifier[1] = nn.GroupNorm(4, 256)
    with torch.inference_mode():
        assert_same(fresh.fused()(*inputs).final, fresh(*inputs).final)


def test_fused_twice(model: HDMNet) -> None:
    once = model.fused()
    twice = once.fused()
    inputs = episode()
    assert torch.equal(once(*inputs).final, twice(*inputs).final)
    assert not {p.data_ptr() for p in once.parameters()} & {
        p.data_ptr() for p in twice.parameters()
    }


def test_no_official_checkpoint_of_a_fused_model() -> None:
    with pytest.raises(ValueError, match="convert the original"):
        convert.to_official(make(backbone="resnet50").fused())


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 7)])
def test_collapsed_bottleneck(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 3, padding=1), nn.Conv2d(7, 2, 1)
    x = torch.randn(2, 3, *size)
    assert_same(CollapsedBottleneck(*layers)(x), nn.Sequential(*layers)(x))


def test_fused_pooling() -> None:
    """The answers agree in float32 and bfloat16, on the whole grid and on a part of it."""
    module = PyramidPooling(32, 16)
    fill(module)
    module.eval().requires_grad_(False)
    x = torch.randn(2, 32, 9, 12).bfloat16()
    fused = copy.deepcopy(module)
    fused.fuse_()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for box in (None, Window(2, 0, 5, 7)):
        exact = module(x.float(), box)
        assert_same(fused(x.float(), box), exact)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(fused(x, box).float(), exact, 0.02)


def test_masks_under_autocast(model: HDMNet) -> None:
    fused, images = model.fused(), [picture(seed=seed) for seed in range(4)]
    mask = box_mask((20, 10, 60, 50), (70, 90))
    supports = fused.encode_supports(images[0], mask)
    exact = [result.mask for result in fused.predict(images, supports)]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [result.mask for result in fused.predict(images, supports)]
    agree = torch.cat([(a == b).flatten() for a, b in zip(exact, rounded, strict=True)])
    assert agree.float().mean() >= 0.99
    assert 0.05 < torch.cat([mask.flatten() for mask in exact]).float().mean() < 0.95


class TestFold:
    """Norms that cannot be folded stay, and the outputs are the same."""

    def test_a_convolution_with_two_readers(self) -> None:
        class TwoReaders(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.conv(x)
                return y + self.norm(y)

        self.assert_kept(TwoReaders())

    def test_a_shared_norm(self) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
                self.norm = nn.BatchNorm2d(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.norm(self.second(self.norm(self.first(x))))

        self.assert_kept(Shared())

    def test_code_that_cannot_be_traced(self) -> None:
        class Dynamic(nn.Sequential):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) if x.sum() > 0 else x

        self.assert_kept(Dynamic(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))

    def test_a_convolution_that_changes_its_weight(self) -> None:
        self.assert_kept(nn.Sequential(StdConv2d(3, 3, 1), nn.BatchNorm2d(3)))
        with_norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.assert_kept(nn.Sequential(with_norm, nn.BatchNorm2d(3)))

    @staticmethod
    def assert_kept(module: nn.Module) -> None:
        module.eval()
        x = torch.randn(1, 3, 4, 4)
        expected = module(x)
        fold_norms(module)
        assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        assert torch.equal(module(x), expected)
