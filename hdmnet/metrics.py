"""The scores of few-shot segmentation, as a `torchmetrics.Metric`."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.preprocess import IGNORE

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "hdmnet.metrics needs: pip install 'hdmnet[eval]', or '.[eval]' in a clone"
    ) from error


class FewShotIoU(Metric):
    """mIoU over classes and FB-IoU, for one or more predictions of a model.

    P and T are the predicted and the true pixels of the foreground, or of the background, of an
    episode, without the ignored pixels:

        IoU(c) = Σ |P ∩ T| / Σ |P ∪ T|                      foreground, episodes of class c
        mIoU   = mean over classes c of IoU(c)
        FB-IoU = (IoU(foreground) + IoU(background)) / 2    each with the sums over all episodes

    The sums are integers: any split of the episodes over batches or processes gives the same
    scores, to the bit.

    Args:
        classes: Names of the classes to score.
        heads: Names of the predictions to score side by side, such as `final` and `meta`.
        **kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `classes` or `heads` is empty or holds a name twice.

    Example:
        >>> metric = FewShotIoU(["cat", "dog"])
        >>> metric.update(output.final.argmax(dim=1), target, label)

    Source: PANet (arXiv 1908.06391), section 4.1: mIoU and binary IoU, now called FB-IoU.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    intersection: Tensor
    union: Tensor
    episodes: Tensor

    def __init__(
        self, classes: Sequence[str], heads: Sequence[str] = ("final",), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for what, names in (("classes", classes), ("heads", heads)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{what} must be one or more distinct names, got {list(names)}")
        self.classes, self.heads = tuple(classes), tuple(heads)
        # (heads, classes, 2): background, then foreground.
        sums = torch.zeros(len(heads), len(classes), 2, dtype=torch.long)
        self.add_state("intersection", sums.clone(), dist_reduce_fx="sum")
        self.add_state("union", sums.clone(), dist_reduce_fx="sum")
        counts = torch.zeros(len(classes), dtype=torch.long)
        self.add_state("episodes", counts, dist_reduce_fx="sum")

    def update(
        self, prediction: Tensor | Mapping[str, Tensor], target: Tensor, label: Tensor
    ) -> None:
        """Add B episodes.

        Args:
            prediction: (B, H, W) masks: 1 or True = object, 0 or False = background. With several
                heads, a dict of head → masks.
            target: (B, H, W): 0 = background, 1 = object, 255 = ignore.
            label: (B,) index of each episode's class in `classes`, from 0.

        Raises:
            ValueError: If the heads, a shape or a value is not as described.
        """
        if isinstance(prediction, Tensor):
            prediction = dict.fromkeys(self.heads[:1], prediction)
        if prediction.keys() != set(self.heads):
            raise ValueError(f"expected the heads {self.heads}, got {tuple(prediction)}")
        label = torch.as_tensor(label, device=self.episodes.device).long()
        if label.shape != target.shape[:1] or target.ndim != 3:
            raise ValueError(
                f"target must be (B, H, W) and label (B,), got {tuple(target.shape)} and "
                f"{tuple(label.shape)}"
            )
        if not ((label >= 0) & (label < len(self.classes))).all():
            raise ValueError(f"label must be from 0 to {len(self.classes) - 1}, got {label}")
        if not ((target == 0) | (target == 1) | (target == IGNORE)).all():
            raise ValueError(f"target must hold only 0, 1 and 255, got {target.unique().tolist()}")
        counted = target != IGNORE
        # Not in place: Lightning resets the states under inference_mode and updates them outside.
        intersection, union = self.intersection.clone(), self.union.clone()
        for head, name in enumerate(self.heads):
            mask = prediction[name]
            if mask.shape != target.shape or not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"prediction {name!r} must be a mask of the target's {tuple(target.shape)}, "
                    f"got {tuple(mask.shape)} with values from {mask.min()} to {mask.max()}"
                )
            for side in (0, 1):
                inside, expected = (mask == side) & counted, target == side
                for state, pixels in (
                    (intersection, inside & expected),
                    (union, inside | expected),
                ):
                    state[head, :, side].index_add_(0, label, pixels.sum((1, 2)).to(state))
        self.intersection, self.union = intersection, union
        self.episodes = self.episodes.index_add(0, label, torch.ones_like(label))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call `update`, and return the scores of this batch alone.

        Classes without episodes cause no warning here, because a batch seldom has them all.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no episode asked for")
            return super().forward(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Compute the scores of all episodes so far.

        A class without episodes has the IoU NaN and does not count in the mean: a warning names it.

        Returns:
            `HEAD/mIoU`, `HEAD/FB-IoU` and `HEAD/IoU/CLASS`, in [0, 1], for each head and class,
            and `episodes/CLASS`, the number of episodes of each class.
        """
        missed = [
            name for name, count in zip(self.classes, self.episodes, strict=True) if not count
        ]
        if missed:
            warnings.warn(
                f"no episode asked for {', '.join(missed)}: the mean is over the others",
                UserWarning,
                stacklevel=2,
            )
        scores = {}
        intersection, union = self.intersection.cpu().double(), self.union.cpu()
        iou = intersection[..., 1] / union[..., 1]
        both = intersection.sum(1) / union.sum(1)
        for head, name in enumerate(self.heads):
            scores[f"{name}/mIoU"] = iou[head].nanmean().float()
            scores[f"{name}/FB-IoU"] = both[head].nanmean().float()
            for c, value in zip(self.classes, iou[head], strict=True):
                scores[f"{name}/IoU/{c}"] = value.float()
        for c, count in zip(self.classes, self.episodes, strict=True):
            scores[f"episodes/{c}"] = count
        return scores


def boundary_region(mask: Tensor, ratio: float = 0.02) -> Tensor:
    """Return the pixels of masks that lie close to their outline, for the Boundary IoU.

    The Boundary IoU is |P_d ∩ T_d| / |P_d ∪ T_d|, with the regions P_d and T_d of the predicted and
    the true mask: their pixels from which another pixel, or the end of the image, is at most
    d = ratio · √(H² + W²) away, in rows and in columns. So `FewShotIoU` of the two regions is the
    Boundary IoU over episodes.

    Args:
        mask: (B, H, W) masks of 0, 1 and 255. 255 stays 255.
        ratio: The distance d as a share of the diagonal, above 0.

    Returns:
        (B, H, W) int64 of 0, 1 and 255.

    Raises:
        ValueError: If `mask` has another number of axes, or `ratio` is not above 0.

    Example:
        >>> metric = FewShotIoU(["cat"])
        >>> mask = mask.masked_fill(target == 255, 0)  # else it has another outline there
        >>> metric.update(boundary_region(mask), boundary_region(target), label)

    Source: Cheng et al., Boundary IoU (arXiv 2103.16562).
    """
    if mask.ndim != 3:
        raise ValueError(f"mask must be (B, H, W), got {tuple(mask.shape)}")
    if not ratio > 0:
        raise ValueError(f"ratio must be above 0, got {ratio}")
    height, width = mask.shape[1:]
    d = max(round(ratio * (height**2 + width**2) ** 0.5), 1)
    outside = F.pad((mask != 1).float()[:, None], (d, d, d, d), value=1.0)
    for window in ((2 * d + 1, 1), (1, 2 * d + 1)):
        outside = F.max_pool2d(outside, window, stride=1)
    inner = outside[:, 0] == 0
    return mask.long().masked_fill(inner, 0)
