"""What HDMNet adds to the paper for `predict`: classes at once, calibration, presence."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.base import FewShotModel
from hdmnet.classes import Groups
from hdmnet.nn import _checks
from hdmnet.nn.calibration import Calibration
from hdmnet.nn.contrast import set_apart
from hdmnet.nn.presence import Presence, object_probability
from hdmnet.output import Features, HDMNetOutput, Look, Matches, QueryFeatures
from hdmnet.supports import SupportSet


class HDMNetInference(FewShotModel):
    """The hooks of `FewShotModel` for `HDMNet`, on the parts that it computes an answer from.

    Attributes:
        presence: Does a query show any of the class?
        calibration: From scores to probabilities.
        priors: Names of the P maps of the prior.
    """

    presence: Presence
    calibration: Calibration
    priors: tuple[str, ...]
    _support_channels: tuple[int, ...]

    @abstractmethod
    def _describe(self, features: Features) -> QueryFeatures:
        """Compute everything about B queries that does not depend on the supports."""

    @abstractmethod
    def _prior(self, query: QueryFeatures, supports: SupportSet) -> Tensor:
        """Compute the prior (B, P, h, w)."""

    @abstractmethod
    def _merge(
        self,
        query: QueryFeatures,
        supports: SupportSet,
        prior: Tensor,
        size: Sequence[int],
        base_class: Tensor | None = None,
    ) -> HDMNetOutput:
        """Merge everything, with `meta` and `base` still on the feature grid."""

    def scores(self, query: Tensor, supports: SupportSet) -> Tensor:
        """Compute only the calibrated scores of `match`. See `FewShotModel.scores`."""
        return next(self.match_sets(query, [[supports]])).scores

    def look_at(self, query: Tensor) -> Look:
        """Compute everything about B queries that does not depend on the supports."""
        _checks.check_images("query", query, "B, 3, H, W", self.smallest_size)
        return Look(self._describe(self.backbone(query)), (query.shape[-2], query.shape[-1]))

    def match_sets(
        self, query: Tensor | Look, groups: Groups, *, competing: bool = False
    ) -> Iterator[Matches]:
        """Match one query with several sets, or the reverse: what they share is computed once."""
        look = query if isinstance(query, Look) else self.look_at(query)
        if competing:
            yield from self._compete(look, list(groups))
            return
        for group in groups:
            yield self._match_group(look, group)

    def _compete(self, look: Look, groups: list[Sequence[SupportSet]]) -> Iterator[Matches]:
        """Set the classes of a call apart, if the model can tell what they look like."""
        matches = [self._match_group(look, group) for group in groups]
        f4 = [s.prior_features[1] for group in groups for s in group]
        scores = torch.cat([match.scores for match in matches])
        likeness = self.presence.likeness(look.features.prior[1], object_probability(scores), f4)
        if likeness is None:
            yield from matches
            return
        scores = set_apart(scores, likeness)
        parts = scores.split([len(group) for group in groups])
        for match, part in zip(matches, parts, strict=True):
            yield match._replace(scores=part)

    def _match_group(self, look: Look, group: Sequence[SupportSet]) -> Matches:
        query, size = look
        prior = torch.cat([self._prior(query, supports) for supports in group])
        # The prior's features are most of a set. They are not copied.
        # `_prior` has compared the fingerprints. A set of `encode` has none, and fits all the same.
        first, *others = (
            replace(s, prior_features=(), negatives=None, rivals=None, fingerprint=None)
            for s in group
        )
        out = self._merge(query, first.stack(*others), prior, size)
        f4, negatives = [s.prior_features[1] for s in group], [s.negatives for s in group]
        scores = self.calibration(out.final, group[0].shots)
        scores, presence = self.presence(query.prior[1], scores, f4, negatives)
        doubt = self.presence.doubt(query.prior[1], scores, f4)
        return Matches(scores, presence, out.correlations, prior, self.priors, out.base, doubt)

    def likeness(self, sets: list[SupportSet]) -> Tensor | None:
        """Compare the objects of K sets by the cosine of their `ClassEvidence`, if there is one."""
        if self.presence.evidence is None:
            return None
        with torch.inference_mode():
            shown = torch.cat([self.presence.shown(s.prior_features[1]) for s in sets])
        unit = F.normalize(shown.double().cpu(), dim=-1)
        return unit @ unit.T

    def encode_negative(self, image: Tensor, mask: Tensor | None, supports: SupportSet) -> Tensor:
        """Sum the directions of what a mask shows, or else of what the model finds."""
        if mask is not None:
            return self.presence.shown(self.encode(image[None], mask[None]).prior_features[1])
        query, size = self.look_at(image)
        out = self._merge(query, supports, self._prior(query, supports), size)
        p = object_probability(self.calibration(out.final, supports.shots))
        return self.presence.found(query.prior[1], p[:, None])[0]
