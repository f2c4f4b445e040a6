"""Episodes for few-shot segmentation, from the benchmarks or from your own data.

Needs the extra `eval`: in a clone, `pip install '.[eval]'`. A `LabelledImages` reads a collection,
an `EpisodeSampler` draws episodes from it by the published rules, and an `EpisodeDataset` turns
them into tensors.
"""

from hdmnet.data.coco import CocoInstances
from hdmnet.data.dataset import BaseDataset, EpisodeDataset
from hdmnet.data.episodes import Episode, EpisodeList, EpisodeSampler
from hdmnet.data.folders import FSS1000, MaskFolders
from hdmnet.data.folds import coco_fold, pascal_fold
from hdmnet.data.pairs import PairList
from hdmnet.data.pascal import PascalVOC
from hdmnet.data.source import VOID, LabelledImages
from hdmnet.data.transforms import EvalTransform, TrainTransform, Transform

__all__ = [
    "FSS1000",
    "VOID",
    "BaseDataset",
    "CocoInstances",
    "Episode",
    "EpisodeDataset",
    "EpisodeList",
    "EpisodeSampler",
    "EvalTransform",
    "LabelledImages",
    "MaskFolders",
    "PairList",
    "PascalVOC",
    "TrainTransform",
    "Transform",
    "coco_fold",
    "pascal_fold",
]
