"""Readers of the benchmarks, the published rules of episodes, and the items of datasets."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hdmnet import HDMNet, Segmentation, load_image
from hdmnet._coco import coco_dataset

pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")

import trees
from PIL import Image

from hdmnet.data import (
    FSS1000,
    VOID,
    BaseDataset,
    CocoInstances,
    Episode,
    EpisodeDataset,
    EpisodeList,
    EpisodeSampler,
    EvalTransform,
    LabelledImages,
    MaskFolders,
    PairList,
    PascalVOC,
    TrainTransform,
    coco_fold,
    pascal_fold,
)

# Folds


def test_folds_of_pascal() -> None:
    assert pascal_fold(0) == (1, 2, 3, 4, 5)
    assert pascal_fold(3) == (16, 17, 18, 19, 20)
    assert sorted(c for fold in range(4) for c in pascal_fold(fold)) == list(range(1, 21))


def test_folds_of_coco() -> None:
    assert coco_fold(0)[:3] == (1, 5, 9)
    assert coco_fold(3)[-2:] == (76, 80)
    assert coco_fold(1, "contiguous") == tuple(range(21, 41))
    for split in ("interleaved", "contiguous"):
        assert sorted(c for f in range(4) for c in coco_fold(f, split)) == list(range(1, 81))


@pytest.mark.parametrize("fold", [-1, 4, "1"])
def test_no_such_fold(fold: int) -> None:
    for function in (pascal_fold, coco_fold):
        with pytest.raises(ValueError, match="fold must be"):
            function(fold)
    with pytest.raises(ValueError, match="interleaved"):
        coco_fold(0, "hsnet")


# PASCAL VOC


def dog_and_cat() -> NDArray[np.uint8]:
    return trees.boxes_label(
        (40, 60), {(0, 0, 22, 22): 255, (1, 1, 21, 21): 12, (30, 5, 50, 35): 8}
    )


def test_voc(tmp_path: Path) -> None:
    root = trees.voc(tmp_path, {"2007_000032": dog_and_cat(), "größe_1": dog_and_cat() * 0})
    source = PascalVOC(root)
    assert source.ids == ("2007_000032", "größe_1")
    assert source.classes[11] == "dog"
    assert source.image(0).shape == (3, 40, 60)
    label = source.label(0)
    assert np.array_equal(label == VOID, dog_and_cat() == 255)
    assert source.areas() == [{12: 400, 8: 600}, {}]


@pytest.mark.parametrize("tail", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found(tmp_path: Path, tail: str) -> None:
    assert len(PascalVOC(trees.voc(tmp_path, {"a": dog_and_cat()}) / tail)) == 1


def test_voc_prefers_the_augmented_labels(tmp_path: Path) -> None:
    trees.voc(tmp_path, {"a": dog_and_cat()})
    tree = tmp_path / "VOCdevkit" / "VOC2012"
    trees.palette_png(tree / "SegmentationClass" / "a.png", dog_and_cat() * 0)
    assert PascalVOC(tmp_path).areas() == [{12: 400, 8: 600}]
    assert PascalVOC(tmp_path, labels="SegmentationClass").areas() == [{}]


def test_voc_lists(tmp_path: Path) -> None:
    trees.voc(tmp_path, {"a": dog_and_cat(), "b": dog_and_cat()})
    own = tmp_path / "own.txt"
    own.write_text("JPEGImages/b.jpg SegmentationClassAug/b.png\n\nJPEGImages/a.jpg x\n")
    assert PascalVOC(tmp_path, own).ids == ("b", "a")
    with pytest.raises(FileNotFoundError, match=r"neither a list .*trainaug\.txt"):
        PascalVOC(tmp_path, "trainaug")
    own.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="'a' is listed more than once"):
        PascalVOC(tmp_path, own)
    own.write_text("\n")
    with pytest.raises(ValueError, match="no images"):
        PascalVOC(tmp_path, own)


def test_voc_names_all_missing_files(tmp_path: Path) -> None:
    trees.voc(tmp_path, {f"image_{i}": dog_and_cat() for i in range(14)})
    tree = tmp_path / "VOCdevkit" / "VOC2012"
    for i in range(12):
        (tree / "SegmentationClassAug" / f"image_{i}.png").unlink()
    (tree / "JPEGImages" / "image_13.jpg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        PascalVOC(tmp_path)
    message = str(caught.value)
    assert message.startswith("13 files of PASCAL VOC are missing")
    assert "image_13.jpg" in message
    assert message.endswith("and 3 more")
    with pytest.raises(FileNotFoundError, match="does not hold VOC2012"):
        PascalVOC(tmp_path / "nowhere")


def test_voc_invalid_labels(tmp_path: Path) -> None:
    source = PascalVOC(trees.voc(tmp_path, {"a": dog_and_cat()}))
    path = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / "a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png.* cannot be decoded"):
        source.label(0)
    trees.palette_png(path, dog_and_cat() + 20)
    with pytest.raises(ValueError, match=r"a\.png has the label 32"):
        source.areas()
    Image.fromarray(dog_and_cat()).convert("RGB").save(path)
    with pytest.raises(ValueError, match="3 channels"):
        source.label(0)


def test_an_image_of_another_size(tmp_path: Path) -> None:
    source = PascalVOC(trees.voc(tmp_path, {name: dog_and_cat() for name in "ab"}))
    trees.photo(source.files[0], (40, 61))
    dataset = EpisodeDataset(EpisodeSampler(source, min_area=1), EvalTransform(64))
    with pytest.raises(ValueError, match=r"a\.jpg is \(40, 60\) .*\(40, 61\)"):
        dataset[0]


# COCO


CATEGORIES = {3: "car", 18: "dog", 1: "person"}
SIZE = (50, 70)
LARGE, SMALL, FAR = (10, 5, 50, 45), (20, 10, 30, 30), (55, 0, 70, 20)


def make_coco(root: Path) -> tuple[Path, Path]:
    return trees.coco(
        root,
        [
            ("a.jpg", SIZE, [(18, trees.polygon(SMALL), False), (1, trees.polygon(LARGE), False)]),
            ("nobody.jpg", SIZE, []),
            (
                "menge été.jpg",
                SIZE,
                [(1, trees.compressed(SIZE, SMALL), False), (3, trees.crowd(SIZE, LARGE), True)],
            ),
        ],
        CATEGORIES,
    )


def test_coco(tmp_path: Path) -> None:
    source = CocoInstances(*make_coco(tmp_path))
    assert source.classes == ("person", "car", "dog")  # in the order of their ids
    assert source.ids == ("a.jpg", "nobody.jpg", "menge été.jpg")
    # The smaller instance is in front. The order in the file does not matter.
    person = trees.boxes_label(SIZE, {LARGE: 1, SMALL: 3})
    assert np.array_equal(source.label(0), person)
    assert source.areas() == [{1: 1400, 3: 200}, {}, {1: 200}]
    assert source.image(2).shape == (3, *SIZE)


@pytest.mark.parametrize(("crowd", "value"), [("ignore", VOID), ("class", 2), ("background", 0)])
def test_crowds(tmp_path: Path, crowd: str, value: int) -> None:
    source = CocoInstances(*make_coco(tmp_path), crowd=crowd)
    expected = trees.boxes_label(SIZE, {LARGE: 9, SMALL: 1}).astype(np.int32)
    expected[expected == 9] = value
    assert np.array_equal(source.label(2), expected)


@pytest.mark.parametrize("area", ["missing", None, 0])
def test_coco_without_areas(tmp_path: Path, area: object) -> None:
    images, path = make_coco(tmp_path)
    table = json.loads(path.read_text())
    for annotation in table["annotations"]:
        annotation["area"] = area
        if area == "missing":
            del annotation["area"]
    path.write_text(json.dumps(table))
    assert np.array_equal(
        CocoInstances(images, path).label(0), trees.boxes_label(SIZE, {LARGE: 1, SMALL: 3})
    )


def test_coco_segmentations(tmp_path: Path) -> None:
    images, path = make_coco(tmp_path)
    table = json.loads(path.read_text())
    (small, *_) = trees.polygon(SMALL)
    line = [5.0, 5.0, 9.0, 9.0]
    expected = trees.boxes_label(SIZE, {SMALL: 3})
    for segmentation in ([line, small], [small, line], [small, []]):
        one = table["annotations"][0] | {"segmentation": segmentation}
        path.write_text(json.dumps(table | {"annotations": [one]}))
        assert np.array_equal(CocoInstances(images, path).label(0), expected)
    for nothing in ([line], [[]]):
        one = table["annotations"][0] | {"segmentation": nothing}
        path.write_text(json.dumps(table | {"annotations": [one]}))
        assert not CocoInstances(images, path).label(0).any()
    for segmentation, cause in (
        ({"size": [9, 9], "counts": [81]}, r"its size is \[9, 9\]"),
        ({"size": [*SIZE]}, "KeyError"),
        ([["a"] * 6], "Error"),
    ):
        one = table["annotations"][0] | {"segmentation": segmentation}
        path.write_text(json.dumps(table | {"annotations": [one]}))
        with pytest.raises(ValueError, match=rf"'dog' in a\.jpg .*{cause}.* RLE of 50 x 70"):
            CocoInstances(images, path).label(0)


def test_coco_of_sixteen_bits(tmp_path: Path) -> None:
    images, path = make_coco(tmp_path)
    pixels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    Image.fromarray(pixels).save(images / "a.jpg", format="PNG")
    expected = load_image(images / "a.jpg")
    assert 0.4 < expected.mean() < 0.6
    assert torch.equal(CocoInstances(images, path).image(0), expected)


def test_coco_goes_to_spawned_workers(tmp_path: Path) -> None:
    source = CocoInstances(*make_coco(tmp_path))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).label(0), source.label(0))


def test_coco_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CocoInstances(*make_coco(tmp_path))
    assert capsys.readouterr().out == ""


def test_coco_invalid_files(tmp_path: Path) -> None:
    images, path = make_coco(tmp_path)
    table = json.loads(path.read_text())
    with pytest.raises(ValueError, match="crowd must be"):
        CocoInstances(images, path, crowd="void")
    (images / "a.jpg").unlink()
    (images / "nobody.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 files of COCO are missing"):
        CocoInstances(images, path)
    for key, value, message in (
        ("segmentation", [], "annotation 1 has no segmentation: a box"),
        ("category_id", 99, "annotation 1 has category 99, which is not listed"),
        ("image_id", 7, "annotation 1 has image 7, which is not listed"),
    ):
        whole = table["annotations"][0]
        changed = table | {"annotations": [whole | {key: value}]}
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            CocoInstances(images, path)
    table["categories"][0]["name"] = "dog"
    path.write_text(json.dumps(table))
    make_coco(tmp_path / "whole")
    with pytest.raises(ValueError, match="the class 'dog' is listed more than once"):
        CocoInstances(tmp_path / "whole" / "images", path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a COCO file"):
        CocoInstances(images, path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a COCO file"):
        CocoInstances(images, path)
    with pytest.raises(FileNotFoundError, match="instances"):
        CocoInstances(images, tmp_path / "instances_2014.json")


def test_coco_ignores_exif_orientation(tmp_path: Path) -> None:
    images, path = make_coco(tmp_path)
    upright = CocoInstances(images, path).image(0)
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180°: the size is the same
    with Image.open(images / "a.jpg") as image:
        image.save(images / "a.jpg", exif=exif, quality=95)
    assert (CocoInstances(images, path).image(0) - upright).abs().mean() < 0.02


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_coco_file_of_ours_is_of_upright_images(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    height, width = upright.shape[-2:]
    probability = torch.zeros(height, width)
    probability[0, 1] = 1
    about = {"file_name": "a.png", "height": height, "width": width}
    results = Segmentation(probability).to_coco()
    table = coco_dataset([about | {"results": results}], ["dot"])
    (tmp_path / "coco.json").write_text(json.dumps(table))
    source = CocoInstances(tmp_path, tmp_path / "coco.json")
    assert torch.equal(source.image(0), upright)
    assert (source.label(0) == probability.numpy()).all()


# Folders of classes


def test_fss(tmp_path: Path) -> None:
    root = trees.fss(tmp_path, ["ab_wheel", "abacus", "zebra"])
    source = FSS1000(root)
    assert (len(source), len(source.classes)) == (30, 3)
    assert source.ids[9] == "ab_wheel/10.jpg"
    assert source.areas()[0] == {1: 16 * 20}  # grey values below 128 are background
    names = tmp_path / "test.txt"
    names.write_text("zebra\nabacus\n")
    assert FSS1000(root, names).classes == ("abacus", "zebra")
    assert len(FSS1000(root, ["zebra"])) == 10
    with pytest.raises(FileNotFoundError, match=r"no folder .*typo"):
        FSS1000(root, ["abacus", "typo"])
    (root / "zebra" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files of FSS-1000.*\n.*3\.png"):
        FSS1000(root)


def test_mask_folders(tmp_path: Path) -> None:
    root = trees.mask_folders(tmp_path, {"nut": (5, 5, 25, 25), "bolt": (30, 8, 60, 40)})
    source = MaskFolders(root)
    assert source.classes == ("bolt", "nut")
    assert source.ids[0] == "bolt/images/bild 0.jpg"
    assert source.areas()[-1] == {2: 400}
    mask = trees.boxes_label((48, 64), {(0, 0, 9, 9): 255, (5, 5, 25, 25): 1})
    Image.fromarray(mask).save(root / "nut" / "masks" / "bild 3.png")
    ignored = MaskFolders(root).label(7)
    assert ((ignored == VOID).sum(), (ignored == 2).sum()) == (81 - 16, 400)
    (root / "nut" / "masks" / "bild 1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files .*\n.*bild 1\.png"):
        MaskFolders(root)
    assert MaskFolders(root, ["bolt"]).classes == ("bolt",)
    with pytest.raises(FileNotFoundError, match="no folder"):
        MaskFolders(root, ["screw"])
    for nowhere in ("nut", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"no folder CLASS/images in .*{nowhere}"):
            MaskFolders(root / nowhere)
    (root / "nut" / "images" / "bild 1.png").write_bytes(b"GIF89a")
    (root / "nut" / "masks" / "bild 1.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"bild 1\.gif' is not an image that Pillow can read"):
        MaskFolders(root, ["nut"]).areas()


def test_masks_of_folders_are_turned_upright(tmp_path: Path) -> None:
    """As in `predict`: a camera and a labelling tool write the same orientation."""
    root = trees.mask_folders(tmp_path, {"nut": (5, 5, 25, 30)}, count=1, size=(48, 64))
    upright = MaskFolders(root).label(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    for path in (root / "nut" / "images" / "bild 0.jpg", root / "nut" / "masks" / "bild 0.png"):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    source = MaskFolders(root)
    assert source.image(0).shape == (3, 48, 64)
    assert np.array_equal(source.label(0), upright)


def test_no_label_is_handed_to_ghostscript(tmp_path: Path) -> None:
    root = trees.mask_folders(tmp_path, {"nut": (5, 5, 25, 25)})
    Image.new("L", (64, 48)).save(root / "nut" / "masks" / "bild 0.png", format="EPS")
    with pytest.raises(ValueError, match="is not an image that Pillow can read") as caught:
        MaskFolders(root).label(0)
    assert "Ghostscript" not in str(caught.value)


# Areas


class Drawn(LabelledImages):
    """A dataset with labels in memory. It counts how often they are read."""

    def __init__(self, folder: Path, labels: Sequence[NDArray[np.uint8]], classes: int = 6) -> None:
        files = [folder / f"{i}.jpg" for i in range(len(labels))]
        for i, label in enumerate(labels):
            trees.photo(files[i], (label.shape[0], label.shape[1]), i)
        names = [f"class {c}" for c in range(1, classes + 1)]
        super().__init__(names, [file.name for file in files], files)
        self.read, self._values = 0, labels

    def label(self, index: int) -> NDArray[np.int32]:
        self.read += 1
        label = self._values[index].astype(np.int32)
        label[label == 255] = VOID
        return label


def one(box: trees.Box, value: int, size: tuple[int, int] = (80, 100)) -> NDArray[np.uint8]:
    return trees.boxes_label(size, {box: value})


BIG, TINY = (10, 10, 70, 70), (0, 0, 6, 6)


def test_areas_are_cached(tmp_path: Path) -> None:
    cache = tmp_path / "areas.json"
    labels = [one(BIG, 1), one(TINY, 2)]
    source = Drawn(tmp_path, labels)
    expected = source.areas(cache)
    assert expected == [{1: 3600}, {2: 36}]
    again = Drawn(tmp_path, labels)
    assert again.areas(cache) == expected
    assert (source.read, again.read) == (2, 0)
    other = Drawn(tmp_path, [*labels, one(BIG, 3)])
    assert len(other.areas(str(cache))) == 3
    assert other.read == 3
    for text in ('{"images": []}', "", "[]", '{"format": "hdmnet areas 1"}'):
        cache.write_text(text)
        with pytest.raises(ValueError, match="is not a cache of areas"):
            Drawn(tmp_path, labels).areas(cache)
        assert cache.read_text() == text
    Drawn(tmp_path, labels).areas(tmp_path / "new" / "areas.json")
    assert (tmp_path / "new" / "areas.json").is_file()


def test_areas_depend_on_the_crowd_option(tmp_path: Path) -> None:
    images, path = make_coco(tmp_path)
    cache = tmp_path / "areas.json"
    assert CocoInstances(images, path).areas(cache)[2] == {1: 200}
    assert CocoInstances(images, path, crowd="class").areas(cache)[2] == {1: 200, 2: 1400}


# Rules


def rules(tmp_path: Path) -> Drawn:
    """Make images with large and small objects of classes 1 and 2. One also shows class 3."""
    both = trees.boxes_label((80, 100), {(0, 0, 50, 80): 1, (60, 0, 65, 5): 2})
    with_novel = trees.boxes_label((80, 100), {(0, 0, 50, 80): 1, (60, 0, 62, 2): 3})
    return Drawn(
        tmp_path,
        [
            one(BIG, 1),
            one(BIG, 2),
            both,  # class 2 is small
            with_novel,
            one(TINY, 1),
            one(BIG, 2),
            one(BIG, 1),
            one(BIG, 2),
            np.zeros((80, 100), np.uint8),
        ],
    )


def test_small_objects_are_not_listed(tmp_path: Path) -> None:
    source = rules(tmp_path)
    queries = [episode.query for episode in EpisodeSampler(source, (1, 2))]
    assert queries == [0, 1, 2, 3, 5, 6, 7]
    assert 4 in [episode.query for episode in EpisodeSampler(source, (1, 2), min_area=1)]
    edge = Drawn(tmp_path, [one((0, 0, 64, 32), 1)] * 2 + [one((0, 0, 2047, 1), 1, (2, 2048))] * 2)
    assert [episode.query for episode in EpisodeSampler(edge)] == [0, 1]


def test_images_of_other_classes(tmp_path: Path) -> None:
    source = rules(tmp_path)
    dropped = EpisodeSampler(source, (1, 2), other_classes="drop", length=60)
    used = {i for episode in dropped for i in (episode.query, *episode.supports)}
    assert used == {0, 1, 2, 5, 6, 7}
    kept = EpisodeSampler(source, (1, 2), length=60)
    assert 3 in {i for episode in kept for i in episode.supports}
    number = next(i for i, episode in enumerate(kept) if episode.query == 3)
    target = EpisodeDataset(kept, EvalTransform(64))[number]["target"]
    assert torch.equal(target, torch.from_numpy(one((0, 0, 50, 80), 1)))


def test_query_class(tmp_path: Path) -> None:
    source = rules(tmp_path)

    def labels(**rule: str) -> set[int]:
        drawn = EpisodeSampler(source, (1, 2), length=140, **rule)
        return {episode.label for episode in drawn if episode.query == 2}

    assert labels() == {1, 2}  # the published rule also takes the small object
    assert labels(query_class="listed") == {1}


def test_orders(tmp_path: Path) -> None:
    source = Drawn(tmp_path, [one(BIG, 1)] * 12 + [one(BIG, 2)] * 2)
    in_turn = EpisodeSampler(source, length=28)
    assert [episode.query for episode in in_turn] == [*range(14), *range(14)]
    supports = [episode.supports for episode in in_turn]
    assert supports[:12] != supports[14:26]
    balanced = EpisodeSampler(source, order="balanced", length=400)
    assert 150 < sum(episode.label == 1 for episode in balanced) < 250


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 10**6), shots=st.integers(1, 4))
def test_supports(
    tmp_path_factory: pytest.TempPathFactory, seed: int, number: int, shots: int
) -> None:
    source = _shared(tmp_path_factory)
    for order in ("list", "balanced"):
        sampler = EpisodeSampler(source, (1, 2), shots=shots, seed=seed, order=order, min_area=20)
        episode = sampler.draw(number)
        assert episode == sampler.draw(number)
        assert len({episode.query, *episode.supports}) == shots + 1
        areas = source.areas()
        assert all(areas[i].get(episode.label, 0) >= 20 for i in episode.supports)
        assert episode.label in areas[episode.query]


_kept: list[Drawn] = []


def _shared(factory: pytest.TempPathFactory) -> Drawn:
    if not _kept:
        labels = [one((0, 0, 2 + i, 9), 1 + i % 2) for i in range(16)]
        _kept.append(Drawn(factory.mktemp("shared"), labels))
    return _kept[0]


def test_episodes_of_a_seed_never_change(tmp_path: Path) -> None:
    # Expected values of the first version: no later version of any library may change them.
    source = Drawn(tmp_path, [one(BIG, 1 + i % 3) for i in range(21)])
    sampler = EpisodeSampler(source, shots=3, seed=7)
    assert sampler[0] == (0, (6, 15, 18), 1)
    assert sampler[20] == (20, (8, 17, 2), 3)
    assert sampler[-1] == sampler[20]
    with pytest.raises(IndexError):
        sampler[21]
    with pytest.raises(TypeError, match="slice"):
        sampler[0:2]
    balanced = EpisodeSampler(source, shots=2, seed=7, order="balanced")
    assert [balanced[0], balanced[1]] == [(6, (3, 0), 1), (3, (6, 15), 1)]


def test_classes_with_too_few_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Drawn(tmp_path, [one(BIG, 1)] * 3 + [one(BIG, 2)], classes=2)
    sampler = EpisodeSampler(source, length=20)
    assert {episode.label for episode in sampler} == {1}
    assert "too few images for 1 shots, so no episodes of: class 2" in caplog.text
    # The dataset keeps both names, so that the metric can name the class without episodes.
    assert EpisodeDataset(sampler, EvalTransform(64)).class_names == ("class 1", "class 2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [0]}, "labels from 1 to 6"),
        ({"classes": []}, "labels from 1 to 6"),
        ({"shots": 0}, "shots must be from 1"),
        ({"length": 0}, "length must be"),
        ({"seed": -1}, "seed must be"),
        ({"min_area": 0}, "min_area must be"),
        ({"order": "random"}, "order must be one of list, balanced"),
        ({"other_classes": "ignore"}, "other_classes must be"),
        ({"query_class": "all"}, "query_class must be"),
        ({"shots": 5}, "5 shots needs 6 images .* 2048 pixels .* more than 3 \\('class 1'\\)"),
    ],
)
def test_invalid_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    source = Drawn(tmp_path, [one(BIG, 1)] * 3)
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(source, **options)


# Pairs


def listed(tmp_path: Path, *pairs: tuple[int, int], name: str = "fold0.txt") -> Path:
    """Write a list of pairs of an image of `Drawn` and a class."""
    path = tmp_path / name
    path.write_text("".join(f"{i}.jpg__{label}\n" for i, label in pairs))
    return path


def both_classes(tmp_path: Path) -> tuple[Drawn, Path]:
    """Make six images of both classes, and list some of them for each."""
    both = trees.boxes_label((80, 100), {(0, 0, 50, 80): 1, (60, 0, 65, 5): 2})
    pairs = [(0, 1), (0, 2), (1, 1), (3, 2), (4, 2), (5, 2)]
    return Drawn(tmp_path, [both] * 6), listed(tmp_path, *pairs)


def test_pairs_are_in_the_order_of_the_list(tmp_path: Path) -> None:
    source, path = both_classes(tmp_path)
    pairs = PairList(source, path)
    queries = [(episode.query, episode.label) for episode in pairs]
    assert queries == [(0, 1), (0, 2), (1, 1), (3, 2), (4, 2), (5, 2)]
    assert (pairs.classes, pairs.shots, len(pairs)) == ((1, 2), 1, 6)
    longer = PairList(source, path, length=15)
    assert [(episode.query, episode.label) for episode in longer] == (3 * queries)[:15]
    files = [path, listed(tmp_path, (2, 3), (5, 3), name="fold1.txt")]
    assert [episode.label for episode in PairList(source, files)] == [1, 2, 1, 2, 2, 2, 3, 3]


def test_supports_of_pairs(tmp_path: Path) -> None:
    source, path = both_classes(tmp_path)
    pairs = PairList(source, path, shots=2)
    supports = [pairs.draw(number).supports for number in range(3, 1200, len(pairs))]
    assert {i for both in supports for i in both} == {0, 4, 5}  # listed for class 2, not the query
    # Nine pairs of supports with the same probability, those of one image twice among them.
    counts = [supports.count((a, b)) for a in (0, 4, 5) for b in (0, 4, 5)]
    assert min(counts) > len(supports) / 9 / 2
    different = PairList(source, listed(tmp_path, (0, 2), (3, 2), (4, 2)), shots=2, repeat=False)
    assert {e.query: set(e.supports) for e in different} == {0: {3, 4}, 3: {0, 4}, 4: {0, 3}}


def test_pairs_of_a_seed_never_change(tmp_path: Path) -> None:
    source, path = both_classes(tmp_path)
    pairs = PairList(source, path, shots=3, seed=7)
    # Expected values of the first version: no later version of any library may change them.
    assert [pairs[1], pairs[-1]] == [(0, (3, 5, 4), 2), (5, (0, 3, 0), 2)]
    assert pairs.draw(13) != pairs[1]
    with pytest.raises(IndexError):
        pairs[6]


def test_pairs_in_a_dataset_and_a_saved_list(tmp_path: Path) -> None:
    source, path = both_classes(tmp_path)
    pairs = PairList(source, path, shots=4)
    dataset = EpisodeDataset(pairs, EvalTransform(64))
    assert dataset.class_names == ("class 1", "class 2")
    item = dataset[1]
    assert item["supports"].shape == (4, 3, 64, 64)
    assert torch.equal(item["target"] == 1, torch.from_numpy(source.label(0) == 2))
    saved = EpisodeList(source, pairs, pairs.classes)
    saved.save(tmp_path / "episodes.json")
    loaded = EpisodeList.load(tmp_path / "episodes.json", source)
    assert list(loaded) == list(pairs)
    assert loaded[0].supports == (1, 1, 1, 1)  # class 1 lists only one other image


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "0.jpg__1\n\n0.jpg 1\n",
            {},
            r"line 3 of .*fold0\.txt is '0\.jpg 1': expected NAME__LABEL",
        ),
        ("__1\n", {}, "line 1 of .* is '__1': expected NAME"),
        ("0.jpg__x\n", {}, "expected NAME__LABEL, such as 2008_000008__13"),
        ("0.jpg__0\n", {}, "line 1 of .* has the label 0: expected 1 to 6"),
        ("0.jpg__7\n", {}, "has the label 7: expected 1 to 6"),
        ("\n", {}, "lists no pairs"),
        (
            "a__1\nb__1\na__2\n0.jpg__1\n",
            {},
            "names 2 images that the source does .* such as a, b$",
        ),
        (
            "0.jpg__1\n0.jpg__1\n",
            {},
            r"lists 1 images of 'class 1': .* of 1 shots needs at least 2",
        ),
        (
            "0.jpg__1\n1.jpg__1\n",
            {"shots": 2, "repeat": False},
            "lists 2 .* 2 shots needs at least 3",
        ),
        ("0.jpg__1\n1.jpg__1\n", {"shots": 0}, "shots must be from 1"),
        ("0.jpg__1\n1.jpg__1\n", {"length": 0}, "length must be from 1"),
        ("0.jpg__1\n1.jpg__1\n", {"seed": 2**32}, "seed must be from 0"),
    ],
)
def test_invalid_pairs(tmp_path: Path, text: str, options: dict, message: str) -> None:
    source, path = both_classes(tmp_path)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PairList(source, path, **options)


def test_pairs_of_pascal(tmp_path: Path) -> None:
    source = PascalVOC(trees.voc(tmp_path, dict.fromkeys(("2007_000032", "2008_1"), dog_and_cat())))
    (tmp_path / "fold2.txt").write_text("2007_000032__12\n2008_1__12\n2008_1__8\n2007_000032__8\n")
    pairs = PairList(source, tmp_path / "fold2.txt")
    assert list(pairs) == [(0, (1,), 12), (1, (0,), 12), (1, (0,), 8), (0, (1,), 8)]
    assert [source.classes[label - 1] for label in pairs.classes] == ["cat", "dog"]


# Lists


def test_lists(tmp_path: Path) -> None:
    source = Drawn(tmp_path, [one(BIG, 1 + i % 2) for i in range(12)])
    drawn = EpisodeList(source, EpisodeSampler(source, shots=2, length=30))
    path = tmp_path / "épisodes.json"
    drawn.save(path)
    loaded = EpisodeList.load(path, source)
    assert list(loaded) == list(drawn)
    assert (loaded.sha256, loaded.classes, loaded.shots) == (drawn.sha256, (1, 2), 2)
    others = EpisodeList(source, EpisodeSampler(source, shots=2, length=30, seed=1))
    assert others.sha256 != drawn.sha256

    fewer = Drawn(tmp_path / "fewer", [one(BIG, 1)] * 3)
    with pytest.raises(ValueError, match=r"names 9 images .* such as 10\.jpg"):
        EpisodeList.load(path, fewer)
    with pytest.raises(ValueError, match=r"names 2 classes"):
        EpisodeList.load(path, _renamed(source))
    path.write_text(path.read_text(encoding="utf-8").replace("3.jpg", "5.jpg", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="was changed"):
        EpisodeList.load(path, source)
    for text in ("", "[]", '{"format": "hdmnet episodes 9"}', '{"format": 1, "episodes": [1]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a list of episodes"):
            EpisodeList.load(path, source)
    with pytest.raises(ValueError, match="the same number of shots"):
        EpisodeList(source, [*drawn, *EpisodeSampler(source)])
    with pytest.raises(ValueError, match="its own support"):
        EpisodeList(source, [Episode(2, (0, 2), 1)])
    with pytest.raises(ValueError, match="no episodes"):
        EpisodeList(source, [])
    for wrong, hint in (
        (Episode(0, (-1,), 1), r"images 0 to \d+, got -1"),
        (Episode(0, (1,), 0), r"classes 1 to \d+, got 0"),
    ):
        with pytest.raises(ValueError, match=f"the source has the {hint}"):
            EpisodeList(source, [wrong])
    wider = EpisodeList(source, drawn, (1, 2, 5))
    wider.save(path)
    assert EpisodeList.load(path, source).classes == wider.classes == (1, 2, 5)
    assert wider.sha256 == drawn.sha256


def _renamed(source: Drawn) -> Drawn:
    other = Drawn(source.files[0].parent, [np.zeros((8, 8), np.uint8)] * len(source))
    other.classes = ("x", "y")
    return other


# Tensors


def test_training_items(tmp_path: Path) -> None:
    label = trees.boxes_label((90, 120), {BIG: 1, (75, 10, 110, 80): 4, (0, 85, 120, 90): 255})
    novel = trees.boxes_label((90, 120), {BIG: 1, (75, 10, 110, 80): 2})
    source = Drawn(tmp_path, [label, novel, label])
    sampler = EpisodeSampler(source, (1, 4), shots=2, length=6)
    transform = TrainTransform(65, scale=(1, 1), rotation=0, blur=0)
    dataset = EpisodeDataset(sampler, transform, base_classes=(4, 1))
    batch = next(iter(DataLoader(dataset, batch_size=6)))
    assert batch["query"].shape == (6, 3, 65, 65)
    assert batch["supports"].shape == (6, 2, 3, 65, 65)
    assert batch["masks"].shape == (6, 2, 65, 65)
    assert batch["target"].shape == batch["base_target"].shape == (6, 65, 65)
    for number, episode in enumerate(sampler):
        position = {4: 0, 1: 1}[episode.label]
        assert batch["base_class"][number] == position
        assert dataset.class_names[batch["label"][number]] == f"class {episode.label}"
        base, target = batch["base_target"][number], batch["target"][number]
        assert torch.equal(base == position + 1, target == 1)
        assert torch.equal(base == 255, target == 255)
        assert set(base.unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_items_are_a_function_of_seed_epoch_and_index(tmp_path: Path, context: str) -> None:
    source = Drawn(tmp_path, [one(BIG, 1 + i % 2) for i in range(8)])
    dataset = EpisodeDataset(EpisodeSampler(source, shots=2), TrainTransform(64), seed=3)

    def queries(loader: DataLoader[dict[str, Tensor]]) -> Tensor:
        return torch.cat([torch.cat([b["query"], b["supports"][:, 1]]) for b in loader])

    torch.manual_seed(5)
    here = queries(DataLoader(dataset, batch_size=2))
    workers = DataLoader(
        dataset,
        batch_size=2,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    torch.manual_seed(6)
    assert torch.equal(queries(workers), here)
    dataset.set_epoch(1)
    later = queries(workers)
    assert not torch.equal(later, here)
    assert torch.equal(later, queries(DataLoader(dataset, batch_size=2)))
    other = EpisodeDataset(EpisodeSampler(source, shots=2), TrainTransform(64), seed=4)
    assert not torch.equal(queries(DataLoader(other, batch_size=2)), here)


def test_items_change_no_global_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the generators of GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    source = Drawn(tmp_path, [one(BIG, 1)] * 3)
    dataset = EpisodeDataset(EpisodeSampler(source), TrainTransform(64))
    before = torch.get_rng_state()
    expected = torch.rand(4)
    torch.set_rng_state(before)
    dataset[1]
    assert torch.equal(torch.rand(4), expected)


def test_base_items(tmp_path: Path) -> None:
    source = rules(tmp_path)
    dataset = BaseDataset(source, (2, 1), EvalTransform(64))
    assert len(dataset) == 7  # without the image that shows class 3, and the empty one
    item = dataset[2]
    expected = trees.boxes_label((80, 100), {(0, 0, 50, 80): 2, (60, 0, 65, 5): 1})
    assert torch.equal(item["target"], torch.from_numpy(expected))
    with pytest.raises(ValueError, match="no image"):
        BaseDataset(source, (5,), EvalTransform(64))
    with pytest.raises(ValueError, match=r"at most 254 base classes .* got 255"):
        BaseDataset(source, range(1, 256), EvalTransform(64))


def test_base_windows_hold_any_class(tmp_path: Path) -> None:
    small = trees.boxes_label((200, 200), {(160, 20, 170, 30): 2})
    dataset = BaseDataset(Drawn(tmp_path, [small]), (1, 2), TrainTransform(40))
    for epoch in range(8):
        dataset.set_epoch(epoch)
        assert (dataset[0]["target"] == 2).any()


# Transforms


@pytest.mark.parametrize("size", [33, 65, 150])
def test_images_and_labels_move_alike(size: int) -> None:
    label = torch.from_numpy(trees.boxes_label((90, 120), {(20, 15, 60, 50): 1}))
    base = torch.where(label == 1, 7, 2).to(torch.uint8)
    image = (label == 1).float().expand(3, -1, -1)
    transform = TrainTransform(size, mean=(0, 0, 0), std=(1, 1, 1))
    for _ in range(30):
        moved, target, moved_base = transform.query(image, label, base)
        assert moved.shape == (3, size, size)
        assert type(moved) is Tensor
        assert (target == 1).any()
        assert torch.equal(moved_base == 7, target == 1)
        assert torch.equal(moved_base == 255, target == 255)
        # Image and label differ only where smoothing blurs the border.
        wrong = ((moved[0] > 0.5) != (target == 1)) & (target != 255)
        assert wrong.sum() <= 0.1 * (target == 1).sum() + 8
    assert size < 150 or (target == 255).any()


def test_objects_are_not_turned_out_of_the_image() -> None:
    corner = torch.from_numpy(trees.boxes_label((150, 200), {(0, 0, 9, 9): 1}))
    transform = TrainTransform(100)
    torch.manual_seed(0)
    for _ in range(20):
        _, target = transform.query(torch.rand(3, 150, 200), corner)
        assert (target == 1).any()


def test_windows_without_an_object() -> None:
    transform = TrainTransform(32)
    image = torch.arange(64.0).expand(3, 64, 64) / 64
    windows = [transform.query(image, torch.zeros(64, 64, dtype=torch.uint8))[0] for _ in range(8)]
    assert all(window.shape == (3, 32, 32) for window in windows)
    lefts = [window.mean() for window in windows]
    assert max(lefts) - min(lefts) > 0.2
    assert len(transform.query(torch.rand(3, 20, 64))) == 1


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (70, 70)])
def test_resizing_as_predict_does(model: HDMNet, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    query, support = torch.rand(3, *size), torch.rand(3, 55, 77)
    mask = torch.from_numpy(trees.boxes_label((55, 77), {(3, 4, 40, 50): 1}))
    transform = EvalTransform(
        model.image_size, mean=model.backbone.mean, std=model.backbone.std, keep_ratio=False
    )
    moved, moved_mask = transform.support(support, mask)
    (prepared,) = transform.query(query)
    with torch.inference_mode():
        final = model(prepared[None], moved[None, None], moved_mask[None, None]).final
    scores = transform.restore(final, size)[0].clamp(min=0)
    expected = model.predict(query, support, mask)
    probability = scores[1] / scores.sum(0).clamp(min=1e-12)
    assert torch.allclose(probability, expected.probability, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (64, 64), (33, 57)])
def test_keeping_the_ratio(size: tuple[int, int]) -> None:
    transform = EvalTransform(64, mean=(0, 0, 0), std=(1, 1, 1))
    label = torch.zeros(size, dtype=torch.uint8)
    label[size[0] // 2 :, size[1] // 2 :] = 1
    image = label.float().expand(3, -1, -1)
    moved, target = transform.query(image, label)
    assert target is label  # papers score at the original size of the query
    _, mask = transform.support(image, label)
    inner = [round(side * 64 / max(size)) for side in size]
    assert (mask == 255).sum() == 64 * 64 - inner[0] * inner[1]
    assert moved[:, inner[0] :].abs().sum() == moved[:, :, inner[1] :].abs().sum() == 0
    back = transform.restore(moved[None, :1], size)[0, 0] > 0.5
    assert ((back != (label == 1)).float().mean()) < 0.05
