"""Files that are whole, or as they were."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name: it becomes `path` at the end, or vanishes after an error.

    Ctrl-C is raised when all is done, for in the midst of it a part would stay behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # others may write it too

    def replace() -> None:
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    uninterrupted(replace)


def uninterrupted(function: Callable[[], None]) -> None:
    """Call a function in a thread of its own, which no Ctrl-C reaches."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file; what the system refuses is an `OSError`, as of any file."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
