"""Export to ONNX: a graph that encodes supports and one for queries, or one graph of a class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet._files import write_whole
from hdmnet.model import HDMNet
from hdmnet.preprocess import resize_image
from hdmnet.segmentation import Segmentation
from hdmnet.supports import SupportSet

ENCODER, MATCHER, CLASS = "supports.onnx", "query.onnx", "segment.onnx"
KEY, FORMAT = "hdmnet", "hdmnet onnx 1"
"""Key of the metadata of each graph, and what it says first."""
SMALLEST = 64
"""Smallest height and width, in pixels: for smaller images, the exporter takes other branches."""

LARGEST = 1536 * 2**20
"""Most bytes of weights. PyTorch writes larger ones to a second file beside the graph."""


@overload
def export_onnx(model: HDMNet, folder: str | Path) -> tuple[Path, Path]: ...


@overload
def export_onnx(model: HDMNet, folder: str | Path, supports: SupportSet) -> Path: ...


def export_onnx(
    model: HDMNet, folder: str | Path, supports: SupportSet | None = None
) -> Path | tuple[Path, Path]:
    """Write a model as ONNX graphs, in float32: two graphs for all classes, or one for one class.

    Without `supports`:

    * `supports.onnx` takes `supports` (1, K, 3, H, W) and `masks` (1, K, H, W), as for
      `HDMNet.forward`, and returns the tensors of a `SupportSet`.
    * `query.onnx` takes `query` (B, 3, H, W) and these tensors, and returns `scores`
      (B, 2, H, W): those of `HDMNet.scores`.

    B, H and W are free, with H and W at least 64 and at least `model.smallest_size`. K is free
    too, except if the model has a base learner and was trained with several shots: then K must be
    `shots`. `Session` runs the two graphs.

    With `supports`, `segment.onnx` holds the class, and all that `predict` does with an image when
    `presence_threshold=0`: it does not lower what looks unlike the class. It takes `image`
    (H, W, 3), uint8 RGB of any size, and returns `probability` (H, W), float32 in [0, 1].
    `examples/onnx_without_torch.py` runs it without this package.

    Args:
        model: The model. It is not changed.
        folder: Folder to write to. It is created if it does not exist.
        supports: The class: the result of `model.encode_supports`.

    Returns:
        The paths of `supports.onnx` and `query.onnx`, or the path of `segment.onnx`.

    Raises:
        ImportError: If the packages of `hdmnet[onnx]` are not installed.
        ValueError: If another model encoded the supports, or the set holds several episodes.

    Example:
        >>> encoder, matcher = export_onnx(model, "onnx")
        >>> fish = model.encode_supports("support.jpg", "support.png")
        >>> path = export_onnx(model, "fish", fish)
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX export needs: pip install 'hdmnet[onnx]', or '.[onnx]' in a clone"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if supports is not None:
        return _export_class(model, folder / CLASS, supports)
    return _export_pair(model, folder)


def _export_class(model: HDMNet, path: Path, supports: SupportSet) -> Path:
    if len(supports.prototypes) != 1:
        raise ValueError(
            f"the set holds {len(supports.prototypes)} episodes: expected one, as encode_supports "
            "gives"
        )
    supports = supports.to("cpu", torch.float32)
    model = model.fused().cpu().float()
    # An exported graph compares no fingerprint.
    supports.check_fits(model.fingerprint, model._support_channels, supports.prototypes.device)
    size = {0: torch.export.Dim("height", max=2**15), 1: torch.export.Dim("width", max=2**15)}
    about = {"fingerprint": model.fingerprint(), "shots": supports.shots}
    image = torch.zeros(300, 400, 3, dtype=torch.uint8)
    module = _Class(model, supports).eval()
    _write(module, (image,), (size,), path, ["image"], ["probability"], about)
    return path


