"""Datasets for PyTorch's `DataLoader`: episodes, and images of the base classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hdmnet.data.episodes import EpisodeList, EpisodeSampler
from hdmnet.data.pairs import PairList
from hdmnet.data.source import VOID, LabelledImages
from hdmnet.data.transforms import Transform
from hdmnet.preprocess import IGNORE


class _Seeded(Dataset[dict[str, Tensor]]):
    """A dataset whose random numbers depend only on the seed, the epoch and the index."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # In shared memory, because persistent workers keep a copy of the dataset.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of an epoch. Call this before each one.

        Without it, every epoch repeats the same items, as with `DistributedSampler`. The workers of
        a `DataLoader` see the change, persistent ones too. Other copies of the dataset do not.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch.fill_(epoch)

    @contextmanager
    def _numbered(self, index: int) -> Iterator[int]:
        """Yield the item's number over all epochs. It seeds torch's CPU generator inside."""
        number = int(self._epoch) * len(self) + range(len(self))[index]
        seed = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would seed GPUs too
            yield number


class EpisodeDataset(_Seeded):
    """Episodes as tensors for `HDMNet.forward` and `EpisodeLoss`.

    An item is a dict of

    * `query` (3, H, W) and `supports` (K, 3, H, W): float32 RGB, normalised;
    * `masks` (K, H, W): uint8, 1 = object, 255 = ignore, 0 = background;
    * `target` (H, W): the mask of the query, with the same values. An `EvalTransform` leaves it at
      the query's own size, so use a batch size of 1;
    * `label` (): int64, index of the episode's class in `class_names`;
    * with `base_classes` only, `base_target` (H, W): uint8, 0 = background, 1 … n = base classes,
      255 = ignore;
    * with `base_classes` only, `base_class` (): int64, index of the episode's class in
      `base_classes`. It is -1 for a novel class: do not pass it to `HDMNet.forward` then.

    Args:
        episodes: An `EpisodeSampler`, `PairList` or `EpisodeList`.
        transform: A `TrainTransform`, an `EvalTransform` or your own `Transform`.
        base_classes: Labels of the n classes of the base learner, in its order.
        seed: Seed of the transform's random numbers, at least 0.

    Raises:
        ValueError: If there are more than 254 base classes.

    Example:
        >>> dataset = EpisodeDataset(EpisodeSampler(source, shots=5), EvalTransform(473))
        >>> batch = next(iter(DataLoader(dataset)))
    """

    def __init__(
        self,
        episodes: EpisodeSampler | PairList | EpisodeList,
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
    """Images with labels of the base classes, to train a base learner.

    An item is a dict of `image` (3, H, W), float32 RGB, normalised, and `target` (H, W), uint8,
    0 = background, 1 … n = base classes, 255 = ignore. Only images that show base classes and no
    other class are used.

    Args:
        source: The images.
        base_classes: Labels of the n classes, in the order of the base learner.
        transform: A `TrainTransform` or your own `Transform`.
        seed: Seed of the transform's random numbers, at least 0.

    Raises:
        ValueError: If no image is left, or there are more than 254 base classes.

    Example:
        >>> base_classes = [c for c in range(1, 21) if c not in pascal_fold(0)]
        >>> dataset = BaseDataset(source, base_classes, TrainTransform(473))

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
            raise ValueError("no image shows only base classes: check base_classes")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        with self._numbered(index):
            position = self._images[index]
            image, label = _read(self._source, position)
            target = _base_label(label, self._classes)
            shown = ((target > 0) & (target < IGNORE)).byte()
            image, _, target = self._transform.query(image, shown, target)
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
    """(H, W) uint8: 1 = the class, 255 = ignore, 0 = all other pixels."""
    return _to_uint8(np.where(label == VOID, IGNORE, label == wanted))


def _base_label(label: NDArray[np.int32], classes: Sequence[int]) -> Tensor:
    """(H, W) uint8: 1 … n = the classes, 255 = ignore, 0 = all other pixels."""
    out = np.where(label == VOID, IGNORE, 0)
    for position, wanted in enumerate(classes, start=1):
        out[label == wanted] = position
    return _to_uint8(out)


def _to_uint8(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.uint8))
