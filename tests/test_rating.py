"""`rate_supports` and `select_supports`."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make
from PIL import Image
from test_predict import picture
from torch import Tensor

from hdmnet import FeaturePyramid, FewShotModel, HDMNet, SupportSet, box_mask
from hdmnet.rating import compare, rate


class ColourNet(FewShotModel):
    """Finds the mean colour of the support's object."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 64
        self.backbone = FeaturePyramid("resnet18")  # for its mean and std only
        self.eval()

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        shown = (masks == 1)[:, :, None].float()
        return SupportSet((supports * shown).sum((-2, -1)) / shown.sum((-2, -1)).clamp(min=1))

    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        colors = supports.prototypes.mean(dim=1)[..., None, None]
        object_ = (-(query - colors).square().sum(dim=1, keepdim=True)).exp()
        return torch.cat([1 - object_, object_], dim=1)


def scene(color: tuple[int, int, int], seed: int) -> tuple[Image.Image, Tensor]:
    """A box of one colour on dull noise, and its mask. The box and the size depend on the seed."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(60, 100, 2).tolist()
    noise = rng.integers(80, 120, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    x, y = rng.integers(5, 20, 2).tolist()
    corners = (x, y, x + width // 3, y + height // 3)
    image.paste(color, corners)
    return image, box_mask(corners, (height, width))


RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.fixture(scope="module")
def colours() -> ColourNet:
    return ColourNet()


@pytest.fixture
def reds() -> tuple[list[Image.Image], list[Tensor]]:
    images, masks = zip(*(scene(RED, seed) for seed in range(5)), strict=True)
    return list(images), list(masks)


class TestRateSupports:
    @pytest.mark.parametrize("wrong", ["other object", "shifted", "inverted", "empty"])
    @pytest.mark.filterwarnings("ignore:the mask of support 3 is empty")
    def test_a_wrong_mask_is_last(self, colours: ColourNet, reds: tuple, wrong: str) -> None:
        images, masks = reds
        mask = masks[3]
        if wrong == "other object":
            images[3].paste(BLUE, (40, 40, 58, 58))
            mask = box_mask((40, 40, 58, 58), mask.shape)
        masks[3] = {
            "other object": mask,
            "shifted": mask.roll((8, 8), (0, 1)),
            "inverted": 1 - mask,
            "empty": 0 * mask,
        }[wrong]
        ratings = colours.rate_supports(images, masks)
        assert sorted(r.index for r in ratings) == [0, 1, 2, 3, 4]
        assert ratings[-1].index == 3
        values = [r.agreement for r in ratings]
        assert values == sorted(values, reverse=True)
        assert all(0 <= value <= 1 for value in values)
        assert values[-1] < values[-2] - 0.1

    def test_is_the_formula(self) -> None:
        """From answers of `predict`, pair by pair."""
        model = make(base_classes=0)
        images = [picture(64, 64, seed=seed) for seed in range(3)]
        masks = [box_mask((5 + 8 * k, 10, 40 + 5 * k, 50), (64, 64)) for k in range(3)]
        c, d = np.zeros((3, 3)), np.zeros(3)
        for i in range(3):
            answers = [
                model.predict(images[i], images[j], masks[j]).probability.flatten()
                for j in range(3)
            ]
            c[i] = [np.corrcoef(p, masks[i].flatten())[0, 1] for p in answers]
            d[i] = np.corrcoef(*(answers[j] for j in range(3) if j != i))[0, 1]
        expected = [
            (
                4 * np.delete(c[i], i).mean()
                + 4 * np.delete(c[:, i], i).mean()
                + 3 * c[i, i]
                - 2 * d[i]
            )
            / 9
            for i in range(3)
        ]
        found = sorted(model.rate_supports(images, masks), key=lambda r: r.index)
        assert [r.index for r in found] == [0, 1, 2]
        for rating, value in zip(found, expected, strict=True):
            assert rating.agreement == pytest.approx(max(value, 0), abs=1e-5)

    def test_alike_objects_agree(self, small_lite0: Path) -> None:
        """The bundled model also compares the evidence of its classifier."""
        model = HDMNet.from_pretrained(small_lite0).fused()
        data = Path(__file__).parents[1] / "examples" / "data"
        shown = [data / "person" / f"support_{k}" for k in (1, 2)] + [data / "fish" / "support_1"]
        images = [path.with_suffix(".jpg") for path in shown]
        masks = [path.with_suffix(".png") for path in shown]
        sets = [model.encode_supports(*pair) for pair in zip(images, masks, strict=True)]
        evidence = [model.presence.shown(s.prior_features[1])[0] for s in sets]
        ratings = model.rate_supports(images, masks)
        model.presence.evidence = None
        without = {r.index: r.agreement for r in model.rate_supports(images, masks)}
        for rating in ratings:
            likeness = [
                torch.cosine_similarity(evidence[rating.index], e, dim=0).item()
                for j, e in enumerate(evidence)
                if j != rating.index
            ]
            if without[rating.index] > 0:  # it is clamped at 0
                expected = (9 * without[rating.index] + 4 * np.mean(likeness)) / 13
                assert rating.agreement == pytest.approx(expected, abs=1e-4)

    def test_more_sets_than_are_matched_at_once(self, colours: ColourNet) -> None:
        images, masks = zip(*(scene(RED, seed) for seed in range(10)), strict=True)
        masks = [*masks[:9], 1 - masks[9]]
        assert colours.rate_supports(images, masks)[-1].index == 9

    def test_two_are_the_fewest(self, model: HDMNet) -> None:
        images, masks = [picture(), picture(seed=1)], [np.eye(70, 90) > 0] * 2
        assert len(model.rate_supports(images, masks)) == 2
        with pytest.raises(ValueError, match="at least two"):
            model.rate_supports(images[:1], masks[:1])

    def test_errors_name_the_support(self, model: HDMNet) -> None:
        with pytest.raises(ValueError, match=r"support 1: .*70 x 91"):
            model.rate_supports([picture(), picture()], [np.ones((70, 90)), np.ones((70, 91))])

    def test_does_not_change_the_model(self, reds: tuple) -> None:
        model = make().train()
        model.rate_supports(*reds)
        assert model.training

    def test_the_measurement_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        pytest.importorskip("pycocotools", reason="needs hdmnet[eval]")
        import trees

        label = trees.boxes_label((90, 130), {(5, 10, 65, 60): 8, (70, 20, 125, 70): 12})
        trees.voc(tmp_path, {f"photo_{i}": label for i in range(16)}, split="trainaug")
        make(base_classes=0).save_pretrained(tmp_path / "model")
        script = str(Path(__file__).parents[1] / "examples" / "rate_supports.py")
        arguments = [tmp_path / "VOCdevkit", "--model", tmp_path / "model", "--trials", 2]
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")
        printed = capsys.readouterr().out
        for kind in ("another object", "shifted", "inverted"):
            assert kind in printed
        assert "cat" in printed
        assert "dog" in printed


class TestSelectSupports:
    def test_leaves_wrong_masks_out(self, colours: ColourNet, reds: tuple) -> None:
        images, masks = reds
        masks[1], masks[4] = 1 - masks[1], masks[4].roll((20, 20), (0, 1))
        chosen = colours.select_supports(images, masks, 3)
        assert sorted(chosen) == [0, 2, 3]
        rated = [r.index for r in colours.rate_supports(images, masks)]
        for k in range(1, 6):
            assert colours.select_supports(images, masks, k) == rated[:k]

    @pytest.mark.parametrize("k", [0, 6, 2.0])
    def test_k_out_of_range(self, colours: ColourNet, reds: tuple, k: object) -> None:
        with pytest.raises((TypeError, ValueError), match="k must be"):
            colours.select_supports(*reds, k)


def test_compare() -> None:
    label = torch.tensor([[0, 1, 1, 0], [0, 255, 0, 1]])
    p = torch.rand(5, 2, 4)
    p[3], p[4] = 0.3, (label == 1).float()
    flat = p[:, label != 255].numpy()
    expected = [np.corrcoef(x, label[label != 255])[0, 1] for x in flat[:3]]
    found, easiness = compare(p, label, own=4)
    assert found.tolist() == pytest.approx([*expected, 0, 1], abs=1e-6)
    pairs = [np.corrcoef(flat[i], flat[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert easiness.item() == pytest.approx(sum(pairs) / 6, abs=1e-6)  # 0 with the constant one
    assert compare(p, torch.zeros(2, 4), own=0)[0].tolist() == [0] * 5  # an empty mask


def test_an_object_that_looks_different_comes_last() -> None:
    correlations, easiness = torch.full((3, 3), 0.6), torch.full((3,), 0.5)
    assert [r.index for r in rate(correlations, easiness)] == [0, 1, 2]
    likeness = torch.tensor([[1.0, 0.1, 0.2], [0.1, 1.0, 0.9], [0.2, 0.9, 1.0]])
    ratings = rate(correlations, easiness, likeness)
    assert [r.index for r in ratings] == [2, 1, 0]
    own = (4 * 0.6 + 4 * 0.6 + 3 * 0.6 - 2 * 0.5 + 4 * (0.2 + 0.9) / 2) / 13
    assert ratings[0].agreement == pytest.approx(own)


def test_perfect_supports_have_agreement_1() -> None:
    for shots in (2, 3, 5):
        mask = torch.rand(6, 8) > 0.5
        rows = [compare(mask.float().expand(shots, -1, -1), mask.float(), i) for i in range(shots)]
        ratings = rate(*(torch.stack(x) for x in zip(*rows, strict=True)))
        assert [r.index for r in ratings] == list(range(shots))
        assert all(r.agreement == pytest.approx(1) for r in ratings)
