"""Each exact shortcut against the plain computation that it replaces."""

import inspect

import oracle
import pytest
import torch
from conftest import assert_same, assert_same_output, episode, fill, make
from torch import nn

from hdmnet import (
    EpisodeLoss,
    HDMNet,
    HDMNetOutput,
    MatchingAttention,
    PyramidPooling,
    cosine_prior,
    gram_distance,
    gram_matrix,
)
from hdmnet.nn import _fast
from hdmnet.nn._fast import Window, foreground_window
from hdmnet.nn._resize import nearest


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_each_shortcut_names_its_formula() -> None:
    """Every public function and class of `_fast` says in its docstring what it equals."""
    shortcuts = [
        value
        for name, value in vars(_fast).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == _fast.__name__
        and not name.startswith("_")
    ]
    assert len(shortcuts) >= 10
    silent = [s.__name__ for s in shortcuts if "Equals: " not in s.__doc__]
    assert silent == ["Window"]  # the type that foreground_window returns


@pytest.mark.parametrize("base_classes", [0, 3])
@pytest.mark.parametrize("shots", [1, 3])
def test_the_whole_network_without_shortcuts(
    monkeypatch: pytest.MonkeyPatch, base_classes: int, shots: int
) -> None:
    """The formulas as written, `fast = False`, have the same outputs and the same gradients."""
    model = make(base_classes=base_classes, shots=shots).freeze_backbone()
    inputs = episode(2, shots, (72, 89))

    def step() -> tuple[HDMNetOutput, list[torch.Tensor]]:
        model.zero_grad()
        output = model(*inputs)
        (output.meta.square().mean() + output.correlations[-1].square().mean()).backward()
        return output, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    output, gradients = step()
    for block in (MatchingAttention, PyramidPooling):
        monkeypatch.setattr(block, "fast", False)
    plain_output, plain_gradients = step()
    assert_same_output(output, plain_output)
    for got, expected in zip(gradients, plain_gradients, strict=True):
        assert_same(got, expected, 1e-3)


