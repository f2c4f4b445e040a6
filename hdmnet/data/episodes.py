"""Episodes: a query, its supports and their class."""

import hashlib
import json
import logging
import operator
import os
from bisect import bisect_left
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np

from hdmnet._files import write_whole
from hdmnet.data.source import LabelledImages

logger = logging.getLogger(__name__)

FORMAT = "hdmnet episodes 1"
MIN_AREA = 2 * 32 * 32
"""Pixels of a class that an image must show, at its own size, to be listed in the papers."""


class Episode(NamedTuple):
    """One task: a query and K supports, as indices of a `LabelledImages`, and a class label."""

    query: int
    supports: tuple[int, ...]
    label: int


class EpisodeSampler(Sequence[Episode]):
    """Draws episodes by the published rules.

    An episode depends only on the seed and its number, so it is the same on any machine. Give the
    sampler to `EpisodeDataset`: it is not a `sampler` of a `DataLoader`.

    An image is *listed* for a class if it shows at least `min_area` pixels of it. Supports are
    listed for the episode's class, queries for at least one class. A class with fewer than K + 1
    listed images gets no episodes, and a warning is logged.

    For a large source, call `source.areas(cache)` first: the labels are then read only once.

    Args:
        source: The images.
        classes: Labels of the classes to draw: the base classes in training, the novel ones in
            testing (`pascal_fold`, `coco_fold`). None: all classes of the source.
        shots: K, at least 1. The K supports are distinct, and the query is not one of them.
        length: Number of episodes, 1000 in most papers. On COCO-20i, 1000 episodes leave the mean
            uncertain by 2 to 3 points: use 10 000 there. None: the number of queries.
        seed: 0 to 2³² - 1.
        min_area: Pixels of a class that an image must show to be listed for it, at the image's own
            size: 2048 in PFENet (arXiv 2008.01449), BAM and HDMNet. 1 takes every object.
        other_classes: What happens to images that also show a class outside `classes`. `drop`:
            they are not used, as in the training of BAM (arXiv 2203.07615) and HDMNet, where these
            are the novel classes. `background`: they are used and these pixels are background, as
            in the training of PFENet and HSNet (arXiv 2104.01538), and in all testing.
        order: How queries are drawn. `list`: one after the other, in the order of the source. The
            class is drawn from those of `classes` that the query shows (PFENet, BAM, HDMNet). If
            `length` is less than the number of queries, only the first ones are used. `balanced`:
            first a class, each with the same probability, then one of its listed images (HSNet on
            COCO).
        query_class: With `order="list"`, the classes of a query that one is drawn from. `shown`:
            all that it shows, small ones included (PFENet, BAM, HDMNet). `listed`: only those that
            it is listed for.

    Raises:
        ValueError: If an argument is out of its range, or no class has K + 1 listed images.

    Example:
        >>> sampler = EpisodeSampler(source, pascal_fold(0), shots=5, length=1000)
        >>> query, supports, label = sampler[0]
    """

    def __init__(
        self,
        source: LabelledImages,
        classes: Collection[int] | None = None,
        *,
        shots: int = 1,
        length: int | None = None,
        seed: int = 0,
        min_area: int = MIN_AREA,
        other_classes: Literal["background", "drop"] = "background",
        order: Literal["list", "balanced"] = "list",
        query_class: Literal["shown", "listed"] = "shown",
    ) -> None:
        every = range(1, len(source.classes) + 1)
        wanted = sorted(set(every if classes is None else classes))
        if not wanted or not set(wanted) <= set(every):
            raise ValueError(f"classes must be labels from 1 to {len(every)}, got {wanted}")
        for name, value, least in (
            ("shots", shots, 1),
            ("length", 1 if length is None else length, 1),
            ("min_area", min_area, 1),
            ("seed", seed, 0),
        ):
            check_range(name, value, least)
        _check_choice("other_classes", other_classes, ("background", "drop"))
        _check_choice("order", order, ("list", "balanced"))
        _check_choice("query_class", query_class, ("shown", "listed"))
        self.source, self.shots, self.seed, self._order = source, shots, seed, order

        areas = source.areas()
        drop = other_classes == "drop"
        kept = [i for i, shown in enumerate(areas) if not drop or shown.keys() <= set(wanted)]
        listed = {c: [i for i in kept if areas[i].get(c, 0) >= min_area] for c in wanted}
        self.classes = tuple(wanted)
        # An episode needs K + 1 images: a query and K supports.
        self._listed = {c: images for c, images in listed.items() if len(images) > shots}
        if few := [source.classes[c - 1] for c in wanted if c not in self._listed]:
            logger.warning(
                "too few images for %d shots, so no episodes of: %s", shots, ", ".join(few)
            )
        if not self._listed:
            most = max(listed, key=lambda c: len(listed[c]))
            raise ValueError(
                f"an episode of {shots} shots needs {shots + 1} images with at least {min_area} "
                f"pixels of its class, but no class has more than {len(listed[most])} "
                f"({source.classes[most - 1]!r}): reduce shots or min_area"
            )
        least_area = 1 if query_class == "shown" else min_area
        self._choices = {
            i: [c for c in self._listed if areas[i].get(c, 0) >= least_area]
            for i in sorted(set().union(*self._listed.values()))
        }
        self._queries = list(self._choices)
        self._length = length or len(self._queries)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Episode:  # type: ignore[override]  # takes no slices
        return self.draw(range(len(self))[operator.index(number)])

    def draw(self, number: int) -> Episode:
        """Draw the episode of any number from 0, also beyond the length.

        With `order="list"`, the queries start again there, with other supports.
        """
        # RandomState, because numpy promises that its streams never change.
        rng = np.random.RandomState([self.seed, number])
        if self._order == "balanced":
            label = list(self._listed)[rng.randint(len(self._listed))]
            query = self._listed[label][rng.randint(len(self._listed[label]))]
        else:
            query = self._queries[number % len(self._queries)]
            label = self._choices[query][rng.randint(len(self._choices[query]))]
        images = self._listed[label]
        at = bisect_left(images, query)  # `images` lack a query that shows too little
        found = at < len(images) and images[at] == query
        chosen = rng.choice(len(images) - found, self.shots, replace=False).tolist()
        return Episode(query, tuple(images[i + (found and i >= at)] for i in chosen), label)


