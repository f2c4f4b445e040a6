"""Atomic file writes."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_IMODE
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file completely, or leave the old one unchanged.

    Ctrl-C takes effect after the write: earlier, it could leave the temporary file behind.

    Args:
        path: The file.
        write: Called with the path of a temporary file in the same folder, which then replaces
            `path`. After an error, the temporary file is deleted.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
    """
    if not path.parent.is_dir():  # else the error would name the temporary file
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    temporary = path.with_name(f".{uuid4().hex[:12]}.tmp")  # others may write `path` too

    def finish() -> None:
        try:
            write(temporary)
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    uninterrupted(finish)


def replace(new: Path, path: Path) -> None:
    """Move a new file to `path`. A file that it replaces leaves its permissions to it."""
    if path.is_file():
        new.chmod(S_IMODE(path.stat().st_mode))
    new.replace(path)


def uninterrupted(function: Callable[[], None]) -> None:
    """Call a function in another thread, because Ctrl-C interrupts only the main thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, with the permissions of any new file.

    Raises:
        OSError: If the file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.touch()
    permissions = S_IMODE(path.stat().st_mode)
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(permissions)  # save_file lets only the owner read the file
