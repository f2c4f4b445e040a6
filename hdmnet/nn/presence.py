"""Does a query show any of the class? The features of what was found against the supports'."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from hdmnet.nn._checks import check_integers, check_probabilities, check_shapes, check_type
from hdmnet.nn._precision import no_autocast, upcast
from hdmnet.nn.priors import PriorFeatures

NEGATIVE_SCALE = 10.0
"""Logits that a difference of 1 between two cosines takes away."""
TINY = 1e-12
"""Guard of a division by a norm."""
POOLED, STEP = 2, 4
"""Side of the squares of query positions, and step between object positions, of `ClassEvidence`."""
REACH = 5
"""Squares of query positions around a place that `Presence.around` looks at."""
SURE = 1e-3
"""A probability of exactly 1 has no logit: it counts as 1 - SURE."""


class ClassEvidence(nn.Module):
    """Say how much features look like each class of a classifier, of ImageNet for example.

    e = max(0, W_2 v + b_2)²
    v = Σ_i w_i min(6, max(0, W_1 x_i + b_1)) / Σ_i w_i, over the positions i

    Two objects of a class that the classifier does not know still resemble the same known classes.
    That tells classes apart better than the features x, which differ from pose to pose.

    Its weights are buffers: training does not change them. They are 0 until they are loaded.

    Args:
        channels: Channels C of the features.
        hidden: Number of hidden units.
        classes: Number N of classes.

    Source: this project. The layers are those of EfficientNet-Lite after its last block, with its
    BatchNorm folded into W_1 and b_1.
    """

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden_weight: Tensor
        self.hidden_bias: Tensor
        self.class_weight: Tensor
        self.class_bias: Tensor
        self.register_buffer("hidden_weight", torch.zeros(hidden, channels))
        self.register_buffer("hidden_bias", torch.zeros(hidden))
        self.register_buffer("class_weight", torch.zeros(classes, hidden))
        self.register_buffer("class_bias", torch.zeros(classes))

    @property
    def units(self) -> tuple[int, int]:
        """Numbers of hidden units and of classes."""
        return self.hidden_weight.shape[0], self.class_weight.shape[0]

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the evidence (B, n, N) of features x (B, P, C) with weights w (B, n, P) ≥ 0.

        Without weights, compute that of each position: (B, P, N).
        """
        w1, b1, w2, b2 = (b.to(x.dtype) for b in self.buffers())
        with no_autocast(x):
            v = F.linear(x, w1, b1).clamp(0, 6)
            if weight is not None:
                v = weight @ v / weight.sum(dim=-1, keepdim=True).clamp(min=TINY)
            return F.linear(v, w2, b2).clamp(min=0) ** 2


