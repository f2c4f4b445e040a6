r"""Automatic annotation in CVAT, by classes that `SupportSet.save` or `hdmnet encode` wrote.

    cvat-cli task auto-annotate TASK --function-module hdmnet.integrations.cvat \
        -p cat=str:cat.safetensors -p dog=str:dog.safetensors

The names are those of the labels of the task. Needs the extra `cvat`: in a clone,
`pip install '.[cvat]'`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from hdmnet.base import FewShotModel
from hdmnet.model import HDMNet
from hdmnet.segmentation import Instance
from hdmnet.supports import SupportSet

try:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk import models
    from cvat_sdk.masks import encode_mask
    from skimage.measure import approximate_polygon, find_contours
except ImportError as error:
    raise ImportError(
        "hdmnet.integrations.cvat needs: pip install 'hdmnet[cvat]', or '.[cvat]' in a clone"
    ) from error

TOLERANCE = 1.5
"""Pixels that a polygon may be off the border of the mask."""


class FewShotDetector:
    """A detection function of CVAT's auto-annotation: each connected part becomes a shape.

    Args:
        model: The model.
        supports: Encoded classes by the names of CVAT's labels.
        min_area: Pixels of the smallest part that becomes a shape.
    """

    def __init__(
        self, model: FewShotModel, supports: Mapping[str, SupportSet], *, min_area: int = 64
    ) -> None:
        self._model, self._supports, self._min_area = model, dict(supports), min_area

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The labels that this function can give."""
        labels = [cvataa.label_spec(name, i, type="mask") for i, name in enumerate(self._supports)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """Find the classes in an image.

        Args:
            context: Says whether CVAT wants polygons, and the lowest confidence: it is compared
                with the mean probability of a part.
            image: The image.
        """
        many = self._model.predict(image, self._supports)
        least = context.conf_threshold or 0.0
        return [
            shape
            for i, only in enumerate(many.without_overlaps().values())
            for part in only.instances(min_area=self._min_area)
            if part.score >= least
            for shape in _shapes(i, part, polygons=context.conv_mask_to_poly)
        ]


def create(model: str = "hdmnet-lite0", device: str = "cpu", **supports: str) -> FewShotDetector:
    """Make the function from the parameters of `cvat-cli`.

    Args:
        model: A bundled model, a folder, or a repository of the Hub.
        device: cpu, cuda, cuda:1 or mps.
        supports: The file of each class, by the name of its label, which may not be one of the two
            names above.
    """
    if not supports:
        raise ValueError("no class is given: expected -p NAME=str:FILE.safetensors")
    network = HDMNet.from_pretrained(model).to(device).fused()
    sets = {name: SupportSet.load(path).to(device) for name, path in supports.items()}
    return FewShotDetector(network, sets)


def _shapes(label: int, part: Instance, *, polygons: bool) -> Iterator[models.LabeledShapeRequest]:
    mask = part.mask.numpy()
    if not polygons:
        yield cvataa.mask(label, encode_mask(mask))
        return
    # A frame of background closes contours at the border of the image.
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        points = approximate_polygon(contour, TOLERANCE)[:-1, ::-1] - 0.5
        if len(points) >= 3 and _is_outer(points):
            height, width = mask.shape
            yield cvataa.polygon(label, np.clip(points, 0, (width, height)).ravel().tolist())


def _is_outer(points: np.ndarray) -> bool:
    """Whether the points surround the object, and not a hole in it."""
    x, y = points.T
    return bool(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0)
