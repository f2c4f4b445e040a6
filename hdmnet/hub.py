"""Where models live: in the package, in a folder, or on the Hugging Face Hub.

The bundled weights, the files of a model by its name, the model card, and the mixin that saves and
loads.
"""

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import (
    HfApi,
    ModelCard,
    ModelCardData,
    PyTorchModelHubMixin,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from hdmnet import checkpoint

LONGEST_NAME = 255
"""Characters of a folder's name on most systems."""
FILES = constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE
NOT_STATED = "not stated: ask the publisher of these weights"
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class PretrainedInfo:
    """One set of bundled weights."""

    name: str
    """What to pass to `HDMNet.from_pretrained`."""
    source: str
    """Who made them, and the recipe."""
    backbone: str
    """Name of the backbone in timm."""
    image_size: int
    """Height and width in pixels that `predict` resizes images to."""
    trained_on: str
    licence: str
    metric: str
    """Measured figure."""
    protocol: str
    """Images and rules of the measurement."""
    path: Path
    """Folder of config.json and model.safetensors."""
    size: int
    """Bytes of model.safetensors."""
    sha256: str
    """Hash of model.safetensors."""


_PRETRAINED = (
    PretrainedInfo(
        name="hdmnet-lite0",
        source="this project, examples/train_lite0",
        backbone="tf_efficientnet_lite0",
        image_size=353,
        trained_on="photographs of PASCAL VOC and Clothing Co-Parsing, composites of cut-outs",
        licence="Apache-2.0; see the model card for the pictures it was trained on",
        metric="class mIoU 0.444 one-shot, 0.523 five-shot",
        protocol="36 episodes of bottle, sheep, sofa and TV of PASCAL VOC 2012, which training "
        "never showed; settings were chosen on these classes",
        path=WEIGHTS / "hdmnet-lite0",
        size=16_685_196,
        sha256="c81fb5b4ef1f2c925c8bbc3924a56e986cc2a50625c487076135835256239e3a",
    ),
    PretrainedInfo(
        name="hdmnet-lite0@1",
        source="this project, examples/train_lite0 before version 2",
        backbone="tf_efficientnet_lite0",
        image_size=257,
        trained_on="composites of photographic cut-outs",
        licence="Apache-2.0; see the model card for the pictures it was trained on",
        metric="class mIoU 0.484 one-shot, 0.525 five-shot",
        protocol="420 (210) episodes of 14 held-out folders, composites; all-foreground has 0.117",
        path=WEIGHTS / "hdmnet-lite0@1",
        size=12_969_764,
        sha256="1c96b804860ea28f57217c9509512b8a5ff003ea7c58e34d2ff877afcea1e077",
    ),
)


def list_pretrained() -> list[PretrainedInfo]:
    """List the bundled weights, which `HDMNet.from_pretrained` loads by name without a network.

    Example:
        >>> [info.name for info in list_pretrained()]
        ['hdmnet-lite0', 'hdmnet-lite0@1']
    """
    return list(_PRETRAINED)


def locate(name: str | Path, **options: Any) -> tuple[Path, Path]:
    """Find config.json and model.safetensors, and download them if necessary.

    Args:
        name: As for `HubMixin.from_pretrained`.
        **options: Options of `hf_hub_download`.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision; or if the files are
            not in the cache and `local_files_only` forbids a download.
        PermissionError: If the repository is gated.
        ConnectionError: If the Hub cannot be reached, or fails.
        ValueError: If it is not a model of hdmnet, or `name` is not a folder and cannot be the name
            of a repository.
    """
    bundled = [info.path for info in list_pretrained() if info.name == str(name)]
    folder = bundled[0] if bundled else Path(name)
    if str(name) and len(folder.name) <= LONGEST_NAME and folder.is_dir():
        for file in FILES:
            if not (folder / file).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {file}: expected a folder written by save_pretrained"
                )
        config, weights = (folder / file for file in FILES)
        return config, weights
    if "/" not in str(name):  # else the Hub's client would ask for it again and again
        raise _unknown(str(name))
    config, weights = (_download(str(name), file, options) for file in FILES)
    return config, weights


def _download(repo: str, file: str, options: dict[str, Any]) -> Path:
    try:
        return Path(hf_hub_download(repo, file, **options))
    except (OSError, ValueError) as error:
        # With force_download, the client wraps the error.
        wrapped = type(error) is ValueError and isinstance(error.__cause__, Exception)
        explained = _explain(error.__cause__ if wrapped else error, repo, file, options)
        if explained is None:
            raise
        raise explained from error


