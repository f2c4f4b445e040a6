"""Classes that know of each other: the contrast map, and where it comes from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make
from test_multiclass import supports
from test_predict import picture

from hdmnet import HDMNet, Segmentation, SupportSet
from hdmnet.images import load_image
from hdmnet.nn.contrast import SCALE, set_apart
from hdmnet.nn.presence import REACH, object_probability
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


class TestSetApart:
    def test_sums_stay(self) -> None:
        scores = torch.rand(3, 2, 9, 9)
        apart = set_apart(scores, torch.rand(3, 3, 3))
        torch.testing.assert_close(apart.sum(dim=1), scores.sum(dim=1))
        assert (apart - scores).abs().max() > 0.1

    def test_two_that_look_alike(self) -> None:
        scores, likeness = torch.rand(2, 2, 9, 9), torch.rand(1, 3, 3).expand(2, 3, 3)
        torch.testing.assert_close(set_apart(scores, likeness), scores, rtol=0, atol=1e-3)

    def test_two_that_do_not_overlap(self) -> None:
        scores = torch.full((2, 2, 9, 9), 0.5)
        scores[0, 1, :, :5] = scores[1, 1, :, 5:] = 0
        apart = set_apart(scores, torch.rand(2, 3, 3))
        torch.testing.assert_close(apart, scores, rtol=0, atol=1e-3)

    def test_one_class(self) -> None:
        scores = torch.rand(1, 2, 9, 9)
        assert torch.equal(set_apart(scores, torch.rand(1, 3, 3)), scores)

    def test_wrong_shapes(self) -> None:
        with pytest.raises(ValueError, match="likeness must be"):
            set_apart(torch.rand(2, 2, 9, 9), torch.rand(3, 3, 3))


class TestModel:
    def encoded(self, model: HDMNet) -> dict[str, SupportSet]:
        images, masks = supports(shots=2)
        return {name: model.encode_supports(images[name], masks[name]) for name in images}

    def knowing(self, model: HDMNet) -> list[SupportSet]:
        """Give each set the mean features of the others, as training does."""
        sets = list(self.encoded(model).values())
        means = [mean_feature(s.prior_features[1]) for s in sets]
        return [
            replace(own, rivals=torch.stack(means[:i] + means[i + 1 :], dim=1))
            for i, own in enumerate(sets)
        ]

    def test_rivals_change_the_map(self, model: HDMNet) -> None:
        query = picture(90, 70, seed=99)
        own = self.knowing(model)[0]
        found, ignorant = (model.predict(query, s) for s in (own, replace(own, rivals=None)))
        assert found.explain().prior_names[-1] == "contrast"
        assert not torch.allclose(found.probability, ignorant.probability, atol=1e-3)

    def test_classes_without_evidence_do_not_compete(self, model: HDMNet) -> None:
        query, sets = picture(90, 70, seed=99), self.encoded(model)
        many = model.predict(query, sets)
        for name, own in sets.items():
            alone = model.predict(query, own).probability
            torch.testing.assert_close(many[name].probability, alone, **TOLERANCE)

    def test_only_some_sets_have_rivals(self, model: HDMNet) -> None:
        query, sets = picture(90, 70, seed=99), self.encoded(model)
        sets["cat"] = self.knowing(model)[list(sets).index("cat")]
        many = model.predict(query, sets)
        for name, own in sets.items():
            alone = model.predict(query, own).probability
            torch.testing.assert_close(many[name].probability, alone, **TOLERANCE)

    def test_one_class_in_a_dict(self, model: HDMNet) -> None:
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
        knowing = self.knowing(model)[0]
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
        cat, dog, cow = self.knowing(model)
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

    @pytest.fixture
    def with_evidence(self) -> HDMNet:
        presence = {
            "scale": 5.0,
            "bias": -2.0,
            "center": [],
            "threshold": 0.6,
            "evidence": [16, 7],
        }
        model = make(base_classes=0, contrast=True, presence=presence)
        for buffer in model.presence.evidence.buffers():
            buffer.copy_(torch.randn_like(buffer))
        return model

    @pytest.mark.parametrize("reach", [1, REACH])
    def test_classes_compete_for_places(
        self, with_evidence: HDMNet, reach: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The formulas of `likeness` and `set_apart`, and the presence of each class alone."""
        monkeypatch.setattr("hdmnet.nn.presence.REACH", reach)
        model, query = with_evidence, picture(90, 70, seed=99)
        sets = self.encoded(model)
        many = model.predict(query, sets)
        prepared = model._prepare(load_image(query))[None]
        with torch.inference_mode():
            f4 = model.backbone(prepared)[2]
            alone = [next(model.match_sets(prepared, [[own]])) for own in sets.values()]
            squares = F.avg_pool2d(f4, 2, ceil_mode=True)[0]
            height, width = squares.shape[-2:]
            p = torch.cat([object_probability(match.scores) for match in alone])
            found = F.interpolate(p.amax(dim=0)[None, None], (height, width), mode="area")[0, 0]
            s = torch.zeros(3, height, width)
            for y in range(height):
                for x in range(width):
                    rows = slice(max(y - reach, 0), y + reach + 1)
                    columns = slice(max(x - reach, 0), x + reach + 1)
                    near = squares[:, rows, columns].flatten(1).T[None]
                    weight = found[rows, columns].flatten()[None, None] ** 2
                    looks = model.presence.evidence(near, weight)[0, 0]
                    for i, own in enumerate(sets.values()):
                        shown = model.presence.shown(own.prior_features[1])[0]
                        s[i, y, x] = F.cosine_similarity(looks, shown, dim=0)
        s = F.interpolate(s[None], (64, 64), mode="bilinear", align_corners=True)[0]
        pixels = p.flatten(1)
        overlap = F.cosine_similarity(pixels[:, None], pixels, dim=-1) ** 2
        for i, name in enumerate(sets):
            moves = [overlap[i, j] * p[j] * (s[j] - s[i]) for j in range(3) if j != i]
            lead = torch.stack(moves).amax(dim=0)
            expected = (p[i].logit(eps=1e-3) - SCALE * lead).sigmoid()
            answer = Segmentation.from_scores(
                torch.stack([1 - expected, expected])[None], (70, 90), doubt=alone[i].doubt
            )
            expected = answer.lowered().probability
            assert many[name].presence == pytest.approx(alone[i].presence.item(), abs=1e-5)
            torch.testing.assert_close(many[name].probability, expected, rtol=0, atol=1e-4)
            assert lead.abs().max() > 0.02

    def test_competing_one_after_the_other(self, with_evidence: HDMNet) -> None:
        query, sets = picture(90, 70, seed=99), self.encoded(with_evidence)
        together = with_evidence.predict(query, sets).probability
        apart = with_evidence.predict(query, sets, batch_size=1).probability
        torch.testing.assert_close(together, apart, **TOLERANCE)

    def test_refused(self) -> None:
        with pytest.raises(TypeError, match="contrast must be a bool"):
            make(contrast=1)
