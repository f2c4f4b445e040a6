"""Flips, scales and tiles against a plain formulation; borders that follow edges."""

import copy
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make
from PIL import Image
from test_predict import picture

from hdmnet import Augment, FeaturePyramid, FewShotModel, HDMNet, SupportSet, box_mask
from hdmnet.images import load_image
from hdmnet.output import Matches
from hdmnet.preprocess import resize_image, resize_scores
from hdmnet.refinement import refine
from hdmnet.views import _hat, _tiles

SIZE = 64
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model() -> HDMNet:
    return make(base_classes=0, image_size=SIZE)


@pytest.fixture(scope="module")
def fish(model: HDMNet) -> SupportSet:
    return model.encode_supports(picture(80, 70, seed=1), box_mask((10, 20, 50, 60), (70, 80)))


def answer(model: HDMNet, image: Image.Image, fish: SupportSet) -> torch.Tensor:
    """The probabilities of a square picture that has the size of the network."""
    assert image.size == (model.image_size, model.image_size)
    return model.predict(image, fish).probability


class TestAugment:
    def test_flip(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(SIZE, SIZE, seed=2)
        mirrored = query.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = (answer(model, query, fish) + answer(model, mirrored, fish).flip(-1)) / 2
        found = model.predict(query, fish, augment=Augment())
        torch.testing.assert_close(found.probability, expected, rtol=0, atol=1e-6)

    def test_scales(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(90, 70, seed=2)
        found = model.predict(query, fish, augment=Augment(flip=False, scales=(1.0, 1.5)))
        larger = make(base_classes=0, image_size=96)
        larger.load_state_dict(model.state_dict())
        p = [m.predict(query, fish).probability for m in (model, larger)]
        # The mean is taken at the size of the network, so it is a little smoother.
        assert (found.probability - (p[0] + p[1]) / 2).abs().mean() < 0.02

    def test_one_version_changes_nothing(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(90, 70, seed=2)
        found = model.predict(query, fish, augment=Augment(flip=False)).probability
        torch.testing.assert_close(found, model.predict(query, fish).probability, rtol=0, atol=0)

    def test_a_symmetric_query_has_a_symmetric_answer(
        self, model: HDMNet, fish: SupportSet
    ) -> None:
        left = np.asarray(picture(80, 40, seed=5))
        query = np.concatenate([left, left[:, ::-1]], axis=1)
        p = model.predict(query, fish, augment=Augment()).probability
        torch.testing.assert_close(p, p.flip(-1), rtol=0, atol=1e-5)

    def test_presence_is_the_mean(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(SIZE, SIZE, seed=2)
        mirrored = query.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        each = [model.predict(image, fish).presence for image in (query, mirrored)]
        found = model.predict(query, fish, augment=Augment()).presence
        assert found == pytest.approx(np.mean(each), abs=1e-5)

    def test_doubt_is_the_mean(self, model: HDMNet, fish: SupportSet) -> None:
        presence = {"scale": 10.0, "bias": -9.0, "center": [], "threshold": 0.8}
        doubting = HDMNet(**(model.config | {"presence": presence})).eval()
        doubting.load_state_dict(model.state_dict())
        query = picture(SIZE, SIZE, seed=2)
        changes = []
        for image in (query, query.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            with torch.inference_mode():
                match = next(
                    doubting.match_sets(doubting._prepare(load_image(image))[None], [[fish]])
                )
            changes.append(resize_scores(match.doubt[None], (SIZE, SIZE))[0, 0])
        factor = ((changes[0] + changes[1].flip(-1)) / 2).exp()
        assert factor.min() < 0.9
        plain, found = (
            doubting.predict(query, fish, augment=Augment(), presence_threshold=x).probability
            for x in (0, None)
        )
        p = plain.clamp(max=0.999)
        expected = (p * factor / (p * factor + 1 - p)).where(factor < 1, plain)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_several_queries_and_classes(self, model: HDMNet, fish: SupportSet) -> None:
        queries = [picture(90, 70, seed=2), picture(60, 75, seed=3)]
        options = {"augment": Augment(scales=(1.0, 1.25)), "refine": True}
        alone = [model.predict(query, fish, **options) for query in queries]
        together = model.predict(queries, fish, batch_size=2, **options)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one.probability, other.probability, rtol=0, atol=1e-5)
        dog = model.encode_supports(picture(60, 60, seed=9), box_mask((5, 5, 40, 40), (60, 60)))
        many = model.predict(queries[0], {"fish": fish, "dog": dog}, **options)
        torch.testing.assert_close(
            many["fish"].probability, alone[0].probability, rtol=0, atol=1e-5
        )

    def test_explain_shows_the_query(self, model: HDMNet, fish: SupportSet) -> None:
        plain = model.predict(picture(90, 70, seed=2), fish).explain()
        shown = model.predict(picture(90, 70, seed=2), fish, augment=Augment()).explain()
        for one, other in zip(plain.correlations, shown.correlations, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"flip": 1}, TypeError, "flip must be a bool"),
            ({"scales": 1.0}, TypeError, "scales must be a list"),
            ({"scales": ("1",)}, TypeError, "a number"),
            ({"scales": (True,)}, TypeError, "a number"),
            ({"scales": (np.bool_(True),)}, TypeError, "a number"),
            ({"scales": (np.float32("inf"),)}, ValueError, "at most 4"),
            ({"scales": (float("nan"),)}, ValueError, "above 0"),
            ({"scales": ()}, ValueError, "at least one number"),
            ({"scales": (1.0, 0)}, ValueError, "above 0"),
            ({"scales": (9.0,)}, ValueError, "at most 4"),
        ],
    )
    def test_refused(
        self, options: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Augment(**options)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"augment": Augment(scales=(1.0, 0.01))}, ValueError, "scales must be at least"),
            ({"augment": True}, TypeError, "augment must be an Augment"),
            ({"tile": 0.5}, TypeError, "tile must be an int"),
            ({"tile": True}, TypeError, "tile must be an int"),
            ({"tile": np.int64(8)}, ValueError, "tile must be at least 32"),
            ({"batch_size": True}, TypeError, "batch_size must be an int"),
            ({"refine": 1}, TypeError, "refine must be a bool"),
            ({"generalized": "no"}, TypeError, "generalized must be a bool"),
        ],
    )
    def test_refused_by_predict(
        self,
        model: HDMNet,
        fish: SupportSet,
        options: dict[str, object],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            model.predict(picture(90, 70), fish, **options)
        with pytest.raises(error, match=message):
            model.predict_iter([picture(90, 70)], fish, **options)

    def test_numpy_numbers(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(90, 170, seed=2)
        augment, plain = Augment(scales=(np.uint8(1), np.float16(1.25))), Augment(scales=[1, 1.25])
        assert augment == plain
        for whole in (np.int64, np.uint8):
            found = model.predict(query, fish, augment=augment, tile=whole(64))
            expected = model.predict(query, fish, augment=plain, tile=64)
            assert torch.equal(found.probability, expected.probability)

    def test_the_least_scale_of_the_error_works(self, model: HDMNet, fish: SupportSet) -> None:
        larger = make(base_classes=0, image_size=473)  # 25 / 473 = 0.0529
        larger.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match=r"scale 0\.05.*it needs 25.*at least 0\.06$"):
            larger.predict(picture(90, 70), fish, augment=Augment(scales=(0.05,)))
        larger.predict(picture(90, 70), fish, augment=Augment(scales=(0.06,)))

    def test_negatives(self, model: HDMNet) -> None:
        query, image = picture(SIZE, SIZE, seed=2), picture(80, 70, seed=1)
        mask = box_mask((10, 20, 50, 60), (70, 80))
        encoded = model.encode_supports(image, mask, [(image, 1 - mask)])
        mirrored = query.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        each = [model.predict(x, encoded).probability for x in (query, mirrored)]
        found = model.predict(query, encoded, augment=Augment()).probability
        torch.testing.assert_close(found, (each[0] + each[1].flip(-1)) / 2, rtol=0, atol=1e-6)

    def test_half_precision(self, model: HDMNet) -> None:
        half = copy.deepcopy(model).bfloat16()
        image, mask = picture(80, 70, seed=1), box_mask((10, 20, 50, 60), (70, 80))
        options = {"augment": Augment(), "tile": 96, "refine": True}  # six passes, each slow
        found, exact = (
            m.predict(picture(70, 100, seed=2), image, mask, **options).probability
            for m in (half, model)
        )
        assert found.dtype == torch.float32
        assert (found - exact).abs().mean() < 0.02

    def test_base_labels_are_of_the_first_view(self) -> None:
        model = make(base_classes=3, image_size=SIZE)
        image, mask = picture(80, 70, seed=1), box_mask((10, 20, 50, 60), (70, 80))
        larger = make(base_classes=3, image_size=96)
        larger.load_state_dict(model.state_dict())
        query = picture(90, 70, seed=2)
        expected = larger.predict(query, image, mask, generalized=True).base
        augment = Augment(scales=(1.5, 1.0))
        found = model.predict(query, image, mask, generalized=True, augment=augment, tile=64)
        assert torch.equal(found.base, expected)

    def test_a_network_of_ones_own(self) -> None:
        class Left(FewShotModel):
            """Finds the left half of everything that it sees."""

            def __init__(self) -> None:
                super().__init__()
                self.image_size = SIZE
                self.backbone = FeaturePyramid("resnet10t")

            def encode(self, supports: torch.Tensor, masks: torch.Tensor) -> SupportSet:
                return SupportSet(torch.ones(len(supports), 1, 1))

            def scores(self, query: torch.Tensor, supports: SupportSet) -> torch.Tensor:
                f = torch.zeros(len(query), *query.shape[-2:])
                f[..., : SIZE // 2] = 1
                return torch.stack([1 - f, f], dim=1)

        found = Left().predict(
            picture(SIZE, SIZE), picture(9, 9), torch.ones(9, 9), augment=Augment()
        )
        torch.testing.assert_close(found.probability, torch.full((SIZE, SIZE), 0.5))


class TestTiles:
    @pytest.mark.parametrize("size", [(64, 64), (65, 64), (300, 70), (129, 250), (40, 500)])
    def test_cover_and_overlap(self, size: tuple[int, int]) -> None:
        side = 64
        tiles = list(_tiles(*size, side))
        covered = np.zeros(size, int)
        for top, left, height, width in tiles:
            assert (height, width) == (min(side, size[0]), min(side, size[1]))
            covered[top : top + height, left : left + width] += 1
        assert covered.shape == size
        assert covered.min() >= 1
        for axis in (0, 1):
            starts = sorted({tile[axis] for tile in tiles})
            assert all(b - a <= 0.75 * side for a, b in pairwise(starts))

    def test_plain_formulation(self, model: HDMNet, fish: SupportSet) -> None:
        image = picture(2 * SIZE, SIZE, seed=2)  # three tiles, as large as the network
        query = np.asarray(image)
        weight = _hat(SIZE).outer(_hat(SIZE))
        total, weights = torch.zeros(SIZE, 2 * SIZE), torch.zeros(SIZE, 2 * SIZE)
        for left in (0, 32, 64):
            p = model.predict(query[:, left : left + SIZE], fish).probability
            total[:, left : left + SIZE] += weight * p
            weights[:, left : left + SIZE] += weight
        whole = model.predict(query, fish).probability
        found = model.predict(query, fish, tile=SIZE).probability
        torch.testing.assert_close(found, (whole + total / weights) / 2, rtol=0, atol=1e-5)

    def test_memory_does_not_grow_with_the_number_of_tiles(
        self, model: HDMNet, fish: SupportSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alive: list[weakref.ref[torch.Tensor]] = []
        most = 0
        match_sets = type(model).match_sets

        def watched(*args: object, **options: object) -> Iterator[Matches]:
            nonlocal most
            for matches in match_sets(*args, **options):
                alive.append(weakref.ref(matches.scores))
                most = max(most, sum(ref() is not None for ref in alive))
                yield matches

        monkeypatch.setattr(type(model), "match_sets", watched)
        model.predict(picture(400, 400, seed=2), fish, tile=64)
        assert len(alive) > 50
        assert most <= 3

    def test_a_small_query_has_no_tiles(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(90, 70, seed=2)
        found = model.predict(query, fish, tile=90).probability
        torch.testing.assert_close(found, model.predict(query, fish).probability, rtol=0, atol=0)

    def test_queries_of_several_sizes(self, model: HDMNet, fish: SupportSet) -> None:
        queries = [picture(90, 170, seed=2), picture(60, 75, seed=3)]
        together = model.predict(queries, fish, batch_size=2, tile=64)
        for query, found in zip(queries, together, strict=True):
            alone = model.predict(query, fish, tile=64)
            torch.testing.assert_close(found.probability, alone.probability, rtol=0, atol=1e-5)


class TestNetworks:
    """Flips, tiles and refined borders in one call, of several kinds of networks."""

    @pytest.mark.parametrize("kind", ["base learner", "negatives", "bfloat16", "own network"])
    def test_plain_formulation(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        from own_network import PrototypeNet

        network: FewShotModel = make(image_size=SIZE)
        if kind == "own network":
            network = PrototypeNet("resnet10t", image_size=SIZE).eval()
        if kind == "bfloat16":
            network.bfloat16()
        image, mask = picture(80, 70, seed=1), box_mask((10, 20, 50, 60), (70, 80))
        negatives = [(image, 1 - mask), picture(50, 50, seed=7)] if kind == "negatives" else None
        encoded = network.encode_supports(image, mask, negatives)

        def answer(view: torch.Tensor) -> torch.Tensor:
            both = [network.predict(x, encoded).probability for x in (view, view.flip(-1))]
            return (both[0] + both[1].flip(-1)) / 2

        query = load_image(picture(2 * SIZE, SIZE, seed=2))
        whole = resize_scores(answer(resize_image(query, (SIZE, SIZE)))[None, None], (64, 128))
        weight, total, weights = _hat(SIZE).outer(_hat(SIZE)), 0, 0
        for left in (0, 32, 64):
            padding = (left, SIZE - left)
            tile = answer(query[..., left : left + SIZE])
            total = total + torch.nn.functional.pad(weight * tile, padding)
            weights = weights + torch.nn.functional.pad(weight, padding)
        expected = refine((whole[0, 0] + total / weights) / 2, query)
        found = network.predict(query, encoded, augment=Augment(), tile=SIZE, refine=True)
        assert found.probability.dtype == torch.float32
        assert found.probability.std() > 1e-4
        torch.testing.assert_close(found.probability, expected, rtol=0, atol=1e-4)


class TestRefine:
    def test_follows_an_edge(self) -> None:
        image = torch.full((3, 60, 80), 0.2)
        image[:, :, 40:] = 0.8
        missed = ((torch.arange(80) - 42.0) / 2).sigmoid().expand(60, 80)  # two pixels off
        found = refine(missed, image)
        edge = (image[0] > 0.5).float()
        assert not torch.equal((missed > 0.5).float(), edge)
        assert torch.equal((found > 0.5).float(), edge)

    def test_keeps_constants(self) -> None:
        image = torch.rand(3, 50, 300)
        for value in (0.0, 0.3, 1.0):
            found = refine(torch.full((50, 300), value), image)
            torch.testing.assert_close(found, torch.full((50, 300), value), rtol=0, atol=1e-4)

    def test_plain_formulation(self) -> None:
        """The guided filter, window by window, where the coarse grid is the image's own."""
        radius, smoothness = 2, 1e-2
        image, p = torch.rand(3, 9, 11).double(), torch.rand(9, 11).double()
        fits = {}
        for y in range(9):
            for x in range(11):
                rows = slice(max(y - radius, 0), y + radius + 1)
                columns = slice(max(x - radius, 0), x + radius + 1)
                colours, values = image[:, rows, columns].flatten(1), p[rows, columns].flatten()
                centred = colours - colours.mean(dim=1, keepdim=True)
                covariance = centred @ centred.T / colours.shape[1]
                with_p = centred @ (values - values.mean()) / colours.shape[1]
                a = torch.linalg.solve(covariance + smoothness * torch.eye(3).double(), with_p)
                fits[y, x] = (a, values.mean() - a @ colours.mean(dim=1))
        expected = torch.zeros(9, 11).double()
        for y in range(9):
            for x in range(11):
                near = [f for (v, u), f in fits.items() if max(abs(v - y), abs(u - x)) <= radius]
                a = torch.stack([f[0] for f in near]).mean(dim=0)
                expected[y, x] = a @ image[:, y, x] + torch.stack([f[1] for f in near]).mean()
        found = refine(p.float(), image.float(), radius=radius, smoothness=smoothness)
        torch.testing.assert_close(found, expected.clamp(0, 1).float(), rtol=0, atol=1e-5)

    def test_predict(self, model: HDMNet, fish: SupportSet) -> None:
        query = picture(90, 70, seed=2)
        plain = model.predict(query, fish).probability
        pixels = torch.from_numpy(np.array(query)).permute(2, 0, 1) / 255
        found = model.predict(query, fish, refine=True).probability
        torch.testing.assert_close(found, refine(plain, pixels), rtol=0, atol=1e-6)
        assert not torch.equal(found, plain)
