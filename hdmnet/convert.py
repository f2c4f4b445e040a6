"""The authors' checkpoints ↔ HDMNet."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hdmnet.model import HDMNet

_PREFIX = "module."
_MIX = "transformer.mix_transformer."
_VGG_GROUP_STARTS = (0, 7, 14, 24, 34)

# Ours → theirs, first match wins; {i} of a stage counts from the finest on both sides.
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


def from_official(state_dict: Mapping[str, Tensor]) -> HDMNet:
    """Build a model from the tensors of an official HDMNet checkpoint.

    The configuration is read off the keys and shapes; `image_size` is the paper's for the number
    of base classes, 633 for COCO-20i's 60 and 473 otherwise.

    Args:
        state_dict: Official key → tensor, with or without the prefix `module.`.

    Returns:
        The model, in eval mode, float32.

    Raises:
        ValueError: If a key is missing or left over, or a tensor has another shape; it is named.
    """
    official = {key.removeprefix(_PREFIX): value for key, value in state_dict.items()}
    model = HDMNet(**_infer_config(official))
    own = model.state_dict()
    names = {_official_key(key): key for key in own}
    problems = [
        f"{title}: {', '.join(sorted(keys))}"
        for title, keys in (
            ("missing", names.keys() - official.keys()),
            ("left over", official.keys() - names.keys()),
            (
                "of another shape",
                {
                    k
                    for k in names.keys() & official.keys()
                    if own[names[k]].shape != official[k].shape
                },
            ),
        )
        if keys
    ]
    if problems:
        raise ValueError("not an official HDMNet checkpoint: keys " + "; ".join(problems))
    model.load_state_dict({names[key]: value for key, value in official.items()})
    return model.eval()


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
    return {_official_key(key): value for key, value in model.state_dict().items()}


def _infer_config(official: Mapping[str, Tensor]) -> dict[str, Any]:
    def size(key: str, axis: int) -> int:
        if key not in official:
            raise ValueError(f"not an official HDMNet checkpoint: keys missing: {key}")
        return official[key].shape[axis]

    # By prefixes: one missing key must not make a network another.
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
    return {
        "backbone": backbone,
        "base_classes": base_classes,
        "shots": shots,
        "shot_hidden_dim": hidden,
        "dim": size("query_merge.0.weight", 0),
        "image_size": 633 if base_classes == 60 else 473,
    }


def _official_key(key: str) -> str:
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
