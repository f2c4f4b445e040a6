"""An official state dict → HDMNet, and back."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hdmnet.convert import layout
from hdmnet.model import HDMNet
from hdmnet.serialization import check_values, mismatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted checkpoint, and what became of each tensor."""

    model: HDMNet
    """In eval mode, float32."""
    kind: str
    """"HDMNet", or "base learner" for the file of BAM's and PSPNet's base learner."""
    mapped: dict[str, str]
    """Their key → ours."""
    dropped: list[str]
    """Their keys that say the same as others."""
    missing: list[str]
    """Our keys that the file does not hold: they keep their random initialisation."""


def convert(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Build a model from the tensors of an official checkpoint, and tell what became of each.

    Args:
        state_dict: As for `from_official`.

    Raises:
        ValueError: As `from_official`.
    """
    official: dict[str, Tensor] = {}
    given: dict[str, str] = {}
    twins: dict[str, str] = {}
    for key, value in state_dict.items():
        name = layout.whole_network_key(key)
        if name in official:
            twins[key] = name
        else:
            official[name], given[name] = value, key
    kind = "base learner" if layout.is_base_learner(official) else "HDMNet"
    config = layout.infer_config(official)
    with torch.device("meta"):  # no memory is taken for sizes that may be absurd
        own = HDMNet(**config).state_dict()
    missing = [k for k in own if kind == "base learner" and not k.startswith(layout.BASE_PARTS)]
    names = {layout.official_key(key): key for key in own if key not in missing}
    expected = {theirs: own[ours] for theirs, ours in names.items()}
    shapes = {key: tuple(value.shape) for key, value in official.items()}
    if problems := mismatch(expected, shapes, listed=len(own)):
        raise ValueError(f"not an official {kind} checkpoint: keys {problems}")
    check_values(official, expected, "the checkpoint")
    for key, name in twins.items():
        same = state_dict[key].shape == official[name].shape
        if not same or not torch.equal(state_dict[key], official[name]):
            raise ValueError(
                f"{key} differs from {given[name]}, which should be the same tensor: the file "
                "mixes two networks"
            )
    model = HDMNet(**config).eval()
    model.load_state_dict({names[key]: x for key, x in official.items()}, strict=not missing)
    return Conversion(
        model=model,
        kind=kind,
        mapped={given[key]: names[key] for key in official},
        dropped=list(twins),
        missing=missing,
    )


def from_official(state_dict: Mapping[str, Tensor]) -> HDMNet:
    """Build a model from the tensors of an official checkpoint.

    The configuration is read off the keys and shapes; `image_size` is the paper's for the number
    of base classes, 633 for COCO-20i's 60 and 473 otherwise. A base learner's file (BAM, PSPNet)
    fills the backbone, the PSP head and the base learner only: the matching network is yet to be
    trained, as a logged warning says.

    Args:
        state_dict: Official key → tensor, with or without the prefix `module.`.

    Returns:
        The model, in eval mode, float32.

    Raises:
        ValueError: If a key is missing or left over, or a tensor has another shape or type, or
            holds NaN or infinity; or if a base learner's two backbones differ. It is named.
    """
    conversion = convert(state_dict)
    if conversion.missing:
        logger.warning("of a base learner's file: the matching network is yet to be trained")
    return conversion.model


def to_official(model: HDMNet) -> dict[str, Tensor]:
    """The model's tensors under the official keys, the inverse of `from_official`.

    Args:
        model: With a backbone of the paper's and a base learner.

    Raises:
        ValueError: If the official model has no such backbone, or always has a base learner; or if
            the model is a `fused` copy.
    """
    if model.is_fused:
        raise ValueError("a fused model has lost its norms: convert the original")
    if model.backbone.name not in ("resnet50", "resnet101", "vgg16") or model.psp is None:
        raise ValueError(
            "only models with backbone resnet50, resnet101 or vgg16 and base_classes > 0 have an "
            f"official counterpart, got {model.backbone.name!r} and base_classes="
            f"{model.config['base_classes']}"
        )
    return {layout.official_key(key): value for key, value in model.state_dict().items()}
