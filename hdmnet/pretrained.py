"""The weights that exist, what they are, and where they come from."""

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class PretrainedInfo:
    """One set of weights that `HDMNet.from_pretrained` knows by name."""

    name: str
    """What to pass to `HDMNet.from_pretrained`."""
    source: str
    """Who made them, and with what."""
    backbone: str
    """timm's name."""
    image_size: int
    """Height and width, in pixels, that images are resized to."""
    trained_on: str
    licence: str
    metric: str
    """The measured figure."""
    protocol: str
    """On what, and how, it was measured."""
    path: Path
    """Folder of config.json and model.safetensors."""
    size: int
    """Of model.safetensors, in bytes."""
    sha256: str
    """Of model.safetensors."""


_PRETRAINED = (
    PretrainedInfo(
        name="hdmnet-lite0",
        source="this project, examples/train_lite0",
        backbone="tf_efficientnet_lite0",
        image_size=257,
        trained_on="composites of photographic cut-outs",
        licence="Apache-2.0; see the model card for the pictures it was trained on",
        metric="class mIoU 0.484 one-shot, 0.525 five-shot",
        protocol="420 (210) episodes of 14 held-out folders, composites; all-foreground has 0.117",
        path=WEIGHTS,
        size=12_969_764,
        sha256="1c96b804860ea28f57217c9509512b8a5ff003ea7c58e34d2ff877afcea1e077",
    ),
)


def list_pretrained() -> list[PretrainedInfo]:
    """The weights that `HDMNet.from_pretrained` knows by name."""
    return list(_PRETRAINED)
