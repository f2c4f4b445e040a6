"""A model as a folder: written as a whole, and checked before anything is made of it."""

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import ModelCard, constants
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdmnet._files import save_tensors, uninterrupted
from hdmnet._fork import leave_parent

if TYPE_CHECKING:
    from hdmnet.model import HDMNet

Model = TypeVar("Model", bound="HDMNet")

CONFIG_VERSION = 1
"""Of the meaning of config.json: raised when an older hdmnet would misread a newer one's."""
LARGEST_CONFIG = 2**20  # bytes


def save(model: "HDMNet", folder: Path, card: ModelCard) -> None:
    """Write the files of a model, see `HDMNet.save_pretrained`."""
    if model.is_fused:
        raise RuntimeError("a fused model cannot be loaded again: save the original")
    config = model.config | {"config_version": CONFIG_VERSION}
    tensors = model.state_dict()

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            written = Path(temporary)
            save_tensors(tensors, written / constants.SAFETENSORS_SINGLE_FILE, {"format": "pt"})
            text = json.dumps(config, indent=2, sort_keys=True)
            (written / constants.CONFIG_NAME).write_text(text, encoding="utf-8")
            if not (folder / "README.md").exists():  # else its owner may have written it
                card.save(written / "README.md")
            for file in written.iterdir():
                file.replace(folder / file.name)

    uninterrupted(write)


def load(cls: type[Model], config_file: Path, weights: Path, *, strict: bool) -> Model:
    """Make a model of its files, in eval mode, see `HDMNet.from_pretrained`."""
    leave_parent()
    config = read_config(config_file, inspect.signature(cls.__init__).parameters)
    try:
        with torch.device("meta"):  # no memory is taken for what the file may not hold
            outline = cls(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_file} describes no model: {error}") from error
    tensors = read_tensors(weights, outline.state_dict(), strict=strict)
    model = cls(**config)
    model.load_state_dict(tensors, strict=strict)
    return model.eval()


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The constructor's arguments in a config.json.

    Raises:
        ValueError: If it is none, is of a newer hdmnet, or has keys that are not `known`.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{path} has more than {LARGEST_CONFIG} bytes: it is no configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    version = config.pop("config_version", CONFIG_VERSION)
    if not isinstance(version, int) or version > CONFIG_VERSION:
        raise ValueError(
            f"{path} is of version {version!r}, this hdmnet reads up to {CONFIG_VERSION}: "
            "pip install --upgrade hdmnet"
        )
    if unknown := sorted(config.keys() - set(known)):
        raise ValueError(
            f"{path} has unknown keys {_list(unknown, 8)}: it is of another library, or of a "
            "newer hdmnet (pip install --upgrade hdmnet)"
        )
    config.pop("pretrained_backbone", None)  # a file does not say what to download
    return config


def read_tensors(
    path: Path, expected: Mapping[str, Tensor], *, strict: bool = True
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which are read only if their shapes are the expected ones.

    Args:
        path: The file.
        expected: The state dict to load into; its tensors may be on the meta device.
        strict: Whether missing or surplus tensors are an error.

    Returns:
        Name → tensor, of names that are expected.

    Raises:
        ValueError: If the file is damaged, its names or shapes are others, a tensor is of another
            kind than the expected one, or holds NaN or infinity.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found := mismatch(expected, shapes, strict=strict):
                raise ValueError(
                    f"{path} does not fit its configuration: tensors {found}. Take both files from "
                    "one place"
                )
            tensors = {name: file.get_tensor(name) for name in shapes if name in expected}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no complete safetensors file ({error}): download or save it again"
        ) from error
    check_values(tensors, expected, str(path))
    return tensors


def check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], of: str) -> None:
    """Refuse what no training leaves behind.

    Raises:
        ValueError: If a tensor is of another kind than the expected one, or not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(
                f"{of} holds {name} as {tensor.dtype}: expected {expected[name].dtype}"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{of} holds NaN or infinity in {name}: the training diverged, or the file is "
                "damaged"
            )


def mismatch(
    expected: Mapping[str, Tensor],
    found: Mapping[str, tuple[int, ...]],
    *,
    strict: bool = True,
    listed: int = 8,
) -> str:
    """Which names are missing, left over or of another shape; empty if none is.

    Args:
        expected: Name → tensor.
        found: Name → shape.
        strict: Whether missing and left over names count.
        listed: How many of each kind are named.
    """
    problems = {
        "missing": expected.keys() - found.keys() if strict else (),
        "left over": found.keys() - expected.keys() if strict else (),
        "of another shape": [
            name
            for name in expected.keys() & found.keys()
            if tuple(expected[name].shape) != found[name]
        ],
    }
    return "; ".join(
        f"{title}: {_list(names, listed)}" for title, names in problems.items() if names
    )


def _list(names: Collection[str], listed: int) -> str:
    shown, more = sorted(names)[:listed], len(names) - listed
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
