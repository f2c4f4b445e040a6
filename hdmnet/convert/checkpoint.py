"""Reading a pickled checkpoint without running what a stranger put in it."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint that torch.save wrote, with nothing else unpickled.

    Args:
        path: A file with a state dict, or with a dict that holds one as `state_dict`.

    Returns:
        The state dict, and the names of what else the file holds.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no checkpoint, or holds anything but tensors and plain containers.
    """
    with path.open("rb"):  # so that the errors of a missing file are its own
        pass
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" It names {found[1]}, and what a pickle names it can run." if found else ""
        raise ValueError(
            f"{path} is refused, nothing of it was run: it holds more than tensors and plain "
            f"containers, or is damaged.{named} Expected what torch.save writes of a state_dict()"
        ) from error
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"{path} is no checkpoint that torch.load can read: {error}") from error
    rest = list[str]()
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        rest = [str(key) for key in content if key != "state_dict"]
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds {key!r}, a {type(value).__name__}: a state dict holds tensors by "
                "name"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{path} holds {key} as a sparse or quantised tensor: expected dense")
    return dict(content), rest
