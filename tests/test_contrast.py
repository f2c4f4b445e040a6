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
    @pytest.mark.parametrize("count", [0, 3])
    def test_formula(self, count: int) -> None:
        query, own, rivals = torch.randn(2, 5, 3, 4), torch.randn(2, 5), torch.randn(2, count, 5)
        center = torch.randn(5)
        found = contrast_prior(query, own, rivals, center)
        for b in range(2):
            for y in range(3):
                for x in range(4):
                    cosines = [
                        F.cosine_similarity(query[b, :, y, x] - center, own[b] - other, dim=0)
                        for other in (center, *rivals[b])
                    ]
                    torch.testing.assert_close(found[b, y, x], min(cosines), **TOLERANCE)

    def test_without_rivals(self) -> None:
        query, own, center = torch.randn(2, 5, 3, 4), torch.randn(2, 5), torch.randn(5)
        expected = contrast_prior(query, own, torch.zeros(2, 0, 5), center)
        assert torch.equal(contrast_prior(query, own, None, center), expected)

    def test_rivals_only_lower_it(self) -> None:
        query, own, rivals = torch.randn(2, 5, 3, 4), torch.randn(2, 5), torch.randn(2, 3, 5)
        center = torch.randn(5)
        alone, among = (contrast_prior(query, own, r, center) for r in (None, rivals))
        assert (among <= alone + 1e-6).all()
        assert (among < alone - 0.1).any()

    def test_the_class_itself_is_no_rival(self) -> None:
        query, own, center = torch.randn(1, 5, 3, 4), torch.randn(1, 5), torch.randn(5)
        found = contrast_prior(query, own, (own * (1 + 1e-7))[:, None], center)
        assert torch.equal(found, contrast_prior(query, own, None, center))

    def test_the_mean_of_everything_has_no_direction(self) -> None:
        own = torch.randn(1, 5)
        found = contrast_prior(torch.randn(1, 5, 3, 4), own, None, own[0])
        assert not found.any()

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
            contrast_prior(
                torch.rand(2, 5, 3, 4), torch.rand(2, 5), torch.rand(2, 1, 4), torch.rand(5)
            )


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

    def test_a_set_of_another_model(self, model: HDMNet) -> None:
        other = make(base_classes=2, contrast=True, backbone="resnet18")
        sets = self.encoded(model)
        foreign = other.encode_supports(picture(40, 40), torch.ones(40, 40))
        with pytest.raises(ValueError, match="another model encoded these supports"):
            model.predict(picture(90, 70), sets | {"foreign": foreign})

    def test_a_set_on_another_device(self, model: HDMNet) -> None:
        sets = self.encoded(model)
        first = next(iter(sets))
        with pytest.raises(ValueError, match="the supports are on meta"):
            model.predict(picture(90, 70), sets | {first: sets[first].to("meta")})

    def test_joined_sets_keep_their_rivals(self, model: HDMNet) -> None:
        cat, dog, cow = model.contrasted(list(self.encoded(model).values()))
        assert dog.rivals is not None
        fewer = SupportSet(**{**vars(dog), "rivals": dog.rivals[:, :1]})
        query = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            stacked = model.match(query.expand(3, -1, -1, -1), cat.stack(fewer, cow)).prior
            apart = torch.cat([model.match(query, each).prior for each in (cat, fewer, cow)])
            torch.testing.assert_close(stacked, apart, **TOLERANCE)
            pair = dog.merge(SupportSet(**{**vars(dog), "rivals": None}))
            twice = model.match(query, pair).prior
            torch.testing.assert_close(twice, model.match(query, dog).prior, **TOLERANCE)
        ignorant = SupportSet(**{**vars(cow), "rivals": None})
        with pytest.raises(ValueError, match="some of the sets have rivals"):
            cat.stack(ignorant)

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

    def test_the_center_is_that_of_presence(self) -> None:
        query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 3, 64, 64)
        plain = make(base_classes=0, contrast=True)
        center = torch.rand(plain.backbone.channels[2]).tolist()
        presence = {"scale": 1.0, "bias": 0.0, "center": center}
        centred = make(base_classes=0, contrast=True, presence=presence)
        centred.load_state_dict(plain.state_dict())
        with torch.no_grad():
            priors = [m(query, images, torch.ones(1, 1, 64, 64)).prior for m in (plain, centred)]
        torch.testing.assert_close(priors[0][:, :2], priors[1][:, :2])
        assert (priors[0][:, 2] - priors[1][:, 2]).abs().max() > 0.01

    def test_refused(self) -> None:
        with pytest.raises(TypeError, match="contrast must be a bool"):
            make(contrast=1)
