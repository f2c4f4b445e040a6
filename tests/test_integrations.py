"""hdmnet inside other tools, with the real packages of these tools."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hdmnet import HDMNet, SupportSet
from hdmnet.segmentation import Instance, Segmentation

# Their packages are large: the development extra has them, the test extra does not.
pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[1] / "examples" / "data"
QUERIES = [DATA / "fish" / f"query_{i}.jpg" for i in (1, 2)] + [DATA / "person" / "query_1.jpg"]


@pytest.fixture(scope="module")
def model() -> HDMNet:
    return HDMNet.from_pretrained("hdmnet-lite0").fused()


@pytest.fixture(scope="module")
def sets(model: HDMNet) -> dict[str, SupportSet]:
    pairs = {name: DATA / name / "support_1" for name in ("fish", "person")}
    return {
        name: model.encode_supports(path.with_suffix(".jpg"), path.with_suffix(".png"))
        for name, path in pairs.items()
    }


class TestFiftyOne:
    """On a dataset in FiftyOne's own database."""

    @pytest.fixture
    def dataset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        fo = pytest.importorskip("fiftyone", reason="needs hdmnet[fiftyone]")
        monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
        dataset = fo.Dataset()
        dataset.add_samples([fo.Sample(filepath=str(path)) for path in QUERIES])
        yield dataset
        dataset.delete()

    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_apply_model(
        self, dataset: Any, model: HDMNet, sets: dict[str, SupportSet], batch_size: int | None
    ) -> None:
        from hdmnet.integrations.fiftyone import FewShotSegmenter

        segmenter = FewShotSegmenter(model, sets)
        dataset.apply_model(segmenter, label_field="found", batch_size=batch_size)
        dataset.mask_targets["found"] = segmenter.mask_targets
        dataset.save()
        assert dataset.mask_targets["found"] == {1: "fish", 2: "person"}
        dataset.reload()
        for sample, query in zip(dataset, QUERIES, strict=True):
            many = model.predict(query, sets)
            assert (sample.found.mask == many.labels.numpy()).all()
            assert sample.found.presence["fish"] == pytest.approx(many["fish"].presence)

    def test_detections(self, dataset: Any, model: HDMNet, sets: dict[str, SupportSet]) -> None:
        from hdmnet.integrations.fiftyone import FewShotSegmenter

        segmenter = FewShotSegmenter(
            model, sets["fish"], name="fish", instances=True, min_area=50, presence_threshold=0.2
        )
        dataset.apply_model(segmenter, label_field="parts")
        for sample, query in zip(dataset, QUERIES, strict=True):
            answer = model.predict(query, sets["fish"], presence_threshold=0.2)
            parts = answer.instances(min_area=50)
            assert len(sample.parts.detections) == len(parts)
            height, width = answer.mask.shape
            for detection, part in zip(sample.parts.detections, parts, strict=True):
                assert detection.label == "fish"
                assert detection.confidence == pytest.approx(part.score)
                drawn = detection.to_segmentation(frame_size=(width, height), target=1).mask
                assert (torch.from_numpy(drawn == 1) == part.mask).all()


class TestCVAT:
    """With what CVAT's own driver does between a function and a task."""

    def annotate(self, function: Any, query: Path, *, polygons: bool, least: float | None) -> Any:
        """Call a function as the driver does. Return shapes with the task's numbers of labels."""
        from cvat_sdk import models
        from cvat_sdk.auto_annotation import driver

        names = ("person", "cat", "fish")
        kind = "polygon" if polygons else "mask"
        labels = [
            models.Label(id=50 + i, name=name, type=kind, attributes=[], sublabels=[])
            for i, name in enumerate(names)
        ]
        mapper = driver._AnnotationMapper(
            logging.getLogger("cvat"),
            function.spec.labels,
            labels,
            allow_unmatched_labels=False,
            conv_mask_to_poly=polygons,
        )
        context = driver._DetectionFunctionContextImpl(
            frame_name=query.name, conf_threshold=least, conv_mask_to_poly=polygons
        )
        shapes = function.detect(context, Image.open(query))
        mapper.validate_and_remap(shapes, 7)
        assert all(shape.frame == 7 for shape in shapes)
        return shapes

    @pytest.fixture
    def function(self, sets: dict[str, SupportSet], tmp_path: Path) -> Any:
        pytest.importorskip("cvat_sdk", reason="needs hdmnet[cvat]")
        from hdmnet.integrations.cvat import create

        for name, one in sets.items():
            one.save(tmp_path / f"{name}.safetensors")
        return create(**{name: str(tmp_path / f"{name}.safetensors") for name in sets})

    def test_masks(self, function: Any, model: HDMNet, sets: dict[str, SupportSet]) -> None:
        from cvat_sdk.masks import decode_mask

        for query in QUERIES:
            many = model.predict(query, sets)
            parts = {
                name: Segmentation(many.probability[i].where(many.labels == i + 1, 0)).instances(
                    min_area=64
                )
                for i, name in enumerate(sets)
            }
            shapes = self.annotate(function, query, polygons=False, least=None)
            assert [x.label_id for x in shapes] == [52] * len(parts["fish"]) + [50] * len(
                parts["person"]
            )
            height, width = many.labels.shape
            for shape, part in zip(shapes, [*parts["fish"], *parts["person"]], strict=True):
                drawn = decode_mask(shape.points, image_width=width, image_height=height)
                assert (torch.from_numpy(drawn) == part.mask).all()
            sure = self.annotate(function, query, polygons=False, least=0.8)
            scores = [part.score for some in parts.values() for part in some]
            assert len(sure) == sum(score >= 0.8 for score in scores)

    def test_polygons(self, function: Any, model: HDMNet, sets: dict[str, SupportSet]) -> None:
        many = model.predict(QUERIES[0], sets)
        shapes = self.annotate(function, QUERIES[0], polygons=True, least=None)
        assert {x.type.value for x in shapes} == {"polygon"}
        mask = (many.labels == 1).numpy()
        drawn = np.zeros_like(mask)
        for shape in shapes:
            if shape.label_id == 52:
                drawn |= outline(shape, mask.shape)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95

    def test_no_class(self) -> None:
        pytest.importorskip("cvat_sdk", reason="needs hdmnet[cvat]")
        from hdmnet.integrations.cvat import create

        with pytest.raises(ValueError, match="-p NAME=str:FILE"):
            create()


def test_holes_are_no_polygons() -> None:
    pytest.importorskip("cvat_sdk", reason="needs hdmnet[cvat]")
    from hdmnet.integrations.cvat import TOLERANCE, _shapes

    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[5:35, 0:40] = True  # at the left border of the image
    mask[15:25, 10:30] = False
    (shape,) = _shapes(3, Instance(mask, (0, 5, 40, 35), 0.9), polygons=True)
    points = np.reshape(shape.points, (-1, 2))
    assert points.min(axis=0) == pytest.approx([0, 5], abs=TOLERANCE)
    assert points.max(axis=0) == pytest.approx([40, 35], abs=TOLERANCE)


def outline(shape: Any, size: tuple[int, ...]) -> np.ndarray:
    """Fill a polygon of CVAT, whose coordinates are corners of pixels."""
    picture = Image.new("1", (size[1], size[0]))
    points = np.reshape(shape.points, (-1, 2)) - 0.5
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points.tolist()], fill=1)
    return np.asarray(picture)
