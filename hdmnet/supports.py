"""Encoded supports: everything about a class that does not depend on the query."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from einops import repeat
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hdmnet._files import save_tensors, write_whole
from hdmnet.attention import SupportTokens
from hdmnet.priors import PriorFeatures

FORMAT = "hdmnet support set 1"


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Everything about the supports of B episodes that does not depend on the query.

    Made by `HDMNet.encode_supports` or `HDMNet.encode`; opaque to its users.
    """

    prototypes: Tensor
    """(B, K, 256)."""
    tokens: tuple[SupportTokens, ...]
    """Keys and values of each matching stage, finest first."""
    prior_features: tuple[PriorFeatures, PriorFeatures]
    """Of f5 (f3 without base learner) and of f4."""
    gram: Tensor | None
    """(B, K, C_2, C_2), or None without base learner."""
    fingerprint: str | None = None
    """Of the model; None in a set that `HDMNet.encode` made."""

    @property
    def shots(self) -> int:
        """Number of supports K of each episode."""
        return self.prototypes.shape[1]

    @property
    def channels(self) -> tuple[int, ...]:
        """Of prototypes, of the tokens of each stage, of both prior features and of Gram matrices.

        The same for all sets of one model; without Gram matrices the last is 0.
        """
        tokens = (level.key.shape[1] * level.key.shape[3] for level in self.tokens)
        priors = (prior.unit.shape[-1] for prior in self.prior_features)
        grams = 0 if self.gram is None else self.gram.shape[-1]
        return self.prototypes.shape[-1], *tokens, *priors, grams

    def expand(self, batch: int) -> Self:
        """The set for `batch` queries: each episode shared by consecutive queries, equally many.

        Raises:
            ValueError: If `batch` is not a multiple of the episodes that the set holds.
        """
        episodes = self.prototypes.shape[0]
        if episodes == batch:
            return self
        if batch % episodes:
            raise ValueError(f"supports of {episodes} episodes do not fit {batch} queries")
        # Of one episode, as `predict` has, these are views.
        return self._map(
            lambda x: repeat(x, "episodes ... -> (episodes queries) ...", queries=batch // episodes)
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The set on another device, in another floating point type, or both.

        Sums over positions stay in float32 at least: float16 could not hold them.
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
        """One set of the shots of all, for sets of one class (of the same episodes) and one model.

        Raises:
            ValueError: If the sets differ in their model or number of episodes.
        """
        sets = (self, *others)
        if len({s.fingerprint for s in sets}) > 1:
            raise ValueError("the sets were encoded by different models: encode them by one")
        if len({len(s.prototypes) for s in sets}) > 1:
            raise ValueError(
                "the sets must hold the same number of episodes, got "
                f"{[len(s.prototypes) for s in sets]}"
            )
        if len({s.gram is None for s in sets}) > 1:
            raise ValueError("the sets were encoded by models with and without base learner")
        if not others:
            return self
        levels = zip(*(s.tokens for s in sets), strict=True)
        f5, f4 = zip(*(s.prior_features for s in sets), strict=True)
        grams = [s.gram for s in sets if s.gram is not None]
        return replace(
            self,
            prototypes=torch.cat([s.prototypes for s in sets], dim=1),
            tokens=tuple(_merge_tokens(level) for level in levels),
            prior_features=(_merge_priors(f5), _merge_priors(f4)),
            gram=torch.cat(grams, dim=1) if grams else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `load` reads.

        Raises:
            ValueError: If the set was made by `HDMNet.encode`, which leaves no fingerprint.
        """
        if self.fingerprint is None:
            raise ValueError("only a set made by encode_supports can be saved")
        tensors = self.named_tensors()
        about = {"hdmnet": json.dumps({"format": FORMAT, "fingerprint": self.fingerprint})}
        write_whole(Path(path), lambda temporary: save_tensors(tensors, temporary, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read a set that `save` wrote; only the model that encoded it accepts it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no support set.
        """
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {}).get("hdmnet", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no support set: {error}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{path} is no support set of this version of hdmnet")
        try:
            _check(tensors)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls.from_named_tensors(tensors, str(about.get("fingerprint")))

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors, by name, as `save` writes them."""
        tensors = {"prototypes": self.prototypes}
        for i, level in enumerate(self.tokens):
            tensors |= {f"tokens.{i}.{name}": x for name, x in level._asdict().items()}
        for i, prior in enumerate(self.prior_features):
            tensors |= {f"prior_features.{i}.{name}": x for name, x in prior._asdict().items()}
        return tensors if self.gram is None else tensors | {"gram": self.gram}

    @classmethod
    def from_named_tensors(
        cls, tensors: Mapping[str, Tensor], fingerprint: str | None = None
    ) -> Self:
        """The set of what `named_tensors` returned."""

        def prior(i: int) -> PriorFeatures:
            fields = PriorFeatures._fields
            return PriorFeatures(*(tensors[f"prior_features.{i}.{name}"] for name in fields))

        stages = range(_count_stages(tensors))
        return cls(
            prototypes=tensors["prototypes"],
            tokens=tuple(
                SupportTokens(*(tensors[f"tokens.{i}.{name}"] for name in SupportTokens._fields))
                for i in stages
            ),
            prior_features=(prior(0), prior(1)),
            gram=tensors.get("gram"),
            fingerprint=fingerprint,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        f5, f4 = self.prior_features
        return replace(
            self,
            prototypes=function(self.prototypes),
            tokens=tuple(SupportTokens(*map(function, level)) for level in self.tokens),
            prior_features=(PriorFeatures(*map(function, f5)), PriorFeatures(*map(function, f4))),
            gram=None if self.gram is None else function(self.gram),
        )


def _count_stages(names: Iterable[str]) -> int:
    return sum(name.endswith(".key") for name in names)


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that `named_tensors` cannot have returned.

    Raises:
        ValueError: If names, numbers of axes, sizes or values do not fit together.
    """
    axes = {"prototypes": "b k c", "gram": "b k g g"}
    for i in range(2):
        axes |= {
            f"prior_features.{i}.unit": f"b k p{i} c{i}",
            f"prior_features.{i}.norm": f"b k p{i}",
        }
    for i in range(_count_stages(tensors)):
        keys = f"b heads n{i} d"
        axes |= {f"tokens.{i}.key": keys, f"tokens.{i}.value": keys}
        axes |= {f"tokens.{i}.key_sum": "b heads d", f"tokens.{i}.area": "b"}
    if wrong := sorted(tensors.keys() ^ axes.keys() - ({"gram"} - tensors.keys())):
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


def _merge_priors(parts: Sequence[PriorFeatures]) -> PriorFeatures:
    longest = max(part.norm.shape[2] for part in parts)
    units, norms = ([_pad(x, longest) for x in same] for same in zip(*parts, strict=True))
    return PriorFeatures(torch.cat(units, dim=1), torch.cat(norms, dim=1))


def _pad(x: Tensor, length: int) -> Tensor:
    """Repeat the first of the n positions of (B, K, n, …): that changes no maximum."""
    first = x[:, :, :1]
    return torch.cat([x, *[first] * (length - x.shape[2])], dim=2)
