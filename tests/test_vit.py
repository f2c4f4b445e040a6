"""Plain vision transformers as a pyramid."""

import math
from pathlib import Path

import pytest
import timm
import torch
from conftest import assert_same, fill
from torch import Tensor, nn

from hdmnet import FeaturePyramid, HDMNet
from hdmnet.nn.vit import PlainViT


def read_blocks(
    model: nn.Module, images: Tensor, blocks: tuple[int, ...], skip: int
) -> list[Tensor]:
    """Read the blocks of timm's own model, and make maps of all tokens but the first `skip`."""
    outputs: dict[int, Tensor] = {}
    handles = [
        model.blocks[i].register_forward_hook(lambda _, __, y, i=i: outputs.__setitem__(i, y))
        for i in blocks
    ]
    with torch.inference_mode():
        model.forward_features(images)
        norm = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
        tokens = [norm(outputs[i])[:, skip:] for i in blocks]
    for handle in handles:
        handle.remove()
    rows, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    return [x.mT.unflatten(2, (rows, columns)) for x in tokens]


# name: (pixels of a patch, tokens that are not patches)
VITS = {
    "vit_tiny_patch16_224": (16, 1),
    "vit_small_patch14_reg4_dinov2": (14, 5),  # a class token and four registers
    "vit_small_patch16_dinov3": (16, 5),
    "eva02_tiny_patch14_224": (14, 1),
    "deit_tiny_distilled_patch16_224": (16, 2),
}


@pytest.mark.parametrize("name", VITS)
def test_three_blocks_of_timms_model(name: str) -> None:
    patch, skip = VITS[name]
    size = (4 * patch, 6 * patch)
    pyramid = FeaturePyramid(name).eval()
    fill(pyramid)
    reference = timm.create_model(name, num_classes=0).eval()
    state = {k.removeprefix("model."): v for k, v in pyramid.body.state_dict().items()}
    if "fc_norm.weight" in reference.state_dict():
        state = {
            k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v
            for k, v in state.items()
        }
    # The shapes are those of a checkpoint, position embeddings included.
    reference.load_state_dict(state)
    reference.set_input_size(size)  # interpolates the position embeddings
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        levels = pyramid(images)
    for level, expected in zip(
        levels, read_blocks(reference, images, (5, 8, 11), skip), strict=True
    ):
        assert level.shape[-2:] == (4, 6)
        assert_same(level, expected)


@pytest.mark.parametrize(("height", "width"), [(57, 91), (71, 70), (1, 1)])
def test_any_size(height: int, width: int) -> None:
    """An image is resized to whole patches: nothing is cut off, and the borders stay in place."""
    pyramid = FeaturePyramid("vit_tiny_patch16_224").eval()
    images = torch.randn(1, 3, height, width)
    rows, columns = math.ceil(height / 16), math.ceil(width / 16)
    whole = nn.functional.interpolate(images, (16 * rows, 16 * columns), mode="bilinear")
    with torch.inference_mode():
        for level, expected in zip(pyramid(images), pyramid(whole), strict=True):
            assert level.shape == (1, 192, rows, columns)
            assert torch.equal(level, expected)


def test_smallest_size() -> None:
    pyramid = FeaturePyramid("vit_tiny_patch16_224")
    assert pyramid.smallest_size(4) == 49
    assert pyramid(torch.randn(1, 3, 48, 49))[0].shape[-2:] == (3, 4)


class TestLayers:
    def test_blocks(self) -> None:
        name = "vit_tiny_patch16_224"
        pyramid = FeaturePyramid(name, layers=(1, -5, -2)).eval()
        assert len(pyramid.body.model.blocks) == 11  # the last one is not computed
        reference = timm.create_model(name, num_classes=0).eval()
        reference.load_state_dict(
            {k.removeprefix("model."): v for k, v in pyramid.body.state_dict().items()},
            strict=False,
        )
        images = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            levels = pyramid(images)
        for level, expected in zip(
            levels, read_blocks(reference, images, (1, 7, 10), 1), strict=True
        ):
            assert_same(level, expected)

    @pytest.mark.parametrize(
        ("name", "layers", "channels", "stride"),
        [
            ("resnet18", (1, 2, 3), (64, 128, 256), 4),
            ("resnet18", (0, -2, -1), (64, 256, 512), 2),
            ("swin_tiny_patch4_window7_224", (0, 1, 2), (96, 192, 384), 4),
        ],
    )
    def test_levels(
        self, name: str, layers: tuple[int, ...], channels: tuple[int, ...], stride: int
    ) -> None:
        pyramid = FeaturePyramid(name, layers=layers).eval()
        assert pyramid.channels == channels
        with torch.inference_mode():
            levels = pyramid(torch.randn(1, 3, 64, 96))
        grid = (64 // stride, 96 // stride)
        assert [tuple(level.shape) for level in levels] == [(1, c, *grid) for c in channels]

    @pytest.mark.parametrize(
        ("name", "layers", "message"),
        [
            (
                "vit_tiny_patch16_224",
                (5, 8, 12),
                "has 12 layers: .* from 0 to 11, or from -12 to -1",
            ),
            ("vit_tiny_patch16_224", (-13, 8, 11), "has 12 layers"),
            ("vit_tiny_patch16_224", (8, 8, 11), r"rising .* got \(8, 8, 11\)"),
            ("vit_tiny_patch16_224", (11, -4, 5), "rising"),
            ("resnet18", (2, 3, 5), "'resnet18' has 5 layers"),
            ("resnet18", (3, 4), "number of layers must be at least 3, got 2"),
            ("resnet50", (1, 2, 3), "has the layers of the paper: leave layers out, .*'resnet50s'"),
        ],
    )
    def test_values(self, name: str, layers: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HDMNet(name, base_classes=0, layers=layers)

    @pytest.mark.parametrize("layers", [7, "7", (1, 2, 3.0)])
    def test_types(self, layers: object) -> None:
        with pytest.raises(TypeError, match=r"layers.* must be .* int, got"):
            HDMNet("resnet18", layers=layers)

    def test_are_saved(self, tmp_path: Path) -> None:
        options = {"base_classes": 0, "dim": 16, "heads": (1,), "image_size": 64}
        model = HDMNet("vit_tiny_patch16_224", layers=[2, 5, 8], **options).eval()
        model.save_pretrained(tmp_path)
        again = HDMNet.from_pretrained(tmp_path)
        assert again.config["layers"] == (2, 5, 8)
        assert again.fingerprint() == model.fingerprint()
        # The weights of other blocks fit as well, but the supports that they encode do not.
        other = HDMNet("vit_tiny_patch16_224", layers=[1, 5, 8], **options)
        other.load_state_dict(model.state_dict())
        assert other.fingerprint() != model.fingerprint()


def test_default_layers_of_other_depths() -> None:
    for depth, expected in (
        (6, [2, 3, 5]),
        (12, [5, 8, 11]),
        (24, [11, 17, 23]),
        (40, [19, 29, 39]),
    ):
        model = timm.create_model("test_vit", depth=depth)
        assert PlainViT(model, ()).layers == expected
