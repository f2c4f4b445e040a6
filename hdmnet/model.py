"""HDMNet (arXiv 2303.14652): the parts, composed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from hdmnet.inference import HDMNetInference
from hdmnet.nn import _checks, _fast
from hdmnet.nn._precision import no_autocast, upcast
from hdmnet.nn._resize import nearest, upsample, widen_small
from hdmnet.nn.attention import SupportTokens
from hdmnet.nn.backbone import FeaturePyramid, needs_all_at_once
from hdmnet.nn.calibration import Calibration
from hdmnet.nn.encoder import HierarchicalEncoder, conv_relu
from hdmnet.nn.ensemble import BaseLearner, BaseMetaEnsemble
from hdmnet.nn.matching import CascadeMatching
from hdmnet.nn.presence import Presence
from hdmnet.nn.priors import (
    contrast_prior,
    foreground_features,
    masked_average_pool,
    max_cosine,
    mean_feature,
)
from hdmnet.nn.psp import PyramidPooling
from hdmnet.nn.style import gram_distance, gram_matrix
from hdmnet.output import Features, HDMNetOutput, QueryFeatures
from hdmnet.preprocess import SEEN
from hdmnet.supports import SupportSet

REDUCED_DIM = 256  # channels of the reduced features q and s
PSP_DIM = 512  # channels of f5
PRIOR_SCALE = 10.0  # factor of the prior in the query tokens
FREE = ("image_size", "dropout", "feature_dropout", "frozen_norm")
# To the paper. They change only negatives of a set; high_level also changes weights, which count.
ADDED = ("presence", "calibration", "contrast", "high_level")
SHOTS = "(b k) c h w -> b k c h w"
SHARED = "b ... -> (b n) ..."  # n consecutive episodes share a query


class HDMNet(HDMNetInference):
    """The network of the paper: segments the class of K masked support images in a query image.

    Args:
        backbone: `resnet50`, `resnet101` or `vgg16` as in the paper, or any other timm model with
            a feature pyramid or of the plain ViTs, such as `vit_small_patch14_dinov2.lvd142m`.
        base_classes: Number of base classes n of the base learner. 0 leaves out the base learner,
            its PSP head and the ensemble: `final` is then softmax(meta), and f3 takes the place of
            f5 in the prior.
        shots: Number of shots that the weights are trained with. Any other K works as well.
        image_size: Height and width in pixels that `predict` resizes images to.
        dim: Channels of the tokens, even and a multiple of each of `heads`.
        heads: Attention heads of each stage, finest first. Its length is the number of stages.
        dropout: Dropout probability in the transformer blocks.
        feature_dropout: Probability of dropping a channel of the reduced features.
        shot_hidden_dim: Hidden channels of the shot weighting; 0 means one layer without bias.
        frozen_norm: Whether every BatchNorm stays in eval mode in training, as in the paper.
        layers: Levels or blocks of the backbone that give f2, f3, f4, as for `FeaturePyramid`.
        high_level: Whether the tokens are made of f4 too. The paper makes them of f2 and f3 only.
        presence: Arguments of `Presence`, fitted. None: an answer's `presence` is only a rough one.
        contrast: Whether the prior has a third map, which compares a class with the mean of many
            images: see `contrast_prior`. Its μ is `presence["center"]`: give it before training.
        calibration: Arguments of `Calibration`, fitted, of `predict` and `scores`. None: no change.
        pretrained_backbone: Whether to download timm's weights of the backbone. It is not saved
            with the model: a reload never downloads a backbone.

    Raises:
        ConnectionError: If the ImageNet weights are not in the cache and cannot be downloaded.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, or timm has no such backbone.

    Example:
        >>> model = HDMNet("resnet50", base_classes=15, shots=5, pretrained_backbone=True)

    Source: HDMNet (arXiv 2303.14652); base learner and ensemble from BAM (arXiv 2203.07615).
    """

    free_arguments = (*FREE, *ADDED)

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        base_classes: int = 60,
        shots: int = 1,
        image_size: int = 473,
        dim: int = 64,
        heads: Sequence[int] = (2, 4, 8),
        dropout: float = 0.1,
        feature_dropout: float = 0.5,
        shot_hidden_dim: int = 2,
        frozen_norm: bool = True,
        layers: Sequence[int] | None = None,
        high_level: bool = False,
        contrast: bool = False,
        presence: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        pretrained_backbone: bool = False,
    ) -> None:
        super().__init__()
        _checks.check_type("backbone", backbone, str, "the name of a model")
        for name, value in {"frozen_norm": frozen_norm, "contrast": contrast}.items():
            _checks.check_type(name, value, bool, "a bool")
        _checks.check_type("high_level", high_level, bool, "a bool")
        _checks.check_integers("heads", heads, 1, 2**14, longest=6)  # each stage halves the grid
        _checks.check_integer("base_classes", base_classes, 0, 10**6)
        _checks.check_integer("shots", shots, 1, 10**4)
        _checks.check_integer("shot_hidden_dim", shot_hidden_dim, 0, 10**4)
        _checks.check_integer("dim", dim, 2, 2**14)
        _checks.check_probabilities(dropout=dropout, feature_dropout=feature_dropout)
        self.image_size = image_size
        self.frozen_norm = frozen_norm

        self.backbone = FeaturePyramid(backbone, layers=layers, pretrained=pretrained_backbone)
        c2, c3, c4 = self.backbone.channels
        self.psp = PyramidPooling(c4, PSP_DIM) if base_classes else None
        self.base_learner = BaseLearner(PSP_DIM, base_classes) if base_classes else None
        self._levels = (1, 0, 2) if high_level else (1, 0)  # of the tokens: f3, f2 and f4
        seen = sum(self.backbone.channels[i] for i in self._levels)
        self.query_reduce = conv_relu(seen, REDUCED_DIM, nn.Dropout2d(feature_dropout))
        self.support_reduce = conv_relu(seen, REDUCED_DIM, nn.Dropout2d(feature_dropout))
        priors = 3 if contrast else 2
        self.query_merge = conv_relu(2 * REDUCED_DIM + priors, dim)
        self.support_merge = conv_relu(2 * REDUCED_DIM, dim)
        self.encoder = HierarchicalEncoder(dim, heads, dropout=dropout)
        self.cascade = CascadeMatching(
            dim, len(heads), prior_channels=priors, shots=shots, dropout=dropout
        )
        self.ensemble = (
            BaseMetaEnsemble(shots, shot_hidden_dim=shot_hidden_dim) if base_classes else None
        )
        self.presence = Presence.from_config(presence, c4)
        self.calibration = Calibration.from_config(calibration)

        c5, gram = (PSP_DIM, c2) if base_classes else (c3, 0)
        self._support_channels = (REDUCED_DIM, *[dim] * len(heads), c5, c4, gram)
        self.priors = ("f5" if base_classes else "f3", "f4", "contrast")[:priors]
        self.smallest_size = self.backbone.smallest_size(self.encoder.min_grid)
        _checks.check_integer("image_size", image_size, self.smallest_size, 2**14)
        self.train()  # a new module is in training mode, but the frozen norms must not be

    def forward(
        self, query: Tensor, supports: Tensor, masks: Tensor, base_class: Tensor | None = None
    ) -> HDMNetOutput:
        """Segment B queries, each with K supports of its own.

        Args:
            query: (B, 3, H, W) RGB, normalised with `backbone.mean` and `backbone.std`.
            supports: (B, K, 3, H', W') RGB, normalised in the same way.
            masks: (B, K, H', W') support masks: 1 = object, 2 = background that the backbone sees
                all the same, 255 = ignore, 0 = background.
            base_class: (B,) long in 0 … base_classes - 1, in training: the base class that each
                episode asks for.

        Returns:
            Scores at H × W, correlation maps and priors.

        Raises:
            ValueError: If a shape does not fit, the images are too small, or `base_class` is out of
                range or given to a model without base learner.

        Example:
            >>> query, supports = torch.rand(1, 3, 473, 473), torch.rand(1, 5, 3, 473, 473)
            >>> model(query, supports, torch.ones(1, 5, 473, 473)).final.shape
            torch.Size([1, 2, 473, 473])
        """
        _checks.check_episodes(query, supports)
        return self.match(query, self.encode(supports, masks), base_class)

    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """Compute everything that `match` needs of B episodes' supports, with gradients.

        Args:
            supports: (B, K, 3, H, W), as for `forward`.
            masks: (B, K, H, W), as for `forward`.

        Raises:
            ValueError: As `forward`.
        """
        _checks.check_images("supports", supports, "B, K, 3, H, W", self.smallest_size)
        _checks.check_masks(masks, supports)
        masked = supports * ((masks == 1) | (masks == SEEN))[:, :, None].to(supports.dtype)
        if needs_all_at_once(self.pretrained_parts()):
            features = self.backbone(rearrange(masked, "b k c h w -> (b k) c h w"))
            return self.encode_features(features, masks)
        # One shot at a time; the backward pass computes their tokens again: memory grows little.
        again = supports.shape[1] > 1 and torch.is_grad_enabled()
        first, *others = (
            self.encode_features(self.backbone(image), mask, recompute=again)
            for image, mask in zip(masked.unbind(dim=1), masks.split(1, dim=1), strict=True)
        )
        return first.merge(*others)

    def encode_features(
        self, features: Features, masks: Tensor, *, recompute: bool = False
    ) -> SupportSet:
        """Do the work of `encode` on given features, for example those of a frozen backbone.

        Args:
            features: The result of `backbone` for the B · K supports, each multiplied by its mask.
            masks: (B, K, H, W), as for `forward`.
            recompute: Whether the backward pass computes the tokens again, to save memory.

        Raises:
            ValueError: If there is not one image for each mask, or the grid is too small.
        """
        f2, f3, f4 = features
        shots = masks.shape[1]
        if f2.shape[0] != masks.shape[0] * shots:
            raise ValueError(
                f"features must be those of the B · K supports of the masks {tuple(masks.shape)}, "
                f"got {f2.shape[0]} images"
            )
        mask = widen_small((masks == 1).to(f2.dtype), f4.shape[-2:])
        tokens = partial(_fast.recompute, self._tokens) if recompute else self._tokens
        prototypes, stages = tokens(mask, *features)
        # The prior compares the foreground: f5 is computed there only.
        mask = nearest(mask, f4.shape[-2:])
        box = None if needs_all_at_once(self.pretrained_parts()) else _fast.foreground_window(mask)
        f5 = self._f5(f3, f4, box)
        if box is not None:
            mask, f4 = box.crop(mask), box.crop(f4)
        f5, f4, f2 = (rearrange(f, SHOTS, k=shots) for f in (f5, f4, f2))
        return SupportSet(
            prototypes=prototypes,
            tokens=stages,
            prior_features=(foreground_features(f5, mask), foreground_features(f4, mask)),
            gram=None if self.ensemble is None else gram_matrix(f2),
        )

    def _tokens(self, mask: Tensor, *features: Tensor) -> tuple[Tensor, tuple[SupportTokens, ...]]:
        s = self.support_reduce(torch.cat([features[i] for i in self._levels], dim=1))
        with no_autocast(s):  # as in `_merge`
            s = s.to(next(self.support_merge.parameters()).dtype)
            prototypes = masked_average_pool(rearrange(s, SHOTS, k=mask.shape[1]), mask).to(s.dtype)
            p = rearrange(prototypes, "b k c -> (b k) c 1 1").expand_as(s)
            tokens = self.support_merge(torch.cat([s, p], dim=1))
            levels = [rearrange(level, SHOTS, k=mask.shape[1]) for level in self.encoder(tokens)]
            return prototypes, self.cascade.encode(levels, mask)

    def match(
        self, query: Tensor, supports: SupportSet, base_class: Tensor | None = None
    ) -> HDMNetOutput:
        """Segment B queries with encoded supports.

        Args:
            query: (B, 3, H, W), as for `forward`.
            supports: The result of `encode` or, for inference, of `encode_supports`: B episodes, or
                numbers of them that share, see `SupportSet.expand`.
            base_class: (B,) long, as for `forward`.

        Raises:
            ValueError: As `forward`.
        """
        _checks.check_images("query", query, "B, 3, H, W", self.smallest_size)
        return self.match_features(self.backbone(query), supports, query.shape[-2:], base_class)

    def match_features(
        self,
        features: Features,
        supports: SupportSet,
        size: Sequence[int],
        base_class: Tensor | None = None,
    ) -> HDMNetOutput:
        """Do the work of `match` on given features, for example those of a frozen backbone.

        Args:
            features: The result of `backbone` for the B queries.
            supports: As for `match`.
            size: Height and width of the queries.
            base_class: (B,) long, as for `forward`.

        Raises:
            ValueError: As `forward`, or if another model encoded the supports.
        """
        if base_class is not None and self.ensemble is None:
            raise ValueError("base_class was given, but the model has base_classes=0")
        query = self._describe(features)
        out = self._merge(query, supports, self._prior(query, supports), size, base_class)
        return out._replace(
            meta=upsample(out.meta, size, align_corners=True),
            base=None if out.base is None else upsample(out.base, size, align_corners=True),
        )

    def _describe(self, features: Features) -> QueryFeatures:
        f2, f3, f4 = features
        f5 = self._f5(f3, f4)
        return QueryFeatures(
            prior=(f5, f4),
            reduced=self.query_reduce(torch.cat([features[i] for i in self._levels], dim=1)),
            base=None if self.base_learner is None else self.base_learner(f5),
            gram=None if self.ensemble is None else gram_matrix(f2),
        )

    def _prior(self, query: QueryFeatures, supports: SupportSet) -> Tensor:
        supports.check_fits(self.fingerprint, self._support_channels, query.reduced.device)
        supports = replace(supports, tokens=(), gram=None).expand(query.reduced.shape[0])
        n = supports.prototypes.shape[0] // query.reduced.shape[0]
        features = [repeat(f, SHARED, n=n) for f in query.prior]
        pairs = zip(features, supports.prior_features, strict=True)
        maps = [max_cosine(f, s) for f, s in pairs]
        if "contrast" in self.priors:
            own = mean_feature(supports.prior_features[1])
            center = self.presence.mean(own)
            maps.append(contrast_prior(features[1], own, supports.rivals, center))
        return torch.stack(maps, dim=1)

    def _merge(
        self,
        query: QueryFeatures,
        supports: SupportSet,
        prior: Tensor,
        size: Sequence[int],
        base_class: Tensor | None = None,
    ) -> HDMNetOutput:
        q, n = query.reduced, prior.shape[0] // query.reduced.shape[0]
        supports = replace(supports, prior_features=()).expand(q.shape[0])
        # float32: cheap here, and bf16 would move mask borders.
        with no_autocast(q):
            q = repeat(q.to(next(self.query_merge.parameters()).dtype), SHARED, n=n)
            p = supports.prototypes.mean(dim=1).to(q.dtype)[..., None, None].expand_as(q)
            tokens = self.query_merge(torch.cat([q, p, (PRIOR_SCALE * prior).to(q.dtype)], dim=1))
            meta, correlations = self.cascade.match(
                self.encoder(tokens), supports.tokens, prior, shots=supports.shots
            )
        if self.ensemble is None or query.base is None or query.gram is None:
            final = upcast(upsample(meta, size, align_corners=True)).softmax(dim=1)
            return HDMNetOutput(final, meta, None, correlations, prior)
        base, gram = (repeat(x, SHARED, n=n) for x in (query.base, query.gram))
        assert supports.gram is not None  # `check_fits` refuses such a set
        final = self.ensemble(meta, base, gram_distance(gram, supports.gram), base_class)
        final = upsample(final, size, align_corners=True)
        return HDMNetOutput(final, meta, base, correlations, prior)

    def _f5(self, f3: Tensor, f4: Tensor, box: _fast.Window | None = None) -> Tensor:
        """Return f5, or f3 without base learner, inside of the window."""
        if self.psp is not None:
            return self.psp(f4, box)
        return f3 if box is None else box.crop(f3)

    def pretrained_parts(self) -> list[nn.Module]:
        return [p for p in (self.backbone, self.psp, self.base_learner) if p is not None]

    def transformer_parts(self) -> list[nn.Module]:
        return [self.encoder, self.cascade]
