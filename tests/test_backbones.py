"""The same checks for every kind of backbone."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import assert_same, assert_same_output, episode, fill, make, tensors
from huggingface_hub import constants
from test_predict import picture
from torch.nn import functional as F

from hdmnet import EpisodeLoss, FeaturePyramid, HDMNet, box_mask

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


# One small model of each family.
FAMILIES = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "regnetx_002",
    "resnet18",
    "pvt_v2_b0",
    "edgenext_xx_small",
    "fastvit_t8",
    "mobilevit_xxs",
)
MORE_FAMILIES = (
    "vit_base_patch16_siglip_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "samvit_base_patch16_224",
    "naflexvit_base_patch16_gap",
    "xcit_nano_12_p16_224",
    "swinv2_tiny_window8_256",
    "hrnet_w18_small",
    "mambaout_femto",
    "repvit_m0_9",
    "twins_svt_small",
)


def small(name: str) -> HDMNet:
    return HDMNet(name, base_classes=2, dim=16, heads=(1,), image_size=64)


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES)]
)
def test_family(name: str, tmp_path: Path) -> None:
    model = small(name).eval()
    query, supports, masks = episode(1, 2, (57, 91))
    with torch.inference_mode():
        output = model(query, supports, masks)
        assert output.final.shape == (1, 2, 57, 91)
        assert all(tensor.isfinite().all() for tensor in tensors(output))
        assert_same_output(model.fused()(query, supports, masks), output)

    images = picture(), picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80))
    result = model.predict(*images)
    model.save_pretrained(tmp_path)
    again = HDMNet.from_pretrained(tmp_path)
    assert torch.equal(again.predict(*images).probability, result.probability)

    model.train()
    optimiser = torch.optim.AdamW(model.param_groups(1e-4))
    output = model(query, supports[:, :1], masks[:, :1], torch.tensor([0]))
    EpisodeLoss()(output, masks[:, 0]).total.backward()
    if not name.startswith("hrnet"):  # its finest branch is not one of the three levels
        unused = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert not unused  # else DistributedDataParallel fails
    optimiser.step()
    assert not torch.equal(model.predict(*images).probability, result.probability)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_family_compiles(name: str) -> None:
    """The rest of the network, which is alike for all families, is a part of test_compile.py."""
    torch.compiler.reset()
    backbone = small(name).eval().backbone
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    query, _, _ = episode(1, 1, (57, 91))
    with torch.no_grad():
        for ours, expected in zip(compiled(query), backbone(query), strict=True):
            assert_same(ours, expected)


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


@pytest.mark.parametrize(
    ("name", "cell", "stride"),
    [
        ("swin_tiny_patch4_window7_224", 32, 8),
        ("swinv2_tiny_window8_256", 32, 8),
        ("hrnet_w18_small", 32, 8),
        ("resnetaa34d", 8, 8),
    ],
)
def test_images_are_resized_to_whole_cells(name: str, cell: int, stride: int) -> None:
    pyramid = FeaturePyramid(name).eval()
    assert pyramid.smallest_size(4) == 3 * stride + 1
    images = torch.randn(1, 3, 2 * cell - 3, 3 * cell - 1)
    whole = F.interpolate(images, (2 * cell, 3 * cell), mode="bilinear")
    with torch.inference_mode():
        for level, expected in zip(pyramid(images), pyramid(whole), strict=True):
            assert level.shape[-2:] == (2 * cell // stride, 3 * cell // stride)
            assert torch.equal(level, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_network", "unknown backbone 'no_such_network'"),
        ("resnet18.no_such_weights", "no pyramid of three levels .*Invalid pretrained tag"),
        ("tnt_s_patch16_224", "takes images of certain sizes only"),
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
