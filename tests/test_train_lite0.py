"""Parts of the recipe of the bundled model, on tiny data."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import make
from PIL import Image
from test_predict import picture

from hdmnet import MatchingAttention, Segmentation
from hdmnet.nn.calibration import Calibration

RECIPE = Path(__file__).parents[1] / "examples" / "train_lite0"


@pytest.fixture(scope="module")
def recipe() -> Iterator[None]:
    """Make the recipe's modules importable, and forget them afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(RECIPE)):
            del sys.modules[name]


def blob(size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """An irregular object of two parts."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    ellipse = ((rows - 30) / 20) ** 2 + ((columns - 30) / 14) ** 2 < 1
    return ellipse | ((abs(rows - 15) < 6) & (abs(columns - 65) < 8))


@pytest.mark.usefixtures("recipe")
class TestRough:
    def test_box_covers(self) -> None:
        from rough import roughen

        mask = blob()
        rough = roughen(np.random.default_rng(0), mask, "box")
        rows, columns = np.nonzero(mask)
        expected = np.zeros_like(mask)
        expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        np.testing.assert_array_equal(rough, expected)

    @pytest.mark.parametrize("seed", range(5))
    def test_relations(self, seed: int) -> None:
        from rough import roughen

        mask = blob()
        made = {
            kind: roughen(np.random.default_rng(seed), mask, kind)
            for kind in ("points", "eroded", "dilated", "polygon")
        }
        assert not (made["eroded"] & ~mask).any()
        assert not (mask & ~made["dilated"]).any()
        assert (made["points"] & mask).any()
        assert (made["polygon"] & mask).any()
        assert not (made["polygon"] & ~roughen(np.random.default_rng(0), mask, "box")).any()
        for rough in made.values():
            assert rough.any()
            assert rough.dtype == bool

    def test_a_tiny_object_keeps_its_mask(self) -> None:
        from rough import roughen

        mask = np.zeros((60, 80), bool)
        mask[10, 20] = True
        rough = roughen(np.random.default_rng(0), mask, "eroded")
        np.testing.assert_array_equal(rough, mask)


def write_folder(root: Path, names: list[str], labels: list[np.ndarray]) -> Path:
    """Write photographs and label maps as `photographs.py` does."""
    for part in ("JPEGImages", "SegmentationClassAug"):
        (root / part).mkdir(parents=True)
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        picture(80, 60, seed=i).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(label).save(root / "SegmentationClassAug" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps({"3": "skirt", "5": "coat", "7": "shoes"}))
    return root


@pytest.mark.usefixtures("recipe")
class TestPhotos:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        labels = [np.zeros((60, 80), np.uint8) for _ in range(4)]
        labels[0][blob()] = 5  # coat
        labels[1][:30, :40], labels[1][40:] = 5, 7  # coat and shoes
        labels[2][blob()], labels[2][50:] = 3, 7  # skirt, which is held out, and shoes
        labels[3][:30], labels[3][30:40] = 5, 255
        return write_folder(tmp_path / "CCP", ["a", "b", "c", "d"], labels)

    def test_splits_share_no_photograph(self, folder: Path) -> None:
        from photos import PhotoScenes

        train, val = (PhotoScenes(folder, split, 64) for split in ("train", "val"))
        assert train.names == ["a", "b", "d"]
        assert val.names == ["c"]
        assert {item.category for item in train.items} == {"CCP/coat", "CCP/shoes"}
        assert {item.category for item in val.items} == {"CCP/skirt"}

    def test_validation_shows_the_whole_photograph(self, folder: Path) -> None:
        from photos import PhotoScenes

        val = PhotoScenes(folder, "val", 60)
        scene = val.draw(np.random.default_rng(0), 0)
        expected = Image.fromarray(blob()).resize((60, 60), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(scene.labels == 1, np.asarray(expected))
        assert set(np.unique(scene.labels)) == {0, 1}

    def test_training_scenes_fit_their_items(self, folder: Path) -> None:
        from photos import PhotoScenes

        train = PhotoScenes(folder, "train", 48)
        for seed in range(20):
            scene = train.draw(np.random.default_rng(seed), 0)
            assert scene.image.shape == (48, 48, 3)
            assert set(np.unique(scene.labels)) <= {0, 255, *range(1, len(scene.objects) + 1)}
            assert len({train.items[item].name for item in scene.objects}) == 1


@pytest.mark.usefixtures("recipe")
def test_photographs_of_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layouts of the four archives, with one tiny picture in each."""
    pytest.importorskip("pycocotools")
    import photographs
    from scipy.io import savemat

    originals = tmp_path / "data" / "originals"
    label = np.zeros((60, 80), np.uint8)
    label[blob()] = 12

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(80, 60).save(path)

    voc = originals / "VOCdevkit" / "VOC2012"
    for name in ("own", "sbd"):
        save(voc / "JPEGImages" / f"{name}.jpg")
    (voc / "SegmentationClass").mkdir()
    Image.fromarray(label).save(voc / "SegmentationClass" / "own.png")
    sbd = originals / "benchmark_RELEASE" / "dataset" / "cls" / "sbd.mat"
    sbd.parent.mkdir(parents=True)
    savemat(sbd, {"GTcls": {"Segmentation": label // 2}})

    ccp = originals / "clothing-co-parsing-master"
    save(ccp / "photos" / "0001.jpg")
    names = np.array(["null", "hat", "coat"], dtype=object)
    savemat(ccp / "label_list.mat", {"label_list": names})
    garments = np.where(blob(), 2, 1).astype(np.uint8)
    (ccp / "annotations" / "pixel-level").mkdir(parents=True)
    savemat(ccp / "annotations" / "pixel-level" / "0001.mat", {"groundtruth": garments})

    for folder, name in (("trainingset", "train7.jpg"), ("testset", "test9.jpg")):
        cars = originals / "Car-Parts-Segmentation-master" / folder
        save(cars / "JPEGImages" / name)
        wheel = {"id": 1, "image_id": 1, "category_id": 4, "area": 100, "iscrowd": 0}
        wheel |= {"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
        table = {
            "images": [{"id": 1, "file_name": name, "height": 60, "width": 80}],
            "annotations": [wheel],
            "categories": [
                {"id": 0, "name": "_background_"},
                {"id": 4, "name": "wheel"},
                {"id": 2, "name": "hood"},
            ],
        }
        (cars / "annotations.json").write_text(json.dumps(table))

    listed = {"VOC2012": ["own", "sbd"], "CCP": ["0001"]}
    monkeypatch.setattr(photographs, "read_names", lambda: listed)
    monkeypatch.setattr(
        "sys.argv", ["photographs.py", str(tmp_path / "data"), str(tmp_path / "photos")]
    )
    photographs.main()

    def made(*parts: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path.joinpath("photos", *parts)))

    np.testing.assert_array_equal(made("VOC2012", "SegmentationClassAug", "own.png"), label)
    np.testing.assert_array_equal(made("VOC2012", "SegmentationClassAug", "sbd.png"), label // 2)
    found = made("CCP", "SegmentationClassAug", "0001.png")
    np.testing.assert_array_equal(found, np.where(blob(), 2, 0))
    assert json.loads((tmp_path / "photos/CCP/classes.json").read_text()) == {"2": "coat"}
    parts = json.loads((tmp_path / "photos/CarParts/classes.json").read_text())
    assert parts == {"2": "hood", "3": "wheel"}
    for name in ("tr0007", "te0009"):
        part = made("CarParts", "SegmentationClassAug", f"{name}.png")
        assert part[20, 20] == 3
        assert part[40, 40] == 0
    photographs.main()  # nothing is missing now


@pytest.mark.usefixtures("recipe")
def test_the_lists_name_no_photograph_twice() -> None:
    from photographs import read_names

    names = read_names()
    assert {name: len(listed) for name, listed in names.items()} == {"VOC2012": 2438, "CCP": 753}
    assert all(len(set(listed)) == len(listed) for listed in names.values())


@pytest.mark.usefixtures("recipe")
class TestEpisodes:
    """Eight photographs of two classes, two scenes of each, with tiny hand-made features.

    A feature is the label map itself, so that it shows what was drawn and how it was flipped.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("features")
        rng = np.random.default_rng(0)
        items = [
            {"name": f"{i}", "category": f"VOC2012/{'ab'[i % 2]}", "kind": "real"} for i in range(8)
        ]
        labels = np.zeros((16, 9, 9), np.uint8)
        masks = np.zeros((32, 9, 9), bool)
        index = []
        for scene in range(16):
            labels[scene, 2:7, rng.integers(0, 3) : 6] = 1
            labels[scene, 0, 0] = 255
            masks[2 * scene] = labels[scene] == 1
            kind = ("", "box", "eroded", "")[scene % 4]
            index.append({"objects": [scene // 2], "supports": [[1, kind]]})
        (folder / "items.json").write_text(json.dumps(items))
        (folder / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in index))
        np.save(folder / "labels.npy", labels)
        np.save(folder / "masks.npy", masks)
        np.save(folder / "scenes.npy", labels[:, None].astype(np.float16))
        np.save(folder / "supports.npy", masks[:, None].astype(np.float16))
        return folder

    @pytest.mark.parametrize("mode", ["across", "same", "self"])
    def test_modes(self, folder: Path, mode: str) -> None:
        from episodes import Episodes

        episodes, rng = Episodes(folder), np.random.default_rng(0)
        for _ in range(50):
            queries = 1 if mode == "same" else 2
            drawn = episodes.draw(rng, shots=2, queries=queries, mode=mode)
            supports = [row // 2 for row in drawn.rows]
            shown = [episodes.objects[scene][0] for scene in supports]
            asked = [episodes.objects[scene][0] for scene in drawn.scenes]
            names = {episodes.items[item]["category"] for item in shown + asked}
            assert names == {drawn.category}
            if mode == "across":
                assert not set(shown) & set(asked)
                assert drawn.wanted is None
            elif mode == "same":
                assert set(shown) == set(asked) == drawn.wanted
                assert not set(supports) & set(drawn.scenes)
            else:
                assert set(supports) == {drawn.scenes[0]}
                assert supports[0] % 4 == 1  # it has a box
                assert asked[1] != shown[0]

    def test_absent_queries_show_nothing(self, folder: Path) -> None:
        from episodes import Episodes

        episodes, rng = Episodes(folder), np.random.default_rng(0)
        batch = episodes.episode(rng, shots=1, queries=2, absent=1.0)
        assert set(batch.targets.unique().tolist()) == {0, 255}
        batch = episodes.episode(rng, shots=1, queries=2, absent=0.0)
        assert all((target == 1).any() for target in batch.targets)

    def test_absent_queries_of_training(self, folder: Path) -> None:
        from episodes import Mixture

        mixture, rng = Mixture({folder: 1.0}), np.random.default_rng(0)
        batch = mixture.batch(
            rng, groups=2, shots=1, queries=2, modes={"across": 1.0}, rivals=1, absent=1.0
        )
        assert not (batch.targets == 1).any()
        assert batch.rival_masks.shape == (2, 1, 9, 9)

    def test_no_more_rivals_than_there_are(self, folder: Path) -> None:
        from episodes import Episodes

        episodes, rng = Episodes(folder), np.random.default_rng(0)
        others = len({item["category"] for item in episodes.items}) - 1
        batch = episodes.episode(rng, shots=2, queries=1, rivals=others + 3)
        assert batch.rival_masks.shape == (others, 2, 9, 9)

    def test_self_without_rough_masks(self, folder: Path, tmp_path: Path) -> None:
        from episodes import Episodes

        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        index = tmp_path / "index.jsonl"
        index.write_text(index.read_text().replace('"box"', '"eroded"'))
        drawn = Episodes(tmp_path).draw(np.random.default_rng(0), shots=1, queries=2, mode="self")
        assert drawn.wanted is None  # as in `across`

    def test_flips_keep_features_and_labels_together(self, folder: Path) -> None:
        from episodes import Episodes

        episodes, rng = Episodes(folder), np.random.default_rng(0)
        for _ in range(20):
            batch = episodes.episode(rng, shots=3, queries=2, absent=0.0)
            assert batch.supports.shape == (3, 1, 9, 9)
            np.testing.assert_array_equal(batch.supports[:, 0], batch.masks[0])
            np.testing.assert_array_equal(batch.queries[:, 0], batch.targets)

    def test_mixture(self, folder: Path) -> None:
        from episodes import Mixture

        mixture, rng = Mixture({folder: 1.0}), np.random.default_rng(0)
        batch = mixture.batch(rng, groups=3, shots=2, queries=2, modes={"across": 1.0})
        assert batch.supports.shape == (6, 1, 9, 9)
        assert batch.masks.shape == (3, 2, 9, 9)
        assert batch.queries.shape == (6, 1, 9, 9)
        assert len(batch.categories) == 3


def attend(
    attention: MatchingAttention,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Match a random query with two shots; also return q, and k and v of the object positions."""
    query, support = torch.randn(1, 8, 3, 4), torch.randn(1, 2, 8, 3, 3)
    mask = (torch.rand(1, 2, 3, 3) > 0.4).float()
    tokens = support.permute(0, 1, 3, 4, 2).reshape(18, 8)[mask.flatten() == 1]
    q = attention.query(query[0].flatten(1).T)
    projected = [q, attention.key(tokens), attention.value(tokens)]
    return *attention(query, support, mask), projected


@pytest.mark.usefixtures("recipe")
class TestVariants:
    def test_dot_product_attention(self) -> None:
        from variants import DotProductAttention

        attention = DotProductAttention(8, heads=2, dropout=0.0).eval()
        out, correlation, (q, k, v) = attend(attention)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            similarity = q[:, part] @ k[:, part].T / 2
            heads.append((similarity.softmax(dim=-1) @ v[:, part], similarity.mean(dim=-1)))
        expected = attention.out(torch.cat([h[0] for h in heads], dim=-1)).T.reshape(8, 3, 4)
        torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-5)
        mean = (heads[0][1] + heads[1][1]) / 2
        torch.testing.assert_close(correlation[0], mean.reshape(3, 4), rtol=0, atol=1e-5)

    def test_prototype_attention(self) -> None:
        from variants import PrototypeAttention

        attention = PrototypeAttention(8, heads=2, dropout=0.0).eval()
        out, correlation, (q, k, v) = attend(attention)
        heads, maps = [], []
        for part in (slice(0, 4), slice(4, 8)):
            unit = torch.nn.functional.normalize(k[:, part], dim=-1)
            mean = torch.nn.functional.normalize(unit.mean(dim=0), dim=-1)
            towards = torch.nn.functional.normalize(q[:, part], dim=-1) / 0.1
            weights = (towards @ mean).softmax(dim=0)
            heads.append(weights[:, None] * v[:, part].sum(dim=0) / 2)  # of 2 shots
            maps.append(towards @ unit.mean(dim=0))
        expected = attention.out(torch.cat(heads, dim=-1)).T.reshape(8, 3, 4)
        torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-5)
        mean = (maps[0] + maps[1]).reshape(3, 4) / 2
        torch.testing.assert_close(correlation[0], mean, rtol=0, atol=1e-5)

    def test_variants_have_the_same_weights(self) -> None:
        from variants import ATTENTIONS

        model = make(base_classes=0)
        names = model.state_dict().keys()
        for attention in ATTENTIONS.values():
            for stage in model.cascade.stages:
                stage.attention.__class__ = attention
            assert model.state_dict().keys() == names
            query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 2, 3, 64, 64)
            with torch.no_grad():
                assert model(query, images, torch.ones(1, 2, 64, 64)).final.isfinite().all()

    def test_prototypes_of_a_run(self, tmp_path: Path) -> None:
        from variants import load_prototypes

        plain = make(base_classes=0)
        plain.save_pretrained(tmp_path)
        model = load_prototypes(tmp_path).eval()
        query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 2, 3, 64, 64)
        masks = (torch.rand(1, 2, 64, 64) > 0.5).float()
        with torch.inference_mode():
            encoded = model.encode(images, masks)
            features = model.backbone((images * masks[:, :, None])[0])
            expected = model.match(query, model.encode_features(features, masks)).final
            found = model.match(query, encoded).final
            other = plain(query, images, masks).final
        # As in training: one prototype of both shots.
        assert {stage.key.shape[-2] for stage in encoded.tokens} == {1}
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(found, other, atol=1e-3)

    def test_without_prior(self) -> None:
        from variants import WithoutPrior

        model = make(base_classes=0)
        model.__class__ = WithoutPrior
        query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 3, 64, 64)
        with torch.no_grad():
            output = model(query, images, torch.ones(1, 1, 64, 64))
        assert output.prior.shape[1] == 2
        assert not output.prior.any()


