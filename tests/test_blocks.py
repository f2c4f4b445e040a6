"""Each building block against its plain formulation in `oracle.py`."""

import oracle
import pytest
import torch
from conftest import assert_same, fill
from torch import nn
from torch.autograd import gradcheck

from hdmnet import (
    BaseLearner,
    BaseMetaEnsemble,
    CascadeMatching,
    CorrelationDistillation,
    FeaturePyramid,
    HierarchicalEncoder,
    MatchingAttention,
    MatchingStage,
    MixFFN,
    PatchEmbed,
    PyramidPooling,
    SelfAttentionStage,
    ShotWeighting,
    SpatialReductionAttention,
    cosine_prior,
    gram_distance,
    gram_matrix,
    masked_average_pool,
)
from hdmnet.nn import _fast


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mask(*shape: int) -> torch.Tensor:
    """Make a mask of zeros with a block of ones in the middle."""
    out = torch.zeros(*shape)
    h, w = shape[-2:]
    out[..., h // 4 : 3 * h // 4, w // 3 : w - 1] = 1
    return out


MASKS = {
    "some": mask(2, 3, 20, 24),
    "empty": torch.zeros(2, 3, 20, 24),
    "full": torch.ones(2, 3, 20, 24),
    "one shot empty": mask(2, 3, 20, 24) * torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1),
    "one shot full": mask(2, 3, 20, 24).maximum(torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)),
}


@pytest.mark.parametrize("name", MASKS)
class TestPriors:
    def test_masked_average_pool(self, name: str) -> None:
        features = torch.randn(2, 3, 4, 5, 6)
        expected = oracle.masked_average_pool(features, MASKS[name])
        assert_same(masked_average_pool(features, MASKS[name]), expected)

    @pytest.mark.parametrize("positions", [1, 50, 2048])
    @pytest.mark.parametrize("shift", [0.0, -3.0])
    def test_cosine_prior(
        self, monkeypatch: pytest.MonkeyPatch, name: str, shift: float, positions: int
    ) -> None:
        monkeypatch.setattr(_fast, "POSITIONS", positions)
        # With the shift all cosines are negative, so the maximum is 0 if the mask has background.
        query, support = torch.rand(2, 4, 5, 6) + 0.5, torch.rand(2, 3, 4, 5, 6) + shift
        got = cosine_prior(query, support, MASKS[name])
        assert_same(got, oracle.cosine_prior(query, support, MASKS[name]))

    def test_matching_attention(self, name: str) -> None:
        module = MatchingAttention(8, 2, shots=2).eval()
        query, support = torch.randn(2, 8, 5, 6), torch.randn(2, 3, 8, 4, 6)
        m = nn.functional.interpolate(MASKS[name], (4, 6), mode="nearest")
        for got, expected in zip(
            module(query, support, m),
            oracle.matching_attention(module, query, support, m),
            strict=True,
        ):
            assert_same(got, expected)


def test_prior_is_negative_only_without_background() -> None:
    query, support = torch.ones(1, 4, 3, 3), -torch.ones(1, 1, 4, 3, 3)
    assert (cosine_prior(query, support, torch.ones(1, 1, 3, 3)) < -0.99).all()
    with_background = torch.ones(1, 1, 3, 3)
    with_background[..., 0, 0] = 0
    assert (cosine_prior(query, support, with_background) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_priors_are_exact_under_autocast(dtype: torch.dtype) -> None:
    query, support, m = torch.randn(1, 64, 8, 8), torch.randn(1, 2, 64, 8, 8), mask(1, 2, 8, 8)
    exact = cosine_prior(query, support, m), gram_matrix(query), masked_average_pool(support, m)
    with torch.autocast("cpu", dtype):
        guarded = (
            cosine_prior(query, support, m),
            gram_matrix(query),
            masked_average_pool(support, m),
        )
    for a, b in zip(guarded, exact, strict=True):
        assert torch.equal(a, b)


def test_gram_distance() -> None:
    query, support = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 4, 7, 5)
    got = gram_distance(gram_matrix(query), gram_matrix(support))
    assert_same(got, oracle.gram_distance(query, support))