def _export_pair(model: HDMNet, folder: Path) -> tuple[Path, Path]:
    trained: int = model.config["shots"]
    fixed = model.ensemble is not None and trained > 1
    model = model.fused().cpu().float()
    if model.psp is not None:
        for branch in model.psp.branches:
            pool = branch.get_submodule("0")
            if isinstance(pool, nn.AdaptiveAvgPool2d):
                branch.set_submodule("0", _PoolByMatrix(cast(int, pool.output_size)))
    smallest = max(model.smallest_size, SMALLEST)
    size = smallest + 8
    shots = trained if fixed else max(trained, 2)
    supports = torch.rand(1, shots, 3, size, size + 8)
    masks = torch.zeros(1, shots, size, size + 8)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    with torch.no_grad():
        encoded = model.encode(supports, masks)
    tensors = encoded.named_tensors()
    encoder, matcher = _Encoder(model).eval(), _Matcher(model, list(tensors)).eval()

    batch, k = torch.export.Dim("batch"), torch.export.Dim("shots")
    height, width = (torch.export.Dim(name, min=smallest) for name in ("height", "width"))
    shot_axis: dict[int, torch.export.Dim] = {} if fixed else {1: k}
    positions = {f"n{i}": torch.export.Dim(f"n{i}") for i in range(len(encoded.tokens) + 2)}
    axes: dict[str, dict[int, torch.export.Dim]] = {}
    for name in tensors:
        if name.startswith("tokens"):
            level = name.split(".")[1]
            axes[name] = {2: positions[f"n{level}"]} if name.endswith(("key", "value")) else {}
        elif name.startswith("prior"):
            last = len(encoded.tokens) + int(name.split(".")[1])
            axes[name] = shot_axis | {2: positions[f"n{last}"]}
        else:
            axes[name] = shot_axis
    about = {
        "fingerprint": model.fingerprint(),
        "image_size": model.image_size,
        "smallest_size": smallest,
        "mean": model.backbone.mean,
        "std": model.backbone.std,
        "channels": encoded.channels,
    }
    paths = folder / ENCODER, folder / MATCHER
    names = [name.replace(".", "_") for name in tensors]
    _write(
        encoder,
        (supports, masks),
        (shot_axis | {3: height, 4: width}, shot_axis | {2: height, 3: width}),
        paths[0],
        ["supports", "masks"],
        names,
        about,
    )
    query = torch.rand(2, 3, size + 8, size)
    _write(
        matcher,
        (query, *tensors.values()),
        ({0: batch, 2: height, 3: width}, tuple(axes.values())),
        paths[1],
        ["query", *names],
        ["scores"],
        about,
    )
    return paths


def _write(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    about: Mapping[str, object],
) -> None:
    size = sum(x.nbytes for x in (*module.parameters(), *module.buffers()))
    if size > LARGEST:
        raise ValueError(
            f"{path.name} would have weights of {size / 1e9:.2f} GB: expected at most "
            f"{LARGEST / 1e9:.2f} GB, as a graph in one file has; choose a smaller backbone"
        )
    program = torch.onnx.export(
        module,
        arguments,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model = _rewrite(program.model)
    program.model.metadata_props[KEY] = json.dumps({"format": FORMAT, **about})
    write_whole(path, program.save)


def _rewrite(graph: Any) -> Any:
    """Write softmax(x) of two channels as sigmoid(x - flip(x)).

    onnxruntime would transpose the full-size map for a softmax over channels.
    """
    from onnxscript.rewriter import pattern, rewrite

    def softmax(op: Any, x: Any) -> Any:
        return op.Softmax(x, axis=1)

    def sigmoid(op: Any, x: Any) -> Any:
        return op.Sigmoid(op.Sub(x, op.Gather(x, op.Constant(value_ints=[1, 0]), axis=1)))

    def has_two_channels(context: Any, x: Any) -> bool:
        return x.shape is not None and len(x.shape) == 4 and x.shape[1] == 2

    return rewrite(graph, [pattern.RewriteRule(softmax, sigmoid, has_two_channels)])


class _Encoder(nn.Module):
    def __init__(self, model: HDMNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, supports: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(supports, masks).named_tensors().values())


class _Matcher(nn.Module):
    def __init__(self, model: HDMNet, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, query: Tensor, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.names, tensors, strict=True))
        return self.model.scores(query, SupportSet.from_named_tensors(named))


class _Class(nn.Module):
    """What `predict` does with one image."""

    def __init__(self, model: HDMNet, supports: SupportSet) -> None:
        super().__init__()
        self.model = model
        self.supports = supports
        mean, std = (torch.tensor(x) for x in (model.backbone.mean, model.backbone.std))
        self.scale = nn.Buffer((1 / (255 * std)).view(3, 1, 1, 1))
        self.shift = nn.Buffer(-mean / std)

    def forward(self, image: Tensor) -> Tensor:
        size = (self.model.image_size, self.model.image_size)
        resized = resize_image(image.permute(2, 0, 1).float(), size)
        # A convolution, because onnxruntime runs plain arithmetic slowly before int8 layers.
        query = F.conv2d(resized[None], self.scale, self.shift, groups=3)
        return Segmentation.from_scores(
            self.model.scores(query, self.supports), image.shape[:2]
        ).probability


class _PoolByMatrix(nn.Module):
    """AdaptiveAvgPool2d as two matrix products: ONNX cannot export it for a free input size."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._weights(x, x.shape[-2]), self._weights(x, x.shape[-1])
        return rows @ x @ columns.mT

    def _weights(self, x: Tensor, length: int) -> Tensor:
        """(cells, length): cell i of s is the mean from floor(i n / s) to ceil((i + 1) n / s)."""
        cell = torch.arange(self.cells, device=x.device)[:, None]
        position = torch.arange(length, device=x.device)
        start, end = cell * length // self.cells, -(-(cell + 1) * length // self.cells)
        inside = ((position >= start) & (position < end)).to(x.dtype)
        return inside / inside.sum(dim=1, keepdim=True)
