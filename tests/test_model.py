"""Properties of the whole network."""

import copy

import pytest
import torch
from conftest import assert_same, assert_same_output, episode, make, tensors
from torch import Tensor, nn

from hdmnet import EpisodeLoss, HDMNet


@pytest.mark.parametrize(
    ("batch", "shots", "size"), [(1, 1, (64, 64)), (2, 3, (57, 90)), (3, 2, (25, 25))]
)
def test_shapes(model: HDMNet, batch: int, shots: int, size: tuple[int, int]) -> None:
    out = model(*episode(batch, shots, size))
    h, w = (-(-s // 8) for s in size)
    assert out.final.shape == out.meta.shape == (batch, 2, *size)
    assert out.base.shape == (batch, 4, *size)
    assert out.prior.shape == (batch, 2, h, w)
    assert [tuple(c.shape) for c in out.correlations] == [
        (batch, -(-h // 4), -(-w // 4)),
        (batch, -(-h // 2), -(-w // 2)),
        (batch, h, w),
    ]
    assert all(t.isfinite().all() for t in tensors(out))
    assert out.prior.abs().max() <= 1 + 1e-6
    assert all(c.abs().max() <= 10 + 1e-4 for c in out.correlations)


class TestShots:
    @pytest.mark.parametrize("trained", [1, 5])
    @pytest.mark.parametrize("shots", [2, 5])
    def test_identical_shots_equal_one_shot(self, trained: int, shots: int) -> None:
        model = make(shots=trained)
        query, support, mask = episode()
        one = model(query, support, mask)
        many = model(query, support.repeat(1, shots, 1, 1, 1), mask.repeat(1, shots, 1, 1))
        assert_same_output(many, one)

    @pytest.mark.parametrize("trained", [1, 3])
    def test_any_order(self, trained: int) -> None:
        model = make(shots=trained)
        query, supports, masks = episode(shots=3)
        order = [2, 0, 1]
        expected, actual = (
            model(query, supports, masks),
            model(query, supports[:, order], masks[:, order]),
        )
        if trained == 3:  # learned weights follow sorted distances: `final` depends on the order
            actual, expected = (o._replace(final=o.meta) for o in (actual, expected))
        assert_same_output(actual, expected)

    def test_trained_weighting_is_used(self) -> None:
        model = make(shots=3)
        inputs = episode(shots=3)
        before = model(*inputs).final
        with torch.no_grad():
            model.ensemble.shot_weighting.weight[2].bias += torch.tensor([3.0, 0, -3])
        assert not torch.equal(model(*inputs).final, before)

    def test_supports_of_another_size(self, model: HDMNet) -> None:
        query, _, _ = episode(size=(64, 48))
        _, supports, masks = episode(shots=2, size=(72, 80))
        assert model(query, supports, masks).final.shape == (1, 2, 64, 48)


def test_episodes_of_a_batch_are_independent(model: HDMNet) -> None:
    inputs = episode(batch=3, shots=2)
    together = model(*inputs)
    for i in range(3):
        alone = model(*(x[i : i + 1] for x in inputs))
        for a, e in zip(tensors(alone), tensors(together), strict=True):
            assert_same(a[0], e[i])


def test_encoded_supports_serve_many_queries(model: HDMNet) -> None:
    queries, supports, masks = episode(batch=4, shots=2)
    one_set = model.encode(supports[:1], masks[:1])
    assert one_set.shots == 2
    shared = model.match(queries, one_set)
    each = model(queries, supports[:1].repeat(4, 1, 1, 1, 1), masks[:1].repeat(4, 1, 1, 1))
    assert_same_output(shared, each)
    two_sets = model.encode(supports[:2], masks[:2])
    paired = model.match(queries, two_sets)
    index = [0, 0, 1, 1]
    assert_same_output(paired, model(queries, supports[index], masks[index]))
    with pytest.raises(ValueError, match="2 episodes do not fit 3 queries"):
        model.match(queries[:3], two_sets)


def test_ignored_is_not_foreground(model: HDMNet) -> None:
    query, supports, masks = episode()
    assert (masks == 255).any()
    assert_same_output(
        model(query, supports, masks), model(query, supports, torch.where(masks == 255, 0, masks))
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_masks_of_any_dtype(model: HDMNet, dtype: torch.dtype) -> None:
    query, supports, masks = episode()
    binary = (masks == 1).float()
    expected = model(query, supports, binary)
    assert_same_output(model(query, supports, binary.to(dtype)), expected)
    stage, x = model.cascade.stages[0], torch.randn(1, 64, 8, 8)
    support, prior = torch.randn(1, 1, 64, 8, 8), torch.rand(1, 2, 8, 8)
    for a, b in zip(
        stage(x, support, binary.to(dtype), prior), stage(x, support, binary, prior), strict=True
    ):
        assert torch.equal(a, b)


def test_only_the_masked_part_of_a_support_counts(model: HDMNet) -> None:
    query, supports, masks = episode()
    elsewhere = supports + 5 * (masks != 1)[:, :, None]
    assert_same_output(model(query, supports, masks), model(query, elsewhere, masks))


@pytest.mark.parametrize("value", [0.0, 1.0, 255.0])
@pytest.mark.parametrize("base_classes", [0, 3])
def test_uniform_masks_are_finite(value: float, base_classes: int) -> None:
    model = make(base_classes=base_classes).train()
    query, supports, _ = episode(batch=2, shots=2)
    masks = torch.full((2, 2, 64, 64), value)
    for target in (torch.zeros(2, 64, 64), torch.full((2, 64, 64), 255), torch.ones(2, 64, 64)):
        out = model(query, supports, masks)
        losses = EpisodeLoss()(out, target)
        model.zero_grad()
        losses.total.backward()
        assert all(t.isfinite().all() for t in tensors(out))
        assert losses.total.isfinite()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)


class TestWithoutBaseLearner:
    def test_final_is_the_softmax_of_meta(self) -> None:
        model = make(base_classes=0)
        assert model.psp is model.base_learner is model.ensemble is None
        out = model(*episode(shots=2))
        assert out.base is None
        assert_same(out.final, out.meta.softmax(1))

    def test_first_prior_is_of_f3(self) -> None:
        model = make(base_classes=0)
        query, supports, masks = episode()
        before = model(query, supports, masks).prior
        with torch.no_grad():  # layer4 changes only f4
            for p in model.backbone.body.layer4.parameters():
                p.add_(0.3 * torch.randn_like(p))
        after = model(query, supports, masks).prior
        assert torch.equal(before[:, 0], after[:, 0])
        assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize("base_classes", [0, 3])
class TestHighLevel:
    def test_the_last_inputs_of_the_reductions_are_f4(self, base_classes: int) -> None:
        plain, model = (
            make(base_classes=base_classes),
            make(base_classes=base_classes, high_level=True),
        )
        c4 = plain.backbone.channels[2]
        state = plain.state_dict()
        for name in ("query_reduce.0.weight", "support_reduce.0.weight"):
            state[name] = nn.functional.pad(state[name], (0, 0, 0, 0, 0, c4))
        model.load_state_dict(state)
        inputs = episode(shots=2)
        assert_same_output(model(*inputs), plain(*inputs))
        with torch.no_grad():
            model.support_reduce[0].weight[:, -c4:] = 0.1
        assert not torch.allclose(model(*inputs).final, plain(*inputs).final)

    def test_sets_of_the_network_without_are_refused(self, base_classes: int) -> None:
        plain, model = (make(base_classes=base_classes, high_level=high) for high in (False, True))
        assert plain.fingerprint() != model.fingerprint()
        query, supports, masks = episode()
        encoded = plain._encode_prepared(supports[0], masks[0])
        with pytest.raises(ValueError, match="another model"):
            model.match(query, encoded)


def test_base_class_is_left_out_in_training(model: HDMNet) -> None:
    inputs = episode(batch=2)
    without, with_class = model(*inputs), model(*inputs, torch.tensor([1, 2]))
    assert torch.equal(without.final[:, 1], with_class.final[:, 1])
    assert not torch.equal(without.final[:, 0], with_class.final[:, 0])


class TestErrors:
    def test_base_class(self, model: HDMNet) -> None:
        inputs = episode(batch=2)
        with pytest.raises(ValueError, match=r"must be \(B,\) = \(2,\), got \(1,\)"):
            model(*inputs, torch.tensor([1]))
        for wrong in ([-1, 0], [0, 3]):
            with pytest.raises(ValueError, match=r"in 0 … 2, the background not counted, got"):
                model(*inputs, torch.tensor(wrong))
        with pytest.raises(ValueError, match="base_classes=0"):
            make(base_classes=0)(*inputs, torch.tensor([0, 0]))

    def test_batches_must_agree(self, model: HDMNet) -> None:
        query, _, _ = episode(batch=4)
        _, supports, masks = episode(batch=2)
        with pytest.raises(ValueError, match="same number of episodes"):
            model(query, supports, masks)

    def test_smallest_size_is_named_and_works(self, model: HDMNet) -> None:
        assert model.smallest_size == 25
        model(*episode(size=(25, 40)))
        with pytest.raises(ValueError, match=r"24 × 40 pixels are too small .* at least 25"):
            model(*episode(size=(24, 40)))

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("query must be", ((3, 64, 64), (1, 1, 3, 64, 64), (1, 1, 64, 64))),
            ("query must be", ((1, 1, 64, 64), (1, 1, 3, 64, 64), (1, 1, 64, 64))),
            ("supports must be", ((1, 3, 64, 64), (1, 3, 64, 64), (1, 64, 64))),
            ("supports must be", ((1, 3, 64, 64), (1, 0, 3, 64, 64), (1, 0, 64, 64))),
            ("masks must be", ((1, 3, 64, 64), (1, 2, 3, 64, 64), (1, 1, 64, 64))),
            ("masks must be", ((1, 3, 64, 64), (1, 1, 3, 64, 64), (1, 1, 64, 60))),
        ],
    )
    def test_shapes(self, model: HDMNet, name: str, shape: tuple[tuple[int, ...], ...]) -> None:
        with pytest.raises(ValueError, match=name):
            model(*(torch.zeros(s) for s in shape))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backbone": "resnet_50"}, "unknown backbone 'resnet_50'"),
            ({"base_classes": -1}, "base_classes must be at least 0, got -1"),
            ({"shots": 0}, "shots must be at least 1, got 0"),
            ({"shot_hidden_dim": -2}, "shot_hidden_dim must be at least 0"),
            ({"heads": ()}, "number of heads must be at least 1"),
            ({"heads": (2, 3, 8)}, "dim=64 and heads=3"),
            ({"image_size": 24}, "image_size must be at least 25"),
        ],
    )
    def test_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HDMNet(**({"backbone": "resnet18"} | options))


class TestLoss:
    def test_sums(self, model: HDMNet) -> None:
        out = model(*episode(batch=2))
        target = episode(batch=2, seed=1)[2][:, 0]
        base_target = torch.randint(0, 4, (2, 64, 64))
        base_target[:, :9] = 255
        losses = EpisodeLoss()(out, target, base_target)
        ce = nn.CrossEntropyLoss(ignore_index=255)
        assert_same(losses.segmentation, ce(out.final, target.long()) + ce(out.meta, target.long()))
        assert_same(losses.base, ce(out.base, base_target))
        assert_same(losses.total, losses.segmentation + losses.distillation)
        assert EpisodeLoss()(out, target).base is None

    def test_errors(self, model: HDMNet) -> None:
        out = model(*episode())
        with pytest.raises(ValueError, match=r"target must be \(B, H, W\) = \(1, 64, 64\)"):
            EpisodeLoss()(out, torch.zeros(1, 32, 32))
        with pytest.raises(ValueError, match="base_classes=0"):
            EpisodeLoss()(out._replace(base=None), torch.zeros(1, 64, 64), torch.zeros(1, 64, 64))


class TestTraining:
    def test_norms_of_a_new_model_are_frozen(self) -> None:
        model = HDMNet("resnet18", base_classes=3, image_size=64)
        assert model.training
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        before = copy.deepcopy(model.state_dict())
        model(*episode())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_gradient_checkpointing_counts_a_batch_once(self) -> None:
        states = []
        for enable in (False, True):
            model = make(frozen_norm=False, dropout=0.0, feature_dropout=0.0).train()
            model.set_grad_checkpointing(enable)
            model(*episode(batch=2)).meta.sum().backward()
            states.append(dict(model.named_buffers()))
        for name, value in states[0].items():
            assert_same(states[1][name].float(), value.float())

    def test_norms_stay_in_eval_by_default(self, fresh: HDMNet) -> None:
        fresh.train()
        norms = [m for m in fresh.modules() if isinstance(m, nn.BatchNorm2d)]
        dropouts = [m for m in fresh.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
        assert norms
        assert dropouts
        assert not any(m.training for m in norms)
        assert all(m.training for m in dropouts)
        assert fresh.training

    def test_norms_can_train(self) -> None:
        model = make(frozen_norm=False).freeze_backbone().train()
        assert all(m.training for m in model.cascade.modules())
        assert not any(m.training for part in model.pretrained_parts() for m in part.modules())
        before = copy.deepcopy(model.state_dict())
        model(*episode(batch=2))
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed
        assert all(k.startswith("cascade") for k in changed)

    def test_frozen_parts(self, fresh: HDMNet) -> None:
        assert fresh.freeze_backbone() is fresh
        fresh.train()
        frozen = {n.split(".")[0] for n, p in fresh.named_parameters() if not p.requires_grad}
        trainable = {n.split(".")[0] for n, p in fresh.named_parameters() if p.requires_grad}
        assert frozen == {"backbone", "psp", "base_learner"}
        assert not frozen & trainable
        assert not any(m.training for m in fresh.base_learner.modules())

    def test_param_groups(self, fresh: HDMNet) -> None:
        groups = {g["name"]: g for g in fresh.param_groups(1e-4)}
        assert {n: g["lr"] for n, g in groups.items()} == {
            "transformer": 1e-4,
            "backbone": 1e-4,
            "head": pytest.approx(1e-3),
        }
        count = sum(p.numel() for g in groups.values() for p in g["params"])
        assert count == sum(p.numel() for p in fresh.parameters())
        fresh.freeze_backbone()
        groups = {g["name"]: g for g in fresh.param_groups(1e-4, head_multiplier=2)}
        assert {n: g["lr"] for n, g in groups.items()} == {"transformer": 1e-4, "head": 2e-4}
        own = {id(p) for p in [*fresh.encoder.parameters(), *fresh.cascade.parameters()]}
        assert {id(p) for p in groups["transformer"]["params"]} == own
        torch.optim.AdamW(fresh.param_groups(1e-4))

    def test_gradient_checkpointing_changes_nothing(self, fresh: HDMNet) -> None:
        inputs = episode(shots=2)
        target = inputs[2][:, 0]

        def gradients() -> dict[str, Tensor]:
            torch.manual_seed(0)  # the same dropout each time
            fresh.train().zero_grad()
            EpisodeLoss()(fresh(*inputs), target).total.backward()
            return {n: p.grad.clone() for n, p in fresh.named_parameters() if p.grad is not None}

        expected = gradients()
        fresh.set_grad_checkpointing()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            fresh(*inputs)
        with_checkpoints = len(saved)
        actual = gradients()
        fresh.set_grad_checkpointing(False)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            fresh(*inputs)
        assert with_checkpoints < len(saved)
        for name, value in expected.items():
            assert_same(actual[name], value)

    def test_a_few_steps_learn_an_episode(self) -> None:
        torch.manual_seed(0)
        model = HDMNet("resnet18", base_classes=0, image_size=64).freeze_backbone().train()
        optimiser = torch.optim.AdamW(model.param_groups(1e-3))
        query, supports, masks = episode(batch=2)
        query, target = supports[:, 0], masks[:, 0]
        losses = []
        for _ in range(12):
            loss = EpisodeLoss()(model(query, supports, masks), target).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


class TestPrecision:
    @pytest.mark.parametrize("base_classes", [0, 3])
    def test_autocast(self, base_classes: int) -> None:
        model = make(base_classes=base_classes).train()
        inputs = episode(batch=2, shots=2)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*inputs)
            losses = EpisodeLoss()(out, inputs[2][:, 0])
        losses.total.backward()
        assert out.prior.dtype == out.final.dtype == torch.float32
        assert all(c.dtype == torch.float32 for c in out.correlations)
        assert losses.total.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_bfloat16_model(self) -> None:
        model = make().bfloat16()
        query, supports, masks = episode(shots=2)
        out = model(query.bfloat16(), supports.bfloat16(), masks)
        assert all(t.isfinite().all() for t in tensors(out))

    def test_float64_model(self) -> None:
        inputs = episode(shots=2)
        exact = make().double()(*(x.double() for x in inputs))
        assert exact.final.dtype == torch.float64
        assert exact.prior.dtype == torch.float64
        got = make()(*inputs)
        for a, e in zip(tensors(got), tensors(exact), strict=True):
            assert_same(a.double(), e, 2e-5)


def test_every_norm_and_dropout_is_a_module_of_torch(model: HDMNet) -> None:
    for module in model.modules():
        name = type(module).__name__
        if "Norm" in name:
            assert isinstance(module, nn.BatchNorm2d | nn.LayerNorm), name
        if "Dropout" in name:
            assert isinstance(module, nn.Dropout | nn.Dropout2d), name