class TestShotWeighting:
    @pytest.mark.parametrize("hidden_dim", [2, 0])
    def test_keeps_the_sorted_order_of_the_weights(self, hidden_dim: int) -> None:
        module = ShotWeighting(5, hidden_dim=hidden_dim)
        fill(module)
        distances = torch.rand(2, 5)
        assert_same(module(distances), oracle.shot_weighting(module, distances))

    @pytest.mark.parametrize(("trained", "given"), [(5, 3), (5, 1), (1, 4), (1, 1)])
    def test_other_numbers_of_shots_are_uniform(self, trained: int, given: int) -> None:
        distances = torch.rand(2, given)
        assert_same(ShotWeighting(trained)(distances), distances.mean(1))

    def test_bias_free_option_has_one_tensor(self) -> None:
        state = ShotWeighting(5, hidden_dim=0).state_dict()
        assert {key: tuple(value.shape) for key, value in state.items()} == {
            "weight.weight": (5, 5, 1, 1)
        }


class TestEnsemble:
    def test_starts_as_the_matching_network(self) -> None:
        meta, base = torch.randn(2, 2, 4, 5), torch.randn(2, 4, 4, 5)
        got = BaseMetaEnsemble()(meta, base, torch.rand(2, 1))
        assert_same(got, meta.softmax(1))

    def test_formula(self) -> None:
        module = BaseMetaEnsemble()
        fill(module)
        meta, base, e = torch.randn(2, 2, 4, 5), torch.randn(2, 4, 4, 5), torch.rand(2, 1)
        (ga, gb), (ea, eb) = (m.weight.flatten() for m in (module.gram_merge, module.base_merge))
        b, f = meta.softmax(1).unbind(1)
        for base_class in (None, torch.tensor([2, 0])):
            p = base.softmax(1).clone()
            if base_class is not None:
                p[range(2), base_class + 1] = 0
            g = p[:, 1:].sum(1)
            e_map = e.view(2, 1, 1)
            expected = torch.stack([ea * (ga * b + gb * e_map) + eb * g, ga * f + gb * e_map], 1)
            assert_same(module(meta, base, e, base_class), expected)