def test_the_prior_of_compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs compute the formula as written."""
    query, support = torch.randn(2, 8, 5, 6), torch.randn(2, 3, 8, 5, 6)
    mask = (torch.rand(2, 3, 5, 6) > 0.5).float()
    mask[0, 1] = 0
    fast = cosine_prior(query, support, mask)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    plain = cosine_prior(query, support, mask)
    assert_same(fast, plain)
    assert_same(plain, oracle.cosine_prior(query, support, mask))


class TestPyramidPooling:
    @pytest.fixture
    def module(self) -> PyramidPooling:
        module = PyramidPooling(8, 5)
        fill(module)
        return module.eval()

    @pytest.mark.parametrize("size", [(1, 1), (6, 6), (7, 13), (15, 4)])
    def test_is_the_plain_convolution(self, module: PyramidPooling, size: tuple[int, int]) -> None:
        x = torch.randn(2, 8, *size)
        assert_same(module(x), oracle.pyramid_pooling(module, x))

    @pytest.mark.parametrize(
        "box", [(0, 0, 9, 11), (0, 0, 1, 1), (8, 10, 9, 11), (3, 4, 6, 5), (0, 4, 9, 6)]
    )
    def test_a_part_of_the_grid(self, module: PyramidPooling, box: tuple[int, ...]) -> None:
        x = torch.randn(2, 8, 9, 11)
        expected = Window(*box).crop(oracle.pyramid_pooling(module, x))
        assert_same(module(x, Window(*box)), expected)

    def test_trains_as_the_plain_convolution(self, module: PyramidPooling) -> None:
        x, direction = torch.randn(2, 8, 7, 9), torch.randn(2, 5, 7, 9)
        gradients = []
        for forward in (module, lambda x: oracle.pyramid_pooling(module, x)):
            module.train().zero_grad()
            (forward(x) * direction).sum().backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
        for got, expected in zip(*gradients, strict=True):
            assert_same(got, expected, 1e-4)


class TestForegroundBox:
    @pytest.mark.parametrize(
        ("cells", "box"),
        [
            ([], (0, 0, 1, 1)),
            ([(2, 3), (4, 1)], (2, 1, 5, 4)),
            ([(0, 0), (4, 6)], (0, 0, 5, 7)),
            # If the mask fills its box, the box gets one more row or column.
            ([(2, 3)], (2, 3, 4, 4)),
            ([(4, 6)], (3, 6, 5, 7)),
            ([(row, 3) for row in range(5)], (0, 3, 5, 5)),
            ([(row, 6) for row in range(5)], (0, 5, 5, 7)),
            ([(row, column) for row in range(5) for column in range(7)], (0, 0, 5, 7)),
        ],
    )
    def test_box(self, cells: list[tuple[int, int]], box: tuple[int, ...]) -> None:
        mask = torch.zeros(1, 1, 5, 7)
        for row, column in cells:
            mask[..., row, column] = 1
        assert foreground_window(mask) == box

    def test_of_several_masks(self) -> None:
        masks = torch.zeros(2, 1, 5, 7)
        masks[0, 0, 1, 1] = masks[1, 0, 3, 4] = 1
        assert foreground_window(masks) == (1, 1, 4, 5)

    def test_prior_of_a_filled_box_includes_background(self) -> None:
        """If all cosines are negative, the maximum is the 0 of the background."""
        query, support = torch.ones(1, 4, 6, 6), -torch.ones(1, 1, 4, 6, 6)
        mask = torch.zeros(1, 1, 6, 6)
        mask[..., 1:3, 2:5] = 1
        box = foreground_window(mask)
        assert (cosine_prior(query, box.crop(support), box.crop(mask)) == 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1, 100])
@pytest.mark.parametrize("zero", ["nothing", "a query position", "a support position", "a shot"])
def test_prior_of_features_of_any_length(scale: float, zero: str) -> None:
    """The guard against division by 0 has the same effect as in the plain computation."""
    query, support = scale * torch.randn(1, 32, 4, 5), scale * torch.randn(1, 2, 32, 4, 5)
    if zero == "a query position":
        query[..., 1, 1] = 0
    elif zero == "a support position":
        support[..., 1, 1] = 0
    elif zero == "a shot":
        support[:, 1] = 0
    for mask in (torch.ones(1, 2, 4, 5), (torch.rand(1, 2, 4, 5) > 0.5).float()):
        expected = oracle.cosine_prior(query, support, mask)
        assert_same(cosine_prior(query, support, mask), expected)


def test_gradients_where_features_are_zero() -> None:
    query, support = torch.randn(1, 4, 5, 6), torch.randn(1, 2, 4, 5, 6)
    query[:, 0] = query[..., 1, 1] = support[:, 1] = 0
    mask = (torch.rand(1, 2, 5, 6) > 0.5).float()
    query.requires_grad_()
    support.requires_grad_()
    (cosine_prior(query, support, mask).sum() + gram_matrix(query).sum()).backward()
    assert query.grad.isfinite().all()
    assert support.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_attention_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(_fast, "CHUNK", chunk)
    module = MatchingAttention(8, 2).eval()
    query, support = torch.randn(2, 8, 5, 6), torch.randn(2, 3, 8, 4, 6)
    mask = (torch.rand(2, 3, 4, 6) > 0.5).float()
    got = module(query, support, mask)
    for actual, expected in zip(
        got, oracle.matching_attention(module, query, support, mask), strict=True
    ):
        assert_same(actual, expected)


def test_attention_at_the_lowest_temperature() -> None:
    """exp(1 / temperature) still fits float32. A lower temperature is refused."""
    module = MatchingAttention(8, 2, temperature=0.02).eval()
    query = torch.randn(1, 8, 30, 30)
    attended, _ = module(query, query[:, None], torch.ones(1, 1, 30, 30))
    assert attended.isfinite().all()
    with pytest.raises(ValueError, match="temperature must be at least"):
        MatchingAttention(8, 2, temperature=0.01)


@pytest.mark.parametrize("base_classes", [0, 3])
def test_shots_encoded_one_by_one(base_classes: int) -> None:
    """`encode` (one shot at a time) and `encode_features` (all at once) give the same answers."""
    model = make(base_classes=base_classes, shots=3)
    query, supports, masks = episode(2, 3, (72, 100))
    masked = (supports * (masks == 1)[:, :, None]).flatten(0, 1)
    together = model.encode_features(model.backbone(masked), masks)
    one_by_one = model.encode(supports, masks)
    assert_same_output(model.match(query, one_by_one), model.match(query, together))


def test_recomputing_shots_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients stay the same, with dropout, but the backward pass needs less memory."""
    module = make(shots=3).freeze_backbone().train()
    query, supports, masks = episode(1, 3)

    def step() -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        module.zero_grad()
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (kept.append(x.numel()), x)[1], lambda x: x
        ):
            encoded = module.encode(supports, masks)
        loss = EpisodeLoss()(module.match(query, encoded), masks[:, 0]).total
        loss.backward()
        return [loss, *(p.grad for p in module.parameters() if p.grad is not None)], sum(kept)

    got, kept = step()
    monkeypatch.setattr(_fast, "checkpoint", lambda f, *args, use_reentrant: f(*args))
    expected, kept_plainly = step()
    for a, e in zip(got, expected, strict=True):
        assert_same(a, e)
    assert kept < kept_plainly / 4


