"""hdmnet: few-shot semantic segmentation with trainable, composable parts."""

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
