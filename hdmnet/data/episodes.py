"""Episodes: which query, which supports, which class."""

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
"""Pixels of a class, at the image's own size, below which the papers do not list an image."""


class Episode(NamedTuple):
    """One task: images of a `LabelledImages` by their index, and a class by its label."""

    query: int
    supports: tuple[int, ...]
    label: int


class EpisodeSampler(Sequence[Episode]):
    """Draws episodes, each a function of the seed and its number: the same on any machine.

    It is a sequence for `EpisodeDataset`, and no `sampler` of a `DataLoader`.

    The length is the number of queries that the rules allow, or `length`. `draw` goes on beyond
    it: the list of queries starts over, with other supports.

    Args:
        source: The images.
        classes: Labels that episodes ask for: the base classes in training, the novel ones in
            testing (`pascal_fold`, `coco_fold`); all of the source, if left out.
        shots: K. Supports are distinct, and none is the query.
        length: Number of episodes, 1000 in most papers. On COCO-20i that leaves the mean uncertain
            by 2 to 3 points: use 10 000 there.
        seed: 0 to 2³² - 1.
        min_area: Pixels that a class needs in an image to be listed for it, at the image's own
            size: 2048 in PFENet (arXiv 2008.01449), BAM and HDMNet, 1 for every object. Queries
            and supports are listed images.
        other_classes: Whether images that also show a class outside of `classes` are left out
            (`drop`: training of BAM, arXiv 2203.07615, and HDMNet, where these are the novel
            classes) or stay, those pixels being background (`background`: training of PFENet and
            HSNet, arXiv 2104.01538, and all testing).
        order: `list`: every query in turn, in the order of the source, its class drawn among those
            of `classes` that it shows (PFENet, BAM, HDMNet); if `length` is less than the number of
            queries, only the first of them. `balanced`: the class is drawn first, all alike, then a
            query among its listed images (HSNet on COCO).
        query_class: With `order="list"`, whether the class is drawn among all that the query shows,
            small ones included (`shown`: PFENet, BAM, HDMNet), or among those that it is listed
            for (`listed`).

    A large source is read once with `source.areas(cache)` before.

    Raises:
        ValueError: If an argument is out of its range, or no class has K + 1 listed images.
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
            if not least <= value < 2**32:
                raise ValueError(f"{name} must be from {least} to 2³² - 1, got {value}")
        _check_choice("other_classes", other_classes, ("background", "drop"))
        _check_choice("order", order, ("list", "balanced"))
        _check_choice("query_class", query_class, ("shown", "listed"))
        self.source, self.shots, self.seed, self._order = source, shots, seed, order

        areas = source.areas()
        drop = other_classes == "drop"
        kept = [i for i, shown in enumerate(areas) if not drop or shown.keys() <= set(wanted)]
        listed = {c: [i for i in kept if areas[i].get(c, 0) >= min_area] for c in wanted}
        self.classes = tuple(wanted)
        # A class without K supports beside a query can ask for nothing.
        self._listed = {c: images for c, images in listed.items() if len(images) > shots}
        if few := [source.classes[c - 1] for c in wanted if c not in self._listed]:
            logger.warning(
                "too few images for %d shots, never asked for: %s", shots, ", ".join(few)
            )
        if not self._listed:
            most = max(listed, key=lambda c: len(listed[c]))
            raise ValueError(
                f"no class has the {shots + 1} images that an episode of {shots} shots needs: the "
                f"most has {source.classes[most - 1]!r}, {len(listed[most])} with {min_area} pixels"
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
        """Episode of any number from 0, which may be beyond the length."""
        # RandomState, because numpy promises that its streams never change.
        rng = np.random.RandomState([self.seed, number])
        if self._order == "balanced":
            label = list(self._listed)[rng.randint(len(self._listed))]
            query = self._listed[label][rng.randint(len(self._listed[label]))]
        else:
            query = self._queries[number % len(self._queries)]
            label = self._choices[query][rng.randint(len(self._choices[query]))]
        images = self._listed[label]
        at = bisect_left(images, query)  # a query in which the class is small is none of them
        found = at < len(images) and images[at] == query
        chosen = rng.choice(len(images) - found, self.shots, replace=False).tolist()
        return Episode(query, tuple(images[i + (found and i >= at)] for i in chosen), label)


class EpisodeList(Sequence[Episode]):
    """Episodes written down, so that two systems can be scored on the same.

    Args:
        source: The images.
        episodes: The episodes, for example an `EpisodeSampler`.
        classes: Labels that are scored: those that `episodes` asks for, if left out. A sampler's
            `classes` may hold more, of which chance asked for none.

    Raises:
        ValueError: If there are none, they differ in their number of shots or have none, or a query
            is its own support.
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
        if any(query in supports for query, supports, _ in self._episodes):
            raise ValueError("a query is its own support")
        shots = {len(episode.supports) for episode in self._episodes}
        if len(shots) != 1 or 0 in shots:
            raise ValueError(f"expected episodes of one number of shots K ≥ 1, got {sorted(shots)}")
        self.shots = shots.pop()

    @property
    def sha256(self) -> str:
        """Of the classes, queries and supports by name: equal if, and only if, all of these are."""
        return hashlib.sha256(json.dumps(self._named()).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, number: int) -> Episode:  # type: ignore[override]  # takes no slices
        return self._episodes[operator.index(number)]

    def draw(self, number: int) -> Episode:
        """Episode of any number from 0: beyond the length the list starts over."""
        return self._episodes[number % len(self)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file that `load` reads: class, query and supports of each, by name."""
        names = [self.source.classes[label - 1] for label in self.classes]
        about = {"format": FORMAT, "sha256": self.sha256, "classes": names}
        text = ",\n".join(json.dumps(episode, ensure_ascii=False) for episode in self._named())
        text = json.dumps(about)[:-1] + f', "episodes": [\n{text}\n]}}\n'
        write_whole(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], source: LabelledImages) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no list of episodes or has been changed, or the source lacks
                an image or a class of it.
        """
        try:
            about = json.loads(Path(path).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            named = [(str(c), str(q), [str(s) for s in ss]) for c, q, ss in about["episodes"]]
            scored = {str(name) for name in about["classes"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no list of episodes of hdmnet: {error!r}") from error
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
            raise ValueError(f"{path} has been changed: its episodes do not have its sha256")
        return episodes

    def _named(self) -> list[tuple[str, str, list[str]]]:
        ids, classes = self.source.ids, self.source.classes
        return [
            (classes[label - 1], ids[query], [ids[i] for i in supports])
            for query, supports, label in self._episodes
        ]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