def test_batch_statistics_are_of_all_shots_and_the_whole_grid() -> None:
    """Norms in training mode see all shots at once, on the whole grid."""
    model: HDMNet = make(frozen_norm=False).train()
    norm = next(m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = int(norm.num_batches_tracked)
    seen = []
    model.psp.fuse[1].register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    _, supports, masks = episode(2, 3)
    model.encode(supports, masks)
    assert int(norm.num_batches_tracked) == before + 1
    assert seen == [(6, 512, 8, 8)]


@pytest.mark.parametrize("target", [(1, 1), (10, 12), (8, 15), (60, 60)])
def test_nearest_equals_torch(target: tuple[int, int]) -> None:
    for size in (75, 84, 90, 105, 120, 473):
        x = torch.randn(1, 1, size, size + 1)
        assert torch.equal(nearest(x, target), nn.functional.interpolate(x, target))


class TestHalfPrecision:
    """Autocast rounds the features. Priors, styles and the head must not be rounded again."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shots", [1, 3])
    def test_priors_of_similar_features(self, shots: int, dtype: torch.dtype) -> None:
        """ReLU features have cosines in 0.9 … 1, where bfloat16 has only 27 values."""
        common = torch.randn(64, 1, 1)
        query = (common + 0.2 * torch.randn(2, 64, 9, 8)).to(dtype)
        support = common + 0.2 * torch.randn(2, shots, 64, 9, 8)
        mask = (torch.rand(2, shots, 9, 8) > 0.5).float()
        got = cosine_prior(query, support, mask)
        assert got.dtype == torch.float32
        exact = oracle.cosine_prior(query.float(), support, mask)
        assert exact.min() > 0.9
        assert (got - exact).abs().max() < 3e-4

    def test_priors_of_any_sign(self) -> None:
        """The 0 of the background is rounded too. The error is at most the rounding of bfloat16."""
        query = torch.randn(2, 64, 9, 8).bfloat16()
        support = torch.randn(2, 3, 64, 9, 8) - query.float().mean((0, 2, 3))[:, None, None]
        support[1, 2] = 0
        mask = (torch.rand(2, 3, 9, 8) > 0.9).float()
        mask[0, 0] = 0
        exact = oracle.cosine_prior(query.float(), support, mask)
        assert (cosine_prior(query, support, mask) - exact).abs().max() < 2**-9

    def test_prior_of_zeros(self) -> None:
        query, support = torch.zeros(1, 8, 3, 3).bfloat16(), torch.randn(1, 1, 8, 3, 3)
        assert (cosine_prior(query, support, torch.ones(1, 1, 3, 3)) == 0).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_style(self, dtype: torch.dtype) -> None:
        query, support = 30 * torch.randn(1, 32, 19, 18), 30 * torch.randn(1, 2, 32, 19, 18)
        exact = gram_distance(gram_matrix(query), gram_matrix(support))
        half = gram_matrix(query.to(dtype)), gram_matrix(support.to(dtype))
        assert half[0].dtype == torch.float32
        assert_same(gram_distance(*half), exact, 1e-3)

    @pytest.mark.parametrize("base_classes", [0, 3])
    def test_the_head_is_not_rounded(self, base_classes: int) -> None:
        model = make(base_classes=base_classes, shots=2)
        query, supports, masks = episode(1, 2)
        with torch.no_grad():
            encoded = model.encode(supports, masks)
            features = tuple(f.bfloat16() for f in model.backbone(query))
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.match_features(features, encoded, (64, 64))
            exact = model.match_features(tuple(f.float() for f in features), encoded, (64, 64))
        # Only the reduced features and the logits of the base learner are rounded. If the whole
        # head were rounded, the difference would be 0.01.
        assert_same(rounded.meta, exact.meta, 0.002)
        assert_same(rounded.final, exact.final, 0.004)
