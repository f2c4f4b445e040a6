"""People's images in, answers out: encoding supports, and predicting queries."""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias, Unpack, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hdmnet.annotations import Annotation, Box, Points, Scribble
from hdmnet.classes import (
    Groups,
    Masks,
    Negatives,
    Supports,
    SupportsByClass,
    as_list,
    batched,
    encode_classes,
    group_by_shots,
)
from hdmnet.explanation import Evidence
from hdmnet.generalized import GeneralizedSegmentation
from hdmnet.images import ImageLike, load_image, load_mask, naming
from hdmnet.nn import _checks
from hdmnet.nn.backbone import FeaturePyramid
from hdmnet.options import Options, PredictOptions, as_integer
from hdmnet.output import Matches
from hdmnet.preprocess import resize_image, resize_label
from hdmnet.pseudo import Guess, with_margin
from hdmnet.rating import SupportRating, compare, rate
from hdmnet.refinement import refine as refine_borders
from hdmnet.segmentation import MulticlassSegmentation, Segmentation
from hdmnet.self_support import join_answers
from hdmnet.supports import SupportSet
from hdmnet.views import Augment, Merger, Views

Answer: TypeAlias = Segmentation | MulticlassSegmentation | GeneralizedSegmentation
_MATCHED_AT_ONCE = 8  # sets, so that a large pool needs no more memory than a small one


