"""A model's `predict` on its exported graphs, with onnxruntime."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hdmnet.base import FewShotModel
from hdmnet.nn.backbone import FeaturePyramid, normalise
from hdmnet.onnx.export import ENCODER, FORMAT, KEY, MATCHER
from hdmnet.supports import SupportSet


class Session:
    """Runs the two graphs of `export_onnx` or `quantize` like the model that they come from.

    `encode_supports`, `predict` and `predict_iter` are those of `FewShotModel`. The model and a
    session of its graphs take each other's support sets. Several classes cost a run of the graph
    for each class.

    Args:
        folder: Folder of `supports.onnx` and `query.onnx`.
        threads: Threads that a run uses. None: one for each core. onnxruntime does not look at
            `OMP_NUM_THREADS`.

    Raises:
        ImportError: If onnxruntime is not installed.
        FileNotFoundError: If the folder lacks one of the graphs.
        ValueError: If a graph is damaged, or not written by this version of `export_onnx`.

    Example:
        >>> session = Session("onnx")
        >>> result = session.predict("query.jpg", "support.jpg", "support.png")
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        paths = Path(folder) / ENCODER, Path(folder) / MATCHER
        self.network = Network(*(open_graph(path, threads) for path in paths))
        self.encode_supports = self.network.encode_supports
        self.predict = self.network.predict
        self.predict_iter = self.network.predict_iter


def open_graph(path: Path, threads: int | None = None) -> Any:
    """Open a graph with onnxruntime, on the CPU.

    Raises:
        ImportError: If onnxruntime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a graph that onnxruntime can run.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "running ONNX graphs needs: pip install 'hdmnet[onnx]', or '.[onnx]' in a clone"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: write it with export_onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each kind of failure
        raise ValueError(f"onnxruntime cannot run {path}: {error}") from error


class Network(FewShotModel):
    """A network whose `encode` and `scores` run graphs."""

    def __init__(self, encoder: Any, matcher: Any) -> None:
        super().__init__()
        self.encoder, self.matcher = encoder, matcher
        about = _read_metadata(matcher)
        if about != _read_metadata(encoder):
            raise ValueError(
                f"{ENCODER} and {MATCHER} are of different models: export both together"
            )
        self.backbone = cast(FeaturePyramid, _Pixels(about["mean"], about["std"]))
        self.image_size, self.smallest_size = about["image_size"], about["smallest_size"]
        self._fingerprint = str(about["fingerprint"])
        self._channels = tuple(about["channels"])
        self._names = [output.name for output in encoder.get_outputs()]
        self.eval()

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """See `FewShotModel.encode`."""
        trained = self.encoder.get_inputs()[0].shape[1]
        if isinstance(trained, int) and trained != supports.shape[1]:
            raise ValueError(
                f"got {supports.shape[1]} supports: this graph takes {trained}, the shots that its "
                "model was trained with"
            )
        tensors = _run(self.encoder, {"supports": supports, "masks": masks})
        fields = dict(zip(map(_field, self._names), tensors, strict=True))
        return SupportSet.from_named_tensors(fields)

    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        """See `FewShotModel.scores`."""
        supports.check_fits(self.fingerprint, self._channels, query.device)
        if supports.negatives is not None:
            raise ValueError(
                "a session has no use of negatives: write a file of this class with "
                "export_onnx(model, folder, supports), or use the model"
            )
        tensors = supports.to(dtype=torch.float32).named_tensors().values()
        feed = {"query": query, **dict(zip(self._names, tensors, strict=True))}
        return _run(self.matcher, feed)[0]

    def fingerprint(self) -> str:
        """Return the fingerprint of the model that was exported."""
        return self._fingerprint


class _Pixels(nn.Module):
    """The part of a backbone that prepares images. The parameter gives them a device and dtype."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.empty = nn.Parameter(torch.empty(0), requires_grad=False)

    def normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


def _field(name: str) -> str:
    """Undo what the export does to names: tokens_0_key_sum → tokens.0.key_sum."""
    return re.sub(r"_(\d+)_", r".\1.", name)


def _run(session: Any, feed: Mapping[str, Tensor]) -> list[Tensor]:
    arrays = session.run(None, {name: x.contiguous().numpy() for name, x in feed.items()})
    return [torch.from_numpy(array) for array in arrays]


def _read_metadata(session: Any) -> dict[str, Any]:
    about = json.loads(session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
    if about.get("format") != FORMAT:
        raise ValueError(
            "the graph is not of this version of hdmnet: write it again with export_onnx"
        )
    return cast(dict[str, Any], about)
