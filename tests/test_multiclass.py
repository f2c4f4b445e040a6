"""Several classes in one call, and answers in other tools' formats."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, make
from PIL import Image
from test_predict import picture

from hdmnet import HDMNet, MulticlassSegmentation, Segmentation, box_mask

SIZE = (100, 80)
BOXES = {"cat": (20, 30, 60, 80), "dog": (5, 10, 40, 50), "cow": (30, 5, 75, 45)}
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def supports(shots: int = 1) -> tuple[dict[str, list[Image.Image]], dict[str, list[torch.Tensor]]]:
    """Supports and masks of three classes, which cover different numbers of pixels."""
    images = {
        name: [picture(80, 100, seed=10 * n + k) for k in range(shots)]
        for n, name in enumerate(BOXES)
    }
    return images, {name: [box_mask(box, SIZE)] * shots for name, box in BOXES.items()}


@pytest.fixture(scope="module", params=["base learner", "no base learner"])
def model(request: pytest.FixtureRequest) -> HDMNet:
    return make(base_classes=3 if request.param == "base learner" else 0).eval()


@pytest.fixture
def query() -> Image.Image:
    return picture(90, 70, seed=99)


def answer() -> MulticlassSegmentation:
    """Classes a and b on a picture of 4 × 6: a to the left, b to the right, both in the middle."""
    a, b = torch.zeros(4, 6), torch.zeros(4, 6)
    a[:, :4], b[:, 3:] = 0.8, 0.6
    b[0, 3] = 0.9
    return MulticlassSegmentation(("a", "b"), torch.stack([a, b]))


class TestPredict:
    def test_each_class_as_alone(self, model: HDMNet, query: Image.Image) -> None:
        images, masks = supports()
        images["dog"], masks["dog"] = images["dog"] * 2, masks["dog"] * 2  # another number of shots
        many = model.predict(query, images, masks)
        assert many.names == tuple(BOXES)
        for name in BOXES:
            alone = model.predict(query, images[name], masks[name])
            torch.testing.assert_close(many[name].probability, alone.probability, **TOLERANCE)

    def test_one_class_as_a_dict(self, model: HDMNet, query: Image.Image) -> None:
        images, masks = supports()
        alone = model.predict(query, images["cat"], masks["cat"])
        many = model.predict(query, {"cat": images["cat"]}, {"cat": masks["cat"]})
        assert_same(many["cat"].probability, alone.probability)
        assert_same(many.labels, alone.mask.long())

    def test_encoded_sets_and_images_mixed(self, model: HDMNet, query: Image.Image) -> None:
        images, masks = supports(2)
        expected = model.predict(query, images, masks)
        cat = model.encode_supports(images["cat"], masks.pop("cat"))
        mixed = model.predict(query, {**images, "cat": cat}, masks)
        assert_same(mixed.probability, expected.probability)

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_batches_change_nothing(
        self, model: HDMNet, query: Image.Image, batch_size: int
    ) -> None:
        # In float32, rounding depends on the batch: 1.3e-6 with the AVX2 kernels of PyTorch.
        model = deepcopy(model).double()
        images, masks = supports()
        queries = [query, picture(50, 60, seed=3), picture(64, 64, seed=4)]
        for given in ((images, masks), (images["cat"], masks["cat"])):
            expected = model.predict(queries, *given)
            found = model.predict(queries, *given, batch_size=batch_size)
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x.probability, y.probability, **TOLERANCE)

    def test_the_query_is_encoded_once(
        self, model: HDMNet, query: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sets = {
            n: model.encode_supports(i, m)
            for n, i, m in zip(BOXES, *map(dict.values, supports()), strict=True)
        }
        calls = []
        model.backbone.register_forward_hook(lambda *_: calls.append(1))
        model.predict(query, sets)
        model.predict(query, sets, batch_size=1)
        assert len(calls) == 2

    def test_label_maps(self, model: HDMNet, query: Image.Image, tmp_path: Path) -> None:
        images, _ = supports()
        first, second = images["cat"][0], images["dog"][0]
        both = torch.zeros(SIZE, dtype=torch.uint8)
        both[:40, :30], both[50:, 40:], both[45:48] = 8, 12, 255
        only = torch.where(both == 8, both, 0)
        Image.fromarray(both.numpy()).save(tmp_path / "both.png")
        ids = {"cat": 8, "dog": 12}
        found = model.predict(query, [first, second], [tmp_path / "both.png", only], class_ids=ids)
        ignore = 255 * (both == 255).byte()
        expected = model.predict(
            query,
            {"cat": [first, second], "dog": [first]},
            {
                "cat": [(both == 8).byte() + ignore, (only == 8).byte()],
                "dog": [(both == 12).byte() + ignore],
            },
        )
        assert_same(found.probability, expected.probability)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (({}, {}), "empty dict"),
            (({"cat": "a.png"}, "a.png"), "masks is not"),
            (("a.png", {"cat": "a.png"}), "supports is not"),
            (({"cat": "a.png"}, {"dog": "a.png"}), r"\['dog'\]: expected \['cat'\]"),
        ],
    )
    def test_what_does_not_fit(
        self, model: HDMNet, query: Image.Image, arguments: tuple[object, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            model.predict(query, *arguments)

    def test_class_ids_that_do_not_fit(self, model: HDMNet, query: Image.Image) -> None:
        image, labels = picture(80, 100, seed=1), torch.full(SIZE, 3)
        for masks, ids, message in (
            (labels, {"cat": 8}, "no mask has the value 8"),
            (labels, {}, "class_ids is empty"),
            (None, {"cat": 3}, "label maps as masks"),
            ([labels, labels], {"cat": 3}, "1 supports and 2 masks"),
            (labels, {"cat": 255}, "'cat' the value 255, which means ignore"),
            (labels, {"cat": 3, "dog": 3}, "a value of its own for each class"),
        ):
            with pytest.raises(ValueError, match=message):
                model.predict(query, image, masks, class_ids=ids)
        with pytest.raises(TypeError, match=r"class_ids is \['cat'\]: expected a dict"):
            model.predict(query, image, labels, class_ids=["cat"])
        maps = [torch.zeros(SIZE).int(), labels[1:]]  # the first shows no cat
        with pytest.raises(ValueError, match=r"^class 'cat', support 1: mask is 99 x 80 but its"):
            model.predict(query, [image, image], maps, class_ids={"cat": 3})
        images, masks = {"cat": image, "dog": image}, {"cat": labels, "dog": labels}
        with pytest.raises(ValueError, match=r"got the classes \['cat', 'dog'\]"):
            model.predict(query, images, masks, class_ids={"cat": 3})

    def test_a_set_of_encode_beside_others(self, model: HDMNet, query: Image.Image) -> None:
        image = picture(80, 100, seed=1)
        given = model.encode_supports(image, box_mask((10, 20, 50, 60), SIZE))
        own = replace(given, fingerprint=None)  # as `encode` returns it
        for batch_size in (None, 1):
            found = model.predict(query, {"a": given, "b": own}, batch_size=batch_size)
            assert_same(found["a"].probability, found["b"].probability)


def test_a_set_of_several_episodes_is_refused(model: HDMNet, query: Image.Image) -> None:
    images, masks = supports()
    cat = model.encode_supports(images["cat"], masks["cat"])
    dog = model.encode_supports(images["dog"], masks["dog"])
    with pytest.raises(ValueError, match="holds 2 episodes"):
        model.predict(query, cat.stack(dog))


def test_errors_name_the_class(model: HDMNet, query: Image.Image) -> None:
    images, masks = supports()
    with pytest.raises(ValueError, match=r"^class 'dog': mask has the values 7"):
        model.predict(query, images, masks | {"dog": torch.full(SIZE, 7)})


class TestPredictIter:
    def test_a_damaged_file_loses_only_itself(self, model: HDMNet, tmp_path: Path) -> None:
        images, masks = supports()
        for i in range(3):
            picture(60, 50, seed=i).save(tmp_path / f"{i}.png")
        (tmp_path / "1.png").write_bytes(b"not an image")
        paths = sorted(tmp_path.glob("*.png"))
        cat = model.encode_supports(images["cat"], masks["cat"])
        for batch_size in (None, 2):
            found = list(model.predict_iter(iter(paths), cat, batch_size=batch_size))
            assert [type(x) for x in found] == [Segmentation, ValueError, Segmentation]
            assert "1.png" in str(found[1])
        with pytest.raises(ValueError, match=r"query 1: .*1\.png"):
            model.predict(paths, cat)

    def test_it_reads_no_more_than_it_answers(self, model: HDMNet) -> None:
        images, masks = supports()
        read = []

        def queries():
            for i in range(5):
                read.append(i)
                yield picture(40, 40, seed=i)

        answers = model.predict_iter(queries(), images, masks)
        assert isinstance(next(answers), MulticlassSegmentation)
        assert read == [0]

    def test_supports_are_checked_at_once(self, model: HDMNet) -> None:
        with pytest.raises(ValueError, match="masks is missing"):
            model.predict_iter([], "a.png")

    def test_one_image_is_refused(self, model: HDMNet) -> None:
        with pytest.raises(TypeError, match="expected an iterable"):
            model.predict_iter("a.png", "a.png", "b.png")


class TestMulticlassSegmentation:
    def test_overlaps_go_to_the_most_probable(self) -> None:
        expected = torch.tensor([[1, 1, 1, 2, 2, 2], *[[1, 1, 1, 1, 2, 2]] * 3])
        assert_same(answer().labels, expected)
        assert answer().labels.dtype == torch.int64

    def test_an_unknown_name(self) -> None:
        with pytest.raises(KeyError, match="expected one of a, b"):
            answer()["c"]

    def test_is_like_a_dict(self) -> None:
        many = answer()
        assert list(many) == ["a", "b"]
        assert "a" in many
        assert "c" not in many

    def test_without_overlaps_keeps_presence_and_evidence(
        self, model: HDMNet, query: Image.Image
    ) -> None:
        many = model.predict(query, *supports())
        alone = many.without_overlaps()
        assert [alone[name].presence for name in many] == many.presence.tolist()
        assert alone["cat"].explain().prior_names

    def test_palette_file(self, tmp_path: Path) -> None:
        answer().save(tmp_path / "labels.png")
        with Image.open(tmp_path / "labels.png") as file:
            assert file.mode == "P"
            assert_same(torch.from_numpy(np.array(file)).long(), answer().labels)
            # The published colours of aeroplane, bicycle and the border.
            colors = np.array(file.getpalette()).reshape(-1, 3)
        assert colors[[1, 2, 15, 255]].tolist() == [
            [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192],
        ]  # fmt: skip
        with pytest.raises(ValueError, match=r"\.png"):
            answer().save(tmp_path / "labels.jpg")
        with pytest.raises(ValueError, match="254 classes"):
            MulticlassSegmentation(tuple(map(str, range(255))), torch.rand(255, 2, 2)).save("a.png")

    def test_overlay_tints_each_class_and_names_it(self) -> None:
        probability = torch.zeros(2, 120, 160)
        probability[0, 60:, :80], probability[1, 60:, 80:] = 1, 1
        many = MulticlassSegmentation(("a", "b"), probability)
        image = np.full((120, 160, 3), 200, np.uint8)
        drawn = np.array(many.overlay(image, opacity=1.0))
        assert drawn[90, 40].tolist() == [128, 0, 0]
        assert drawn[90, 120].tolist() == [0, 128, 0]
        assert drawn[55, 155].tolist() == [200, 200, 200]
        legend = drawn[:40, :40].reshape(-1, 3).tolist()
        assert [128, 0, 0] in legend
        assert [0, 128, 0] in legend
        nothing = MulticlassSegmentation(("a",), torch.zeros(1, 120, 160))
        assert (np.array(nothing.overlay(image)) == image).all()
        with pytest.raises(ValueError, match="pass the query itself"):
            many.overlay(image[:10])

    def test_coco(self) -> None:
        coco = pytest.importorskip("pycocotools.mask", reason="needs hdmnet[eval]")
        results = json.loads(
            json.dumps(answer().to_coco(image_id=7, category_ids={"a": 3, "b": 9}))
        )
        assert [(r["image_id"], r["category_id"]) for r in results] == [(7, 3), (7, 9)]
        for number, result in enumerate(results, start=1):
            assert isinstance(result["segmentation"]["counts"], str)
            mask = torch.from_numpy(coco.decode(result["segmentation"])).bool()
            assert torch.equal(mask, answer().labels == number)
        assert results[0]["score"] == pytest.approx(0.8)
        assert results[1]["score"] == pytest.approx((8 * 0.6 + 0.9) / 9)
        assert answer()["a"].to_coco()[0]["category_id"] == 1
        assert Segmentation(torch.zeros(3, 3)).to_coco() == []
        with pytest.raises(ValueError, match="no number for b"):
            answer().to_coco(category_ids={"a": 3})

    def test_supervision_reads_it(self) -> None:
        supervision = pytest.importorskip("supervision", reason="needs hdmnet[test]")
        found = supervision.Detections.from_transformers(
            answer().to_transformers(), id2label={1: "a", 2: "b"}
        )
        assert found.class_id.tolist() == [1, 2]
        assert found.data["class_name"].tolist() == ["a", "b"]
        for number, mask in enumerate(found.mask, start=1):
            assert torch.equal(torch.from_numpy(mask), answer().labels == number)
        one = supervision.Detections.from_transformers(answer()["a"].to_transformers())
        assert len(one) == 1


class TestInstances:
    def test_parts_with_boxes_and_scores(self) -> None:
        pytest.importorskip("scipy", reason="needs hdmnet[eval]")
        probability = torch.zeros(6, 9)
        probability[0, 0] = 0.9
        probability[1, 1:3] = 0.6  # touches the first at a corner
        probability[3:6, 4:9] = 0.8
        large, small = Segmentation(probability).instances()
        assert large.box == (4, 3, 9, 6)
        assert large.score == pytest.approx(0.8)
        assert torch.equal(large.mask, probability == 0.8)
        assert small.box == (0, 0, 3, 2)
        assert small.score == pytest.approx(0.7)
        assert [part.box for part in Segmentation(probability).instances(min_area=4)] == [large.box]
        assert Segmentation(torch.zeros(3, 3)).instances() == []


def test_an_empty_mask_is_named(model: HDMNet, query: Image.Image) -> None:
    images, masks = supports(3)
    masks["cat"][1] = torch.zeros(SIZE)
    with pytest.warns(UserWarning, match="mask of support 1 is empty"):
        model.encode_supports(images["cat"], masks["cat"])


def test_an_error_names_the_support(model: HDMNet) -> None:
    images, masks = supports(3)
    masks["cat"][2] = torch.full(SIZE, 7)
    with pytest.raises(ValueError, match="support 2: mask has the values 7"):
        model.encode_supports(images["cat"], masks["cat"])
