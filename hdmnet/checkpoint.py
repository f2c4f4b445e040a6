"""A model as plain data: config.json and model.safetensors, checked before memory is taken."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdmnet._files import replace, save_tensors, uninterrupted

CONFIG_VERSION = 1
"""Version of config.json. It goes up when an older hdmnet would misread a newer file."""
LARGEST_CONFIG = 2**20
"""Bytes."""


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write model.safetensors, config.json and, if there is none, README.md.

    The new files replace those in the folder only after all of them are written.
    """
    text = json.dumps({**config, "config_version": CONFIG_VERSION}, indent=2, sort_keys=True)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            written = Path(temporary)
            save_tensors(tensors, written / constants.SAFETENSORS_SINGLE_FILE, {"format": "pt"})
            (written / constants.CONFIG_NAME).write_text(text, encoding="utf-8")
            if not (folder / "README.md").exists():  # an existing page belongs to the user
                (written / "README.md").write_text(card, encoding="utf-8")
            for file in written.iterdir():
                replace(file, folder / file.name)

    uninterrupted(write)


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read the constructor's arguments from a config.json.

    Raises:
        ValueError: If it is not a JSON object, needs a newer hdmnet, or has keys that are not
            `known`.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{path} has more than {LARGEST_CONFIG} bytes: it is not a config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    version = config.pop("config_version", CONFIG_VERSION)
    if not isinstance(version, int) or version > CONFIG_VERSION:
        raise ValueError(
            f"{path} has version {version!r}, but this hdmnet reads up to {CONFIG_VERSION}: "
            "pip install --upgrade hdmnet"
        )
    if unknown := sorted(config.keys() - set(known)):
        raise ValueError(
            f"{path} has unknown keys {_list(unknown, 8)}: it belongs to another library, or needs "
            "a newer hdmnet (pip install --upgrade hdmnet)"
        )
    config.pop("pretrained_backbone", None)  # a file must not start a download
    return config


def read_tensors(
    path: Path, expected: Mapping[str, Tensor], *, strict: bool = True
) -> dict[str, Tensor]:
    """Read a safetensors file whose names and shapes are the expected ones.

    Args:
        path: The file.
        expected: The state dict to load into; its tensors may be on the meta device.
        strict: Whether missing or surplus tensors are an error.

    Returns:
        Name → tensor, for the expected names.

    Raises:
        ValueError: If the file is damaged, its names or shapes differ from the expected ones, a
            tensor is an integer where a float is expected or the reverse, or holds NaN or infinity.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found := mismatch(expected, shapes, strict=strict):
                raise ValueError(
                    f"{path} does not fit its config.json: tensors {found}. Take both files from "
                    "the same model"
                )
            tensors = {name: file.get_tensor(name) for name in shapes if name in expected}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}): download or save it again"
        ) from error
    check_values(tensors, expected, str(path))
    return tensors


def check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], of: str) -> None:
    """Refuse values that no training leaves behind.

    Raises:
        ValueError: If a tensor is an integer where a float is expected or the reverse, or not
            finite.
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
    """Describe which names are missing, left over or of another shape. Empty if all names fit.

    Args:
        expected: Name → tensor.
        found: Name → shape.
        strict: Whether missing and left-over names count.
        listed: How many names of each kind are listed.
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
