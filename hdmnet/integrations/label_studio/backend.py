"""The supports of Label Studio's projects, and what a model predicts with them."""

import logging
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import RLock
from urllib.parse import quote, unquote

import numpy as np
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from label_studio_sdk.converter.brush import mask2rle

from hdmnet.base import FewShotModel
from hdmnet.integrations.label_studio.regions import (
    Json,
    client,
    download_image,
    draw_region,
    find_brush,
)
from hdmnet.supports import SupportSet

logger = logging.getLogger(__name__)
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
        find_brush(label_config)
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
        name, tag = find_brush(label_config)
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
                tasks = list(client().tasks.list(project=project["id"], fields="all"))
                self._delete(project, "*")  # not before: Label Studio may not answer
                for task in tasks:
                    for annotation in task.annotations:
                        self._keep(project, {"id": task.id, "data": task.data}, annotation)

    def _answer(
        self, task: Json, name: str, tag: Json, supports: Mapping[str, SupportSet], version: str
    ) -> list[Json]:
        try:
            found = self._model.predict(download_image(task, tag), supports).without_overlaps()
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
                    images[name] = image = images.get(name) or download_image(task, tags[name])
                    drawn = draw_region(self._model, image, region)
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