class Predictor(nn.Module, ABC):
    """What `FewShotModel` does with people's images, on top of a network of tensors.

    Attributes:
        backbone: The mean and std that images are normalised with.
        image_size: Height and width in pixels that images are resized to.
        smallest_size: Height and width in pixels of the smallest images that the network takes.
    """

    backbone: FeaturePyramid
    image_size: int
    smallest_size: int = 1

    @abstractmethod
    def encode(self, supports: Tensor, masks: Tensor) -> SupportSet:
        """Encode the supports of B episodes, see `FewShotModel`."""

    @abstractmethod
    def encode_negative(self, image: Tensor, mask: Tensor | None, supports: SupportSet) -> Tensor:
        """Encode something that is not the class, see `FewShotModel`."""

    @abstractmethod
    def look_at(self, query: Tensor) -> Any:
        """Compute what several matches of a query share, see `FewShotModel`."""

    @abstractmethod
    def match_sets(
        self, query: Any, groups: Groups, *, competing: bool = False
    ) -> Iterator[Matches]:
        """Match one query with several sets, or the reverse, see `FewShotModel`."""

    def likeness(self, sets: list[SupportSet]) -> Tensor | None:
        """Compare the objects of K sets: (K, K) in [0, 1]. Without an override, None."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash of architecture and weights, see `FewShotModel`."""

    def encode_supports(
        self, supports: Supports, masks: Masks, negatives: Negatives | None = None
    ) -> SupportSet:
        """Encode one class once, for any number of `predict` calls.

        Args:
            supports: One image or a sequence of K images: file paths, PIL images, (H, W, 3) uint8
                arrays, or (3, H, W) tensors, uint8 or in [0, 1].
            masks: The mask of each support, of its size: bool, {0, 1}, {0, 255}, or {0, 1, 255}
                where 255 is ignored. A `Box`, `Points` or `Scribble` may take the place of any
                mask: see `pseudo_mask`. A support with an empty mask changes the answer: a warning
                names it.
            negatives: A list of images that do not show the class, or of pairs (image, mask) of
                something else. They lower the probabilities, and `presence`, of queries that
                resemble them more than the class, and never raise any. In a call with several
                classes, another class may gain what this one loses.

        Returns:
            The encoded supports. They are for inference only: no gradient flows through them.

        Raises:
            TypeError: If something is not an image or a mask.
            ValueError: If an image or mask cannot be read, or has wrong values or a wrong size.

        Example:
            >>> fish = model.encode_supports(["a.jpg", "b.jpg"], ["a.png", "b.png"])
            >>> results = model.predict(["query_1.jpg", "query_2.jpg"], fish)
        """
        encoded = self._encode_prepared(*self._prepare_supports(supports, masks))
        if negatives is None:
            return encoded
        # A tuple at the top may be one pair that was meant to be in a list.
        _checks.check_type("negatives", negatives, list, "a list of images or (image, mask)")
        if not negatives:
            return encoded
        directions = []
        for i, negative in enumerate(negatives):
            with naming(f"negative {i}: "):
                directions.append(self._encode_negative(negative, encoded))
        return replace(encoded, negatives=torch.stack(directions, dim=1))

    def _prepare_supports(self, supports: Supports, masks: Masks) -> tuple[Tensor, Tensor]:
        """Load K images (K, 3, image_size, image_size) and masks (K, image_size, image_size)."""
        images, mask_list = as_list(supports), as_list(masks)
        if len(images) != len(mask_list) or not images:
            raise ValueError(
                f"got {len(images)} supports and {len(mask_list)} masks: expected at least one "
                "support, and one mask for each"
            )
        prepared = []
        for i, (given, its_mask) in enumerate(zip(images, mask_list, strict=True)):
            with naming(f"support {i}: " if len(images) > 1 else ""):
                image = load_image(given)
                label = self._prepare_mask(its_mask, image)
            # At once: many photographs of full size would need much memory.
            prepared.append((self._prepare(image), label))
            if not (label == 1).any():
                warnings.warn(
                    f"the mask of support {i} is empty: it shows nothing of the class, but it "
                    "changes the answer. Leave it out, or give its image to negatives",
                    stacklevel=3,
                )
        tensors, labels = zip(*prepared, strict=True)
        return torch.stack(tensors), torch.stack(labels)

    def _encode_prepared(self, images: Tensor, masks: Tensor) -> SupportSet:
        with _evaluating(self):
            encoded = self.encode(images[None], masks[None])
        return replace(encoded, fingerprint=self.fingerprint())

    def _encode_negative(self, given: Any, supports: SupportSet) -> Tensor:
        pair = given if isinstance(given, tuple) else (given, None)
        if len(pair) != 2:
            raise ValueError(f"got a tuple of {len(pair)}: expected an image, or (image, mask)")
        image = load_image(pair[0])
        mask = None
        if pair[1] is not None:
            mask = self._prepare_mask(pair[1], image)[None]
            if not (mask == 1).any():
                raise ValueError("its mask is empty: give the image alone")
        with _evaluating(self):
            return self.encode_negative(self._prepare(image)[None], mask, supports)

    def _prepare_mask(self, given: ImageLike | Annotation, image: Tensor) -> Tensor:
        """(image_size, image_size) mask of an image (3, H, W), on the model's device."""
        size, device = (self.image_size, self.image_size), next(self.parameters()).device
        if isinstance(given, Annotation):
            label = resize_label(self._pseudo_mask(image, given), size).to(device)
            return with_margin(label, given.seeds((image.shape[-2], image.shape[-1])))
        label = load_mask(given, (image.shape[-2], image.shape[-1]))
        return resize_label(label, size).to(device)

    def pseudo_mask(self, image: ImageLike, annotation: Annotation) -> Tensor:
        """Make the mask that `encode_supports` uses in place of a cheap annotation.

        The model segments the image, with the image itself and a guess of the object as support
        (`hdmnet.pseudo`). It takes about as long as encoding a support and segmenting a query. With
        the annotation, the backbone also sees a margin around this mask; with the mask alone, it
        does not.

        Args:
            image: The support, as for `encode_supports`.
            annotation: A `Box`, `Points` or `Scribble` on it.

        Returns:
            (H, W) uint8: 1 = object, 0 = background, on the CPU.

        Raises:
            TypeError: If something is not an image or an annotation.
            ValueError: If the image cannot be read, or the annotation is outside of it.

        Example:
            >>> mask = model.pseudo_mask("a.jpg", Box(40, 30, 220, 180))
        """
        kinds = (Box, Points, Scribble)
        _checks.check_type("annotation", annotation, kinds, "a Box, Points or Scribble")
        return self._pseudo_mask(load_image(image), annotation)

    def _pseudo_mask(self, image: Tensor, annotation: Annotation) -> Tensor:
        seeds = annotation.seeds((image.shape[-2], image.shape[-1]))
        prepared = self._prepare(image)[None]
        guess = Guess(seeds, self.image_size)
        with _evaluating(self):
            own = self.encode(prepared[None], guess.first[None, None].to(prepared.device))
            scores = next(self.match_sets(self.look_at(prepared), [[own]])).scores
        return guess.mask(Segmentation.from_scores(scores, prepared.shape[-2:]).probability)

    def rate_supports(self, supports: Supports, masks: Masks) -> list[SupportRating]:
        """Rate how well each support agrees with the others, to find wrong masks.

        Each support segments the image of every support. With c_ij, the correlation over the
        pixels of image i between the probabilities that support j gives and the mask of i,

            agreement_i = (4 · mean_{j ≠ i} c_ij + 4 · mean_{j ≠ i} c_ji + 3 · c_ii - 2 · d_i
                           + 4 · mean_{j ≠ i} e_ij) / 13:

        the others find its object, it finds theirs, it finds its own, and its object looks like
        theirs. The correlation d_i between the answers of two others on image i says how easy the
        image is. e_ij is the cosine between the `ClassEvidence` of two objects. A model without one
        leaves the last term out, and divides by 9. K supports cost 2 · K passes of the backbone and
        K² matches.

        Args:
            supports: At least two, as for `encode_supports`.
            masks: As for `encode_supports`.

        Returns:
            A rating for each support, best first and worst last.

        Raises:
            TypeError: As `encode_supports`.
            ValueError: As `encode_supports`, or if there are fewer than two supports.

        Example:
            >>> worst = model.rate_supports(images, masks)[-1]
            >>> print(f"look at the mask of support {worst.index}: {worst.agreement:.2f}")
        """
        if len(as_list(supports)) == 1:
            raise ValueError("got 1 support: expected at least two, which can agree or not")
        images, labels = self._prepare_supports(supports, masks)
        each = zip(images.split(1), labels.split(1), strict=True)
        sets = [self._encode_prepared(image, label) for image, label in each]
        return rate(*self._agreements(images, labels, sets), self.likeness(sets))

    def select_supports(self, pool: Supports, masks: Masks, k: int) -> list[int]:
        """Choose the k supports of a larger pool that agree best, as `rate_supports` rates them.

        Args:
            pool: At least two images, as for `encode_supports`.
            masks: As for `encode_supports`.
            k: Number of supports to choose, at least 1 and at most as many as the pool has.

        Returns:
            The indices of the k supports, best first.

        Raises:
            TypeError: As `encode_supports`.
            ValueError: As `rate_supports`, or if `k` is out of its range.

        Example:
            >>> chosen = model.select_supports(images, masks, 5)
            >>> images, masks = [images[i] for i in chosen], [masks[i] for i in chosen]
        """
        k = as_integer("k", k, 1)
        _checks.check_integer("k", k, 1, len(as_list(pool)))
        return [rating.index for rating in self.rate_supports(pool, masks)[:k]]

    def _agreements(
        self, images: Tensor, labels: Tensor, sets: list[SupportSet]
    ) -> tuple[Tensor, Tensor]:
        """Let each of K supports segment the images of all. Return `compare` of each image."""
        groups = list(batched(sets, _MATCHED_AT_ONCE))
        compared = []
        for i, label in enumerate(labels):
            with _evaluating(self):
                matched = list(self.match_sets(self.look_at(images[i : i + 1]), groups))
            answers = [
                Segmentation.from_scores(match.scores, (label.shape[0], label.shape[1])).probability
                for group in matched
                for match in group.split()
            ]
            compared.append(compare(torch.stack(answers), label.cpu(), i))
        correlations, easiness = zip(*compared, strict=True)
        return torch.stack(correlations), torch.stack(easiness)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        query: ImageLike,
        supports: Supports | SupportSet,
        masks: Masks | None = None,
        *,
        negatives: Negatives | None = None,
        generalized: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> Segmentation: ...

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        query: Sequence[ImageLike],
        supports: Supports | SupportSet,
        masks: Masks | None = None,
        *,
        negatives: Negatives | None = None,
        generalized: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> list[Segmentation]: ...

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        query: ImageLike,
        supports: Supports | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        generalized: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> MulticlassSegmentation: ...

    @overload
    def predict(
        self,
        query: Sequence[ImageLike],
        supports: Supports | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        generalized: Literal[False] = False,
        **options: Unpack[PredictOptions],
    ) -> list[MulticlassSegmentation]: ...

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        query: ImageLike,
        supports: Supports | SupportSet | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        generalized: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> GeneralizedSegmentation: ...

    @overload
    def predict(
        self,
        query: Sequence[ImageLike],
        supports: Supports | SupportSet | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        generalized: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> list[GeneralizedSegmentation]: ...

    def predict(
        self,
        query: ImageLike | Sequence[ImageLike],
        supports: Supports | SupportSet | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        batch_size: int | None = None,
        presence_threshold: float | None = None,
        augment: Augment | None = None,
        tile: int | None = None,
        refine: bool = False,
        self_support: bool = False,
        generalized: bool = False,
    ) -> Answer | list[Any]:
        """Segment one image, or a list of images, at their own sizes.

        Images are resized to `image_size` × `image_size`, and the answer back to the query's size.

        A model in eval mode, which is what `from_pretrained` returns, may predict in any number of
        threads at once. A model in training mode is switched to eval mode and back: nobody else may
        use it meanwhile.

        Args:
            query: One image, or a list of images for a list of results.
            supports: One class: as for `encode_supports`, or its result. Several classes: a dict of
                these by name; or, with `class_ids`, images that each show some of the classes.
            masks: As for `encode_supports`, in a dict if `supports` is one. Leave it out with
                encoded supports.
            class_ids: The value of each class in `masks`, which are then label maps, such as those
                of PASCAL VOC: {"cat": 8, "dog": 12}. 255 means "ignore". A class takes the
                supports that show it.
            negatives: As for `encode_supports`; with several classes, a dict of lists by name.
            batch_size: Number of pairs of a query and a class that are computed at once: several
                queries for one class, or several classes for one query. More need more memory.
                None: one query, with all its classes.
            presence_threshold: Smallest `presence` of an answer that keeps its mask, in [0, 1].
                None: the model lowers the probabilities where what was found looks unlike the
                class, if its argument `presence` has a threshold. 0: every answer stays as it is.
                Below it, the probabilities are 0 everywhere. docs/absent.md says what it costs.
            augment: Segments several versions of each query, and takes the mean: see `Augment`.
            tile: Side in pixels of square tiles. A larger query is cut into tiles that overlap, and
                each is segmented in addition to the whole. The answer is the mean of the whole's
                and the tiles': both must find an object. `batch_size` has no effect on tiles.
            refine: Whether borders follow the edges of the query: see `hdmnet.refinement`.
            self_support: Whether the answer becomes one more support, and the query is segmented
                again: see `hdmnet.self_support`. `presence` stays that of the first answer. What
                becomes a support does not depend on `presence_threshold`. Queries are computed one
                at a time.
            generalized: Whether to label the base classes of the model's base learner as well. With
                `augment` or `tile`, the base learner sees the first view only: the whole query at
                the first scale, not mirrored.

        Returns:
            The segmentation of the query: a `Segmentation` for one class, a
            `MulticlassSegmentation` for a dict or with `class_ids`, a `GeneralizedSegmentation`
            with `generalized`. A list of queries gives a list.

        Raises:
            TypeError: If something is not an image or a mask.
            ValueError: If an image or mask cannot be read, or has wrong values or a wrong size; if
                supports and masks do not name the same classes; if no support shows a class; or
                if `generalized` is true and the model has no base learner.

        Example:
            >>> result = model.predict("query.jpg", ["support.jpg"], ["support_mask.png"])
            >>> result.overlay("query.jpg").save("overlay.png")
        """
        options = Options(
            batch_size, presence_threshold, augment, tile, refine, self_support, generalized
        ).checked()
        self._sides(options)  # raises its error now
        sets = encode_classes(self.encode_supports, supports, masks, class_ids, negatives)
        if not isinstance(query, list | tuple):
            queries = [cast(ImageLike, query)]
            return _raise_error(next(self._answers(queries, sets, options)))
        answers = self._answers(query, sets, options)
        return [_raise_error(x, f"query {i}: ") for i, x in enumerate(answers)]

    def predict_iter(
        self,
        queries: Iterable[ImageLike],
        supports: Supports | SupportSet | SupportsByClass,
        masks: Masks | Mapping[str, Masks] | None = None,
        *,
        class_ids: Mapping[str, int] | None = None,
        negatives: Negatives | Mapping[str, Negatives] | None = None,
        batch_size: int | None = None,
        presence_threshold: float | None = None,
        augment: Augment | None = None,
        tile: int | None = None,
        refine: bool = False,
        self_support: bool = False,
        generalized: bool = False,
    ) -> Iterator[Answer | OSError | TypeError | ValueError]:
        """Segment any number of images, one after the other, also if some cannot be read.

        Args:
            queries: Images, for example `Path("photos").glob("*.jpg")`. They are read when their
                turn comes.
            supports: As for `predict`.
            masks: As for `predict`.
            class_ids: As for `predict`.
            negatives: As for `predict`.
            batch_size: As for `predict`.
            presence_threshold: As for `predict`.
            augment: As for `predict`.
            tile: As for `predict`.
            refine: As for `predict`.
            self_support: As for `predict`.
            generalized: As for `predict`.

        Returns:
            An iterator with an entry for each query, in their order: its answer as from `predict`,
            or the error if it is not an image that can be read.

        Raises:
            TypeError: As `predict`, for supports and masks.
            ValueError: As `predict`, for supports and masks.

        Example:
            >>> for path, answer in zip(paths, model.predict_iter(paths, fish)):
            ...     if isinstance(answer, Exception):
            ...         print(path, answer)
        """
        if isinstance(queries, str | os.PathLike | Image.Image | np.ndarray | Tensor):
            raise TypeError(
                f"queries is one {type(queries).__name__}: expected an iterable of images, such as "
                'Path("photos").glob("*.jpg")'
            )
        options = Options(
            batch_size, presence_threshold, augment, tile, refine, self_support, generalized
        ).checked()
        self._sides(options)  # raises its error now
        sets = encode_classes(self.encode_supports, supports, masks, class_ids, negatives)
        return self._answers(queries, sets, options)

    def _answers(
        self,
        queries: Iterable[ImageLike],
        supports: SupportSet | Mapping[str, SupportSet],
        options: Options,
    ) -> Iterator[Answer | OSError | TypeError | ValueError]:
        """Return an iterator of the answer of each query, or the error of reading it."""
        by_name = supports if isinstance(supports, Mapping) else {"novel": supports}
        if several := [s for s in by_name.values() if len(s.prototypes) != 1]:
            raise ValueError(
                f"a set holds {len(several[0].prototypes)} episodes: expected one for each class, "
                "as encode_supports gives"
            )
        return self._each_answer(queries, by_name, options, alone=supports is not by_name)

    def _each_answer(
        self,
        queries: Iterable[ImageLike],
        by_name: Mapping[str, SupportSet],
        options: Options,
        *,
        alone: bool,
    ) -> Iterator[Answer | OSError | TypeError | ValueError]:
        """Yield the answers of `_answers`. With `alone`, the only class has no name."""
        sets = list(by_name.values())
        competing = len(sets) > 1
        order, groups = group_by_shots(sets, options.batch_size or len(sets))
        at_once = 1 if competing else options.batch_size or 1
        for batch in batched(queries, at_once):
            loaded = [_load_or_error(query) for query in batch]
            images = [image for image in loaded if isinstance(image, Tensor)]
            matches = iter(self._match_images(images, groups, options, competing=competing))
            for image in loaded:
                if not isinstance(image, Tensor):
                    yield image
                    continue
                pairs = next(matches)
                answers = [self._answer(*pair, image, options) for pair in pairs]
                if alone and not options.generalized:
                    yield answers[0]
                    continue
                by_number = dict(zip(order, answers, strict=True))
                many = MulticlassSegmentation.from_answers(
                    {name: by_number[i] for i, name in enumerate(by_name)}
                )
                side = self._sides(options)[0]
                yield (
                    GeneralizedSegmentation.of(many, pairs[0][0], (side, side))
                    if options.generalized
                    else many
                )

    def _match_images(
        self,
        images: list[Tensor],
        groups: list[list[SupportSet]],
        options: Options,
        *,
        competing: bool = False,
    ) -> list[list[tuple[Matches, Evidence | None]]]:
        """Match each image with each set, several images only with one set."""
        if not images:
            return []
        # Each may have other tiles, and each is a support of its own.
        if (options.tile is not None or options.self_support) and len(images) > 1:
            return [self._match_images([image], groups, options)[0] for image in images]
        plans = [self._views((x.shape[-2], x.shape[-1]), options) for x in images]
        images = [image.to(next(self.parameters()).device) for image in images]
        mergers: list[Merger] = []  # of each image, or of each set
        seen: list[Tensor] = []
        with _evaluating(self):
            for views in zip(*plans, strict=True):
                cut = [view.of(image) for view, image in zip(views, images, strict=True)]
                batch = self._normalise(torch.stack(cut))
                matches = self._match_view(batch, groups, options, competing=competing)
                alike = len(matches) // len(images)
                mergers = mergers or [Merger(plan) for plan in plans for _ in range(alike)]
                for i, (merger, match) in enumerate(zip(mergers, matches, strict=True)):
                    merger.add(views[i // alike], match)
                seen = seen or [x.mul(255).round().byte().cpu() for x in cut]
            pairs = []
            for i, merger in enumerate(mergers):
                merged = merger.result()
                pairs.append((merged, Evidence.of(merged, seen[i // alike])))
        return [[pair] for pair in pairs] if len(images) > 1 else [pairs]

    def _match_view(
        self, batch: Tensor, groups: list[list[SupportSet]], options: Options, *, competing: bool
    ) -> list[Matches]:
        """Match one query with several sets, or several queries with one set."""
        match = partial(self.match_sets, self.look_at(batch), competing=competing)
        matches = [pair for group in match(groups) for pair in group.split()]
        if not options.self_support:
            return matches
        first = Options()  # the model's own rule says what was found, whatever the caller's is
        masks = [self._answer(x, None, batch[0], first).mask for x in matches]
        if not any(mask.any() for mask in masks):
            return matches
        sets = [supports for group in groups for supports in group]
        joined = join_answers(self.encode, batch, masks, sets)
        order, groups = group_by_shots(joined, options.batch_size or len(sets))
        again = [pair.scores for group in match(groups) for pair in group.split()]
        scores = dict(zip(order, again, strict=True))
        # With itself as a support, any query would seem to show the class: only scores are new.
        return [pair._replace(scores=scores[i]) for i, pair in enumerate(matches)]

    def _views(self, size: tuple[int, int], options: Options) -> Views:
        flip = options.augment is not None and options.augment.flip
        return Views(size, self._sides(options), flip=flip, tile=options.tile)

    def _sides(self, options: Options) -> list[int]:
        """Return the heights and widths that the network sees."""
        scales = (options.augment or Augment()).scales
        sides = [round(scale * self.image_size) for scale in scales]
        if min(sides) < self.smallest_size:
            if options.augment is None:
                raise ValueError(
                    f"image_size is {self.image_size}: expected at least {self.smallest_size}, the "
                    "smallest images that this network takes"
                )
            least = math.ceil(100 * self.smallest_size / self.image_size) / 100
            raise ValueError(
                f"augment has the scale {min(scales)}: the network would see {min(sides)} pixels, "
                f"but it needs {self.smallest_size}. Its image_size is {self.image_size}, so "
                f"scales must be at least {least:.2f}"
            )
        return sides

    def _answer(
        self, match: Matches, evidence: Evidence | None, image: Tensor, options: Options
    ) -> Segmentation:
        presence = None if match.presence is None else match.presence.item()
        answer = Segmentation.from_scores(
            match.scores, image.shape[-2:], presence, evidence, match.doubt
        )
        if options.refine:
            answer = replace(answer, probability=refine_borders(answer.probability, image))
        threshold = options.presence_threshold
        if threshold is None:
            return answer.lowered()
        return answer.emptied_below(threshold)

    def _prepare(self, image: Tensor) -> Tensor:
        """(3, H, W) in [0, 1] → (3, image_size, image_size), normalised, on the model's device."""
        return self._normalise(self._resize(image))

    def _resize(self, image: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        return resize_image(image.to(next(self.parameters()).device), size)

    def _normalise(self, resized: Tensor) -> Tensor:
        return self.backbone.normalise(resized).to(next(self.parameters()).dtype)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Compute in eval mode without gradients. Afterwards, every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _load_or_error(query: ImageLike) -> Tensor | OSError | TypeError | ValueError:
    try:
        return load_image(query)
    except (OSError, TypeError, ValueError) as error:
        return error


def _raise_error(answer: Answer | OSError | TypeError | ValueError, what: str = "") -> Answer:
    if isinstance(answer, Exception):
        with naming(what):
            raise answer
    return answer