def _explain(
    error: BaseException | None, repo: str, file: str, options: dict[str, Any]
) -> Exception | None:
    """Say what happened and what to do, for the errors of the Hub's client; None for any other."""
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case HFValidationError():
            return _unknown(repo)
        case GatedRepoError():
            return PermissionError(
                f"{repo} is gated: accept its terms on {page}, then pass token=... or run "
                "`hf auth login`"
            )
        case RepositoryNotFoundError():
            return FileNotFoundError(
                f"the Hub has no repository {repo}, or it is private: check the name. For a "
                "private repository pass token=... or run `hf auth login`. Without the Hub, give a "
                f"folder or a bundled model ({_bundled()})"
            )
        case RevisionNotFoundError():
            return FileNotFoundError(
                f"{repo} has no revision {options.get('revision')!r}: give a branch, a tag or a "
                f"commit of {page}/commits"
            )
        case LocalEntryNotFoundError() if options.get("local_files_only"):
            return FileNotFoundError(
                f"{file} of {repo} is not in the cache, and local_files_only=True forbids the "
                "download: load it once without local_files_only"
            )
        case LocalEntryNotFoundError():
            return ConnectionError(
                f"{constants.ENDPOINT} cannot be reached or fails, and {file} of {repo} is not in "
                "the cache: check the network, HF_HUB_OFFLINE and HF_ENDPOINT, or give a folder"
            )
        case EntryNotFoundError():
            return ValueError(
                f"{repo} is not a model of hdmnet: it has no {file}, which save_pretrained writes"
            )
        case HfHubHTTPError():
            return ConnectionError(f"{constants.ENDPOINT} failed: {error}. Try again later")
    return None