class TestDistillation:
    def maps(self, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [torch.randn(2, s, s + 1, dtype=dtype) for s in (2, 4, 7)]

    @pytest.mark.parametrize("kind", ["block", "none", "all", "one pixel", "ignored"])
    def test_formula(self, kind: str) -> None:
        target = torch.zeros(2, 24, 28)
        target[:, 5:15, 6:20] = 1 if kind in ("block", "ignored") else 0
        target[:, 5:9] = 255 if kind == "ignored" else target[:, 5:9]
        if kind == "all":
            target[:] = 1
        if kind == "one pixel":
            target[:, 5, 6] = 1
        maps = self.maps()
        got = CorrelationDistillation()(maps, target)
        assert_same(got, oracle.distillation(maps, target))

    def test_teachers_are_detached(self) -> None:
        maps = [m.requires_grad_() for m in self.maps()]
        target = torch.zeros(2, 24, 28)
        target[:, 5:15, 6:20] = 1
        CorrelationDistillation()(maps[1:], target).backward()
        alone = maps[1].grad.clone()
        maps[1].grad = None
        CorrelationDistillation()([maps[1]], target).backward()
        # The map gets a gradient as the student of the label, but none as the next teacher.
        assert_same(alone, maps[1].grad / 2)

    def test_gradcheck(self) -> None:
        maps = [m.requires_grad_() for m in self.maps(torch.float64)]
        target = torch.zeros(2, 24, 28)
        target[:, 5:15, 6:20] = 1
        # Finite differences would also change the teachers, so only one map varies at a time.
        for i in range(3):
            frozen = [m.detach() for m in maps]

            def loss(student: torch.Tensor, i: int = i, frozen: list = frozen) -> torch.Tensor:
                return CorrelationDistillation()([*frozen[:i], student], target)

            assert gradcheck(loss, (maps[i],))

    def test_no_maps(self) -> None:
        with pytest.raises(ValueError, match="at least one map"):
            CorrelationDistillation()([], torch.zeros(1, 4, 4))


class TestMatchingAttention:
    def test_gradcheck(self) -> None:
        module = MatchingAttention(4, 2).double().eval()
        query = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
        support = torch.randn(1, 2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
        m = mask(1, 2, 3, 2).double()
        assert m.sum() > 0
        assert gradcheck(lambda q, s: module(q, s, m), (query, support))

    def test_distributes_one_unit_per_support_position(self) -> None:
        module = MatchingAttention(4, 1).eval()
        with torch.no_grad():
            module.out.weight.copy_(torch.eye(4))
        query, support = torch.randn(1, 4, 5, 5), torch.randn(1, 1, 4, 3, 3)
        out, _ = module(query, support, torch.ones(1, 1, 3, 3))
        values = module.value(support[0, 0].flatten(1).T)
        assert_same(out.sum((-2, -1))[0], values.sum(0))

    def test_accurate_under_autocast(self) -> None:
        module = MatchingAttention(64, 2).eval()
        query, support = torch.randn(1, 64, 8, 8), torch.randn(1, 1, 64, 8, 8)
        m = mask(1, 1, 8, 8)
        # bfloat16 can represent these weights and inputs, so only the computation adds errors.
        module.bfloat16().float()
        query, support = query.bfloat16().float(), support.bfloat16().float()
        exact = module(query, support, m)[1]
        with torch.autocast("cpu", torch.bfloat16):
            guarded = module(query, support, m)[1]
        assert guarded.dtype == torch.float32
        # The projections are rounded. Without the guard, the error would be twice as large.
        assert_same(guarded, exact, 0.004)

    def test_heads_must_divide(self) -> None:
        with pytest.raises(ValueError, match="dim=10 and heads=4"):
            MatchingAttention(10, 4)


class TestSpatialReductionAttention:
    def test_formula(self) -> None:
        module = SpatialReductionAttention(8, 2, reduction=2).eval()
        x = torch.randn(2, 8, 5, 7)  # odd sizes: keys and values lose the last row and column
        reduced = module.reduce(x).flatten(2).mT
        assert reduced.shape == (2, 6, 8)
        q, k, v = module.query(x.flatten(2).mT), module.key(reduced), module.value(reduced)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            score = q[..., part] @ k[..., part].mT / 2
            heads.append(score.softmax(-1) @ v[..., part])
        expected = module.out(torch.cat(heads, -1)).mT.unflatten(2, (5, 7))
        assert_same(module(x), expected)

    def test_gradcheck(self) -> None:
        module = SpatialReductionAttention(4, 2, reduction=2).double().eval()
        assert gradcheck(module, torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True))

    def test_norms_have_the_small_eps(self) -> None:
        norms = [m for m in HierarchicalEncoder().modules() if isinstance(m, nn.LayerNorm)]
        norms += [m for m in CascadeMatching().modules() if isinstance(m, nn.LayerNorm)]
        assert len(norms) == 28
        assert {m.eps for m in norms} == {1e-6}


class TestShapes:
    def test_patch_embed(self) -> None:
        x = torch.randn(2, 5, 9, 12)
        assert PatchEmbed(5, 8)(x).shape == (2, 8, 9, 12)
        assert PatchEmbed(5, 8, stride=2)(x).shape == (2, 8, 5, 6)

    def test_mix_ffn(self) -> None:
        assert MixFFN(8)(torch.randn(2, 8, 3, 4)).shape == (2, 8, 3, 4)

    def test_stage(self) -> None:
        stage = SelfAttentionStage(5, 8, 2, stride=2, reduction=2, depth=3)
        assert len(stage.blocks) == 3
        assert stage(torch.randn(2, 5, 9, 12)).shape == (2, 8, 5, 6)

    def test_encoder(self) -> None:
        pyramid = HierarchicalEncoder(16, (2, 4, 8))(torch.randn(1, 16, 13, 9))
        assert [tuple(p.shape) for p in pyramid] == [
            (1, 16, 13, 9),
            (1, 16, 7, 5),
            (1, 16, 4, 3),
        ]

    def test_encoder_names_the_smallest_grid(self) -> None:
        encoder = HierarchicalEncoder(16, (2, 4, 8))
        encoder(torch.randn(1, 16, 4, 4))
        with pytest.raises(ValueError, match="grid is 3 × 9, but 3 stages need at least 4 × 4"):
            encoder(torch.randn(1, 16, 3, 9))

    def test_matching_stage(self) -> None:
        stage = MatchingStage(8, 2, prior_channels=1)
        z, correlation = stage(
            torch.randn(2, 8, 5, 6),
            torch.randn(2, 3, 8, 4, 4),
            mask(2, 3, 40, 40),
            torch.rand(2, 1, 9, 9),
        )
        assert z.shape == (2, 8, 5, 6)
        assert correlation.shape == (2, 5, 6)

    @pytest.mark.parametrize("stages", [1, 2, 4])
    def test_cascade_of_any_depth(self, stages: int) -> None:
        query = [torch.randn(1, 8, 16 >> s, 24 >> s) for s in range(stages)]
        support = [torch.randn(1, 2, 8, 16 >> s, 16 >> s) for s in range(stages)]
        cascade = CascadeMatching(8, stages, hidden_dim=16, prior_channels=3)
        logits, maps = cascade(query, support, mask(1, 2, 64, 64), torch.rand(1, 3, 16, 24))
        assert logits.shape == (1, 2, 16, 24)
        assert [tuple(m.shape[1:]) for m in maps] == [
            (16 >> s, 24 >> s) for s in reversed(range(stages))
        ]

    def test_pyramid_pooling(self) -> None:
        out = PyramidPooling(8, 6).eval()(torch.randn(2, 8, 7, 9))
        assert out.shape == (2, 6, 7, 9)
        assert out.min() < 0  # no ReLU at the end: the base learner has it

    def test_base_learner(self) -> None:
        assert BaseLearner(6, 3)(torch.randn(2, 6, 7, 9)).shape == (2, 4, 7, 9)


def test_refused_values() -> None:
    with pytest.raises(ValueError, match="at least 4 rows and columns"):
        SpatialReductionAttention(8, 2, reduction=4)(torch.rand(1, 8, 3, 5))
    with pytest.raises(TypeError, match="must hold floats"):
        FeaturePyramid("resnet18").normalise(torch.zeros(3, 4, 4, dtype=torch.uint8))
    scores, base = torch.rand(1, 2, 4, 4), torch.rand(1, 4, 4, 4)
    with pytest.raises(TypeError, match="base_class must hold integers"):
        BaseMetaEnsemble()(scores, base, torch.rand(1, 1), torch.tensor([1.0]))


def test_blocks_serve_another_network() -> None:
    """Matching and distillation train inside a network that is not HDMNet."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 4, stride=4)
            self.encoder = HierarchicalEncoder(16, (2, 4))
            self.cascade = CascadeMatching(16, 2, hidden_dim=32, prior_channels=1)

        def forward(self, query, supports, masks):
            q, s = self.stem(query), self.stem(supports.flatten(0, 1))
            prior = cosine_prior(q, s[:, None], masks)[:, None]
            support = [level[:, None] for level in self.encoder(s)]
            return self.cascade(self.encoder(q), support, masks, prior)

    net = Net()
    supports = torch.randn(2, 1, 3, 32, 32)
    masks = mask(2, 1, 32, 32)
    logits, maps = net(torch.randn(2, 3, 32, 32), supports * masks[:, :, None], masks)
    target = masks[:, 0]
    loss = CorrelationDistillation()(maps, target) + logits.mean()
    loss.backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing
