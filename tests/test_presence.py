"""Whether a query shows the class, and what negatives change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, make
from test_predict import picture

from hdmnet import Box, FewShotModel, HDMNet, Segmentation, SupportSet, box_mask
from hdmnet.images import load_image
from hdmnet.nn.presence import REACH, ClassEvidence, Presence, object_probability
from hdmnet.nn.priors import PriorFeatures, foreground_features
from hdmnet.preprocess import resize_scores


@pytest.fixture
def support() -> tuple:
    return picture(80, 100, seed=1), box_mask((20, 30, 60, 80), (100, 80)).numpy()


class TestPresence:
    """The formula of its docstring, position by position."""

    @staticmethod
    def expected(
        q: torch.Tensor, p: torch.Tensor, s: torch.Tensor, m: torch.Tensor, mu: torch.Tensor
    ) -> torch.Tensor:
        """cos(f, d) of one query (C, h, w), p (h, w), and one episode (K, C, h, w), (K, h, w)."""
        found = torch.zeros(len(mu))
        for y in range(q.shape[1]):
            for x in range(q.shape[2]):
                found += p[y, x] ** 2 * F.normalize(q[:, y, x] - mu, dim=0)
        shown = torch.zeros(len(mu))
        for k in range(len(s)):
            for y, x in m[k].nonzero().tolist():
                shown += F.normalize(s[k, :, y, x] - mu, dim=0)
        return F.cosine_similarity(found, shown, dim=0)

    def test_formula(self) -> None:
        mu = torch.randn(8)
        presence = Presence(3.0, -0.5, mu.tolist())
        q, s = torch.rand(2, 8, 5, 6), torch.rand(3, 2, 8, 5, 6)
        m = (torch.rand(3, 2, 5, 6) > 0.6).float()
        scores = torch.rand(6, 2, 5, 6)  # 2 queries, 3 classes in each
        sets = [foreground_features(s[i : i + 1], m[i : i + 1]) for i in range(3)]
        for query in range(2):
            mine = scores[3 * query : 3 * query + 3]
            lowered, result = presence(q[query : query + 1], mine, sets, [None] * 3)
            assert torch.equal(lowered, mine)
            for i in range(3):
                p = object_probability(mine[i])
                cosine = self.expected(q[query], p, s[i], m[i], mu)
                assert_same(result[i], (3 * cosine - 0.5).sigmoid())

    @pytest.mark.parametrize("threshold", [0.6, 1.0])
    @pytest.mark.parametrize("reach", [1, REACH])
    def test_doubt(self, threshold: float, reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hdmnet.nn.presence.REACH", reach)
        mu = torch.randn(8)
        presence = Presence(3.0, -0.5, mu.tolist(), threshold)
        q, s = torch.rand(1, 8, 9, 12), torch.rand(2, 2, 8, 5, 6)
        m, scores = (torch.rand(2, 2, 5, 6) > 0.6).float(), torch.rand(2, 2, 9, 12)
        sets = [foreground_features(s[i : i + 1], m[i : i + 1]) for i in range(2)]
        doubt = presence.doubt(q, scores, sets)
        assert doubt.shape == (2, 5, 6)
        least = torch.tensor(min(threshold, 0.999)).logit()
        squares = F.avg_pool2d(q, 2, ceil_mode=True)[0]
        for i, p in enumerate(object_probability(scores)):
            p = F.interpolate(p[None, None], (5, 6), mode="area")[0, 0]
            for y in range(5):
                for x in range(6):
                    near = torch.zeros(5, 6)
                    near[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = 1
                    cosine = self.expected(squares, p * near, s[i], m[i], mu)
                    assert_same(doubt[i, y, x], (3 * cosine - 0.5 - least).clamp(max=0))

    def test_no_doubt_without_threshold(self) -> None:
        q, s, m = torch.rand(1, 8, 5, 6), torch.rand(1, 1, 8, 5, 6), torch.ones(1, 1, 5, 6)
        assert Presence().doubt(q, torch.rand(1, 2, 5, 6), [foreground_features(s, m)]) is None

    def test_doubt_of_several_queries(self) -> None:
        presence = Presence(3.0, -0.5, threshold=0.5)
        q, s, m = torch.rand(2, 8, 5, 6), torch.rand(1, 2, 8, 5, 6), torch.ones(1, 2, 5, 6)
        scores, sets = torch.rand(2, 2, 5, 6), [foreground_features(s, m)]
        both = presence.doubt(q, scores, sets)
        for i in range(2):
            one = presence.doubt(q[i : i + 1], scores[i : i + 1], sets)
            assert_same(both[i : i + 1], one)

    def test_episodes_in_one_set(self) -> None:
        presence = Presence(3.0, -0.5)
        q, s, m = torch.rand(2, 8, 5, 6), torch.rand(2, 2, 8, 5, 6), torch.ones(2, 2, 5, 6)
        scores = torch.rand(2, 2, 5, 6)
        both = presence(q, scores, [foreground_features(s, m)], [None])[1]
        for i in range(2):
            one = foreground_features(s[i : i + 1], m[i : i + 1])
            alone = presence(q[i : i + 1], scores[i : i + 1], [one], [None])[1]
            assert_same(both[i : i + 1], alone)

    def test_negatives(self) -> None:
        """g = min(0, cos(f, d) - max_n cos(f, d_n)) moves the logit by 10 g."""
        presence = Presence(3.0, -0.5)
        q, s, m = torch.randn(1, 8, 5, 6), torch.randn(1, 2, 8, 5, 6), torch.ones(1, 2, 5, 6)
        scores, given = torch.rand(1, 2, 5, 6), foreground_features(s, m)
        found = presence.found(q, object_probability(scores)[:, None])[0, 0]
        cosine = F.cosine_similarity(found, presence.shown(given)[0], dim=0)
        negatives = torch.stack([found + torch.randn(8), torch.randn(8)])
        gap = min(0.0, float(cosine - F.cosine_similarity(found[None], negatives).max()))
        assert gap < 0
        lowered, result = presence(q, scores, [given], [negatives[None]])
        expected = (object_probability(scores).logit() + 10 * gap).sigmoid()
        assert object_probability(scores).max() < 0.999
        assert_same(object_probability(lowered), expected)
        assert_same(result, (3 * (cosine + gap) - 0.5).sigmoid()[None])

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ([1.0], "must be a dict"),
            ({"scale": 1.0}, "has the keys"),
            ({"scale": "x", "bias": 0.0, "center": []}, "must be a number"),
            ({"scale": 1.0, "bias": float("nan"), "center": []}, "expected finite numbers"),
            ({"scale": 1.0, "bias": 0.0, "center": [1.0]}, "has 1 entries: expected 512"),
            (
                {"scale": 1.0, "bias": 0.0, "center": [], "evidence": [8]},
                "expected .hidden, classe",
            ),
            ({"scale": 1.0, "bias": 0.0, "center": [], "evidence": 8}, "must be a sequence of int"),
        ],
    )
    def test_wrong_arguments(self, config: object, message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            make(presence=config)

    def test_is_saved_but_changes_no_fingerprint(self, tmp_path: Path) -> None:
        plain = make()
        fitted = make(presence={"scale": 2.0, "bias": -1.0, "center": [0.5] * 512})
        fitted.save_pretrained(tmp_path)
        again = HDMNet.from_pretrained(tmp_path)
        assert again.presence.center == (0.5,) * 512
        assert again.fingerprint() == plain.fingerprint()


class TestEvidence:
    """Presence by the evidence of a classifier, position by position."""

    @pytest.fixture
    def evidence(self) -> ClassEvidence:
        evidence = ClassEvidence(8, 12, 5)
        evidence.load_state_dict(
            {name: 3 * torch.randn_like(x) for name, x in evidence.state_dict().items()}
        )
        return evidence

    @staticmethod
    def expected(evidence: ClassEvidence, x: list, weight: list) -> torch.Tensor:
        """e of features and weights."""
        hidden = torch.zeros(len(evidence.hidden_bias))
        for features, w in zip(x, weight, strict=True):
            value = evidence.hidden_weight @ features + evidence.hidden_bias
            hidden += w / sum(weight) * value.clamp(min=0).clamp(max=6)
        return (evidence.class_weight @ hidden + evidence.class_bias).clamp(min=0) ** 2

    def test_formula(self, evidence: ClassEvidence) -> None:
        presence = Presence(3.0, -0.5, evidence=evidence)
        q, s = torch.randn(1, 8, 4, 6), torch.randn(1, 2, 8, 5, 6)
        m = (torch.rand(1, 2, 5, 6) > 0.6).float()
        m[0, 1, :3] = 0  # the second object is smaller, but weighs as much
        scores, given = torch.rand(2, 2, 4, 6), foreground_features(s, m)
        p = object_probability(scores)
        shown = torch.zeros(12)
        for unit, norm in zip(given.unit[0], given.norm[0], strict=True):
            taken = [n * u for u, n in zip(unit, norm, strict=True)][::4]
            taken = [x for x in taken if x.norm() > 0]
            assert taken
            for x in taken:
                value = evidence.hidden_weight @ x + evidence.hidden_bias
                shown += value.clamp(0, 6) / len(taken) / 2
        shown = (evidence.class_weight @ shown + evidence.class_bias).clamp(min=0) ** 2
        assert_same(presence.shown(given)[0], shown)
        result = presence(q, scores, [given, given], [None, None])[1]
        for i in range(2):
            x, weight = [], []
            for top in (0, 2):
                for left in (0, 2, 4):
                    x.append(q[0, :, top : top + 2, left : left + 2].mean(dim=(1, 2)))
                    weight.append(p[i, top : top + 2, left : left + 2].mean() ** 2)
            found = self.expected(evidence, x, weight)
            cosine = F.cosine_similarity(found, shown, dim=0)
            assert_same(result[i], (3 * cosine - 0.5).sigmoid())

    def test_in_a_model(self, support: tuple, tmp_path: Path) -> None:
        config = {"scale": 4.0, "bias": -1.0, "center": [], "evidence": [16, 7]}
        model = make(presence=config).eval()
        for buffer in model.presence.evidence.buffers():
            buffer.normal_()
        answer = model.predict(picture(), *support)
        assert 0 < answer.presence < 1
        other = model.predict(picture(), *support, negatives=[picture()])
        assert other.presence < answer.presence
        assert (other.probability <= answer.probability + 1e-6).all()
        model.save_pretrained(tmp_path)
        again = HDMNet.from_pretrained(tmp_path)
        assert again.predict(picture(), *support).presence == answer.presence
        assert model.fused().predict(picture(), *support).presence == pytest.approx(
            answer.presence, abs=1e-4
        )

    def test_a_tiny_object_counts(self, evidence: ClassEvidence) -> None:
        presence = Presence(evidence=evidence)
        s, m = torch.randn(1, 1, 8, 9, 9), torch.zeros(1, 1, 9, 9)
        m[0, 0, 7, 2] = 1
        expected = self.expected(evidence, [s[0, 0, :, 7, 2]], [1.0])
        encoded = foreground_features(s, m)
        assert_same(presence.shown(encoded)[0], expected)
        # As a graph encodes it: all positions, in the order of the grid.
        unit = torch.zeros(1, 1, 81, 8)
        unit[:, :, 7 * 9 + 2] = encoded.unit[:, :, 0]
        norm = torch.zeros(1, 1, 81)
        norm[:, :, 7 * 9 + 2] = encoded.norm[:, :, 0]
        assert_same(presence.shown(PriorFeatures(unit, norm))[0], expected)


class TestThreshold:
    def test_empties_the_mask_below_it(self, model: HDMNet, support: tuple) -> None:
        plain = model.predict(picture(), *support)
        assert 0 < plain.presence < 1
        for threshold, kept in ((plain.presence - 1e-3, True), (plain.presence + 1e-3, False)):
            answer = model.predict(picture(), *support, presence_threshold=threshold)
            assert answer.presence == plain.presence
            expected = plain.probability if kept else torch.zeros_like(plain.probability)
            assert torch.equal(answer.probability, expected)
            many = model.predict(
                picture(), {"a": support[0]}, {"a": support[1]}, presence_threshold=threshold
            )
            assert torch.equal(many.probability[0], expected)
            assert many.presence.tolist() == pytest.approx([plain.presence])

    def test_of_the_model(self, model: HDMNet, support: tuple, tmp_path: Path) -> None:
        presence = {"scale": 10.0, "bias": -9.0, "center": [], "threshold": 0.8}
        strict = HDMNet(**(model.config | {"presence": presence}))
        strict.load_state_dict(model.state_dict())
        strict.save_pretrained(tmp_path)
        strict = HDMNet.from_pretrained(tmp_path)
        answer = strict.predict(picture(), *support)
        plain = strict.predict(picture(), *support, presence_threshold=0)
        assert torch.equal(plain.probability, model.predict(picture(), *support).probability)
        assert answer.presence == plain.presence
        query = strict._prepare(load_image(picture()))[None]
        with torch.inference_mode():
            match = next(strict.match_sets(query, [[strict.encode_supports(*support)]]))
        change = resize_scores(match.doubt[None], plain.probability.shape)[0, 0]
        assert (change < -0.05).any()
        p, factor = plain.probability, change.exp()
        sure = p.clamp(max=0.999)
        expected = (sure * factor / (sure * factor + 1 - sure)).where(factor < 1, p)
        assert_same(answer.probability, expected)
        assert torch.equal(plain.lowered().probability, answer.probability)
        (again,) = strict.predict_iter([picture()], *support)
        assert torch.equal(again.probability, answer.probability)
        assert torch.equal(again.lowered().probability, answer.probability)

    def test_where_nothing_speaks_against_the_class(self, model: HDMNet, support: tuple) -> None:
        presence = {"scale": 0.0, "bias": 3.0, "center": [], "threshold": 0.7}
        sure = HDMNet(**(model.config | {"presence": presence}))
        sure.load_state_dict(model.state_dict())
        plain, answer = (m.eval().predict(picture(), *support) for m in (model, sure))
        assert torch.equal(answer.probability, plain.probability)

    @pytest.mark.parametrize(
        ("presence", "error", "message"),
        [
            ({"threshold": 2.0}, ValueError, "threshold'] must be in"),
            ({"threshold": "0"}, TypeError, "a probability"),
            ({"limit": 0.5}, ValueError, "if you like, threshold"),
        ],
    )
    def test_refused_by_the_model(
        self, presence: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make(presence={"scale": 10.0, "bias": -5.0, "center": []} | presence)

    def test_out_of_range(self, model: HDMNet, support: tuple) -> None:
        with pytest.raises(ValueError, match="presence_threshold must be in"):
            model.predict(picture(), *support, presence_threshold=1.5)

    def test_numbers_of_numpy(self, model: HDMNet, support: tuple) -> None:
        found, expected = (
            model.predict(picture(), *support, presence_threshold=x).probability
            for x in (np.float32(0.5), 0.5)
        )
        assert torch.equal(found, expected)

    def test_sure_pixels_are_lowered_too(self) -> None:
        answer = Segmentation(torch.tensor([[1.0, 0.5, 0.0]]), 0.3, None, torch.full((1, 3), -20.0))
        lowered = answer.lowered().probability
        assert ((lowered >= 0) & (lowered <= 0.01)).all()

    def test_of_an_answer_without_estimate(self) -> None:
        assert Segmentation(torch.tensor([[0.2, 0.7]])).presence == pytest.approx(0.7)


class TestNegatives:
    def test_never_raise_a_probability(self, model: HDMNet, support: tuple) -> None:
        plain = model.predict(picture(), *support)
        image = picture(70, 60, seed=4)
        for negative in (image, (image, torch.ones(60, 70)), (image, Box(5, 5, 40, 50))):
            answer = model.predict(picture(), *support, negatives=[negative])
            assert (answer.probability <= plain.probability + 1e-6).all()
            assert answer.presence <= plain.presence + 1e-6

    def test_the_query_itself_lowers_its_answer(
        self,
        model: HDMNet,
        support: tuple,
    ) -> None:
        plain = model.predict(picture(), *support)
        answer = model.predict(picture(), *support, negatives=[picture()])
        assert answer.presence < plain.presence
        assert answer.probability.mean() < plain.probability.mean()

    def test_are_saved_merged_and_stacked(
        self,
        model: HDMNet,
        support: tuple,
        tmp_path: Path,
    ) -> None:
        given = [picture(seed=4), picture(seed=5)]
        both = model.encode_supports(*support, given)
        assert both.negatives.shape[:2] == (1, 2)
        both.save(tmp_path / "a.safetensors")
        loaded = SupportSet.load(tmp_path / "a.safetensors")
        expected = model.predict(picture(), both).probability
        assert torch.equal(model.predict(picture(), loaded).probability, expected)
        one = model.encode_supports(*support, given[:1])
        merged = replace(both, negatives=None).merge(one)
        assert torch.equal(merged.negatives, one.negatives)
        stacked = both.stack(one)
        assert stacked.negatives.shape[:2] == (2, 2)
        with pytest.raises(ValueError, match="some of the sets have negatives"):
            both.stack(replace(one, negatives=None))

    def test_by_class(self, model: HDMNet, support: tuple) -> None:
        image, mask = support
        supports, masks = {"a": image, "b": image}, {"a": mask, "b": mask}
        many = model.predict(picture(), supports, masks, negatives={"b": [picture()]})
        plain = model.predict(picture(), image, mask)
        assert_same(many["a"].probability, plain.probability)
        assert many["b"].probability.mean() < plain.probability.mean()

    @pytest.mark.parametrize(
        ("negatives", "message"),
        [
            ({"a": []}, "supports is not"),
            ([(1, 2, 3)], "negative 0: got a tuple of 3"),
            ([torch.rand(3, 64, 64), (torch.rand(3, 64, 64), torch.zeros(64, 64))], "negative 1"),
        ],
    )
    def test_wrong_input(
        self,
        model: HDMNet,
        support: tuple,
        negatives: object,
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            model.predict(picture(), *support, negatives=negatives)
        with pytest.raises(ValueError, match="give negatives to encode_supports"):
            model.predict(picture(), model.encode_supports(*support), negatives=negatives)
        with pytest.raises(ValueError, match="expected a dict of lists of images by class"):
            model.predict(
                picture(), {"a": support[0]}, {"a": support[1]}, negatives={"b": [picture()]}
            )

    def test_must_be_a_list(self, model: HDMNet, support: tuple) -> None:
        with pytest.raises(TypeError, match="negatives must be a list of images"):
            model.predict(picture(), *support, negatives=picture())
        with pytest.raises(TypeError, match="negatives must be a list of images"):
            model.predict(picture(), *support, negatives=(picture(), torch.ones(60, 70)))
        plain = model.predict(picture(), *support)
        assert torch.equal(
            model.predict(picture(), *support, negatives=[]).probability, plain.probability
        )

    def test_a_network_without_use_of_them(self, support: tuple) -> None:
        class Simple(FewShotModel):
            def __init__(self) -> None:
                super().__init__()
                self.inner = make()
                self.backbone, self.image_size = self.inner.backbone, 64

            def encode(self, supports: torch.Tensor, masks: torch.Tensor) -> SupportSet:
                return self.inner.encode(supports, masks)

            def scores(self, query: torch.Tensor, supports: SupportSet) -> torch.Tensor:
                return self.inner.scores(query, replace(supports, fingerprint=None))

        with pytest.raises(ValueError, match="Simple has no use of negatives"):
            Simple().eval().encode_supports(*support, [picture()])
