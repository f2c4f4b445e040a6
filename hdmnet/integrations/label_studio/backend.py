"""The backend: Label Studio's annotations in, predictions out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hdmnet.annotations import Box
from hdmnet.base import FewShotModel
from hdmnet.integrations.label_studio.regions import (
    Json,
    brush_region,
    client,
    download_image,
    find_brush,
    read_masks,
)
from hdmnet.integrations.label_studio.store import SupportStore
from hdmnet.supports import SupportSet

logger = logging.getLogger(__name__)


class FewShotBackend:
    """The supports of Label Studio's projects, and what a model predicts with them.

    Args:
        model: The model.
        folder: Supports are kept here, apart for each model and each project.
        shots: The newest annotations of a class are its supports, up to this number.
    """

    def __init__(self, model: FewShotModel, folder: str | Path, *, shots: int = 10) -> None:
        self._model = model
        self._store = SupportStore(Path(folder) / model.fingerprint(), shots)

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
        return self._store.version(project)

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
        device = next(self._model.parameters()).device
        version, supports = self._store.load(project, tag["labels"], device)
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
                    self._store.delete(project, f"*/{annotation['id']:d}")
            case {"action": "TASKS_DELETED", "project": project}:
                for task in event["tasks"]:
                    self._store.delete(project, f"{task['id']:d}")
            case {"action": "START_TRAINING", "project": project}:
                tasks = list(client().tasks.list(project=project["id"], fields="all"))
                self._store.delete(project, "*")  # not before: Label Studio may not answer
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
            brush_region(label, only, name, tag) for label, only in found.items() if only.mask.any()
        ]
        score = min((region["score"] for region in regions), default=0.0)
        return [{"result": regions, "score": score, "model_version": version}]

    def _keep(self, project: Json, task: Json, annotation: Json) -> None:
        """Replace the supports that come from an annotation."""
        folder = self._store.delete(project, f"{task['id']:d}/{annotation['id']:d}")
        if annotation.get("was_cancelled"):
            return
        try:
            masks = read_masks(self._model, project["label_config"], task, annotation)
            for label, shown in masks.items():
                if all(isinstance(mask, Box) or mask.any() for mask in shown.values()):
                    encoded = self._model.encode_supports(list(shown), list(shown.values()))
                    self._store.save(folder, label, encoded)
        except Exception:
            logger.exception("annotation %s does not become a support", annotation["id"])
