"""Export to ONNX: one graph encodes supports, the other segments queries with them.

Needs the extra `onnx`: in a clone, `pip install '.[onnx]'`.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hdmnet._files import write_whole
from hdmnet.model import HDMNet
from hdmnet.supports import SupportSet

ENCODER, MATCHER = "supports.onnx", "query.onnx"
SMALLEST = 64
"""Smallest height and width, in pixels: for smaller images, the exporter takes other branches."""


def export_onnx(model: HDMNet, folder: str | Path) -> tuple[Path, Path]:
    """Write a model as two ONNX graphs, in float32.

    * `supports.onnx` takes `supports` (1, K, 3, H, W) and `masks` (1, K, H, W), as for
      `HDMNet.forward`, and returns the tensors of a `SupportSet`.
    * `query.onnx` takes `query` (B, 3, H, W) and these tensors, and returns `scores`
      (B, 2, H, W): the `final` of `HDMNetOutput`.

    B, H and W are free, with H and W at least 64 and at least `model.smallest_size`. K is free
    too, except if the model has a base learner and was trained with several shots: then K must be
    `shots`.

    Args:
        model: The model. It is not changed.
        folder: Folder to write to. It is created if it does not exist.

    Returns:
        The paths of `supports.onnx` and `query.onnx`.

    Raises:
        ImportError: If the packages of `hdmnet[onnx]` are not installed.

    Example:
        >>> encoder, matcher = export_onnx(model, "onnx")
        >>> session = onnxruntime.InferenceSession(matcher)
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX export needs: pip install 'hdmnet[onnx]', or '.[onnx]' in a clone"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    paths = folder / ENCODER, folder / MATCHER
    names = [name.replace(".", "_") for name in tensors]
    _write(
        encoder,
        (supports, masks),
        (shot_axis | {3: height, 4: width}, shot_axis | {2: height, 3: width}),
        paths[0],
        ["supports", "masks"],
        names,
    )
    query = torch.rand(2, 3, size + 8, size)
    _write(
        matcher,
        (query, *tensors.values()),
        ({0: batch, 2: height, 3: width}, tuple(axes.values())),
        paths[1],
        ["query", *names],
        ["scores"],
    )
    return paths


def _write(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
) -> None:
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
    write_whole(path, program.save)


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
