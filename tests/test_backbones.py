"""The same checks for every kind of backbone."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import assert_same, episode, fill, make
from huggingface_hub import constants
from torch.nn import functional as F

from hdmnet import FeaturePyramid

# name: (stride of the grid, smallest image side that gives four cells, channels)
BACKBONES = {
    "resnet50": (8, 25, (512, 1024, 2048)),
    "vgg16": (16, 49, (256, 512, 512)),
    "tf_efficientnet_lite0": (8, 25, (40, 112, 320)),
    "resnet18": (8, 25, (128, 256, 512)),
    "convnext_atto": (8, 32, (80, 160, 320)),
    "mobilenetv3_small_050": (8, 25, (16, 24, 288)),
    "hgnetv2_b0": (8, 25, (256, 512, 1024)),  # timm cannot dilate it
}


@pytest.mark.parametrize("name", BACKBONES)
class TestBackbone:
    def test_one_grid(self, name: str) -> None:
        stride, _, channels = BACKBONES[name]
        pyramid = FeaturePyramid(name).eval()
        assert pyramid.channels == channels
        size = (stride * 6, stride * 4)
        with torch.inference_mode():
            levels = pyramid(torch.randn(2, 3, *size))
        assert [tuple(level.shape) for level in levels] == [(2, c, 6, 4) for c in channels]

    def test_smallest_size(self, name: str) -> None:
        _, smallest, _ = BACKBONES[name]
        pyramid = FeaturePyramid(name).train()
        state = {key: value.clone() for key, value in pyramid.state_dict().items()}
        assert pyramid.smallest_size(4) == smallest
        assert pyramid.training
        assert all(torch.equal(value, state[key]) for key, value in pyramid.state_dict().items())
        with torch.inference_mode():
            pyramid.eval()
            assert min(pyramid(torch.randn(1, 3, smallest, smallest))[0].shape[-2:]) == 4
            assert min(pyramid(torch.randn(1, 3, smallest - 1, smallest))[0].shape[-2:]) == 3

    def test_in_the_model(self, name: str) -> None:
        model = make(backbone=name, base_classes=2)
        with torch.inference_mode():
            out = model(*episode(shots=2, size=(56, 72)))
        assert out.final.isfinite().all()
        assert out.final.shape == (1, 2, 56, 72)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_resnet_dilates_every_block_of_a_stage(name: str) -> None:
    pyramid = FeaturePyramid(name)
    assert len(pyramid.body.layer3) == {"resnet50": 6, "resnet101": 23}[name]
    for layer, dilation in ((2, 1), (3, 2), (4, 4)):
        for index, block in enumerate(pyramid.body.get_submodule(f"layer{layer}")):
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
            assert block.conv2.stride == ((2, 2) if layer == 2 and index == 0 else (1, 1))
            assert block.conv1.stride == (1, 1)


def test_vgg_is_the_plain_network() -> None:
    pyramid = FeaturePyramid("vgg16").eval()
    fill(pyramid)
    x = torch.randn(1, 3, 75, 91)
    reference = timm.create_model("vgg16_bn")
    state = {k.replace("features_", "features."): v for k, v in pyramid.body.state_dict().items()}
    reference.load_state_dict(state, strict=False)
    reference.eval()
    groups, y = [], x
    for layer in reference.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            pooled = F.max_pool2d(y, 2, ceil_mode=True)
            groups.append((y, pooled))
            y = pooled
        else:
            y = layer(y)
    f2 = F.interpolate(groups[2][1], groups[3][1].shape[-2:], mode="bilinear", align_corners=True)
    with torch.inference_mode():
        for got, expected in zip(pyramid(x), (f2, groups[3][1], groups[4][0]), strict=True):
            assert_same(got, expected, 1e-6)


def test_never_downloads_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    FeaturePyramid("resnet18")
    with pytest.raises(AssertionError, match="download"):
        FeaturePyramid("resnet18", pretrained=True)


def test_transformers_of_any_size() -> None:
    pyramid = FeaturePyramid("swin_tiny_patch4_window7_224").eval()
    assert pyramid.smallest_size(4) == 32
    with torch.inference_mode():
        levels = pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [(1, c, 8, 12) for c in (192, 384, 768)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_network", "unknown backbone 'no_such_network'"),
        ("resnet18.no_such_weights", "no pyramid of three levels .*Invalid pretrained tag"),
        ("tnt_s_patch16_224", "takes images of one size only"),
    ],
)
def test_unsuitable(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(name).smallest_size(4)


def test_pretrained_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"weights of 'resnet18' .*check the network, HF_HUB"):
        FeaturePyramid("resnet18", pretrained=True)


def test_an_error_of_the_disk_is_not_one_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        FeaturePyramid("resnet18", pretrained=True)