class Presence(nn.Module):
    """Estimate whether a query shows any of the class.

    presence = σ(a cos(f, d) + b)
    f = Σ_i p_i² u(q_i − μ), what was found in the query, with the probability p_i
    d = Σ_kj u(s_kj − μ), over the object positions j of all shots k
    u(x) = x / |x|

    The square counts sure positions more than a large unsure area. With a `ClassEvidence`, f is its
    evidence of the query with the weights p², and d that of the object, where each shot weighs the
    same. To save time, it sees means of 2 × 2 query positions, and every fourth object position.

    Negatives n are things that are not the class, with directions d_n. They lower the cosine, and
    the probability of every pixel, where a query resembles one of them more than the class:

    g = min(0, cos(f, d) − max_n cos(f, d_n))
    presence = σ(a (cos(f, d) + g) + b)
    p' = σ(logit(p) + 10 g)

    Args:
        scale: The slope a.
        bias: The bias b.
        center: The mean μ of the features over many images. Empty: 0.
        threshold: The presence τ of a place below which `doubt` lowers an answer. 0: never.
        evidence: What f and d are made of. None: the directions u.

    Source: this project. `examples/fit_presence.py` fits a, b and μ.
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -5.0,
        center: Sequence[float] = (),
        threshold: float = 0.0,
        evidence: ClassEvidence | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.bias = bias
        self.threshold = threshold
        # No buffer: that would change the model's fingerprint, but it changes no encoded support.
        self.center = tuple(center)
        self.evidence = evidence

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, channels: int) -> Self:
        """Make the module of a constructor argument of the network.

        Args:
            config: A dict of `scale`, `bias`, `center` and, if they are there, `threshold` and
                `evidence`: the numbers of hidden units and of classes of a `ClassEvidence`. None:
                the defaults, which fit no network in particular.
            channels: Channels of the features.

        Raises:
            TypeError: If `config` is not a dict, or a value has the wrong type.
            ValueError: If a key is unknown or missing, `center` has another length, or the
                threshold is not in [0, 1].
        """
        if config is None:
            return cls()
        check_type("presence", config, Mapping, "a dict of scale, bias and center")
        optional = {"threshold", "evidence"}
        if config.keys() | optional != {"scale", "bias", "center"} | optional:
            raise ValueError(
                f"presence has the keys {sorted(config)}: expected scale, bias, center and, if you "
                "like, threshold and evidence"
            )
        scale, bias, center = config["scale"], config["bias"], config["center"]
        threshold = config.get("threshold", 0.0)
        check_probabilities(**{"presence['threshold']": threshold})
        check_type("presence['center']", center, (list, tuple), "a list of numbers")
        if len(center) not in (0, channels):
            raise ValueError(
                f"presence['center'] has {len(center)} entries: expected {channels}, the channels "
                "of f4, or none"
            )
        for value in (scale, bias, *center):
            check_type("each value of presence", value, (int, float), "a number")
            if not math.isfinite(value):
                raise ValueError(f"presence holds {value}: expected finite numbers")
        evidence = None
        if (units := config.get("evidence")) is not None:
            check_integers("presence['evidence']", units, 1, 2**16, longest=2)
            if len(units) != 2:
                raise ValueError(f"presence['evidence'] is {units}: expected [hidden, classes]")
            evidence = ClassEvidence(channels, *units)
        return cls(scale, bias, center, threshold, evidence)

    def forward(
        self,
        query: Tensor,
        scores: Tensor,
        supports: Sequence[PriorFeatures],
        negatives: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Compute the presence of each class in each query, and let negatives lower the scores.

        Args:
            query: (B, C, h, w) features q.
            scores: (B · n, 2, H, W) scores of background and object, at least 0, of n classes in
                each query.
            supports: Features s from `foreground_features`: of n classes, each of one episode; or
                of one set of B · n episodes, or of a divisor of B.
            negatives: Descriptions d_n, (episodes, M, C), of M things that are not the class, for
                each of the supports.

        Returns:
            The scores, and the presence (B · n,) in [0, 1].

        Raises:
            ValueError: If a shape does not fit.
        """
        check_shapes("B, C, h, w; N, 2, H, W", query=query, scores=scores)
        p = object_probability(scores)
        found = self.found(query, p.unflatten(0, (query.shape[0], -1)))
        each = found.tensor_split(len(supports), dim=1)
        compared = [self._compare(*x) for x in zip(each, supports, negatives, strict=True)]
        cosine, gap = (torch.cat(parts, dim=1).flatten() for parts in zip(*compared, strict=True))
        presence = (self.scale * (cosine + gap) + self.bias).sigmoid()
        if all(x is None for x in negatives):
            return scores, presence
        gap = gap[:, None, None].to(p.dtype)
        lower = p.minimum((p.logit(eps=SURE) + NEGATIVE_SCALE * gap).sigmoid())
        moved = (p - lower) * scores.clamp(min=0).sum(dim=1) * (gap < 0)
        b, f = scores.unbind(dim=1)
        # b only grows and f only shrinks: no probability rises, also after the scores are resized.
        return torch.stack([b.clamp(min=0).where(moved > 0, b) + moved, f - moved], dim=1), presence

    def doubt(
        self, query: Tensor, scores: Tensor, supports: Sequence[PriorFeatures]
    ) -> Tensor | None:
        """Compute where what was found looks unlike the class, and how much that lowers logits.

        Δ_i = min(0, a cos(f_i, d) + b − logit τ), with `around` for f_i

        Args:
            query: (B, C, h, w) features q.
            scores: As for `forward`.
            supports: As for `forward`.

        Returns:
            (B · n, ⌈h / 2⌉, ⌈w / 2⌉), at most 0. None if τ is 0.
        """
        if not self.threshold:
            return None
        p = object_probability(scores)
        around = self.around(query, p.unflatten(0, (query.shape[0], -1)))
        shown = [_for_each(self.shown(support), query.shape[0]) for support in supports]
        classes = torch.cat(shown, dim=1).to(around.dtype)[:, :, None, None]
        cosine = F.cosine_similarity(around, classes, dim=-1).flatten(0, 1)
        least = min(self.threshold, 1 - SURE)
        return (self.scale * cosine + self.bias - math.log(least / (1 - least))).clamp(max=0)

    def mean(self, like: Tensor) -> Tensor:
        """Return μ (C,) for features (..., C), with their type and device."""
        center = self.center or (0.0,) * like.shape[-1]
        return torch.tensor(center, dtype=like.dtype, device=like.device)

    def found(self, query: Tensor, probability: Tensor) -> Tensor:
        """Describe what was found in queries.

        Args:
            query: (B, C, h, w) features q.
            probability: (B, n, H, W) probabilities p of n classes, at any resolution.

        Returns:
            (B, n, C) sums f of directions, or evidence (B, n, N).
        """
        if self.evidence is not None:
            query = _pooled(query)
        return self._describe(query, _weight(query, probability).flatten(2))

    def around(self, query: Tensor, probability: Tensor) -> Tensor:
        """Describe what was found around each place of queries, as `found` does for all of it.

        A place is a square of 2 × 2 positions. It takes the places at most REACH squares away in
        both directions: one place alone shows too little of an object.

        Args:
            query: (B, C, h, w) features q.
            probability: (B, n, H, W) probabilities p of n classes, at any resolution.

        Returns:
            (B, n, ⌈h / 2⌉, ⌈w / 2⌉, C) sums f_i of directions, or evidence of N channels.
        """
        query = _pooled(query)
        weight = _weight(query, probability)
        n, height, width = weight.shape[1:]
        rows, columns = (_near(side, weight) for side in (height, width))
        near = torch.kron(rows, columns)
        each = rearrange(weight, "b n h w -> b n 1 (h w)") * near
        described = self._describe(query, each.flatten(1, 2))
        return rearrange(described, "b (n h w) c -> b n h w c", n=n, h=height)

    def _describe(self, query: Tensor, weight: Tensor) -> Tensor:
        q = rearrange(upcast(query), "b c h w -> b (h w) c")
        weight = weight.to(q.dtype)
        if self.evidence is None:
            return self._sum_directions(q, q.norm(dim=-1), weight)
        return self.evidence(q, weight)

    def likeness(
        self, query: Tensor, probability: Tensor, supports: Sequence[PriorFeatures]
    ) -> Tensor | None:
        """Compare what was found around each place of one query with the objects of n classes.

        Args:
            query: (1, C, h, w) features q.
            probability: (n, H, W) probabilities p of the classes, at any resolution. A place counts
                as much as any class was found there.
            supports: Features s of n classes, each of one episode.

        Returns:
            (n, ⌈h / 2⌉, ⌈w / 2⌉) cosines in [0, 1] of their evidence. None without a
            `ClassEvidence`.
        """
        if self.evidence is None:
            return None
        around = self.around(query, probability.amax(dim=0)[None, None])[0]
        classes = torch.cat([self.shown(support) for support in supports])
        return F.cosine_similarity(around, classes.to(around.dtype)[:, None, None], dim=-1)

    def shown(self, support: PriorFeatures) -> Tensor:
        """Describe the objects of B episodes: d, (B, C), or evidence (B, N)."""
        if self.evidence is not None:
            unit, norm = support
            if torch.compiler.is_compiling():
                unit, norm = unit[:, :, ::STEP], norm[:, :, ::STEP]
            else:
                # Object positions first, so each shot keeps one: a graph encodes them in any order.
                kept = (norm > 0).byte().argsort(dim=-1, descending=True, stable=True)[..., ::STEP]
                unit = unit.take_along_dim(kept[..., None], dim=2)
                norm = norm.take_along_dim(kept, dim=2)
            unit, norm = upcast(unit), upcast(norm)
            objects = (norm > 0).to(unit.dtype)
            each = objects / objects.sum(dim=-1, keepdim=True).clamp(min=1)
            x = rearrange(unit * norm[..., None], "b k n c -> b (k n) c")
            return self.evidence(x, each.flatten(1)[:, None])[:, 0]
        unit = rearrange(upcast(support.unit), "b k n c -> b (k n) c")
        norm = rearrange(upcast(support.norm), "b k n -> b (k n)")
        return self._sum_directions(unit, norm, (norm > 0).to(unit.dtype)[:, None], norm)[:, 0]

    def _sum_directions(
        self, x: Tensor, norm: Tensor, weight: Tensor, scale: Tensor | float = 1.0
    ) -> Tensor:
        """Compute Σ_i w_i u(s_i x_i − μ): (B, n, C).

        |s x − μ|² = |s x|² − 2 s x · μ + |μ|²: so the differences need no memory.

        Args:
            x: (B, N, C) features.
            norm: (B, N) norms of s x.
            weight: (B, n, N) weights w.
            scale: (B, N) factors s.
        """
        center = self.mean(x)
        with no_autocast(x):
            squared = norm**2 - 2 * (x @ center) * scale + center @ center
            weight = weight * squared.clamp(min=TINY).rsqrt()[:, None]
            scaled = weight * scale if isinstance(scale, float) else weight * scale[:, None]
            return scaled @ x - weight.sum(dim=-1, keepdim=True) * center

    def _compare(
        self, found: Tensor, support: PriorFeatures, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute cos(f, d) and g, both (B, n), of f (B, n, C)."""
        classes = _for_each(self.shown(support).to(found.dtype), found.shape[0])
        cosine = F.cosine_similarity(found, classes, dim=-1)
        if negatives is None:
            return cosine, torch.zeros_like(cosine)
        others = _for_each(negatives.to(found.dtype), found.shape[0])
        nearest = F.cosine_similarity(found[:, :, None], others, dim=-1).amax(dim=-1)
        return cosine, (cosine - nearest).clamp(max=0)


def object_probability(scores: Tensor) -> Tensor:
    """Turn scores (..., 2, H, W) into probabilities (..., H, W) of the object.

    p = f / (b + f), with the scores b of the background and f of the object, clamped at 0. Scores
    in half precision give float32.
    """
    b, f = upcast(scores).clamp(min=0).unbind(-3)
    return f / (b + f).clamp(min=torch.finfo(f.dtype).tiny)


def _weight(query: Tensor, probability: Tensor) -> Tensor:
    """Square the probabilities (B, n, H, W), at the resolution of the features (B, C, h, w)."""
    return F.interpolate(upcast(probability), query.shape[-2:], mode="area") ** 2


def _near(side: int, like: Tensor) -> Tensor:
    """(side, side) in {0, 1}: whether two rows of places, or two columns, are near each other."""
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    return ((place[:, None] - place).abs() <= REACH).to(like)


def _pooled(query: Tensor) -> Tensor:
    return F.avg_pool2d(query, POOLED, ceil_mode=True)


def _for_each(episodes: Tensor, queries: int) -> Tensor:
    """Arrange (episodes, ...) as (queries, n, ...); queries may share an episode."""
    if episodes.shape[0] < queries:
        shared = queries // episodes.shape[0]
        episodes = repeat(episodes, "episodes ... -> (episodes n) ...", n=shared)
    return episodes.unflatten(0, (queries, -1))
