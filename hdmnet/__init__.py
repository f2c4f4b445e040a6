"""hdmnet: few-shot semantic segmentation with trainable, composable parts."""

from hdmnet import convert
from hdmnet.attention import MatchingAttention, MixFFN, SpatialReductionAttention
from hdmnet.backbone import FeaturePyramid
from hdmnet.distillation import CorrelationDistillation
from hdmnet.ensemble import BaseLearner, BaseMetaEnsemble, PyramidPooling, ShotWeighting
from hdmnet.images import box_mask
from hdmnet.losses import EpisodeLoss, EpisodeLosses
from hdmnet.matching import CascadeMatching, MatchingStage
from hdmnet.model import HDMNet, HDMNetOutput
from hdmnet.prediction import Segmentation
from hdmnet.pretrained import PretrainedInfo, list_pretrained
from hdmnet.priors import cosine_prior, gram_distance, gram_matrix, masked_average_pool
from hdmnet.stages import HierarchicalEncoder, PatchEmbed, SelfAttentionStage
from hdmnet.supports import SupportSet

__version__ = "0.1.0"

__all__ = [
    "BaseLearner",
    "BaseMetaEnsemble",
    "CascadeMatching",
    "CorrelationDistillation",
    "EpisodeLoss",
    "EpisodeLosses",
    "FeaturePyramid",
    "HDMNet",
    "HDMNetOutput",
    "HierarchicalEncoder",
    "MatchingAttention",
    "MatchingStage",
    "MixFFN",
    "PatchEmbed",
    "PretrainedInfo",
    "PyramidPooling",
    "Segmentation",
    "SelfAttentionStage",
    "ShotWeighting",
    "SpatialReductionAttention",
    "SupportSet",
    "box_mask",
    "convert",
    "cosine_prior",
    "gram_distance",
    "gram_matrix",
    "list_pretrained",
    "masked_average_pool",
]
