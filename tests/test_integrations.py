"""hdmnet inside other tools, with the real packages of these tools."""

import atexit
import json
import logging
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL, Popen
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_readme import snippets

from hdmnet import Box, HDMNet, SupportSet
from hdmnet.segmentation import Instance, Segmentation

# Their packages are large: the development extra has them, the test extra does not. Label Studio's
# is in neither, because it asks for an older NumPy.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("integrations")]
DATA = Path(__file__).parents[1] / "examples" / "data"
QUERIES = [DATA / "fish" / f"query_{i}.jpg" for i in (1, 2)] + [DATA / "person" / "query_1.jpg"]


@pytest.fixture(scope="module")
def model(small_lite0: Path) -> HDMNet:
    return HDMNet.from_pretrained(small_lite0).fused()


@pytest.fixture(scope="module")
def sets(model: HDMNet) -> dict[str, SupportSet]:
    pairs = {name: DATA / name / "support_1" for name in ("fish", "person")}
    return {
        name: model.encode_supports(path.with_suffix(".jpg"), path.with_suffix(".png"))
        for name, path in pairs.items()
    }


class TestFiftyOne:
    """On a dataset in a MongoDB of FiftyOne's package."""

    @pytest.fixture(scope="class")
    def fiftyone(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        """FiftyOne with an empty database.

        It would start one itself, but in the home directory, and it gives up after a minute, which
        a busy machine can take.
        """
        package = find_spec("fiftyone")
        if package is None or package.origin is None:
            pytest.skip("needs hdmnet[fiftyone]")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        folder = tmp_path_factory.mktemp("mongodb")
        program = [Path(package.origin).parent / "db" / "bin" / "mongod", "--nounixsocket"]
        program += ["--dbpath", folder, "--port", port, "--bind_ip", "127.0.0.1"]
        database = Popen(program, stdout=DEVNULL)
        # Not before: FiftyOne uses it once more when Python ends. Python calls the last one first.
        atexit.register(database.terminate)
        import pymongo

        address = f"mongodb://127.0.0.1:{port}"
        with pymongo.MongoClient(address, serverSelectionTimeoutMS=300_000) as client:
            client.admin.command("ping")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIFTYONE_DATABASE_URI", address)
            patch.setenv("FIFTYONE_DO_NOT_TRACK", "1")
            import fiftyone

            yield fiftyone

    @pytest.fixture
    def dataset(self, fiftyone: Any) -> Iterator[Any]:
        dataset = fiftyone.Dataset()
        dataset.add_samples([fiftyone.Sample(filepath=str(path)) for path in QUERIES])
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

    def test_the_snippet_of_the_page(
        self,
        fiftyone: Any,
        small_bundled: None,
        sets: dict[str, SupportSet],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        for query in QUERIES:
            shutil.copy(query, photos / f"{query.parent.name}_{query.name}")
        for name, one in sets.items():
            one.save(tmp_path / f"{name}.safetensors")
        monkeypatch.chdir(tmp_path)
        shown: list[Any] = []
        monkeypatch.setattr(fiftyone, "launch_app", shown.append)  # a browser
        (snippet,) = snippets("docs/integrations.md")
        exec(compile(snippet, "docs/integrations.md", "exec"), {})
        (dataset,) = shown
        assert [set(sample.hdmnet.presence) for sample in dataset] == [{"fish", "person"}] * 3
        dataset.delete()

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
    def function(self, small_lite0: Path, sets: dict[str, SupportSet], tmp_path: Path) -> Any:
        pytest.importorskip("cvat_sdk", reason="needs hdmnet[cvat]")
        from hdmnet.integrations.cvat import create

        for name, one in sets.items():
            one.save(tmp_path / f"{name}.safetensors")
        files = {name: str(tmp_path / f"{name}.safetensors") for name in sets}
        return create(model=str(small_lite0), **files)

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


LABELS = """
<View>
  <Image name="photo" value="$image"/>
  <BrushLabels name="mask" toName="photo">
    <Label value="fish"/><Label value="person"/><Label value="a/b"/>
  </BrushLabels>
  <PolygonLabels name="outline" toName="photo"><Label value="fish"/></PolygonLabels>
  <RectangleLabels name="frame" toName="photo"><Label value="fish"/></RectangleLabels>
</View>
"""
PROJECT = {"id": 7, "created_at": "2026-01-02T03:04:05.678901Z", "label_config": LABELS}
NAME = "7.1767323045"  # of the project, as Label Studio writes it
SUPPORT = DATA / "fish" / "support_1.jpg"


class TestLabelStudio:
    """With requests of the kind that Label Studio 1.23 sends, to the real server."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pytest.importorskip("label_studio_sdk", reason="needs hdmnet[label-studio]")
        from label_studio_sdk._extensions.label_studio_tools.core.utils import io

        monkeypatch.setattr(io, "LOCAL_FILES_DOCUMENT_ROOT", str(DATA))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
        return tmp_path / "supports"

    def test_annotations_become_supports(self, folder: Path, model: HDMNet) -> None:
        with backend(model, folder) as send:
            empty = send("setup", project=NAME, schema=LABELS)["model_version"]
            assert predict(send) == [[]] * 3
            send("webhook", **created(31, brush("fish")))
        with backend(model, folder) as send:  # again, after the end of the other one
            fish = model.encode_supports(SUPPORT, SUPPORT.with_suffix(".png"))
            version = send("setup", project=NAME, schema=LABELS)["model_version"]
            assert version != empty
            for query, (prediction,) in zip(QUERIES, predict(send), strict=True):
                assert prediction["model_version"] == version
                answer = model.predict(query, fish)
                check(prediction, {"fish": answer.mask})
                if prediction["result"]:
                    score = answer.probability[answer.mask].mean().item()
                    assert prediction["result"][0]["score"] == pytest.approx(score)
                    assert prediction["score"] == pytest.approx(score)
            assert predict(send, project="7.1767323046") == [[]] * 3
            assert predict(send, project="8.1767323045") == [[]] * 3

    def test_classes_and_shots(self, folder: Path, model: HDMNet) -> None:
        person = DATA / "person" / "support_1.jpg"
        both = brush("a/b", person), brush("fish", person)
        with backend(model, folder, shots=2) as send:
            send("webhook", **created(100, brush("fish")))
            corner = {"points": [(0, 0), (20, 0), (0, 20)]}
            send("webhook", **created(9, region("outline", "polygonlabels", corner)))  # the oldest
            send("webhook", **created(101, *both, image=person))
        one, two = (model.encode_supports(p, p.with_suffix(".png")) for p in (SUPPORT, person))
        many = model.predict(QUERIES, {"fish": one.merge(two), "a/b": two})
        with backend(model, folder, shots=2) as send:
            for (prediction,), answer in zip(predict(send), many, strict=True):
                wanted = {"fish": answer.labels == 1, "a/b": answer.labels == 2}
                check(prediction, wanted)

    def test_changed_skipped_and_deleted(self, folder: Path, model: HDMNet) -> None:
        def kept(*events: dict[str, Any]) -> set[tuple[str, str]]:
            with backend(model, folder) as send:
                for event in events:
                    send("webhook", **event)
            return {(p.parent.name, p.stem) for p in folder.glob("*/*/*/*/*.safetensors")}

        fish = brush("fish")
        one, two = created(1, fish), created(2, fish, task=5)
        assert kept(one, two) == {("1", "fish"), ("2", "fish")}
        again = {"action": "START_TRAINING", "project": PROJECT}  # without the key to read them
        assert kept(again) == {("1", "fish"), ("2", "fish")}
        changed = created(1, brush("person")) | {"action": "ANNOTATION_UPDATED"}
        assert kept(changed) == {("1", "person"), ("2", "fish")}
        other = PROJECT | {"created_at": "2026-01-02T03:04:06Z"}
        gone = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": PROJECT}
        assert kept(gone | {"project": other}) == {("1", "person"), ("2", "fish")}
        assert kept(gone) == {("2", "fish")}
        both = {
            "action": "ANNOTATIONS_CREATED",
            "project": PROJECT,
            "task": [one["task"], two["task"]],
            "annotation": [{"id": 3, "result": [fish]}, {"id": 4, "result": [fish]}],
        }
        assert kept(both) == {("2", "fish"), ("3", "fish"), ("4", "fish")}
        deleted = {"action": "TASKS_DELETED", "tasks": [{"id": 5}], "project": PROJECT}
        assert kept(deleted, {"action": "LABEL_LINK_CREATED"}) == {("3", "fish")}
        skipped = created(3, fish)
        skipped["annotation"]["was_cancelled"] = True
        assert kept(skipped) == set()

    @pytest.mark.parametrize("turn", [0, 90])
    def test_outlines_and_boxes(self, folder: Path, model: HDMNet, turn: int) -> None:
        width, height = Image.open(SUPPORT).size
        points = [(0, 0), (50, 0), (50, 100), (0, 100)]
        half = {"x": 50, "y": 10, "width": 40, "height": 30, "rotation": turn}
        outline = region("outline", "polygonlabels", {"points": points})
        frame = region("frame", "rectanglelabels", half)
        with backend(model, folder) as send:
            for number, regions in enumerate(((outline,), (frame,), (outline, frame)), start=1):
                send("webhook", **created(number, *regions))
        left = np.zeros((height, width), bool)
        left[:, : width // 2] = True
        x, y, w, h = width / 2, height / 10, 0.4 * width, 0.3 * height
        box = Box(x, y, x + w, y + h) if turn == 0 else Box(x - h, y, x, y + w)
        both = left | (model.pseudo_mask(SUPPORT, box).numpy() > 0)
        for number, mask in ((1, left), (2, box), (3, both)):
            (file,) = folder.glob(f"*/*/*/{number}/fish.safetensors")
            wanted = model.encode_supports(SUPPORT, mask).prototypes
            assert torch.allclose(SupportSet.load(file).prototypes, wanted, atol=1e-5)

    def test_what_cannot_be_done(
        self, folder: Path, model: HDMNet, caplog: pytest.LogCaptureFixture
    ) -> None:
        from label_studio_sdk.converter.brush import mask2rle

        size = Image.open(SUPPORT).size[::-1]
        with backend(model, folder) as send:
            for config in ("<View/>", LABELS.replace("BrushLabels", "EllipseLabels")):
                with pytest.raises(HTTPError, match="400") as caught:
                    send("setup", project=NAME, schema=config)
                assert b"expected BrushLabels" in caught.value.read()
            with pytest.raises(HTTPError, match="400") as caught:
                predict(send, project="../7.1")
            assert b"expected a project" in caught.value.read()
            with pytest.raises(HTTPError, match="404"):
                send("duplicate_model")
            person = DATA / "person" / "support_1.jpg"  # of another size
            send("webhook", **created(1, brush("fish", person)))
            send("webhook", **created(2, brush("fish"), {"type": "relation"}))
            nothing = region("mask", "brushlabels", {"rle": mask2rle(np.zeros(size, np.uint8))})
            send("webhook", **created(3, nothing))
            send("webhook", **created("../2", brush("fish")))
        assert "annotation 1 does not become a support" in caplog.text
        assert [p.parent.name for p in folder.glob("*/*/*/*/*.safetensors")] == ["2"]
        with backend(model, folder) as send:
            tasks = [{"id": 8, "data": {}}, {"id": 9, "data": {"image": url(QUERIES[0])}}]
            results = send("predict", project=NAME, label_config=LABELS, tasks=tasks)["results"]
        assert [len(answers) for answers in results] == [0, 1]
        assert "task 8 gets no prediction" in caplog.text

    def test_from_the_server(
        self, folder: Path, model: HDMNet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Uploaded images need the key that a personal access token is exchanged for."""
        import jwt

        token = jwt.encode({"exp": 2**32, "token_type": "refresh"}, "secret" * 8)
        task = {"id": 5, "data": {"image": "/data/upload/7/a.jpg"}, "inner_id": 1, "project": 7}
        task["annotations"] = [{"id": 6, "result": [brush("fish")]}]

        class LabelStudio(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, body) == ("/api/token/refresh/", {"refresh": token})
                self.answer(200, json.dumps({"access": access}).encode())

            def do_GET(self) -> None:
                if self.headers["Authorization"] != f"Bearer {access}":
                    self.answer(401, b"{}")
                elif "page=2" in self.path:
                    self.answer(404, b"{}")  # as Label Studio does
                elif self.path.startswith("/api/tasks/"):
                    self.answer(200, json.dumps({"tasks": [task], "total": 1}).encode())
                else:
                    self.answer(200, SUPPORT.read_bytes())

            def answer(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        access = jwt.encode({"exp": 2**32, "token_type": "access"}, "secret" * 8)
        with running(ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio)) as address:
            monkeypatch.setenv("LABEL_STUDIO_URL", address)
            monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
            with backend(model, folder) as send:
                send("webhook", **created(1, brush("fish")))
                send("webhook", action="START_TRAINING", project=PROJECT)
        (file,) = folder.glob("*/*/*/*/*.safetensors")
        assert file.parent.parts[-2:] == ("5", "6")  # what is not on the server is gone


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve in another thread, and close. Yield the address."""
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def backend(model: HDMNet, folder: Path, shots: int = 10) -> Iterator[Any]:
    """Start a backend. Yield what sends a request to it, and handle all events in the end."""
    from hdmnet.integrations.label_studio import BackendServer, FewShotBackend

    server = BackendServer(FewShotBackend(model, folder, shots=shots), ("127.0.0.1", 0))
    with running(server) as address:

        def send(path: str, **body: Any) -> Any:
            headers = {"Content-Type": "application/json"}
            request = Request(f"{address}/{path}", json.dumps(body).encode(), headers)
            with urlopen(request) as response:
                return json.load(response)

        with urlopen(f"{address}/health") as response:
            assert json.load(response) == {"status": "UP"}
        yield send


def url(path: Path) -> str:
    return f"/data/local-files/?d={path.relative_to(DATA).as_posix()}"


def predict(send: Any, project: str = NAME) -> list[list[dict[str, Any]]]:
    tasks = [{"id": i, "data": {"image": url(query)}} for i, query in enumerate(QUERIES)]
    return send("predict", project=project, label_config=LABELS, tasks=tasks)["results"]


def region(tag: str, kind: str, value: dict[str, Any], label: str = "fish") -> dict[str, Any]:
    width, height = Image.open(SUPPORT).size
    return {
        "type": kind,
        "from_name": tag,
        "to_name": "photo",
        "original_width": width,
        "original_height": height,
        "value": {**value, kind: [label]},
    }


def brush(label: str, image: Path = SUPPORT) -> dict[str, Any]:
    """Return the region that Label Studio's importer of masks makes of the mask of an image."""
    from label_studio_sdk.converter.brush import image2annotation

    mask = str(image.with_suffix(".png"))
    return image2annotation(mask, label, "mask", "photo")["result"][0]


def created(
    number: Any, *regions: dict[str, Any], image: Path = SUPPORT, task: int = 3
) -> dict[str, Any]:
    """Return the event of a new annotation."""
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": number, "result": list(regions), "was_cancelled": False},
        "task": {"id": task, "data": {"image": url(image)}},
        "project": PROJECT,
    }


def check(prediction: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    """Compare the masks of a prediction with those of the model."""
    from label_studio_sdk.converter.brush import decode_rle

    wanted = {label: mask for label, mask in wanted.items() if mask.any()}
    assert [x["value"]["brushlabels"] for x in prediction["result"]] == [[x] for x in wanted]
    for found, mask in zip(prediction["result"], wanted.values(), strict=True):
        size = found["original_height"], found["original_width"]
        assert (found["type"], found["value"]["format"]) == ("brushlabels", "rle")
        assert (found["from_name"], found["to_name"], size) == ("mask", "photo", mask.shape)
        drawn = decode_rle(found["value"]["rle"]).reshape(*size, 4)
        assert (drawn[..., 3] == np.where(mask, 255, 0)).all()