@pytest.mark.usefixtures("recipe")
class TestStart:
    def test_more_inputs_start_as_the_network_without(self, tmp_path: Path) -> None:
        from train import start_from

        old = make(base_classes=0)
        old.save_pretrained(tmp_path)
        new = make(base_classes=0, contrast=True, high_level=True)
        start_from(new, str(tmp_path))
        query, images = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 3, 64, 64)
        masks = (torch.rand(1, 1, 64, 64) > 0.5).float()
        with torch.no_grad():
            found, expected = (m(query, images, masks).final for m in (new, old))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_mean_of_two_models(self, tmp_path: Path) -> None:
        from train import start_from

        models = [make(base_classes=0), make(base_classes=0, high_level=True)]
        for place, model in enumerate(models):
            model.save_pretrained(tmp_path / str(place))
        mean = make(base_classes=0, high_level=True)
        start_from(mean, f"{tmp_path}/0,{tmp_path}/1")
        first, second, found = (m.state_dict() for m in (*models, mean))
        for key, tensor in found.items():
            old, expected = first[key], second[key].clone()
            # The inputs that the first model does not have count as 0.
            (expected[:, : old.shape[1]] if old.dim() == 4 else expected).add_(old)
            torch.testing.assert_close(tensor, (expected / 2).to(tensor), msg=key)

    def test_inputs_are_never_dropped(self, tmp_path: Path) -> None:
        from train import start_from

        make(base_classes=0, high_level=True).save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="size"):
            start_from(make(base_classes=0), str(tmp_path))