def _unknown(name: str) -> ValueError:
    shown = name if len(name) < LONGEST_NAME else name[:LONGEST_NAME] + "…"
    near = get_close_matches(name.lower(), [info.name for info in list_pretrained()], cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return ValueError(
        f"{shown!r} is not a bundled model ({_bundled()}), a folder or a repository "
        f'"user/name" of the Hub{hint}'
    )


def _bundled() -> str:
    return ", ".join(info.name for info in list_pretrained())


CARD = """\
---
{data}
---

# {title}

Few-shot semantic segmentation: this network sees one or more images with masks of a class that it
was never trained on, and segments that class in other images. It is a model of
[hdmnet](https://pypi.org/project/hdmnet/) (`pip install hdmnet`).

```python
from {module} import {kind}

model = {kind}.from_pretrained({source!r})
result = model.predict("query.jpg", ["support.jpg"], ["support_mask.png"])
result.save("mask.png")
```

| | |
|---|---|
{table}

## Citation

The library implements this paper:

```bibtex
@inproceedings{{peng2023hierarchical,
  title     = {{Hierarchical Dense Correlation Distillation for Few-Shot Segmentation}},
  author    = {{Peng, Bohao and Tian, Zhuotao and Wu, Xiaoyang and Wang, Chengyao and Liu, Shu
               and Su, Jingyong and Jia, Jiaya}},
  booktitle = {{CVPR}},
  year      = {{2023}}
}}
```
"""


class HubMixin(PyTorchModelHubMixin):
    """Saves and loads a model: folders and the Hub, safetensors only, checked before it is built.

    The subclass is an `nn.Module`. Its constructor takes JSON values only.
    """

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `type(model)(**model.config)` has the same architecture."""
        config = dict(cast(dict[str, Any], self._hub_mixin_config or {}))
        config.pop("pretrained_backbone", None)  # a reload must not download a backbone
        return config

    @property
    def is_fused(self) -> bool:
        """Whether this is a fused copy, which cannot be saved."""
        return False

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin takes any keyword, this names them
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
        strict: bool = True,
    ) -> Self:
        """Load a model in eval mode.

        Args:
            pretrained_model_name_or_path: A name of `list_pretrained` (bundled: no network), a
                folder written by `save_pretrained`, or a Hub repository "user/repo". A name
                without "/" is never looked up on the Hub.
            force_download: Download even files that are in the cache.
            token: Hub token, or whether to use the stored one.
            cache_dir: Folder of downloaded files.
            local_files_only: Never download.
            revision: Branch, tag or commit of the repository.
            map_location: Device to load to.
            strict: Whether missing or surplus tensors are an error.

        Raises:
            FileNotFoundError: If a folder has no config.json or model.safetensors; if there is no
                such folder, repository or revision; or if the files are not in the cache and
                `local_files_only` forbids a download.
            PermissionError: If the repository is gated.
            ConnectionError: If the Hub cannot be reached, or fails.
            ValueError: If there is no model of this name, or it is not a model of this class, needs
                a newer hdmnet, is damaged, or its tensors do not fit its configuration.

        Example:
            >>> model = HDMNet.from_pretrained("hdmnet-lite0")
        """
        config_file, weights = locate(
            pretrained_model_name_or_path,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        known = inspect.signature(cls.__init__).parameters
        config = checkpoint.read_config(config_file, known)
        try:
            with torch.device("meta"):  # takes no memory until the file's shapes are checked
                outline = cast(nn.Module, cls(**config))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{config_file} does not describe a model: {error}") from error
        tensors = checkpoint.read_tensors(weights, outline.state_dict(), strict=strict)
        model = cast(nn.Module, cls(**config))
        model.load_state_dict(tensors, strict=strict)
        return cast(Self, model.eval().to(map_location))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write model.safetensors, config.json and, if README.md is missing, a model card.

        The new files replace those in the folder only after all of them are written.

        Args:
            save_directory: The folder. It is made if it does not exist.
            repo_id: Repository of `push_to_hub`; by default the name of the folder.
            push_to_hub: Whether to upload the model as well.
            model_card_kwargs: Arguments of `generate_model_card`.
            **push_to_hub_kwargs: Arguments of the method `push_to_hub`.

        Returns:
            The URL of the commit, if the model was uploaded.

        Raises:
            RuntimeError: If the model is a `fused` copy.
            TypeError: If an argument of the model's constructor is not a named JSON value, or there
                are arguments of `push_to_hub` without it.
        """
        if not push_to_hub and (unused := push_to_hub_kwargs.keys() - {"config"}):
            raise TypeError(f"{', '.join(sorted(unused))}: expected with push_to_hub=True only")
        if self.is_fused:
            raise RuntimeError("a fused model cannot be loaded again: save the original")
        names = set(inspect.signature(type(self).__init__).parameters)
        names -= {"self", "pretrained_backbone"}
        if lost := sorted(names - self.config.keys()):
            raise TypeError(
                f"config.json cannot hold the arguments of {type(self).__name__}: "
                f"{', '.join(lost)}. Name each in the constructor, and pass JSON values"
            )
        folder = Path(save_directory)
        card = self.generate_model_card(**{"repo_id": repo_id, **(model_card_kwargs or {})})
        tensors = cast(nn.Module, self).state_dict()
        checkpoint.save(folder, self.config, tensors, str(card))
        if not push_to_hub:
            return None
        return self.push_to_hub(
            repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Upload the files that `save_pretrained` writes to a new folder.

        A README.md that the repository has is replaced by a model card: its history keeps the old
        one.

        Args:
            repo_id: The repository, "user/repo" or "repo". It is made if it does not exist.
            token: Hub token; by default the stored one.
            private: Whether a new repository is private.
            model_card_kwargs: Arguments of `generate_model_card`.
            **options: Options of `huggingface_hub.PyTorchModelHubMixin.push_to_hub`.

        Returns:
            The URL of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = {"repo_id": repo_id} | (model_card_kwargs or {})
        return super().push_to_hub(repo_id, token=token, model_card_kwargs=card, **options)

    def generate_model_card(
        self,
        *,
        repo_id: str | None = None,
        license: str | None = None,
        trained_on: str | None = None,
        metric: str | None = None,
    ) -> ModelCard:
        """Make the page that `save_pretrained` writes. Missing fields read "not stated".

        Args:
            repo_id: The Hub repository that the page's snippet loads, "user/repo".
            license: License of the weights, as the Hub abbreviates it, such as "apache-2.0".
            trained_on: The training data.
            metric: The measured figure, with its protocol.
        """
        config, kind, size = self.config, type(self), cast(Any, self).image_size
        parameters = sum(p.numel() for p in cast(nn.Module, self).parameters())
        base_classes, shots = config.get("base_classes"), config.get("shots")
        if base_classes == 0:
            base_classes = "none: no base learner"
        rows = {
            "backbone": f"`{config['backbone']}`" if "backbone" in config else None,
            "trained with": f"{shots} shot{'s' if shots > 1 else ''}" if shots else None,
            "base classes": base_classes,
            "input": f"{size} × {size} pixels",
            "parameters": f"{parameters / 1e6:.1f} million",
            "trained on": trained_on or NOT_STATED,
            "measured": metric or NOT_STATED,
            "license": license or NOT_STATED,
        }
        data = ModelCardData(
            license=license,
            library_name="hdmnet",
            pipeline_tag="image-segmentation",
            tags=["few-shot-segmentation"],
        )
        return ModelCard(
            CARD.format(
                data=data.to_yaml(),
                title=repo_id.split("/")[-1] if repo_id else kind.__name__,
                source=repo_id or ".",
                kind=kind.__name__,
                module="hdmnet" if kind.__module__.startswith("hdmnet.") else kind.__module__,
                table="\n".join(f"| {name} | {value} |" for name, value in rows.items() if value),
            )
        )
