"""Episodes, and images of the base classes, as tensors for PyTorch's `DataLoader`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hdmnet.data.episodes import EpisodeList, EpisodeSampler
from hdmnet.data.source import VOID, LabelledImages
from hdmnet.data.transforms import Transform
from hdmnet.losses import IGNORE


class _Seeded(Dataset[dict[str, Tensor]]):
    """Items whose random numbers depend on the seed, the epoch and the index alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # In shared memory, for workers that persist have a copy of the dataset.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Draw anew: call it before each epoch, as that of `DistributedSampler`.

        It reaches the workers of a `DataLoader`, persistent ones too, but no other copies.
        """
        self._epoch.fill_(epoch)

    @contextmanager
    def _numbered(self, index: int) -> Iterator[int]:
        """Number of an item over all epochs; torch's random numbers within depend on it."""
        number = int(self._epoch) * len(self) + range(len(self))[index]
        seed = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))  # and no GPU's
            yield number


class EpisodeDataset(_Seeded):
    """Episodes as `HDMNet.forward` and `EpisodeLoss` take them.

    An item is a dict of

    * `query` (3, H, W) and `supports` (K, 3, H, W), normalised;
    * `masks` (K, H, W), uint8: 1 = object, 255 = ignore, 0 = background;
    * `target` (H, W), likewise, of the query; with an `EvalTransform` at the query's own size, so
      that a batch holds one;
    * `label`, the class as an index of `class_names`;
    * with `base_classes`, `base_target` (H, W), uint8: 0 background, 1 … n, 255 ignored, and
      `base_class`, the index of the class among them, or -1 if it is a novel one, as in testing
      (`HDMNet.forward` has no use for it then).

    Args:
        episodes: Of an `EpisodeSampler`, or an `EpisodeList`.
        transform: `TrainTransform`, `EvalTransform` or another.
        base_classes: Labels of the base learner's classes.
        seed: Of the transform.

    Raises:
        ValueError: If there are more than 254 base classes.
    """

    def __init__(
        self,
        episodes: EpisodeSampler | EpisodeList,
        transform: Transform,
        *,
        base_classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.episodes, self._transform = episodes, transform
        self._base_classes = None if base_classes is None else _check_base(base_classes)
        self.class_names = tuple(episodes.source.classes[label - 1] for label in episodes.classes)
        self._position = {label: i for i, label in enumerate(episodes.classes)}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        with self._numbered(index) as number:
            episode = self.episodes.draw(number)
            source, base_classes = self.episodes.source, self._base_classes
            image, label = _read(source, episode.query)
            labels = [_mask(label, episode.label)]
            if base_classes is not None:
                labels.append(_base_label(label, base_classes))
            query, target, *base_target = self._transform.query(image, *labels)
            shown = (_read(source, i) for i in episode.supports)
            pairs = [
                self._transform.support(image, _mask(label, episode.label))
                for image, label in shown
            ]
        supports, masks = zip(*pairs, strict=True)
        item = {
            "query": query,
            "supports": torch.stack(supports),
            "masks": torch.stack(masks),
            "target": target,
            "label": torch.tensor(self._position[episode.label]),
        }
        if base_classes is not None:
            known = episode.label in base_classes
            position = base_classes.index(episode.label) if known else -1
            item |= {"base_target": base_target[0], "base_class": torch.tensor(position)}
        return item


class BaseDataset(_Seeded):
    """Images with the labels of the base classes, to train a base learner on.

    An item is a dict of `image` (3, H, W), normalised, and `target` (H, W), uint8: 0 background,
    1 … n, 255 ignored. Images that show another class are left out, as in training episodes.

    Args:
        source: The images.
        base_classes: Labels of the n classes.
        transform: `TrainTransform` or another.
        seed: Of the transform.

    Raises:
        ValueError: If no image is left, or there are more than 254 base classes.

    Source: BAM (arXiv 2203.07615), base learner.
    """

    def __init__(
        self,
        source: LabelledImages,
        base_classes: Sequence[int],
        transform: Transform,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self._source, self._transform = source, transform
        self._classes = _check_base(base_classes)
        self._images = [
            i for i, shown in enumerate(source.areas()) if shown and shown.keys() <= {*base_classes}
        ]
        if not self._images:
            raise ValueError("no image shows base classes alone")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        with self._numbered(index):
            position = self._images[index]
            image, label = _read(self._source, position)
            image, target = self._transform.query(image, _base_label(label, self._classes))
        return {"image": image, "target": target}


def _check_base(classes: Sequence[int]) -> list[int]:
    if len(classes) >= IGNORE:
        raise ValueError(f"at most {IGNORE - 1} base classes fit into a label, got {len(classes)}")
    return list(classes)


def _read(source: LabelledImages, index: int) -> tuple[Tensor, NDArray[np.int32]]:
    image, label = source.image(index), source.label(index)
    if image.shape[-2:] != label.shape:
        raise ValueError(
            f"the label of {source.files[index]} is {label.shape} (H, W), but the image is "
            f"{tuple(image.shape[-2:])}"
        )
    return image, label


def _mask(label: NDArray[np.int32], wanted: int) -> Tensor:
    """(H, W) uint8: 1 the class, 255 ignored, 0 all else."""
    return _to_uint8(np.where(label == VOID, IGNORE, label == wanted))


def _base_label(label: NDArray[np.int32], classes: Sequence[int]) -> Tensor:
    """(H, W) uint8: 1 … n the classes, 255 ignored, 0 all else."""
    out = np.where(label == VOID, IGNORE, 0)
    for position, wanted in enumerate(classes, start=1):
        out[label == wanted] = position
    return _to_uint8(out)


def _to_uint8(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.uint8))
