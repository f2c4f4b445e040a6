"""Where the files of a model are: in the package, in a folder, or on the Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hdmnet.pretrained import list_pretrained

LONGEST_NAME = 255  # of a folder, on most systems
FILES = constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE


def locate(name: str | Path, **options: Any) -> tuple[Path, Path]:
    """The paths of config.json and model.safetensors, downloaded if need be.

    Args:
        name: As for `HDMNet.from_pretrained`.
        **options: Of `hf_hub_download`.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision, or it is not in the
            cache and must not be downloaded.
        PermissionError: If the repository is gated.
        ConnectionError: If the Hub cannot be reached, or fails.
        ValueError: If it is no model of hdmnet, or `name` cannot be a repository's.
    """
    bundled = [info.path for info in list_pretrained() if info.name == str(name)]
    folder = bundled[0] if bundled else Path(name)
    if str(name) and len(folder.name) <= LONGEST_NAME and folder.is_dir():
        for file in FILES:
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no {file}: expected a folder that save_pretrained wrote"
                )
        config, weights = (folder / file for file in FILES)
        return config, weights
    config, weights = (_download(str(name), file, options) for file in FILES)
    return config, weights


def _download(repo: str, file: str, options: dict[str, Any]) -> Path:
    try:
        return Path(hf_hub_download(repo, file, **options))
    except (OSError, ValueError) as error:
        # With force_download, the client wraps what has happened.
        wrapped = type(error) is ValueError and isinstance(error.__cause__, Exception)
        explained = _explain(error.__cause__ if wrapped else error, repo, file, options)
        if explained is None:
            raise
        raise explained from error


def _explain(
    error: BaseException | None, repo: str, file: str, options: dict[str, Any]
) -> Exception | None:
    """What happened and what to do, for what the Hub's client raises; None for anything else."""
    known = ", ".join(info.name for info in list_pretrained())
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case HFValidationError():
            shown = repo if len(repo) < LONGEST_NAME else repo[:LONGEST_NAME] + "…"
            return ValueError(
                f"{shown!r} is neither a bundled model ({known}), nor a folder, nor a repository "
                '"user/name" of the Hub'
            )
        case GatedRepoError():
            return PermissionError(
                f"{repo} is gated: accept its terms on {page}, then pass token=... or run "
                "`hf auth login`"
            )
        case RepositoryNotFoundError():
            return FileNotFoundError(
                f"the Hub has no repository {repo}, or it is private: check the name, and for a "
                "private one pass token=... or run `hf auth login`. Without the Hub, give a folder "
                f"or a bundled model ({known})"
            )
        case RevisionNotFoundError():
            return FileNotFoundError(
                f"{repo} has no revision {options.get('revision')!r}: give a branch, a tag or a "
                f"commit of {page}/commits"
            )
        case LocalEntryNotFoundError() if options.get("local_files_only"):
            return FileNotFoundError(
                f"{file} of {repo} is not in the cache, and local_files_only=True forbids to "
                "download it: load it once without"
            )
        case LocalEntryNotFoundError():
            return ConnectionError(
                f"{constants.ENDPOINT} cannot be reached or fails, and {file} of {repo} is not in "
                "the cache: check the network, HF_HUB_OFFLINE and HF_ENDPOINT, or give a folder"
            )
        case EntryNotFoundError():
            return ValueError(
                f"{repo} is no model of hdmnet: it has no {file}, which save_pretrained writes"
            )
        case HfHubHTTPError():
            return ConnectionError(f"{constants.ENDPOINT} failed: {error}. Try again later")
    return None
