"""Encoded supports are saved, moved and merged."""

from pathlib import Path

import pytest
import torch
from conftest import assert_same, episode, make
from test_predict import picture
from torch import Tensor

from hdmnet import HDMNet, SupportSet, box_mask
from hdmnet.nn.priors import foreground_features, max_cosine
from hdmnet.supports import _join_priors


@pytest.fixture(scope="module", params=[0, 3])
def model(request: pytest.FixtureRequest) -> HDMNet:
    return make(base_classes=request.param)


def encode(model: HDMNet, shots: int = 2, first: int = 1) -> SupportSet:
    images = [picture(80, 100, seed) for seed in range(first, first + shots)]
    masks = [box_mask((5 * i, 30, 60, 80), (100, 80)) for i in range(first, first + shots)]
    return model.encode_supports(images, masks)


def probability(model: HDMNet, supports: SupportSet) -> Tensor:
    return model.predict(picture(), supports).probability


class TestFile:
    def test_round_trip(self, model: HDMNet, tmp_path: Path) -> None:
        supports = encode(model)
        supports.save(tmp_path / "cat.safetensors")
        assert [p.name for p in tmp_path.iterdir()] == ["cat.safetensors"]
        loaded = SupportSet.load(tmp_path / "cat.safetensors")
        assert loaded.shots == 2
        assert torch.equal(probability(model, loaded), probability(model, supports))

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a folder: expected a file"):
            SupportSet.load(tmp_path)

    def test_of_another_model(self, model: HDMNet, tmp_path: Path) -> None:
        encode(model).save(tmp_path / "cat.safetensors")
        other = make(base_classes=model.config["base_classes"])
        with torch.no_grad():
            for p in other.cascade.parameters():
                p.add_(0.01)
        with pytest.raises(ValueError, match="another model encoded"):
            probability(other, SupportSet.load(tmp_path / "cat.safetensors"))

    def test_a_training_step_makes_another_model(self, tmp_path: Path) -> None:
        model = make(base_classes=0)
        supports = encode(model)
        optimiser = torch.optim.AdamW(model.param_groups(1e-4))
        model.freeze_backbone().train()
        model(*episode()).final.square().mean().backward()
        optimiser.step()
        with pytest.raises(ValueError, match="has changed since"):
            probability(model, supports)

    def test_fingerprint_depends_on_weights_only(self) -> None:
        model = make(base_classes=0)
        before = model.fingerprint()
        weight = model.query_merge[0].weight
        value = weight[-1, -1].clone()
        with torch.no_grad():
            weight[-1, -1] += 0.5
        assert model.fingerprint() != before
        with torch.no_grad():
            weight[-1, -1] = value
        assert model.fingerprint() == before
        model.frozen_norm = not model.frozen_norm
        model.image_size += 8
        assert model.fingerprint() == before

    def test_match_features_checks_the_model(self, model: HDMNet) -> None:
        other = make(base_classes=model.config["base_classes"])
        with torch.no_grad():
            other.query_merge[0].weight.mul_(2)
        query, _, _ = episode()
        with torch.inference_mode(), pytest.raises(ValueError, match="another model"):
            other.match_features(other.backbone(query), encode(model), (64, 64))

    def test_a_reloaded_model_is_the_same(self, model: HDMNet, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path / "model")
        reloaded = HDMNet.from_pretrained(tmp_path / "model")
        assert torch.equal(probability(reloaded, encode(model)), probability(model, encode(model)))

    def test_a_loaded_set_does_not_change_with_its_file(
        self, model: HDMNet, tmp_path: Path
    ) -> None:
        path = tmp_path / "cat.safetensors"
        encode(model).save(path)
        loaded = SupportSet.load(path)
        before = [x.clone() for x in loaded.named_tensors().values()]
        size = path.stat().st_size
        with open(path, "r+b") as file:  # in place, as `cp` does
            file.write(b"\xff" * size)
        for x, expected in zip(loaded.named_tensors().values(), before, strict=True):
            assert torch.equal(x, expected)

    def test_an_unknown_device(self, model: HDMNet, tmp_path: Path) -> None:
        encode(model).save(tmp_path / "x")
        with pytest.raises(RuntimeError, match="gpu"):
            SupportSet.load(tmp_path / "x", device="gpu")

    @pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\xff" * 64])
    def test_not_a_support_set(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match="not a support set file"):
            SupportSet.load(tmp_path / "x")

    def test_another_safetensors_file(self, model: HDMNet, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="not a support set file of this version"):
            SupportSet.load(tmp_path / "model.safetensors")
        with pytest.raises(FileNotFoundError):
            SupportSet.load(tmp_path / "missing")

    def test_a_set_without_fingerprint(self, model: HDMNet, tmp_path: Path) -> None:
        _, supports, masks = episode()
        with pytest.raises(ValueError, match="encode_supports"):
            model.encode(supports, masks).save(tmp_path / "x")
        assert not list(tmp_path.iterdir())

    def test_failed_save_leaves_the_old_file(
        self, model: HDMNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "cat.safetensors"
        path.write_bytes(b"old")

        def fail(tensors: object, temporary: Path, metadata: object) -> None:
            temporary.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("hdmnet.supports.save_tensors", fail)
        with pytest.raises(OSError, match="disk full"):
            encode(model).save(path)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["cat.safetensors"]


class TestMerge:
    def test_equals_encoding_together(self, model: HDMNet) -> None:
        merged = encode(model, 2, 1).merge(encode(model, 1, 3))
        assert merged.shots == 3
        assert_same(probability(model, merged), probability(model, encode(model, 3, 1)))

    def test_of_sets_with_masks_of_different_area(self, model: HDMNet) -> None:
        """One mask covers its whole support (no background), the other covers little of it."""
        full, small = torch.ones(100, 80), box_mask((5, 5, 15, 15), (100, 80))
        images = [picture(80, 100, seed) for seed in (1, 2)]
        sets = [model.encode_supports(i, m) for i, m in zip(images, (full, small), strict=True)]
        together = model.encode_supports(images, [full, small])
        for merged in (sets[0].merge(sets[1]), SupportSet.merge(*sets)):
            assert_same(probability(model, merged), probability(model, together))

    def test_negative_cosines_beside_a_full_mask(self) -> None:
        """Without background the prior can be negative, and merging must not add a 0."""
        query, full = torch.ones(1, 4, 3, 3), -torch.ones(1, 1, 4, 2, 2)
        large = -torch.ones(1, 1, 4, 3, 3)
        parts = [foreground_features(x, torch.ones(1, 1, 3, 3)) for x in (full, large)]
        assert (max_cosine(query, _join_priors(parts, dim=1)) < -0.99).all()

    def test_with_and_without_base_learner(self) -> None:
        _, supports, masks = episode()
        first, second = (make(base_classes=n).encode(supports, masks) for n in (0, 3))
        with pytest.raises(ValueError, match="with and without base learner"):
            first.merge(second)

    def test_other_models(self, model: HDMNet) -> None:
        other = make(base_classes=model.config["base_classes"], shots=2)
        with pytest.raises(ValueError, match="different models"):
            encode(model).merge(encode(other))

    def test_other_numbers_of_episodes(self, model: HDMNet) -> None:
        one, two = (model.encode(*episode(batch)[1:]) for batch in (1, 2))
        with pytest.raises(ValueError, match=r"number of episodes, got \[1, 2\]"):
            one.merge(two)


def test_to(model: HDMNet) -> None:
    supports = encode(model)
    half = supports.to("cpu", torch.bfloat16)
    assert half.prototypes.dtype == half.tokens[0].key.dtype == torch.bfloat16
    assert supports.prototypes.dtype == torch.float32
    assert (probability(model, half) - probability(model, supports)).abs().max() < 0.05
    many = torch.ones(1, 30, 100, 100)
    large = model.encode(torch.randn(1, 30, 3, 100, 100), many).to(dtype=torch.float16)
    assert all(level.key_sum.isfinite().all() for level in large.tokens)
    assert large.tokens[0].area.dtype == torch.float32
    assert_same(probability(model, supports.to(dtype=torch.float64)), probability(model, supports))
    assert supports.to("meta").prototypes.device.type == "meta"


@pytest.mark.parametrize(("of", "to", "kind"), [(0, 3, "without"), (3, 0, "with")])
def test_supports_of_another_kind_of_model(of: int, to: int, kind: str) -> None:
    query, supports, masks = episode()
    encoded = make(base_classes=of).encode(supports, masks)
    with pytest.raises(ValueError, match=f"a model {kind} base learner encoded"):
        make(base_classes=to).match(query, encoded)


def test_on_another_device(model: HDMNet) -> None:
    query, supports, masks = episode()
    encoded = model.encode(supports, masks).to("meta")
    with pytest.raises(
        ValueError, match=r"supports are on meta.*move them with supports\.to\('cpu'"
    ):
        model.match(query, encoded)


def test_features_of_other_images(model: HDMNet) -> None:
    _, supports, masks = episode(shots=3)
    features = model.backbone(supports[:, 0])
    with pytest.raises(ValueError, match="got 1 images"):
        model.encode_features(features, masks)


@pytest.mark.parametrize("options", [{}, {"base_classes": 0, "contrast": True, "high_level": True}])
def test_several_episodes_share_a_query(options: dict[str, object]) -> None:
    model = make(**options).eval()
    images, masks = torch.rand(4, 2, 3, 64, 64), (torch.rand(4, 2, 64, 64) > 0.5).float()
    queries = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        sets = model.encode(images, masks)
        found = model.match(queries, sets).final
        expected = model.match(queries.repeat_interleave(2, dim=0), sets).final
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