@pytest.mark.usefixtures("recipe")
class TestScores:
    def test_interval_holds_the_mean(self) -> None:
        from held_out import IoU

        rng, iou, sure = np.random.default_rng(0), IoU(), IoU()
        for number in range(60):
            target = (rng.random((8, 8)) > 0.5).astype(np.uint8)
            predicted = (target == 1) ^ (rng.random((8, 8)) < 0.4 * rng.random())
            iou.add(str(number % 3), predicted, target)
            sure.add(str(number % 3), target == 1, target)
        low, high = iou.interval()
        assert low < iou.mean() < high
        assert 0.01 < high - low < 0.2
        assert sure.interval() == (1, 1)

    def test_one_threshold_of_many(self) -> None:
        from held_out import IoU

        target = np.array([[1, 1, 0, 255]])
        many, one = IoU(), IoU()
        masks = np.array([[[True, False, False, True]], [[True, True, True, True]]])
        many.add("a", masks, target)
        one.add("a", masks[1], target)
        np.testing.assert_allclose(many.mean(), [1 / 2, 2 / 3])
        assert many.at(1).mean() == one.mean()
        assert many.at(1).each == one.each

    def test_thresholds_for_one_support_and_for_five(self) -> None:
        pytest.importorskip("torchmetrics", reason="needs hdmnet[eval]")
        from export import Sweep, fit_calibration
        from held_out import Episode

        target = (np.arange(1600).reshape(40, 40) % 3 == 0).astype(np.uint8)
        picture = np.zeros((40, 40, 3), np.uint8)
        episode = Episode("a", picture, target, [picture] * 5, [target] * 5)

        class Surer:
            """Background has 0.2, the object 0.52 with one support, and 0.72 with five."""

            def predict(self, query: object, supports: list[object], masks: object) -> Segmentation:
                p = {1: 0.52, 5: 0.72}[len(supports)]
                return Segmentation(torch.from_numpy(np.where(target == 1, p, 0.2)).float())

        sweeps = [Sweep(Surer(), {"one": [episode], "two": [episode]}, k) for k in (1, 5)]
        # The largest of those that are best, in steps of 0.025.
        assert [sweep.threshold() for sweep in sweeps] == pytest.approx([0.5, 0.7])
        assert sweeps[0].report().splitlines()[1] == "two, 1 shots: 1.000 → 1.000"
        calibration = Calibration(**fit_calibration(sweeps))
        for shots, p in ((1, 0.5), (5, 0.7)):
            scores = torch.tensor([1 - p, p])[None, :, None, None]
            assert calibration(scores, shots)[0, 1].item() == pytest.approx(0.5, abs=1e-3)

    def test_table(self) -> None:
        from score import Score, table

        scores = [
            Score("ours", "VOC2012", 1, 9, 0.5, (0.4, 0.6), {}),
            Score("ours", "VOC2012", 5, 9, 0.6, (0.5, 0.7), {}),
            Score("all", "VOC2012", 1, 9, 0.1, (0.1, 0.1), {}),
        ]
        rows = table(scores).splitlines()
        assert rows[0] == "| class mIoU | VOC2012, 1 shot (9) | VOC2012, 5 shots (9) |"
        assert rows[2] == "| ours | 0.500 (0.400 to 0.600) | 0.600 (0.500 to 0.700) |"
        assert rows[3] == "| all | 0.100 (0.100 to 0.100) |  |"

    def test_ablations(self, tmp_path: Path) -> None:
        from ablations import FULL, MEASURED, interval, read_score, report
        from scipy import stats

        line = dict.fromkeys(MEASURED, 0.2) | {MEASURED[0]: 0.6, "step": 200}
        (tmp_path / "log.jsonl").write_text(f'{{"step": 100}}\n{json.dumps(line)}\n')
        assert read_score(tmp_path) == pytest.approx(0.3)
        full, lost = np.array([0.45, 0.46]), np.array([0.1, 0.2])
        report({FULL: full, "without it": full - lost}, (0, 3), tmp_path)
        low, _ = stats.ttest_rel(full, full - lost).confidence_interval()
        assert interval(lost) == pytest.approx(0.15 - low)
        assert np.isnan(interval(lost[:1]))
        assert (tmp_path / "ablations.png").stat().st_size > 1000
        rows = (tmp_path / "ablations.md").read_text().splitlines()
        assert rows[0] == f"|  | seed 0 | seed 3 | mean | mean, less than {FULL} |"
        assert rows[-1] == "| without it | 0.350 | 0.260 | 0.305 | 0.150 ± 0.635 |"


@pytest.mark.usefixtures("recipe")
def test_evidence_is_that_of_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    import features

    full = timm.create_model("tf_efficientnet_lite0").eval()
    for tensor in (full.bn2.weight, full.bn2.bias, full.bn2.running_mean, full.classifier.bias):
        torch.nn.init.normal_(tensor)
    names = {"conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    packaged = {
        f"{names[module]}.{key.rsplit('.', 1)[1]}": value.detach()
        for key, value in full.state_dict().items()
        if (module := key.rsplit(".", 1)[0]) in names
    }
    monkeypatch.setattr(features, "read_packaged", lambda _: packaged)
    evidence = features.class_evidence("lite0")
    assert evidence.units == (1280, 1000)
    f4 = 3 * torch.randn(2, 320, 5, 6)
    with torch.no_grad():
        logits = full.forward_head(full.bn2(full.conv_head(f4)))  # bn2 holds the ReLU6
    found = evidence(f4.flatten(2).mT, torch.ones(2, 1, 30))[:, 0]
    torch.testing.assert_close(found, logits.clamp(min=0) ** 2, rtol=1e-3, atol=1e-4)
