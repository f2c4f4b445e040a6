"""A model for FiftyOne: `dataset.apply_model(FewShotSegmenter(model, supports), "found")`.

Needs the extra `fiftyone`: in a clone, `pip install '.[fiftyone]'`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import numpy as np

from hdmnet.base import FewShotModel
from hdmnet.images import ImageLike
from hdmnet.options import PredictOptions
from hdmnet.segmentation import MulticlassSegmentation, Segmentation
from hdmnet.supports import SupportSet

try:
    import fiftyone as fo
    import fiftyone.core.models as fom
except ImportError as error:
    raise ImportError(
        "hdmnet.integrations.fiftyone needs: pip install 'hdmnet[fiftyone]', or '.[fiftyone]' in a "
        "clone"
    ) from error


class FewShotSegmenter(fom.Model):  # type: ignore[misc]
    """Segment the images of a FiftyOne dataset.

    An image gets a `fiftyone.Segmentation`: a mask of the values in `mask_targets`, with the
    attribute `presence`, a dict by class. With `instances=True`, it gets `fiftyone.Detections`, one
    for each connected part, with box, mask and confidence.

    Args:
        model: The model, for example `HDMNet.from_pretrained("hdmnet-lite0").fused()`.
        supports: An encoded class, or a dict of them by name.
        name: The name of the class, if `supports` is one set.
        instances: Whether to return detections.
        min_area: Pixels of the smallest part that becomes a detection.
        options: Options of `predict`: `presence_threshold`, `batch_size`, `augment`, `tile`,
            `refine`, `self_support`.

    Example:
        >>> segmenter = FewShotSegmenter(model, {"cat": cat, "dog": dog})
        >>> dataset.apply_model(segmenter, label_field="hdmnet", batch_size=8)
        >>> dataset.mask_targets["hdmnet"] = segmenter.mask_targets
    """

    def __init__(
        self,
        model: FewShotModel,
        supports: SupportSet | Mapping[str, SupportSet],
        *,
        name: str = "object",
        instances: bool = False,
        min_area: int = 1,
        **options: Unpack[PredictOptions],
    ) -> None:
        self._model = model
        self._sets = {name: supports} if isinstance(supports, SupportSet) else dict(supports)
        self._instances, self._min_area, self._options = instances, min_area, options

    media_type = "image"
    ragged_batches = False  # images of one call may have several sizes
    transforms = None
    preprocess = False

    @property
    def mask_targets(self) -> dict[int, str]:
        """The name of each value of a mask above 0."""
        return dict(enumerate(self._sets, start=1))

    def predict(self, arg: ImageLike) -> fo.Label:
        """Segment one image.

        Args:
            arg: (H, W, 3) uint8, as FiftyOne reads it, or what `FewShotModel.predict` takes.
        """
        return self._label(self._model.predict(arg, self._sets, **self._options))

    def predict_all(self, args: Iterable[ImageLike]) -> list[fo.Label]:
        """Segment several images, with the sizes that they have."""
        answers = self._model.predict(list(args), self._sets, **self._options)
        return [self._label(answer) for answer in answers]

    def _label(self, answer: MulticlassSegmentation) -> fo.Label:
        if not self._instances:
            presence = dict(zip(answer.names, answer.presence.tolist(), strict=True))
            return fo.Segmentation(mask=answer.labels.numpy().astype(np.uint16), presence=presence)
        found = [
            detection for name in answer.names for detection in self._detections(name, answer[name])
        ]
        return fo.Detections(detections=found)

    def _detections(self, name: str, answer: Segmentation) -> list[Any]:
        height, width = answer.mask.shape
        found = []
        for part in answer.instances(min_area=self._min_area):
            x0, y0, x1, y1 = part.box
            box = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
            mask = part.mask[y0:y1, x0:x1].numpy()
            found.append(
                fo.Detection(label=name, bounding_box=box, mask=mask, confidence=part.score)
            )
        return found
