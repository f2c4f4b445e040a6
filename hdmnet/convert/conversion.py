"""Convert an official state dict to HDMNet, and back."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hdmnet.checkpoint import check_values, mismatch
from hdmnet.convert import layout
from hdmnet.model import HDMNet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted checkpoint, and what became of each tensor."""

    model: HDMNet
    """The model: in eval mode, float32."""
    kind: str
    """"HDMNet", or "base learner" for a file of BAM's base learner (PSPNet)."""
    mapped: dict[str, str]
    """Official key → our key."""
    dropped: list[str]
    """Official keys whose tensor is a copy of a mapped one."""
    missing: list[str]
    """Our keys that the file does not have: their tensors are initialised at random."""


def convert(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Build a model like `from_official`, and report what became of each tensor.

    Args:
        state_dict: As for `from_official`.

    Returns:
        The model and the report.

    Raises:
        ValueError: As for `from_official`.
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
    with torch.device("meta"):  # takes no memory: the sizes may be absurd
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

    The configuration follows from the keys and shapes. `image_size` is the paper's for the number
    of base classes: 633 for the 60 of COCO-20i, 473 otherwise. A file of a base learner (BAM,
    PSPNet) fills only the backbone, the PSP head and the base learner. The matching network is
    then initialised at random, and a warning is logged.

    Args:
        state_dict: Official key → tensor, with or without the prefix `module.`.

    Returns:
        The model, in eval mode, float32.

    Raises:
        ValueError: If a key is missing or left over; if a tensor has another shape or type, or
            holds NaN or infinity; or if the two backbones of a base learner differ. The message
            names the keys.

    Example:
        >>> checkpoint = torch.load("checkpoint.pth", weights_only=True)
        >>> model = from_official(checkpoint["state_dict"])
    """
    conversion = convert(state_dict)
    if conversion.missing:
        logger.warning("the file holds a base learner only: the matching network must be trained")
    return conversion.model


def to_official(model: HDMNet) -> dict[str, Tensor]:
    """Return the model's tensors under the official keys: the inverse of `from_official`.

    Args:
        model: A model with a backbone of the paper and a base learner.

    Returns:
        Official key → tensor. The tensors share memory with the model.

    Raises:
        ValueError: If the backbone is not `resnet50`, `resnet101` or `vgg16`; if the model has no
            base learner, other `heads` than 2, 4 and 8, `contrast`, `high_level` or the
            `evidence` of `presence`; or if it is a `fused` copy.

    Example:
        >>> state_dict = to_official(model)
        >>> torch.save({"state_dict": state_dict}, "checkpoint.pth")
    """
    if model.is_fused:
        raise ValueError("a fused model no longer has its norms: convert the original")
    if model.backbone.name not in ("resnet50", "resnet101", "vgg16") or model.psp is None:
        raise ValueError(
            "only models with backbone resnet50, resnet101 or vgg16 and base_classes > 0 have an "
            f"official counterpart, got {model.backbone.name!r} and base_classes="
            f"{model.config['base_classes']}"
        )
    presence = model.config["presence"] or {}
    config = model.config
    if config["contrast"] or config["high_level"] or presence.get("evidence"):
        raise ValueError(
            "contrast, high_level and presence['evidence'] have no official counterpart"
        )
    if tuple(model.config["heads"]) != (2, 4, 8):
        raise ValueError(
            f"only heads (2, 4, 8) have an official counterpart, got {model.config['heads']}"
        )
    return {layout.official_key(key): value for key, value in model.state_dict().items()}
