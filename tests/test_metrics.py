"""`FewShotIoU` against a plain count of pixels."""

import warnings

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")

from hdmnet.metrics import FewShotIoU, boundary_region

NAMES = ("cat", "dog", "fish")


def draw(count: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (count, 9, 11), generator=generator)
    target[:, :2, :3] = 255
    masks = {
        head: torch.rand(count, 9, 11, generator=generator) > share
        for head, share in (("final", 0.4), ("meta", 0.7))
    }
    return masks, target, torch.randint(0, 3, (count,), generator=generator)


def plain(mask: Tensor, target: Tensor, label: Tensor) -> tuple[list[float], float]:
    """Count the IoU of each class, and FB-IoU, pixel by pixel."""
    sums = [[[0, 0], [0, 0]] for _ in NAMES]
    for i in range(len(label)):
        for said, expected in zip(
            mask[i].flatten().tolist(), target[i].flatten().tolist(), strict=True
        ):
            for side in (0, 1):
                if expected == 255:
                    continue
                sums[label[i]][side][0] += int(said) == side and expected == side
                sums[label[i]][side][1] += int(said) == side or expected == side
    classes = [entry[1][0] / entry[1][1] for entry in sums]
    both = [sum(entry[s][0] for entry in sums) / sum(entry[s][1] for entry in sums) for s in (0, 1)]
    return classes, sum(both) / 2


def test_against_a_plain_count() -> None:
    masks, target, label = draw(40)
    metric = FewShotIoU(NAMES, heads=("final", "meta"))
    for part in (slice(0, 1), slice(1, 17), slice(17, 40)):
        metric.update({h: m[part] for h, m in masks.items()}, target[part], label[part])
    scores = metric.compute()
    for head, mask in masks.items():
        classes, both = plain(mask, target, label)
        assert scores[f"{head}/mIoU"].item() == pytest.approx(sum(classes) / 3)
        assert scores[f"{head}/FB-IoU"].item() == pytest.approx(both)
        for name, value in zip(NAMES, classes, strict=True):
            assert scores[f"{head}/IoU/{name}"].item() == pytest.approx(value)
    assert [int(scores[f"episodes/{name}"]) for name in NAMES] == torch.bincount(label).tolist()


def test_any_split_gives_the_same_bits() -> None:
    masks, target, label = draw(30)
    whole, first, second = (FewShotIoU(NAMES) for _ in range(3))
    whole.update(masks["final"], target, label)
    for metric, part in ((first, slice(0, None, 2)), (second, slice(1, None, 2))):
        metric.update(masks["final"][part], target[part], label[part])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_a_class_without_episodes() -> None:
    masks, target, _ = draw(6)
    metric = FewShotIoU(NAMES)
    metric.update(masks["final"], target, torch.tensor([0, 0, 2, 2, 2, 2]))
    with pytest.warns(UserWarning, match="no episode asked for dog"):
        scores = metric.compute()
    assert scores["final/IoU/dog"].isnan()
    kept = (scores["final/IoU/cat"] + scores["final/IoU/fish"]) / 2
    assert scores["final/mIoU"].item() == pytest.approx(kept.item())
    assert scores["episodes/dog"] == 0


def test_forward_does_not_warn_of_classes_without_episodes() -> None:
    masks, target, _ = draw(6)
    metric = FewShotIoU(NAMES)
    label = torch.tensor([0, 0, 2, 2, 2, 2], dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(masks["final"], target, label)
    with pytest.warns(UserWarning, match="dog"):
        metric.compute()


def test_states_may_become_inference_tensors() -> None:
    masks, target, label = draw(6)
    metric = FewShotIoU(NAMES)
    with torch.inference_mode():
        metric.update(masks["final"], target, label)
        metric.reset()
    metric.update(masks["final"], target, label)
    assert metric.episodes.sum() == 6


def test_perfect_and_wrong() -> None:
    _, target, label = draw(30)
    metric = FewShotIoU(NAMES, heads=("final", "meta"))
    object_ = target == 1
    metric.update({"final": object_, "meta": ~object_}, target, label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metric.compute()
    assert scores["final/mIoU"] == scores["final/FB-IoU"] == 1
    assert scores["meta/mIoU"] == scores["meta/FB-IoU"] == 0
    metric.reset()
    assert metric.episodes.sum() == 0


def test_invalid_arguments() -> None:
    masks, target, label = draw(4)
    metric = FewShotIoU(NAMES)
    mask = masks["final"]
    for arguments, message in (
        ((mask[:, :5], target, label), "mask of the target"),
        ((mask.float() * 0.5, target, label), "mask of the target"),
        ((mask, target * 2, label), "target must hold only 0, 1 and 255"),
        ((mask, target, label + 3), "label must be from 0 to 2"),
        ((mask, target, label[:2]), "label \\(B,\\)"),
        ((masks, target, label), "expected the heads"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(*arguments)
    assert metric.episodes.sum() == 0
    for names in ((), ("cat", "cat")):
        with pytest.raises(ValueError, match="distinct names"):
            FewShotIoU(names)


class TestBoundaryRegion:
    def plain(self, mask: Tensor, d: int) -> Tensor:
        """Keep the pixels from which the outside of the mask is at most d away."""
        height, width = mask.shape
        region = mask.clone()
        for y in range(height):
            for x in range(width):
                near = [(y + v, x + u) for v in range(-d, d + 1) for u in range(-d, d + 1)]
                inside = all(
                    0 <= v < height and 0 <= u < width and mask[v, u] == 1 for v, u in near
                )
                if inside:
                    region[y, x] = 0
        return region

    def test_plain_formulation(self) -> None:
        mask = torch.zeros(2, 24, 30, dtype=torch.long)
        mask[0, 3:20, 5:25], mask[0, 10, 12] = 1, 0
        mask[1, :, :18], mask[1, 5:9, 16:20] = 1, 255
        for ratio, d in ((0.02, 1), (0.08, 3)):
            expected = torch.stack([self.plain(m, d) for m in mask])
            torch.testing.assert_close(boundary_region(mask, ratio), expected)

    def test_of_a_mask_of_bools(self) -> None:
        mask = torch.zeros(1, 24, 30, dtype=torch.bool)
        mask[0, 3:20, 5:25] = True
        torch.testing.assert_close(boundary_region(mask), boundary_region(mask.long()))

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="B, H, W"):
            boundary_region(torch.zeros(5, 5))
        with pytest.raises(ValueError, match="ratio must be above 0"):
            boundary_region(torch.zeros(1, 5, 5), 0.0)
