"""The weights that exist, what they are, and where they come from."""

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class PretrainedInfo:
    """One set of weights that `HDMNet.from_pretrained` knows by name."""

    name: str
    """What to pass to `HDMNet.from_pretrained`."""
    backbone: str
    image_size: int
    """Height and width, in pixels, that images are resized to."""
    trained_on: str
    licence: str
    metric: str
    """The measured figure, and on what."""
    path: Path
    """Folder of config.json and model.safetensors."""


_PRETRAINED = (
    PretrainedInfo(
        name="hdmnet-lite0",
        backbone="tf_efficientnet_lite0",
        image_size=257,
        trained_on="composites of photographic cut-outs",
        licence="Apache-2.0; see the model card for the pictures it was trained on",
        metric="class mIoU on held-out composites: 0.484 one-shot, 0.525 five-shot",
        path=WEIGHTS,
    ),
)


def list_pretrained() -> list[PretrainedInfo]:
    """The weights that `HDMNet.from_pretrained` knows by name."""
    return list(_PRETRAINED)


def resolve(name: str | Path) -> str:
    """The folder of bundled weights by their name; any other name or path as it is.

    Raises:
        FileNotFoundError: If `name` is a folder without config.json or model.safetensors.
    """
    path = next((str(info.path) for info in _PRETRAINED if info.name == name), str(name))
    if Path(path).is_dir():
        for file in ("config.json", "model.safetensors"):
            if not (Path(path) / file).is_file():
                raise FileNotFoundError(
                    f"{path} holds no {file}: expected a folder that save_pretrained wrote"
                )
    return path
