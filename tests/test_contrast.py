"""Classes that know of each other: the contrast map, and where it comes from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make
from test_multiclass import supports
from test_predict import picture

from hdmnet import HDMNet, SupportSet
from hdmnet.nn.priors import contrast_prior, foreground_features, mean_feature

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=["base learner", "no base learner"])
def model(request: pytest.FixtureRequest) -> HDMNet:
    return make(base_classes=3 if request.param == "base learner" else 0, contrast=True)


class TestMap:
    def test_formula(self) -> None:
        query, own, rivals = torch.randn(2, 5, 3, 4), torch.randn(2, 5), torch.randn(2, 3, 5)
        found = contrast_prior(query, own, rivals)
        for b in range(2):
            centred = query[b] - query[b].mean(dim=(1, 2), keepdim=True)
            for y in range(3):
                for x in range(4):
                    cosines = [
                        F.cosine_similarity(centred[:, y, x], own[b] - rival, dim=0)
                        for rival in rivals[b]
                    ]
                    torch.testing.assert_close(found[b, y, x], min(cosines), **TOLERANCE)

    def test_without_rivals(self) -> None:
        for rivals in (None, torch.zeros(2, 0, 5)):
            found = contrast_prior(torch.randn(2, 5, 3, 4), torch.randn(2, 5), rivals)
            assert found.tolist() == torch.zeros(2, 3, 4).tolist()

    def test_two_classes_are_opposites(self) -> None:
        query, a, b = torch.randn(1, 5, 3, 4), torch.randn(1, 5), torch.randn(1, 5)
        one, other = contrast_prior(query, a, b[:, None]), contrast_prior(query, b, a[:, None])
        torch.testing.assert_close(one, -other, **TOLERANCE)

    def test_the_class_itself_is_no_rival(self) -> None:
        query, own = torch.randn(1, 5, 3, 4), torch.randn(1, 5)
        found = contrast_prior(query, own, (own * (1 + 1e-7))[:, None])
        assert found.abs().max() < 1e-4

    def test_mean_feature(self) -> None:
        features, mask = torch.rand(2, 3, 5, 4, 4), torch.zeros(2, 3, 4, 4)
        mask[:, :, 1:3, 1:] = 1
        found = mean_feature(foreground_features(features, mask))
        torch.testing.assert_close(found, features[..., 1:3, 1:].mean(dim=(1, 3, 4)), **TOLERANCE)

    def test_mean_feature_of_merged_shots(self) -> None:
        """Shots whose objects differ in size, encoded one after the other or at once."""
        model = make(base_classes=0)
        images, masks = torch.rand(1, 2, 3, 64, 64), torch.zeros(1, 2, 64, 64)
        masks[:, 0, :56, :56], masks[:, 1, 8:24, 8:24] = 1, 1
        with torch.no_grad():
            merged = model.encode(images, masks)
            features = model.backbone((images * masks[:, :, None])[0])
            at_once = model.encode_features(features, masks)
        pairs = [mean_feature(s.prior_features[1]) for s in (merged, at_once)]
        torch.testing.assert_close(*pairs, **TOLERANCE)

    def test_wrong_shapes(self) -> None:
        with pytest.raises(ValueError, match="rivals must be"):
            contrast_prior(torch.randn(2, 5, 3, 4), torch.randn(2, 5), torch.randn(2, 1, 4))


class TestModel:
    def encoded(self, model: HDMNet) -> dict[str, SupportSet]:
        images, masks = supports(shots=2)
        return {name: model.encode_supports(images[name], masks[name]) for name in images}

    def test_classes_of_a_call_are_rivals(self, model: HDMNet) -> None:
        query, sets = picture(90, 70, seed=99), self.encoded(model)
        many = model.predict(query, sets)
        assert many["cat"].explain().prior_names[-1] == "contrast"
        for name, own in sets.items():
            means = [
                mean_feature(s.prior_features[1]) for other, s in sets.items() if other != name
            ]
            knowing = SupportSet(**{**vars(own), "rivals": torch.stack(means, dim=1)})
            alone = model.predict(query, knowing)
            torch.testing.assert_close(many[name].probability, alone.probability, **TOLERANCE)
            ignorant = model.predict(query, own)
            assert not torch.allclose(many[name].probability, ignorant.probability, atol=1e-3)

    def test_one_class_has_no_rivals(self, model: HDMNet) -> None:
        query, cat = picture(90, 70, seed=99), self.encoded(model)["cat"]
        many = model.predict(query, {"cat": cat})
        alone = model.predict(query, cat)
        torch.testing.assert_close(many["cat"].probability, alone.probability, **TOLERANCE)

    def test_one_after_the_other(self, model: HDMNet) -> None:
        query, sets = picture(90, 70, seed=99), self.encoded(model)
        together = model.predict(query, sets).probability
        apart = model.predict(query, sets, batch_size=1).probability
        torch.testing.assert_close(together, apart, **TOLERANCE)

    def test_rivals_are_not_saved(self, model: HDMNet, tmp_path: Path) -> None:
        sets = list(self.encoded(model).values())
        knowing = model.contrasted(sets)[0]
        assert knowing.rivals is not None
        assert knowing.rivals.shape[1] == 2
        knowing.save(tmp_path / "cat.safetensors")
        assert SupportSet.load(tmp_path / "cat.safetensors").rivals is None

    def test_gradients_reach_the_weights_of_the_contrast(self) -> None:
        model = make(base_classes=0, contrast=True)
        query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 2, 3, 64, 64)
        masks = torch.zeros(1, 2, 64, 64)
        masks[..., 10:40, 20:50] = 1
        encoded = model.encode(images, masks)
        channels = encoded.prior_features[1].unit.shape[-1]
        knowing = SupportSet(**{**vars(encoded), "rivals": torch.randn(1, 2, channels)})
        output = model.match(query, knowing)
        assert output.prior.shape[1] == 3
        output.meta.sum().backward()
        weight = model.query_merge[0].weight
        assert weight.grad is not None
        assert weight.grad[:, -1].abs().sum() > 0

    def test_without_contrast_nothing_changes(self) -> None:
        model = make(base_classes=0)
        sets = list(self.encoded(model).values())
        assert model.contrasted(sets) is sets

    def test_saved(self, model: HDMNet, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = HDMNet.from_pretrained(tmp_path)
        assert loaded.config["contrast"] is True
        query, sets = picture(90, 70, seed=99), self.encoded(model)
        expected = model.predict(query, sets).probability
        torch.testing.assert_close(
            loaded.fused().predict(query, sets).probability, expected, rtol=0, atol=1e-4
        )

    def test_refused(self) -> None:
        with pytest.raises(TypeError, match="contrast must be a bool"):
            make(contrast=1)
