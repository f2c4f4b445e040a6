"""Every block refuses tensors whose shapes do not fit, with one clear error."""

import re
from collections.abc import Callable

import conftest
import pytest
import torch
from torch import Tensor

import hdmnet
from hdmnet import EpisodeLoss, HDMNetOutput, nn
from hdmnet.nn._checks import check_shapes


def x(*shape: int) -> Tensor:
    return torch.rand(*shape)


def attend(*shapes: tuple[int, ...]) -> object:
    return nn.MatchingAttention(8)(*(x(*shape) for shape in shapes))


def stage(*shapes: tuple[int, ...]) -> object:
    return nn.MatchingStage(8)(*(x(*shape) for shape in shapes))


def cascade(
    query: tuple[int, ...] = (6, 3),
    support: tuple[int, ...] = (6, 3),
    mask: tuple[int, ...] = (2, 3, 24, 24),
    prior: tuple[int, ...] = (2, 2, 6, 6),
    batch: int = 2,
) -> object:
    maps, others = [x(batch, 8, n, n) for n in query], [x(2, 3, 8, n, n) for n in support]
    return nn.CascadeMatching(8, 2, hidden_dim=8)(maps, others, x(*mask), x(*prior))


def distil(target: tuple[int, ...], *maps: tuple[int, ...]) -> object:
    return nn.CorrelationDistillation()([x(*shape) for shape in maps], x(*target))


def merge(meta: tuple[int, ...], base: tuple[int, ...], distances: tuple[int, ...]) -> object:
    return nn.BaseMetaEnsemble()(x(*meta), x(*base), x(*distances))


def lose(target: tuple[int, ...], base_target: tuple[int, ...] | None = None) -> object:
    scores = x(2, 2, 8, 9)
    output = HDMNetOutput(scores, scores, x(2, 4, 8, 9), (x(2, 3, 3),), x(2, 2, 3, 3))
    target, base_target = (None if s is None else x(*s).long() for s in (target, base_target))
    return EpisodeLoss()(output, target, base_target)


