"""The keys of the authors' checkpoints, and the configuration that follows from them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MIX = "transformer.mix_transformer."
BASE_PARTS = ("backbone.", "psp.", "base_learner.")
"""Prefixes of our keys that a base learner's file fills."""
_MATCHING = (_MIX, "query_merge.", "supp_merge.", "down_query.", "down_supp.")
_VGG_GROUP_STARTS = (0, 7, 14, 24, 34)

# Our key → official key. The first match wins. Both number the stages from the finest, 0.
_RULES = (
    (r"psp\.branches\.", "ppm.features."),
    (r"psp\.fuse\.", "cls."),
    (r"base_learner\.classifier\.", "base_learnear.2."),
    (r"query_reduce\.", "down_query."),
    (r"support_reduce\.", "down_supp."),
    (r"support_merge\.", "supp_merge."),
    (r"encoder\.stages\.(\d+)\.patch_embed\.", _MIX + r"down_sample_layers.\1.0."),
    (r"encoder\.stages\.(\d+)\.norm\.", _MIX + r"down_sample_layers.\1.3."),
    (r"encoder\.stages\.(\d+)\.blocks\.0\.", _MIX + r"down_sample_layers.\1.1."),
    (r"encoder\.stages\.(\d+)\.blocks\.1\.", _MIX + r"down_sample_layers.\1.2."),
    (r"cascade\.stages\.(\d+)\.fuse\.0\.", _MIX + r"match_layers.\1.1.conv."),
    (r"cascade\.stages\.(\d+)\.fuse\.1\.", _MIX + r"match_layers.\1.1.bn."),
    (r"cascade\.stages\.(\d+)\.", _MIX + r"match_layers.\1.0."),
    (r"cascade\.parse\.", _MIX + "parse_layers."),
    (r"cascade\.classifier\.", _MIX + "cls."),
    (r"ensemble\.gram_merge\.", "gram_merge."),
    (r"ensemble\.base_merge\.", "cls_merge."),
    (r"ensemble\.shot_weighting\.weight\.", "kshot_rw."),
    (r"backbone\.body\.conv1\.(\d)\.", r"layer0.\1."),
    (r"backbone\.body\.bn1\.", "layer0.7."),
    (r"backbone\.body\.(layer\d)", r"\1"),
)
# Inside a transformer block.
_BLOCK_RULES = (
    (r"\.attention\.query\.", ".attn.attn.linear_q."),
    (r"\.attention\.key\.", ".attn.attn.linear_k."),
    (r"\.attention\.value\.", ".attn.attn.linear_v."),
    (r"\.attention\.out\.", ".attn.attn.linear_o."),
    (r"\.attention\.reduce\.0\.", ".attn.sr."),
    (r"\.attention\.reduce\.1\.", ".attn.norm."),
    (r"\.ffn\.expand\.", ".ffn.layers.0."),
    (r"\.ffn\.depthwise\.", ".ffn.layers.1."),
    (r"\.ffn\.project\.", ".ffn.layers.4."),
)


def infer_config(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of `HDMNet` from official keys and shapes.

    Args:
        official: Official key → tensor, of the whole network or of a base learner.

    Returns:
        The arguments that differ between the authors' models.

    Raises:
        ValueError: If a key whose shape is needed is missing.
    """

    def size(key: str, axis: int) -> int:
        if key not in official:
            raise ValueError(f"not an official HDMNet checkpoint: keys missing: {key}")
        if official[key].ndim <= axis:
            raise ValueError(
                f"not an official HDMNet checkpoint: {key} has shape {tuple(official[key].shape)}"
            )
        return official[key].shape[axis]

    # Match prefixes: one missing key must not make it look like another network.
    def has(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in official)

    backbone = "vgg16"
    if has(r"layer[1-4]\.\d+\.conv1\."):
        backbone = "resnet101" if has(r"layer3\.([6-9]|1\d|2\d)\.") else "resnet50"
    base_classes = size("base_learnear.2.weight", 0) - 1
    shots, hidden = 1, 2
    if has(r"kshot_rw\.\d"):
        hidden, shots = size("kshot_rw.0.weight", 0), size("kshot_rw.0.weight", 1)
    elif has(r"kshot_rw\."):
        shots, hidden = size("kshot_rw.weight", 0), 0
    config = {
        "backbone": backbone,
        "base_classes": base_classes,
        "shots": shots,
        "shot_hidden_dim": hidden,
        "image_size": 633 if base_classes == 60 else 473,
    }
    return (
        config if is_base_learner(official) else config | {"dim": size("query_merge.0.weight", 0)}
    )


def is_base_learner(official: Mapping[str, Tensor]) -> bool:
    """Whether no key belongs to the matching network."""
    return not any(key.startswith(_MATCHING) for key in official)


def whole_network_key(key: str) -> str:
    """Return the key of the same tensor in a checkpoint of the whole network.

    A file of a base learner has another key for its classifier, and holds its backbone twice.
    """
    key = key.removeprefix("module.")
    key = re.sub(r"^cls\.4\.", "base_learnear.2.", key)
    return re.sub(r"^encoder\.(\d)\.", r"layer\1.", key)


def official_key(key: str) -> str:
    """Return the official key of one of our keys."""
    vgg = re.fullmatch(r"backbone\.body\.features_(\d+)\.(.*)", key)
    if vgg:
        index = int(vgg[1])
        group = max(g for g, start in enumerate(_VGG_GROUP_STARTS) if start <= index)
        return f"layer{group}.{index - _VGG_GROUP_STARTS[group]}.{vgg[2]}"
    for pattern, replacement in _RULES:
        key, found = re.subn("^" + pattern, replacement, key)
        if found:
            break
    for pattern, replacement in _BLOCK_RULES:
        key = re.sub(pattern, replacement, key)
    return key
