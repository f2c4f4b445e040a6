"""Read a pickled checkpoint without running any code in it."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of a checkpoint that torch.save wrote. No code in the file is run.

    Args:
        path: A file with a state dict, or with a dict whose key `state_dict` holds one.

    Returns:
        The state dict, and the other keys of the file.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If the file is not a checkpoint, or holds anything except dense tensors and
            plain containers.

    Example:
        >>> state_dict, other_keys = read_checkpoint(Path("checkpoint.pth"))
        >>> model = from_official(state_dict)
    """
    with path.open("rb"):  # a missing file raises its own OSError here
        pass
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" It names {found[1]}, which unpickling it could run." if found else ""
        raise ValueError(
            f"{path} is refused, and no code in it was run: it is damaged, or holds more than "
            f"tensors and plain containers.{named} Expected a file made by "
            "torch.save(state_dict, path)"
        ) from error
    except Exception as error:  # torch.load raises many types for damaged files
        raise ValueError(f"{path} is not a checkpoint that torch.load can read: {error}") from error
    rest = list[str]()
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        rest = [str(key) for key in content if key != "state_dict"]
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} holds {key!r}, a {type(value).__name__}: expected only tensors, with "
                "strings as keys"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{path} holds {key} as a sparse or quantised tensor: expected dense")
    return dict(content), rest
