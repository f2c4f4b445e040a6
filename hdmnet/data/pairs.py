"""Episodes from a list of pairs of an image and a class, as HSNet draws them."""

import operator
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hdmnet.data.episodes import Episode, check_range
from hdmnet.data.source import LabelledImages

_LISTED = 5


class PairList(Sequence[Episode]):
    """Draws episodes from lists of pairs of an image and a class, as HSNet does on PASCAL-5i.

    Pair i gives the query and the class of episode i. Each support is drawn from the images that
    are listed for this class, all with the same probability, and drawn again if it is the query. So
    two supports of an episode may be the same image.

    An episode depends only on the seed and its number, so it is the same on any machine. The
    published code draws from NumPy's global generator: its episodes cannot be drawn again.

    Args:
        source: The images.
        paths: A text file, or several that are read one after the other. A line is NAME__LABEL,
            such as `2008_000008__13`: the image's id in the source, and the label of a class, from
            1 in the order of `source.classes`.
        shots: K, at least 1.
        length: Number of episodes, 1000 in HSNet. After the last pair, the list starts again, with
            other supports. None: the number of pairs.
        seed: 0 to 2³² - 1.
        repeat: Whether an image may be several supports of an episode, as in HSNet.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If an argument is out of its range, a line is not NAME__LABEL, the source does
            not have an image or a class, there are no pairs, or a class has too few images.

    Example:
        >>> pairs = PairList(PascalVOC("VOCdevkit"), "fold0.txt", shots=5, length=1000)
        >>> query, supports, label = pairs[0]

    Source: HSNet (arXiv 2104.01538): the lists of its published code, and its rule for supports.
    """

    def __init__(
        self,
        source: LabelledImages,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        shots: int = 1,
        length: int | None = None,
        seed: int = 0,
        repeat: bool = True,
    ) -> None:
        check_range("shots", shots, 1)
        check_range("length", 1 if length is None else length, 1)
        check_range("seed", seed, 0)
        self.source, self.shots, self.seed, self._repeat = source, shots, seed, repeat
        files = [paths] if isinstance(paths, str | os.PathLike) else paths
        named = [pair for file in files for pair in _read(Path(file), len(source.classes))]
        listed = ", ".join(map(str, files))
        if not named:
            raise ValueError(f"{listed} lists no pairs: expected a line NAME__LABEL for each")
        index = {name: i for i, name in enumerate(source.ids)}
        if missing := sorted({name for name, _ in named} - index.keys()):
            raise ValueError(
                f"{listed} names {len(missing)} images that the source does not have, such as "
                f"{', '.join(missing[:_LISTED])}"
            )
        self._pairs = [(index[name], label) for name, label in named]
        self.classes = tuple(sorted({label for _, label in named}))
        self._images = {c: [i for i, label in self._pairs if label == c] for c in self.classes}
        least = 2 if repeat else shots + 1
        for label, images in self._images.items():
            if len(set(images)) < least:
                raise ValueError(
                    f"{listed} lists {len(set(images))} images of {source.classes[label - 1]!r}: "
                    f"an episode of {shots} shots needs at least {least}"
                )
        self._length = length or len(self._pairs)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Episode:  # type: ignore[override]  # takes no slices
        return self.draw(range(len(self))[operator.index(number)])

    def draw(self, number: int) -> Episode:
        """Draw the episode of any number from 0, also beyond the length."""
        # RandomState, because numpy promises that its streams never change.
        rng = np.random.RandomState([self.seed, number])
        query, label = self._pairs[number % len(self._pairs)]
        images = self._images[label]
        supports: list[int] = []
        while len(supports) < self.shots:
            drawn = images[rng.randint(len(images))]
            if drawn != query and (self._repeat or drawn not in supports):
                supports.append(drawn)
        return Episode(query, tuple(supports), label)


def _read(path: Path, classes: int) -> list[tuple[str, int]]:
    """Read the names and labels of a list."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition("__")
        if not name or not label.isdecimal():
            raise ValueError(
                f"line {number} of {path} is {line!r}: expected NAME__LABEL, such as "
                "2008_000008__13"
            )
        if not 1 <= int(label) <= classes:
            raise ValueError(
                f"line {number} of {path} has the label {label}: expected 1 to {classes}"
            )
        pairs.append((name, int(label)))
    return pairs
