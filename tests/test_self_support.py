"""`predict(..., self_support=True)`: the answer becomes one more support."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import assert_same, make
from test_predict import picture
from torch import Tensor

from hdmnet import Augment, HDMNet, Segmentation, SupportSet, box_mask
from hdmnet.images import load_image
from hdmnet.preprocess import resize_image

DATA = Path(__file__).parents[1] / "examples" / "data" / "fish"
QUERY = DATA / "query_1.jpg"
SUPPORT = (DATA / "support_1.jpg", DATA / "support_1.png")


@pytest.fixture(scope="module")
def bundled(small_lite0: Path) -> HDMNet:
    return HDMNet.from_pretrained(small_lite0)


@pytest.fixture(scope="module")
def fish(bundled: HDMNet) -> SupportSet:
    return bundled.encode_supports(*SUPPORT)


def plain(model: HDMNet, image: Tensor, supports: SupportSet) -> Tensor:
    """The probabilities of the second match, at the size that the network sees."""
    size = (model.image_size, model.image_size)
    x = model.backbone.normalise(resize_image(image, size))[None]
    with torch.no_grad():
        match = next(model.match_sets(x, [[supports]]))
        first = Segmentation.from_scores(match.scores, size, doubt=match.doubt).lowered()
        own = model.encode(x[None], first.mask[None, None].float())
        both = supports.merge(replace(own, fingerprint=supports.fingerprint))
        return Segmentation.from_scores(model.scores(x, both), image.shape[-2:]).probability


def test_equals_the_plain_formulation(bundled: HDMNet, fish: SupportSet) -> None:
    image = load_image(QUERY)
    first = bundled.predict(image, fish, presence_threshold=0)
    found = bundled.predict(image, fish, presence_threshold=0, self_support=True)
    assert_same(found.probability, plain(bundled, image, fish))
    assert (found.probability - first.probability).abs().max() > 0.1
    assert found.presence == first.presence


def test_the_backbone_sees_the_query_once(bundled: HDMNet, fish: SupportSet) -> None:
    seen = []
    hook = bundled.backbone.register_forward_hook(lambda *call: seen.append(call))
    bundled.predict(QUERY, fish, self_support=True)
    hook.remove()
    assert len(seen) == 2  # the query, and the masked query as a support


def test_with_views(bundled: HDMNet, fish: SupportSet) -> None:
    # The mean is taken at the size that the network sees: so this is the size of the query.
    image = resize_image(load_image(QUERY), (bundled.image_size, bundled.image_size))
    options = {"presence_threshold": 0, "self_support": True, "augment": Augment(flip=True)}
    found = bundled.predict(image, fish, **options)
    views = [plain(bundled, x, fish) for x in (image, image.flip(-1))]
    assert_same(found.probability, (views[0] + views[1].flip(-1)) / 2)


def test_what_found_nothing_stays() -> None:
    model = make(base_classes=0, calibration={"temperature": 1.0, "threshold": 0.999})
    query, support, mask = picture(), picture(80, 70, seed=1), box_mask((10, 20, 50, 60), (70, 80))
    first = model.predict(query, support, mask)
    assert not first.mask.any()
    found = model.predict(query, support, mask, self_support=True)
    assert torch.equal(found.probability, first.probability)


def test_what_seems_absent_stays(bundled: HDMNet, fish: SupportSet) -> None:
    cat = DATA.parent / "feline" / "query_1.jpg"
    raw, first = (bundled.predict(cat, fish, presence_threshold=x) for x in (0, None))
    assert raw.mask.any()
    assert not first.mask.any()
    for threshold, expected in ((0, raw), (None, first)):
        found = bundled.predict(cat, fish, presence_threshold=threshold, self_support=True)
        assert torch.equal(found.probability, expected.probability)


def test_lists_and_dicts(bundled: HDMNet, fish: SupportSet) -> None:
    queries = [QUERY, DATA / "query_2.jpg"]
    alone = [bundled.predict(query, fish, self_support=True) for query in queries]
    batched = bundled.predict(queries, fish, self_support=True, batch_size=2)
    for one, other in zip(alone, batched, strict=True):
        assert_same(other.probability, one.probability)
        assert other.presence == pytest.approx(one.presence, abs=1e-6)
    single = bundled.predict(QUERY, {"fish": fish}, self_support=True)
    assert torch.equal(single["fish"].probability, alone[0].probability)
    person = DATA.parent / "person"
    sets = {
        "fish": fish.merge(fish),  # two shots: another group than the person's
        "person": bundled.encode_supports(person / "support_2.jpg", person / "support_2.png"),
    }
    first = bundled.predict(QUERY, sets)
    several = bundled.predict(QUERY, sets, self_support=True)
    for name in sets:
        assert several[name].presence == first[name].presence
    assert several["fish"].mask.float().mean() > several["person"].mask.float().mean()


def test_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA.parents[1]))
    from own_network import PrototypeNet

    network = PrototypeNet().eval()
    answers = [network.predict(QUERY, *SUPPORT, self_support=x) for x in (False, True)]
    assert not torch.equal(answers[0].probability, answers[1].probability)


def test_refusal(model: HDMNet) -> None:
    with pytest.raises(TypeError, match="self_support must be a bool"):
        model.predict(QUERY, *SUPPORT, self_support=1)
