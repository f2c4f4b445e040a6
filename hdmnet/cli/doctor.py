"""`hdmnet doctor`: is everything installed, and do the bundled models compute what they should?"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

import hdmnet
from hdmnet.cli.options import choose_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CORE = ("torch", "timm", "einops", "huggingface_hub", "safetensors", "numpy", "pillow")
EXTRAS = {
    "eval": ("pycocotools", "scipy", "torchmetrics", "torchvision"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "ray": ("ray",),
    "demo": ("gradio",),
}
STORED = {
    "hdmnet-lite0": (0.133, 0.843, 0.372, 0.145, 0.832, 0.360),
    "hdmnet-lite0@1": (0.196, 0.915, 0.382, 0.199, 0.920, 0.364),
}
"""Mean probabilities in the answer to `scene`, on a grid of 4 × 4 without its border."""
TOLERANCE = {"float32": 0.002, "bfloat16": 0.03}
"""Largest difference from these. PyTorch's own rounding differs between processors."""
IMAGE_SIZE = 129
"""Pixels that the models see: few, because bfloat16 is slow where it is emulated."""


@click.command(
    epilog="""
    \b
    Examples:
      hdmnet doctor
      hdmnet doctor --device cuda
    """
)
@click.option("--device", help="cpu, cuda, cuda:1, mps. Default: cuda if possible.")
def doctor(device: str | None) -> int:
    """Show the versions and the device, and test the bundled models.

    The exit code is 0 if the models give the stored answers, and 1 otherwise.
    """
    import torch

    place = choose_device(device)
    click.echo(f"hdmnet {hdmnet.__version__}, Python {platform.python_version()}")
    click.echo(", ".join(f"{name} {_version(name)}" for name in CORE))
    for extra, packages in EXTRAS.items():
        lacking = [name for name in packages if not _version(name)]
        state = f"not installed ({', '.join(lacking)})" if lacking else "installed"
        click.echo(f"hdmnet[{extra}]: {state}")
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    click.echo(f"device: {place} ({name}), {torch.get_num_threads()} threads")
    checks = [check for info in hdmnet.list_pretrained() for check in _test(info, place)]
    for what, error in checks:
        click.echo(f"{what}: {error or 'ok'}")
    return int(any(error for _, error in checks))


def scene(place: float) -> tuple[Tensor, Tensor]:
    """Draw a striped disc on a plain ground: an image (3, 192, 256) and its mask (192, 256)."""
    import torch

    y, x = torch.meshgrid(torch.linspace(-1, 1, 192), torch.linspace(-1, 1, 256), indexing="ij")
    disc = (x - place) ** 2 + y**2 < 0.2
    stripes = 0.5 + 0.5 * torch.sin(40 * (x - place))
    ground = torch.stack([0.3 + 0.2 * y, 0.5 + 0.2 * x, 0.4 - 0.2 * x])
    striped = torch.stack([0.9 * stripes, 0.3 * stripes, torch.full_like(x, 0.1)])
    return torch.where(disc, striped, ground), disc


def _test(info: hdmnet.PretrainedInfo, device: torch.device) -> list[tuple[str, str]]:
    """Return what was tested, each with an error, or an empty text."""
    import torch
    import torch.nn.functional as F

    weights = info.path / "model.safetensors"
    content = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "missing"
    tested = [
        (
            f"{info.name}, weights",
            "" if content == info.sha256 else f"sha256 {content}: expected {info.sha256}",
        )
    ]
    if tested[0][1]:
        return tested
    model = hdmnet.HDMNet.from_pretrained(info.name).to(device)
    model.image_size = IMAGE_SIZE
    (support, mask), (query, _) = scene(-0.3), scene(0.3)
    for dtype, tolerance in TOLERANCE.items():
        answer = model.to(getattr(torch, dtype)).predict(query, support, mask, presence_threshold=0)
        means = F.adaptive_avg_pool2d(answer.probability[None], 4)[0, 1:3, 1:].flatten().tolist()
        pairs = zip(means, STORED[info.name], strict=True)
        error = max(abs(mean - stored) for mean, stored in pairs)
        found = "" if error <= tolerance else f"off by {error:.3f}: expected at most {tolerance}"
        tested.append((f"{info.name}, {dtype}", found))
    return tested


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
