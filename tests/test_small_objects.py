"""Objects smaller than a grid cell take part in the matching."""

import pytest
import torch
from conftest import episode, make

from hdmnet import HDMNet
from hdmnet.nn._resize import nearest, widen_small

SIZE, GRID = (45, 61), (6, 8)


def squares(side: int) -> torch.Tensor:
    """Make masks (1, K, 45, 61) with one square each, at every position."""
    places = [(y, x) for y in range(SIZE[0] - side + 1) for x in range(SIZE[1] - side + 1)]
    masks = torch.zeros(1, len(places), *SIZE)
    for mask, (y, x) in zip(masks[0], places, strict=True):
        mask[y : y + side, x : x + side] = 1
    return masks


def shown(masks: torch.Tensor) -> torch.Tensor:
    """Return which objects the grid shows."""
    return nearest(masks, GRID).flatten(2).any(dim=2)


@pytest.mark.parametrize("side", [1, 2, 5, 7])
def test_no_object_vanishes(side: int) -> None:
    masks = squares(side)
    before = shown(masks)
    assert before.any()
    assert not before.all()
    widened = widen_small(masks, GRID)
    assert shown(widened).all()
    assert ((widened - masks) >= 0).all()
    assert torch.equal(widened[before], masks[before])
    # An object grows at most to the four cells of 8 × 8 pixels that it touches.
    assert widened.sum((-2, -1)).max() <= 4 * 8 * 8


def test_an_empty_mask_stays_empty() -> None:
    masks = torch.zeros(1, 2, *SIZE)
    masks[0, 1, 1, 1] = 1
    widened = widen_small(masks, GRID)
    assert not widened[0, 0].any()
    assert widened[0, 1].any()


def test_a_compiled_graph_does_the_same() -> None:
    masks = squares(2)
    compiled = torch.compile(lambda m: widen_small(m, GRID), backend="eager", fullgraph=True)
    assert torch.equal(compiled(masks), widen_small(masks, GRID))


@pytest.mark.parametrize("fused", [False, True])
def test_the_network_sees_them(fused: bool) -> None:
    """Without widening, the object would count as an empty mask."""
    model = make()
    model = model.fused() if fused else model
    query, supports, masks = episode()
    masks[:] = 0
    empty = model(query, supports, masks)
    masks[..., 10:12, 12:14] = 1
    assert not nearest(masks, (8, 8)).any()
    small = model(query, supports, masks)
    assert empty.prior.abs().max() == 0
    assert small.prior.abs().max() > 0.1
    assert small.correlations[-1].abs().max() > 0.1
    assert (small.final - empty.final).abs().max() > 1e-3


def test_a_small_object_in_a_large_photograph(model: HDMNet) -> None:
    """The object is not lost when its mask shrinks to the image size of the model."""
    photograph = torch.rand(3, 900, 1200)
    mask = torch.zeros(900, 1200)
    empty = model.encode_supports(photograph, mask)
    mask[451:455, 607:610] = 1
    assert not nearest(mask[None, None], (64, 64)).any()
    small = model.encode_supports(photograph, mask)
    assert empty.tokens[0].area.max() == 0
    assert small.tokens[0].area.max() == 1


def test_ignored_pixels_stay_ignored(model: HDMNet) -> None:
    photograph, mask = torch.rand(3, 300, 300), torch.full((300, 300), 255.0)
    mask[151, 152] = 1
    small = model.encode_supports(photograph, mask)
    assert small.tokens[0].area.max() == 1