class EpisodeList(Sequence[Episode]):
    """A fixed list of episodes, to save and to score several systems on.

    Args:
        source: The images.
        episodes: The episodes, for example an `EpisodeSampler`. An image may be several supports of
            an episode.
        classes: Labels of the classes to score. The classes of `episodes` are always among them.
            Give the `classes` of a sampler to include those that it drew no episode of.

    Raises:
        ValueError: If there are no episodes, they differ in their number of shots or have no
            supports, a query is its own support, or the source has no such image or class.

    Example:
        >>> episodes = EpisodeList(source, sampler, sampler.classes)
        >>> episodes.save("episodes.json")
    """

    def __init__(
        self,
        source: LabelledImages,
        episodes: Sequence[Episode],
        classes: Collection[int] | None = None,
    ) -> None:
        self.source = source
        self._episodes = tuple(episodes)
        asked = {episode.label for episode in self._episodes}
        self.classes = tuple(sorted(asked.union(() if classes is None else classes)))
        if not self._episodes:
            raise ValueError("there are no episodes: expected at least one")
        images = {i for query, supports, _ in self._episodes for i in (query, *supports)}
        for what, numbers, known in (
            ("images", images, range(len(source))),
            ("classes", set(self.classes), range(1, len(source.classes) + 1)),
        ):
            if wrong := sorted(numbers - set(known)):
                raise ValueError(
                    f"the source has the {what} {known.start} to {known.stop - 1}, got {wrong[0]}"
                )
        if any(query in supports for query, supports, _ in self._episodes):
            raise ValueError("a query is its own support: expected other images")
        shots = {len(episode.supports) for episode in self._episodes}
        if len(shots) != 1 or 0 in shots:
            raise ValueError(f"expected the same number of shots K ≥ 1, got {sorted(shots)}")
        self.shots = shots.pop()

    @property
    def sha256(self) -> str:
        """Hash of every episode's class, query and supports, by name and in order."""
        return hashlib.sha256(json.dumps(self._named()).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, number: int) -> Episode:  # type: ignore[override]  # takes no slices
        return self._episodes[operator.index(number)]

    def draw(self, number: int) -> Episode:
        """Give the episode of any number from 0: beyond the length, the list starts again."""
        return self._episodes[number % len(self)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file for `load`: class, query and supports of each episode, by name.

        Args:
            path: File to write.
        """
        names = [self.source.classes[label - 1] for label in self.classes]
        about = {"format": FORMAT, "sha256": self.sha256, "classes": names}
        text = ",\n".join(json.dumps(episode, ensure_ascii=False) for episode in self._named())
        text = json.dumps(about)[:-1] + f', "episodes": [\n{text}\n]}}\n'
        write_whole(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], source: LabelledImages) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: File to read.
            source: The images that the episodes were drawn from.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is not a list of episodes or was changed, or the source does not
                have one of its images or classes.
        """
        try:
            about = json.loads(Path(path).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {FORMAT!r}")
            named = [(str(c), str(q), [str(s) for s in ss]) for c, q, ss in about["episodes"]]
            scored = {str(name) for name in about["classes"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a list of episodes of hdmnet: {error!r}") from error
        index = {name: i for i, name in enumerate(source.ids)}
        labels = {name: c for c, name in enumerate(source.classes, start=1)}
        used = {name for _, query, supports in named for name in (query, *supports)}
        for what, missing in (
            ("images", sorted(used - index.keys())),
            ("classes", sorted(scored.union(name for name, *_ in named) - labels.keys())),
        ):
            if missing:
                raise ValueError(
                    f"{path} names {len(missing)} {what} that the source does not have, such as "
                    f"{', '.join(missing[:5])}"
                )
        episodes = cls(
            source,
            [Episode(index[q], tuple(index[s] for s in ss), labels[c]) for c, q, ss in named],
            [labels[name] for name in scored],
        )
        if episodes.sha256 != about.get("sha256"):
            raise ValueError(f"{path} was changed: its episodes do not match its sha256")
        return episodes

    def _named(self) -> list[tuple[str, str, list[str]]]:
        ids, classes = self.source.ids, self.source.classes
        return [
            (classes[label - 1], ids[query], [ids[i] for i in supports])
            for query, supports, label in self._episodes
        ]


def check_range(name: str, value: int, least: int) -> None:
    """Raise ValueError unless `value` is from `least` to 2³² - 1."""
    if not least <= value < 2**32:
        raise ValueError(f"{name} must be from {least} to 2³² - 1, got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
