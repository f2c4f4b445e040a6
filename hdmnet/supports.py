"""Encoded supports: everything about a class that does not depend on the query."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import repeat
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdmnet._files import save_tensors, write_whole
from hdmnet.nn.attention import SupportTokens
from hdmnet.nn.priors import PriorFeatures

FORMAT = "hdmnet support set 1"
OPTIONAL = {"gram", "negatives"}
"""Fields that a set may lack."""


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Everything about the supports of B episodes that does not depend on the query.

    `encode_supports` and `encode` make it. Its fields belong to the model that made it: `HDMNet`
    fills all of them, and another network the ones it needs.
    """

    prototypes: Tensor
    """(B, K, C): a vector for each support."""
    tokens: tuple[SupportTokens, ...] = ()
    """Keys and values of each matching stage, finest first."""
    prior_features: tuple[PriorFeatures, ...] = ()
    """Features of f5 (of f3 without base learner) and of f4."""
    gram: Tensor | None = None
    """(B, K, C_2, C_2) Gram matrices of f2. None without base learner."""
    fingerprint: str | None = None
    """`fingerprint()` of the model. None in the result of `encode`."""
    negatives: Tensor | None = None
    """(B, M, C) what describes things that are not the class, see `Presence`. None: there are none.
    """
    rivals: Tensor | None = None
    """(B, M, C) mean features of other classes in training, see `contrast_prior`. Never saved."""

    @property
    def shots(self) -> int:
        """Number of supports K of each episode."""
        return self.prototypes.shape[1]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the prototypes, of each stage's tokens, of each prior and of `gram`.

        All sets of one model have the same channels. Without `gram` the last number is 0.
        """
        tokens = (level.key.shape[1] * level.key.shape[3] for level in self.tokens)
        priors = (prior.unit.shape[-1] for prior in self.prior_features)
        grams = 0 if self.gram is None else self.gram.shape[-1]
        return self.prototypes.shape[-1], *tokens, *priors, grams

    def check_fits(
        self, fingerprint: Callable[[], str], channels: tuple[int, ...], device: torch.device
    ) -> None:
        """Check that a model can use this set.

        A compiled graph compares the channels and the device only.

        Args:
            fingerprint: The model's `fingerprint`.
            channels: `channels` of the model's sets.
            device: Device of the query.

        Raises:
            ValueError: If another model encoded the set, or the set is on another device.
        """
        known = self.fingerprint is not None and not torch.compiler.is_compiling()
        if known and self.fingerprint != fingerprint():
            raise ValueError(
                "another model encoded these supports, or this model has changed since: encode the "
                "supports again with this model"
            )
        if (self.gram is None) != (channels[-1] == 0):
            kind = "without" if self.gram is None else "with"
            raise ValueError(
                f"a model {kind} base learner encoded these supports: encode the supports again "
                "with this model"
            )
        if self.channels != channels:
            raise ValueError(
                f"the supports have {self.channels} channels (of prototypes, tokens, priors and "
                f"Gram matrices), but this model needs {channels}: encode the supports again with "
                "this model"
            )
        if self.prototypes.device != device:
            raise ValueError(
                f"the supports are on {self.prototypes.device}, but the query is on {device}: move "
                f"them with supports.to({str(device)!r})"
            )

    def expand(self, batch: int) -> Self:
        """Repeat the episodes for `batch` queries, if they are fewer.

        With a divisor of `batch`, consecutive queries share an episode. A set with a multiple of
        `batch` episodes stays as it is: consecutive episodes share a query, and the model gives as
        many answers as there are episodes.

        Raises:
            ValueError: If neither number is a multiple of the other.
        """
        episodes = self.prototypes.shape[0]
        if episodes == batch or (episodes > batch and episodes % batch == 0):
            return self
        if batch % episodes:
            raise ValueError(f"supports of {episodes} episodes do not fit {batch} queries")
        # With one episode, as in `predict`, these are views.
        return self._map(
            lambda x: repeat(x, "episodes ... -> (episodes queries) ...", queries=batch // episodes)
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Copy the set to another device, to another floating-point type, or both.

        Sums over positions stay in float32: they could overflow float16.
        """
        moved = self._map(lambda x: x.to(device=device, dtype=dtype))
        if dtype in (torch.float16, torch.bfloat16):
            tokens = [
                new._replace(key_sum=old.key_sum.to(device), area=old.area.to(device))
                for new, old in zip(moved.tokens, self.tokens, strict=True)
            ]
            moved = replace(moved, tokens=tuple(tokens))
        return moved

    def merge(self, *others: Self) -> Self:
        """Join the shots of several sets of the same class into one set.

        Args:
            *others: Sets of the same model, of the same episodes.

        Raises:
            ValueError: If the sets differ in their model or number of episodes.

        Example:
            >>> fish = fish.merge(model.encode_supports("c.jpg", "c.png"))
        """
        sets = (self, *others)
        if len({len(s.prototypes) for s in sets}) > 1:
            raise ValueError(
                "the sets must hold the same number of episodes, got "
                f"{[len(s.prototypes) for s in sets]}"
            )
        return self._join(others, 1, _merge_tokens)

    def stack(self, *others: Self) -> Self:
        """Join the episodes of several sets into one set, for example one episode for each class.

        Args:
            *others: Sets of the same model, with the same number of shots.

        Raises:
            ValueError: If the sets differ in their model or number of shots.

        Example:
            >>> both = cat.stack(dog)  # 2 episodes
        """
        if not others:  # hashing `shots` would fix it in an exported graph
            return self
        sets = (self, *others)
        if len({s.shots for s in sets}) > 1:
            raise ValueError(
                f"the sets must have the same number of shots, got {[s.shots for s in sets]}"
            )
        return self._join(others, 0, _stack_tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `load` reads.

        Raises:
            FileNotFoundError: If the folder of `path` does not exist.
            ValueError: If the set has no fingerprint, because `encode` made it.

        Example:
            >>> fish.save("fish.safetensors")
        """
        if self.fingerprint is None:
            raise ValueError(
                "this set has no fingerprint: only the result of encode_supports can be saved"
            )
        tensors = self.named_tensors()
        about = {"hdmnet": json.dumps({"format": FORMAT, "fingerprint": self.fingerprint})}
        write_whole(Path(path), lambda temporary: save_tensors(tensors, temporary, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read a set that `save` wrote. Only the model that encoded the set accepts it.

        Raises:
            FileNotFoundError: If there is no such file.
            RuntimeError: If there is no such device.
            ValueError: If the file is not a support set.

        Example:
            >>> fish = SupportSet.load("fish.safetensors")
        """
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder: expected a file that SupportSet.save wrote")
        place = str(torch.device(device))
        try:
            with safe_open(path, "pt", device=place) as file:
                about = json.loads((file.metadata() or {}).get("hdmnet", "{}"))
                # Copies: the originals would change, or end the process, with the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a support set file: {error}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{path} is not a support set file of this version of hdmnet")
        try:
            _check(tensors)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls.from_named_tensors(tensors, str(about.get("fingerprint")))

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as `save` writes them."""
        tensors = {"prototypes": self.prototypes}
        for i, level in enumerate(self.tokens):
            tensors |= {f"tokens.{i}.{name}": x for name, x in level._asdict().items()}
        for i, prior in enumerate(self.prior_features):
            tensors |= {f"prior_features.{i}.{name}": x for name, x in prior._asdict().items()}
        optional = {"gram": self.gram, "negatives": self.negatives}
        return tensors | {name: x for name, x in optional.items() if x is not None}

    @classmethod
    def from_named_tensors(
        cls, tensors: Mapping[str, Tensor], fingerprint: str | None = None
    ) -> Self:
        """Make a set of the result of `named_tensors`."""

        def fields(kind: Any, name: str, count: int) -> tuple[Any, ...]:
            return tuple(
                kind(*(tensors[f"{name}.{i}.{field}"] for field in kind._fields))
                for i in range(count)
            )

        stages, priors = _count(tensors)
        return cls(
            prototypes=tensors["prototypes"],
            tokens=fields(SupportTokens, "tokens", stages),
            prior_features=fields(PriorFeatures, "prior_features", priors),
            gram=tensors.get("gram"),
            fingerprint=fingerprint,
            negatives=tensors.get("negatives"),
        )

    def _join(
        self,
        others: Sequence[Self],
        dim: int,
        join_tokens: Callable[[Sequence[SupportTokens]], SupportTokens],
    ) -> Self:
        """Join sets of one model along the axis of episodes (0) or of shots (1)."""
        sets = (self, *others)
        if len({s.fingerprint for s in sets}) > 1:
            raise ValueError("different models encoded these sets: encode all with one model")
        if len({s.gram is None for s in sets}) > 1:
            raise ValueError(
                "models with and without base learner encoded these sets: encode all with one model"
            )
        if not others:
            return self
        levels = zip(*(s.tokens for s in sets), strict=True)
        priors = zip(*(s.prior_features for s in sets), strict=True)
        grams = [s.gram for s in sets if s.gram is not None]
        return replace(
            self,
            prototypes=torch.cat([s.prototypes for s in sets], dim),
            tokens=tuple(join_tokens(level) for level in levels),
            prior_features=tuple(_join_priors(level, dim) for level in priors),
            gram=torch.cat(grams, dim) if grams else None,
            negatives=_join_others("negatives", [s.negatives for s in sets], dim),
            rivals=_join_others("rivals", [s.rivals for s in sets], dim),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            prototypes=function(self.prototypes),
            tokens=tuple(SupportTokens(*map(function, level)) for level in self.tokens),
            prior_features=tuple(PriorFeatures(*map(function, p)) for p in self.prior_features),
            gram=None if self.gram is None else function(self.gram),
            negatives=None if self.negatives is None else function(self.negatives),
            rivals=None if self.rivals is None else function(self.rivals),
        )


def _count(names: Iterable[str]) -> tuple[int, int]:
    """Number of matching stages and of prior features."""
    names = list(names)
    return sum(n.endswith(".key") for n in names), sum(n.endswith(".unit") for n in names)


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be the result of `named_tensors`.

    Raises:
        ValueError: If names, numbers of axes, sizes or values do not fit together.
    """
    axes = {"prototypes": "b k c", "gram": "b k g g", "negatives": "b m f"}
    stages, priors = _count(tensors)
    for i in range(priors):
        axes |= {
            f"prior_features.{i}.unit": f"b k p{i} c{i}",
            f"prior_features.{i}.norm": f"b k p{i}",
        }
    for i in range(stages):
        keys = f"b heads n{i} d"
        axes |= {f"tokens.{i}.key": keys, f"tokens.{i}.value": keys}
        axes |= {f"tokens.{i}.key_sum": "b heads d", f"tokens.{i}.area": "b"}
    if wrong := sorted(tensors.keys() ^ axes.keys() - (OPTIONAL - tensors.keys())):
        raise ValueError(f"tensors are missing or left over: {', '.join(wrong)}")
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        letters = axes[name].split()
        fits = len(letters) == tensor.ndim and all(
            sizes.setdefault(letter, size) == size
            for letter, size in zip(letters, tensor.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {axes[name]} with {sizes}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{name} does not hold finite floating point numbers")


def _merge_tokens(parts: Sequence[SupportTokens]) -> SupportTokens:
    keys, values, sums, areas = zip(*parts, strict=True)
    return SupportTokens(
        torch.cat(keys, dim=2),
        torch.cat(values, dim=2),
        torch.stack(sums).sum(dim=0),
        torch.stack(areas).sum(dim=0),
    )


def _stack_tokens(parts: Sequence[SupportTokens]) -> SupportTokens:
    longest = max(part.key.shape[2] for part in parts)
    # Positions of value 0 change no sum.
    keys, values, sums, areas = zip(*parts, strict=True)
    padded = [
        torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in same])
        for same in (keys, values)
    ]
    return SupportTokens(padded[0], padded[1], torch.cat(sums), torch.cat(areas))


def _join_priors(parts: Sequence[PriorFeatures], dim: int) -> PriorFeatures:
    longest = max(part.norm.shape[2] for part in parts)
    units, norms = zip(*(_pad_prior(part, longest) for part in parts), strict=True)
    return PriorFeatures(torch.cat(units, dim=dim), torch.cat(norms, dim=dim))


def _pad_prior(part: PriorFeatures, length: int) -> PriorFeatures:
    """Repeat a position up to `length`: one of the background, if a shot has any.

    This changes no maximum. It changes sums over the object only in a shot without background that
    is joined to one of a larger grid: there, a position of the object counts several times.
    """
    least = part.norm.argmin(dim=2, keepdim=True)
    more = least.expand(-1, -1, length - part.norm.shape[2])
    unit = part.unit.take_along_dim(more[..., None], dim=2)
    norm = part.norm.take_along_dim(more, dim=2)
    return PriorFeatures(torch.cat([part.unit, unit], 2), torch.cat([part.norm, norm], 2))


def _join_others(name: str, parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    """Join the negatives or the rivals of sets."""
    given = [x for x in parts if x is not None]
    if dim == 0 and given:
        if len(given) < len(parts):
            raise ValueError(f"some of the sets have {name} and others have none: stack either")
        most = max(x.shape[1] for x in given)
        # One that is there twice changes no maximum of negatives and no minimum of rivals.
        given = [torch.cat([x, *[x[:, :1]] * (most - x.shape[1])], dim=1) for x in given]
    return torch.cat(given, dim) if given else None
