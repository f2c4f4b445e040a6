"""A backend for Label Studio: finished annotations become supports, and tasks get predictions.

    python -m hdmnet.integrations.label_studio supports --port 9090

Brush masks, polygons and rectangles show a class. A prediction has a brush mask of each class.
Needs the extra `label-studio`: in a clone, `pip install '.[label-studio]'`.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import quote, unquote

import click
import numpy as np
from PIL import Image, ImageDraw

from hdmnet.annotations import Box
from hdmnet.base import FewShotModel
from hdmnet.model import HDMNet
from hdmnet.supports import SupportSet

try:
    from label_studio_sdk import LabelStudio
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
    from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
    from label_studio_sdk.converter.brush import decode_rle, mask2rle
except ImportError as error:
    raise ImportError(
        "hdmnet.integrations.label_studio needs: pip install 'hdmnet[label-studio]', or "
        "'.[label-studio]' in a clone"
    ) from error

logger = logging.getLogger(__name__)
Json = Mapping[str, Any]
KINDS = ("brushlabels", "polygonlabels", "rectanglelabels")


class FewShotBackend:
    """The supports of Label Studio's projects, and what a model predicts with them.

    Args:
        model: The model.
        folder: Supports are kept here, apart for each model and each project.
        shots: The newest annotations of a class are its supports, up to this number.
    """

    def __init__(self, model: FewShotModel, folder: str | Path, *, shots: int = 10) -> None:
        self._model, self._shots, self._lock = model, shots, RLock()
        self._folder = Path(folder) / model.fingerprint()

    def setup(self, project: str, label_config: str) -> str:
        """Name the present supports: Label Studio wants new predictions when the name changes.

        Args:
            project: Number of the project, a point, and the second when it was made.
            label_config: The labeling interface of the project.

        Raises:
            ValueError: If the labeling interface has no BrushLabels, or `project` is something
                else.
        """
        _brush(label_config)
        with self._lock:
            files = [(str(path), path.stat().st_mtime_ns) for path in self._files(project)]
        return f"hdmnet-{zlib.crc32(repr(files).encode()):08x}"

    def predict(self, project: str, label_config: str, tasks: Sequence[Json]) -> list[list[Json]]:
        """Predict a brush mask of each class that has supports.

        Args:
            project: As for `setup`.
            label_config: As for `setup`.
            tasks: Tasks of the project.

        Returns:
            One prediction for each task, in a list. The list is empty if no class has supports, or
            if the task has no image that can be read, which is logged.

        Raises:
            ValueError: As for `setup`.
        """
        name, tag = _brush(label_config)
        with self._lock:
            version = self.setup(project, label_config)
            supports = self._supports(project, tag["labels"])
        if not supports:
            return [[] for _ in tasks]
        return [self._answer(task, name, tag, supports, version) for task in tasks]

    def handle(self, event: Json) -> None:
        """Keep the supports that an event shows, or delete those of what was deleted.

        Args:
            event: What Label Studio sends to a webhook. START_TRAINING reads all annotations of the
                project again. Events of other things than annotations and tasks change nothing.
        """
        match event:
            case {"action": "ANNOTATION_CREATED" | "ANNOTATION_UPDATED", "project": project}:
                self._keep(project, event["task"], event["annotation"])
            case {"action": "ANNOTATIONS_CREATED", "project": project}:
                for task, annotation in zip(event["task"], event["annotation"], strict=True):
                    self._keep(project, task, annotation)
            case {"action": "ANNOTATIONS_DELETED", "project": project}:
                for annotation in event["annotations"]:
                    self._delete(project, f"*/{annotation['id']:d}")
            case {"action": "TASKS_DELETED", "project": project}:
                for task in event["tasks"]:
                    self._delete(project, f"{task['id']:d}")
            case {"action": "START_TRAINING", "project": project}:
                tasks = list(_client().tasks.list(project=project["id"], fields="all"))
                self._delete(project, "*")  # not before: Label Studio may not answer
                for task in tasks:
                    for annotation in task.annotations:
                        self._keep(project, {"id": task.id, "data": task.data}, annotation)

    def _answer(
        self, task: Json, name: str, tag: Json, supports: Mapping[str, SupportSet], version: str
    ) -> list[Json]:
        try:
            found = self._model.predict(_image(task, tag), supports).without_overlaps()
        except Exception:  # the network, the file, the task: the other tasks go on
            logger.exception("task %s gets no prediction", task["id"])
            return []
        regions = [
            {
                "type": "brushlabels",
                "from_name": name,
                "to_name": tag["to_name"][0],
                "original_width": only.mask.shape[1],
                "original_height": only.mask.shape[0],
                "value": {
                    "format": "rle",
                    "rle": mask2rle(only.mask.numpy().astype(np.uint8) * 255),
                    "brushlabels": [label],
                },
                "score": only.probability[only.mask].mean().item(),
            }
            for label, only in found.items()
            if only.mask.any()
        ]
        score = min((region["score"] for region in regions), default=0.0)
        return [{"result": regions, "score": score, "model_version": version}]

    def _keep(self, project: Json, task: Json, annotation: Json) -> None:
        """Replace the supports that come from an annotation."""
        folder = self._delete(project, f"{task['id']:d}/{annotation['id']:d}")
        if annotation.get("was_cancelled"):
            return
        try:
            tags = parse_config(project["label_config"])
            images: dict[str, str] = {}  # by tag: each costs requests
            masks: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
            for region in annotation["result"]:
                if (kind := region.get("type")) in KINDS:
                    name = region["from_name"]
                    images[name] = image = images.get(name) or _image(task, tags[name])
                    drawn = self._draw(image, region)
                    for label in region["value"][kind]:
                        masks[label][image] = drawn | masks[label].get(image, False)
            for label, shown in masks.items():
                if all(mask.any() for mask in shown.values()):
                    encoded = self._model.encode_supports(list(shown), list(shown.values()))
                    with self._lock:
                        folder.mkdir(parents=True, exist_ok=True)
                        encoded.save(folder / f"{quote(label, safe='')}.safetensors")
        except Exception:
            logger.exception("annotation %s does not become a support", annotation["id"])

    def _draw(self, image: str, region: Json) -> np.ndarray:
        """Return the mask (H, W) of a region. Its coordinates are percents of the image."""
        value, size = region["value"], (region["original_width"], region["original_height"])
        if region["type"] == "brushlabels":
            return decode_rle(value["rle"]).reshape(size[1], size[0], 4)[..., 3] > 127
        scale = np.array(size) / 100
        if region["type"] == "polygonlabels":
            canvas = Image.new("1", size)
            corners = np.array(value["points"]) * scale - 0.5  # PIL counts from centres of pixels
            ImageDraw.Draw(canvas).polygon([tuple(xy) for xy in corners.tolist()], fill=1)
            return np.array(canvas)
        turn = np.exp(1j * np.deg2rad(value.get("rotation", 0)))  # around the first corner
        x, y = np.array([value["x"], value["y"]]) * scale
        width, height = np.array([value["width"], value["height"]]) * scale
        corners = x + 1j * y + turn * np.array([0, width, 1j * height, width + 1j * height])
        box = Box(corners.real.min(), corners.imag.min(), corners.real.max(), corners.imag.max())
        return self._model.pseudo_mask(image, box).numpy() > 0

    def _delete(self, project: Json, pattern: str) -> Path:
        """Delete the folders that fit a pattern, TASK or TASK/ANNOTATION. Return such a path."""
        made = int(datetime.fromisoformat(project["created_at"]).timestamp())
        folder = self._folder / f"{project['id']:d}.{made}"
        with self._lock:
            for path in folder.glob(pattern):
                shutil.rmtree(path)
        return folder / pattern

    def _files(self, project: str) -> list[Path]:
        """Return the files of a project, of the oldest annotation first."""
        if not re.fullmatch(r"\d+\.\d+", project):
            raise ValueError(f"expected a project such as 7.1790000000, got {project!r}")
        files = (self._folder / project).glob("*/*/*.safetensors")
        return sorted(files, key=lambda path: (int(path.parent.name), path.name))

    def _supports(self, project: str, labels: Sequence[str]) -> dict[str, SupportSet]:
        files = defaultdict(list)
        for path in self._files(project):
            files[unquote(path.stem)].append(path)
        device = next(self._model.parameters()).device
        supports = {}
        for label in labels:
            if label in files:
                sets = [SupportSet.load(path, device) for path in files[label][-self._shots :]]
                supports[label] = sets[0].merge(*sets[1:])
        return supports


class BackendServer(ThreadingHTTPServer):
    """A server that speaks Label Studio's protocol of backends.

    Args:
        backend: The backend.
        address: Host and port. Port 0 is any free one, see `server_port`.
    """

    def __init__(self, backend: FewShotBackend, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.backend = backend
        # Label Studio waits one second for a webhook. One thread keeps the order of events.
        self.events = ThreadPoolExecutor(max_workers=1)

    def server_close(self) -> None:
        """Close, after the work for all events that came."""
        super().server_close()
        self.events.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: BackendServer

    def do_GET(self) -> None:
        self._send(200, {"status": "UP"})

    def do_POST(self) -> None:
        backend = self.server.backend
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match self.path.rpartition("/")[2]:
                case "setup":
                    version = backend.setup(body["project"], body["schema"])
                    self._send(200, {"model_version": version})
                case "predict":
                    results = backend.predict(body["project"], body["label_config"], body["tasks"])
                    self._send(200, {"results": results})
                case "webhook":
                    self.server.events.submit(self._handle, body)
                    self._send(200, {})
                case _:
                    self._send(404, {"error": f"no such path: {self.path}"})
        except (KeyError, TypeError, ValueError) as error:
            logger.exception("a request that cannot be answered")
            self._send(400, {"error": f"{type(error).__name__}: {error}"})

    def _handle(self, event: Json) -> None:
        try:
            self.server.backend.handle(event)
        except Exception:
            logger.exception("an event that cannot be handled")

    def _send(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _brush(label_config: str) -> tuple[str, dict[str, Any]]:
    """Return the first BrushLabels of a labeling interface: its name, and what is in it."""
    tags = parse_config(label_config)
    for name, tag in tags.items():
        if tag["type"] == "BrushLabels":
            return name, tag
    raise ValueError(f"expected BrushLabels in the labeling interface, got {list(tags)}")


def _image(task: Json, tag: Json) -> str:
    """Return the file of the image that a tag of the labeling interface labels."""
    key = os.environ.get("LABEL_STUDIO_API_KEY", "")
    if key.count(".") == 2:  # get_local_path needs the short-lived key that this token gives
        key = _client().tokens.refresh(refresh=key).access
    url = task["data"][tag["inputs"][0]["value"]]
    return str(get_local_path(url, access_token=key, task_id=task["id"]))


def _client() -> LabelStudio:
    return LabelStudio(
        base_url=os.environ["LABEL_STUDIO_URL"], api_key=os.environ["LABEL_STUDIO_API_KEY"]
    )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", default="hdmnet-lite0", help="A bundled model, a folder, or a Hub name.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1 or mps.")
@click.option("--shots", default=10, help="Annotations of a class that are used, the newest ones.")
@click.option("--host", default="127.0.0.1", help="0.0.0.0 is open to other computers.")
@click.option("--port", default=9090)
def main(folder: Path, model: str, device: str, shots: int, host: str, port: int) -> None:
    """Serve predictions to Label Studio. The supports are kept in FOLDER."""
    logging.basicConfig(level=logging.INFO)
    network = HDMNet.from_pretrained(model).to(device).fused()
    backend = FewShotBackend(network, folder, shots=shots)
    with BackendServer(backend, (host, port)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
