"""Several classes in one call: their supports, and their sets in groups."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar, cast, overload

from hdmnet.annotations import Annotation
from hdmnet.images import ImageLike, load_image, load_mask, naming
from hdmnet.preprocess import IGNORE
from hdmnet.supports import SupportSet

Supports: TypeAlias = ImageLike | Sequence[ImageLike]
"""One image or several."""
Masks: TypeAlias = ImageLike | Annotation | Sequence[ImageLike | Annotation]
"""One mask or several. An annotation may take the place of any."""
SupportsByClass: TypeAlias = Mapping[str, Supports | SupportSet]
Negatives: TypeAlias = Sequence[ImageLike | tuple[ImageLike, ImageLike | Annotation]]
"""Images that do not show the class, or pairs of an image and the mask of something else."""
Groups: TypeAlias = Iterable[Sequence[SupportSet]]
"""Sets of one episode. Those of a group have the same number of shots."""
T = TypeVar("T")


def encode_classes(
    encode: Callable[[Any, Any, Any], SupportSet],
    supports: Supports | SupportSet | SupportsByClass,
    masks: Masks | Mapping[str, Masks] | None,
    class_ids: Mapping[str, int] | None,
    negatives: Negatives | Mapping[str, Negatives] | None,
) -> SupportSet | dict[str, SupportSet]:
    """Encode the supports of one class or of several, as `FewShotModel.predict` takes them.

    Args:
        encode: The model's `encode_supports`.
        supports: As for `predict`.
        masks: As for `predict`.
        class_ids: As for `predict`.
        negatives: As for `predict`.

    Returns:
        A set for one class, or a dict of sets by name.

    Raises:
        ValueError: If supports and masks do not fit together.
    """
    if class_ids is not None:
        return _encode_label_maps(encode, supports, masks, class_ids, negatives)
    if isinstance(supports, SupportSet):
        if negatives is not None:
            raise ValueError("a SupportSet is already encoded: give negatives to encode_supports")
        if masks is not None:
            raise ValueError("a SupportSet already holds its masks: leave masks out")
        return supports
    if not isinstance(supports, Mapping):
        if masks is None:
            raise ValueError("masks is missing: give one mask for each support")
        if isinstance(masks, Mapping):
            raise ValueError("masks is a dict, but supports is not: give both by class")
        if isinstance(negatives, Mapping):
            raise ValueError("negatives is a dict, but supports is not: give a list of images")
        return encode(supports, masks, negatives)
    if not supports:
        raise ValueError("supports is an empty dict: expected at least one class")
    if masks is not None and not isinstance(masks, Mapping):
        raise ValueError("supports is a dict, but masks is not: give both by class")
    given = masks or {}
    images = {name for name, value in supports.items() if not isinstance(value, SupportSet)}
    if images != given.keys():
        raise ValueError(
            f"masks has the classes {sorted(given)}: expected {sorted(images)}, the classes of "
            "supports that are not encoded yet"
        )
    by_class = _negatives_by_class(negatives, images)
    sets = {}
    for name, value in supports.items():
        if isinstance(value, SupportSet):
            sets[name] = value
        else:
            with naming(f"class {name!r}: "):
                sets[name] = encode(value, given[name], by_class.get(name))
    return sets


def _negatives_by_class(negatives: Any, names: Collection[str]) -> Mapping[str, Negatives]:
    if negatives is None:
        return {}
    if not isinstance(negatives, Mapping) or not negatives.keys() <= set(names):
        given = sorted(negatives) if isinstance(negatives, Mapping) else type(negatives).__name__
        raise ValueError(
            f"negatives is {given}: expected a dict of lists of images by class, with some of the "
            f"classes {sorted(names)}"
        )
    return negatives


def _encode_label_maps(
    encode: Callable[[Any, Any, Any], SupportSet],
    supports: Supports | SupportSet | SupportsByClass,
    masks: Masks | Mapping[str, Masks] | None,
    class_ids: Mapping[str, int],
    negatives: Negatives | Mapping[str, Negatives] | None,
) -> dict[str, SupportSet]:
    if not isinstance(class_ids, Mapping):
        raise TypeError(f"class_ids is {class_ids!r}: expected a dict, such as {{'cat': 8}}")
    if not class_ids:
        raise ValueError("class_ids is empty: expected the value of each class in the masks")
    by_class = _negatives_by_class(negatives, class_ids)
    for given in (supports, masks):
        if isinstance(given, Mapping) and given.keys() != class_ids.keys():
            raise ValueError(
                f"got the classes {sorted(given)}: expected those of class_ids, "
                f"{sorted(class_ids)}, in supports and masks"
            )
    if ignored := [name for name, number in class_ids.items() if number == IGNORE]:
        raise ValueError(
            f"class_ids gives {ignored[0]!r} the value {IGNORE}, which means ignore in label maps: "
            "expected the value of the class"
        )
    if len(set(class_ids.values())) < len(class_ids):
        raise ValueError(f"class_ids is {class_ids}: expected a value of its own for each class")
    sets = {}
    for name, number in class_ids.items():
        images, maps = (as_list(_of_class(given, name)) for given in (supports, masks))
        if len(images) != len(maps):
            raise ValueError(
                f"got {len(images)} supports and {len(maps)} masks: expected a label map for each "
                "support"
            )
        shown, labels = [], []
        for i, (image, label_map) in enumerate(zip(images, maps, strict=True)):
            with naming(f"class {name!r}, support {i}: "):
                label = load_mask(label_map, label=number)
                if (label == 1).any():
                    shown.append(load_image(image))
                    height, width = shown[-1].shape[-2:]
                    labels.append(load_mask(label, (height, width)))  # checks the size
        if not shown:
            raise ValueError(f"no mask has the value {number}, which class_ids gives {name!r}")
        with naming(f"class {name!r}: "):
            sets[name] = encode(shown, labels, by_class.get(name))
    return sets


def _of_class(given: Any, name: str) -> Supports:
    value = given.get(name) if isinstance(given, Mapping) else given
    if value is None or isinstance(value, SupportSet):
        raise ValueError(
            f"class_ids names the class {name!r}: expected its images as supports, and their label "
            "maps as masks"
        )
    return cast(Supports, value)


def group_by_shots(
    sets: Sequence[SupportSet], most: int
) -> tuple[list[int], list[list[SupportSet]]]:
    """Group sets with equally many shots, at most `most` in each group.

    Returns:
        The position in `sets` of each member of the groups, and the groups.
    """
    order: list[int] = []
    groups = []
    for shots in dict.fromkeys(s.shots for s in sets):
        same = [i for i, s in enumerate(sets) if s.shots == shots]
        order += same
        groups += [[sets[i] for i in positions] for positions in batched(same, most)]
    return order, groups


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@overload
def as_list(value: Supports) -> list[ImageLike]: ...


@overload
def as_list(value: Masks) -> list[ImageLike | Annotation]: ...


def as_list(value: Any) -> list[Any]:
    """Turn one image or a sequence of images into a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
