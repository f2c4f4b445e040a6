"""hdmnet: few-shot semantic segmentation with trainable, composable parts."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdmnet import convert
    from hdmnet.annotations import Box, Points, Scribble, annotation_from_dict, box_mask
    from hdmnet.base import FewShotModel
    from hdmnet.explanation import Explanation
    from hdmnet.generalized import GeneralizedSegmentation
    from hdmnet.hub import PretrainedInfo, list_pretrained
    from hdmnet.images import load_image, load_mask
    from hdmnet.losses import EpisodeLoss, EpisodeLosses
    from hdmnet.model import HDMNet
    from hdmnet.nn import (
        BaseLearner,
        BaseMetaEnsemble,
        CascadeMatching,
        CorrelationDistillation,
        FeaturePyramid,
        HierarchicalEncoder,
        MatchingAttention,
        MatchingStage,
        MixFFN,
        PatchEmbed,
        PyramidPooling,
        SelfAttentionStage,
        ShotWeighting,
        SpatialReductionAttention,
        cosine_prior,
        gram_distance,
        gram_matrix,
        masked_average_pool,
    )
    from hdmnet.output import HDMNetOutput
    from hdmnet.rating import SupportRating
    from hdmnet.segmentation import Instance, MulticlassSegmentation, Segmentation
    from hdmnet.supports import SupportSet
    from hdmnet.views import Augment

__version__ = "0.1.0"

__all__ = [
    "Augment",
    "BaseLearner",
    "BaseMetaEnsemble",
    "Box",
    "CascadeMatching",
    "CorrelationDistillation",
    "EpisodeLoss",
    "EpisodeLosses",
    "Explanation",
    "FeaturePyramid",
    "FewShotModel",
    "GeneralizedSegmentation",
    "HDMNet",
    "HDMNetOutput",
    "HierarchicalEncoder",
    "Instance",
    "MatchingAttention",
    "MatchingStage",
    "MixFFN",
    "MulticlassSegmentation",
    "PatchEmbed",
    "Points",
    "PretrainedInfo",
    "PyramidPooling",
    "Scribble",
    "Segmentation",
    "SelfAttentionStage",
    "ShotWeighting",
    "SpatialReductionAttention",
    "SupportRating",
    "SupportSet",
    "annotation_from_dict",
    "box_mask",
    "convert",
    "cosine_prior",
    "gram_distance",
    "gram_matrix",
    "list_pretrained",
    "load_image",
    "load_mask",
    "masked_average_pool",
]

_HOME_OF = {
    "Box": "annotations",
    "Points": "annotations",
    "Scribble": "annotations",
    "annotation_from_dict": "annotations",
    "box_mask": "annotations",
    "FewShotModel": "base",
    "Explanation": "explanation",
    "GeneralizedSegmentation": "generalized",
    "PretrainedInfo": "hub",
    "list_pretrained": "hub",
    "load_image": "images",
    "load_mask": "images",
    "EpisodeLoss": "losses",
    "EpisodeLosses": "losses",
    "HDMNet": "model",
    "BaseLearner": "nn",
    "BaseMetaEnsemble": "nn",
    "CascadeMatching": "nn",
    "CorrelationDistillation": "nn",
    "FeaturePyramid": "nn",
    "HierarchicalEncoder": "nn",
    "MatchingAttention": "nn",
    "MatchingStage": "nn",
    "MixFFN": "nn",
    "PatchEmbed": "nn",
    "PyramidPooling": "nn",
    "SelfAttentionStage": "nn",
    "ShotWeighting": "nn",
    "SpatialReductionAttention": "nn",
    "cosine_prior": "nn",
    "gram_distance": "nn",
    "gram_matrix": "nn",
    "masked_average_pool": "nn",
    "HDMNetOutput": "output",
    "SupportRating": "rating",
    "Instance": "segmentation",
    "MulticlassSegmentation": "segmentation",
    "Segmentation": "segmentation",
    "SupportSet": "supports",
    "Augment": "views",
}

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        """Import a public name or a module when it is first used: `--help` needs no PyTorch."""
        if name in _HOME_OF:
            globals()[name] = getattr(import_module(f"hdmnet.{_HOME_OF[name]}"), name)
            return globals()[name]
        if not name.startswith("_") and find_spec(f"hdmnet.{name}"):
            return import_module(f"hdmnet.{name}")
        raise AttributeError(f"module 'hdmnet' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