QUERY, SUPPORT = (2, 8, 5, 6), (2, 3, 8, 4, 6)
MISFITS: list[tuple[str, Callable[[], object], str]] = [
    (
        "BaseLearner",
        lambda: nn.BaseLearner(8, 3)(x(2, 9, 4, 4)),
        "x must be (B, 8, h, w) = (2, 8, 4, 4), got (2, 9, 4, 4)",
    ),
    (
        "BaseMetaEnsemble",
        lambda: merge((2, 2, 4, 4), (1, 4, 4, 4), (2, 1)),
        "base must be (B, 1 + n, h, w) = (2, 4, 4, 4), got (1, 4, 4, 4)",
    ),
    (
        "BaseMetaEnsemble",
        lambda: merge((2, 2, 4, 4), (2, 4, 4, 4), (1, 1)),
        "distances must be (B, K) = (2, 1), got (1, 1)",
    ),
    (
        "CascadeMatching",
        lambda: cascade(query=(3, 6)),
        "query must be finest first, got the grids [(3, 3), (6, 6)]",
    ),
    (
        "CascadeMatching",
        lambda: cascade(support=(3, 6)),
        "support must be finest first, got the grids [(3, 3), (6, 6)]",
    ),
    (
        "CascadeMatching",
        lambda: cascade(query=(6,)),
        "query must have 2 levels, one for each stage, got 1",
    ),
    (
        "CascadeMatching",
        lambda: cascade(support=(6, 3, 2)),
        "support must have 2 levels, one for each stage, got 3",
    ),
    (
        "CascadeMatching",
        lambda: cascade(batch=1),
        "support must be (B, K, 8, h', w') = (1, 3, 8, 6, 6), got (2, 3, 8, 6, 6)",
    ),
    (
        "CascadeMatching",
        lambda: cascade(mask=(2, 2, 24, 24)),
        "mask must be (B, K, H, W) = (2, 3, 24, 24), got (2, 2, 24, 24)",
    ),
    (
        "CascadeMatching",
        lambda: cascade(prior=(1, 2, 6, 6)),
        "prior must be (B, 2, H', W') = (2, 2, 6, 6), got (1, 2, 6, 6)",
    ),
    (
        "CorrelationDistillation",
        lambda: distil((1, 9, 9), (2, 3, 3)),
        "correlation must be (B, h, w) = (1, 3, 3), got (2, 3, 3)",
    ),
    (
        "CorrelationDistillation",
        lambda: distil((2, 9, 9), (2, 6, 6), (2, 3, 3)),
        "correlations must be coarsest first, got the grids [(6, 6), (3, 3)]",
    ),
    (
        "FeaturePyramid",
        lambda: nn.FeaturePyramid("resnet18")(x(2, 1, 40, 40)),
        "images must be (B, 3, H, W) = (2, 3, 40, 40), got (2, 1, 40, 40)",
    ),
    (
        "FeaturePyramid",
        lambda: nn.FeaturePyramid("resnet18").normalise(x(1, 40, 50)),
        "images must be (…, 3, H, W) = (…, 3, 40, 50), got (1, 40, 50)",
    ),
    (
        "HierarchicalEncoder",
        lambda: nn.HierarchicalEncoder(8, (2, 2))(x(8, 4, 4)),
        "x must be (B, 8, h, w), got (8, 4, 4)",
    ),
    (
        "MatchingAttention",
        lambda: attend(QUERY, SUPPORT, (2, 3, 2, 3)),
        "mask must be (B, K, h', w') = (2, 3, 4, 6), got (2, 3, 2, 3)",
    ),
    (
        "MatchingAttention",
        lambda: attend(QUERY, SUPPORT, (2, 3, 8, 12)),
        "mask must be (B, K, h', w') = (2, 3, 4, 6), got (2, 3, 8, 12)",
    ),
    (
        "MatchingAttention",
        lambda: attend((1, 8, 5, 6), SUPPORT, (2, 3, 4, 6)),
        "support must be (B, K, 8, h', w') = (1, 3, 8, 4, 6), got (2, 3, 8, 4, 6)",
    ),
    (
        "MatchingAttention",
        lambda: nn.MatchingAttention(8).match(
            x(1, 8, 5, 6),
            nn.MatchingAttention(8).encode(x(*SUPPORT), torch.ones(2, 3, 4, 6)),
            shots=3,
        ),
        "key must be (B, 2, n, d) = (1, 2, 72, 4), got (2, 2, 72, 4)",
    ),
    (
        "MatchingStage",
        lambda: stage(QUERY, SUPPORT, (2, 1, 40, 40), (2, 2, 5, 6)),
        "mask must be (B, K, H, W) = (2, 3, 40, 40), got (2, 1, 40, 40)",
    ),
    (
        "MatchingStage",
        lambda: stage(QUERY, SUPPORT, (2, 3, 40, 40), (2, 1, 5, 6)),
        "prior must be (B, 2, H', W') = (2, 2, 5, 6), got (2, 1, 5, 6)",
    ),
    (
        "MixFFN",
        lambda: nn.MixFFN(8)(x(2, 4, 4, 8)),
        "x must be (B, 8, h, w) = (2, 8, 4, 8), got (2, 4, 4, 8)",
    ),
    (
        "PatchEmbed",
        lambda: nn.PatchEmbed(3, 8)(x(3, 4, 4)),
        "x must be (B, 3, h, w), got (3, 4, 4)",
    ),
    (
        "PyramidPooling",
        lambda: nn.PyramidPooling(8, 4)(x(8, 4, 4)),
        "x must be (B, 8, h, w), got (8, 4, 4)",
    ),
    (
        "SelfAttentionStage",
        lambda: nn.SelfAttentionStage(3, 8, 2)(x(2, 4, 4, 4)),
        "x must be (B, 3, h, w) = (2, 3, 4, 4), got (2, 4, 4, 4)",
    ),
    (
        "ShotWeighting",
        lambda: nn.ShotWeighting(3)(x(2, 3, 1)),
        "distances must be (B, K), got (2, 3, 1)",
    ),
    (
        "SpatialReductionAttention",
        lambda: nn.SpatialReductionAttention(8, 2)(x(2, 16, 8)),
        "x must be (B, 8, h, w), got (2, 16, 8)",
    ),
    (
        "cosine_prior",
        lambda: nn.cosine_prior(x(*QUERY), x(*SUPPORT), x(2, 1, 40, 40)),
        "mask must be (B, K, H, W) = (2, 3, 40, 40), got (2, 1, 40, 40)",
    ),
    (
        "cosine_prior",
        lambda: nn.cosine_prior(x(2, 9, 5, 6), x(*SUPPORT), x(2, 3, 40, 40)),
        "support must be (B, K, C, h', w') = (2, 3, 9, 4, 6), got (2, 3, 8, 4, 6)",
    ),
    (
        "gram_distance",
        lambda: nn.gram_distance(x(1, 4, 4), x(2, 3, 4, 4)),
        "support must be (B, K, C, C) = (1, 3, 4, 4), got (2, 3, 4, 4)",
    ),
    (
        "gram_matrix",
        lambda: nn.gram_matrix(x(4, 5)),
        "features must be (…, C, h, w), got (4, 5)",
    ),
    (
        "masked_average_pool",
        lambda: nn.masked_average_pool(x(*SUPPORT), x(1, 3, 40, 40)),
        "mask must be (B, K, H, W) = (2, 3, 40, 40), got (1, 3, 40, 40)",
    ),
    ("EpisodeLoss", lambda: lose((2, 9, 8)), "target must be (B, H, W) = (2, 8, 9), got (2, 9, 8)"),
    (
        "EpisodeLoss",
        lambda: lose((2, 8, 9), (1, 8, 9)),
        "base_target must be (B, H, W) = (2, 8, 9), got (1, 8, 9)",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"),
    [pytest.param(call, message, id=name) for name, call, message in MISFITS],
)
def test_misfit(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_what_fits() -> None:
    attend(QUERY, SUPPORT, (2, 3, 4, 6))
    stage(QUERY, SUPPORT, (2, 3, 40, 40), (2, 2, 9, 9))
    cascade()
    distil((2, 9, 9), (2, 3, 3), (2, 3, 3), (2, 6, 6))
    merge((2, 2, 4, 4), (2, 4, 4, 4), (2, 1))
    lose((2, 8, 9), (2, 8, 9))


def test_an_empty_batch() -> None:
    model = conftest.make(base_classes=0)
    with pytest.raises(ValueError, match=r"with B, K ≥ 1, got \(0, 1, 3, 65, 65\)"):
        model(x(0, 3, 65, 65), x(0, 1, 3, 65, 65), x(0, 1, 65, 65))


def test_every_block_is_here() -> None:
    assert {name for name, *_ in MISFITS} == {*nn.__all__, "EpisodeLoss"}
    assert set(nn.__all__) <= set(hdmnet.__all__)


def test_a_compiled_graph_checks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check_shapes("B, 3, H, W", images=x(2))
