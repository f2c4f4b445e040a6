"""The paper's building blocks: tensors in, tensors out. No files, no images, no Hub."""

from hdmnet.nn.attention import MatchingAttention, MixFFN, SpatialReductionAttention
from hdmnet.nn.backbone import FeaturePyramid
from hdmnet.nn.distillation import CorrelationDistillation
from hdmnet.nn.encoder import HierarchicalEncoder, PatchEmbed, SelfAttentionStage
from hdmnet.nn.ensemble import BaseLearner, BaseMetaEnsemble, ShotWeighting
from hdmnet.nn.matching import CascadeMatching, MatchingStage
from hdmnet.nn.priors import cosine_prior, masked_average_pool
from hdmnet.nn.psp import PyramidPooling
from hdmnet.nn.style import gram_distance, gram_matrix

__all__ = [
    "BaseLearner",
    "BaseMetaEnsemble",
    "CascadeMatching",
    "CorrelationDistillation",
    "FeaturePyramid",
    "HierarchicalEncoder",
    "MatchingAttention",
    "MatchingStage",
    "MixFFN",
    "PatchEmbed",
    "PyramidPooling",
    "SelfAttentionStage",
    "ShotWeighting",
    "SpatialReductionAttention",
    "cosine_prior",
    "gram_distance",
    "gram_matrix",
    "masked_average_pool",
]
