"""The exported graphs, run by onnxruntime, against PyTorch."""

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, episode, make
from PIL import Image
from test_readme import snippets
from torch import Tensor

from hdmnet import Augment, HDMNet, SupportSet
from hdmnet.onnx import Session, export_onnx, quantize

ort = pytest.importorskip("onnxruntime", reason="needs hdmnet[onnx]")
pytest.importorskip("onnxscript", reason="needs hdmnet[onnx]")

# The exports of two graphs take a minute each: one process makes them for all tests.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("onnx")]

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"
QUERY = DATA / "fish" / "query_1.jpg"
SUPPORT, MASK = DATA / "fish" / "support_1.jpg", DATA / "fish" / "support_1.png"


def run(path: Path, inputs: list[Tensor]) -> list[Tensor]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, feed)]


@pytest.fixture(scope="module", params=["any number of shots", "trained with 2 shots"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HDMNet, Path, Path]:
    trained = request.param == "trained with 2 shots"
    # Two stages for one of them: exporting three takes longer.
    added = {"base_classes": 0, "contrast": True, "high_level": True}
    added["calibration"] = {"temperature": 1.5, "threshold": 0.4, "growth": 0.7}
    model = make(**({"shots": 2, "heads": (2, 4)} if trained else added))
    return model, *export_onnx(model, tmp_path_factory.mktemp("onnx") / "new")


@pytest.mark.parametrize(
    ("batch", "shots", "size"),
    # At 90, 105 and 120 pixels, nearest neighbours of ONNX differ from those of torch.
    [(1, 2, (64, 80)), (1, 1, (72, 72)), (3, 3, (101, 90)), (1, 2, (105, 120))],
)
def test_same_scores(
    exported: tuple[HDMNet, Path, Path], batch: int, shots: int, size: tuple[int, int]
) -> None:
    model, encoder, matcher = exported
    shots = 2 if model.config["shots"] == 2 else shots
    query, supports, masks = episode(batch, shots, size)
    supports, masks = supports[:1], masks[:1]
    with torch.no_grad():
        encoded = model.encode(supports, masks)
        expected = model.scores(query, encoded)
    from_graph = run(encoder, [supports, masks])
    assert_same(run(matcher, [query, *from_graph])[0], expected, 1e-4)
    # The graph also takes supports from PyTorch, which leaves out background positions.
    assert_same(run(matcher, [query, *encoded.named_tensors().values()])[0], expected, 1e-4)


def test_only_the_two_files_are_written(exported: tuple[HDMNet, Path, Path]) -> None:
    _, encoder, matcher = exported
    assert sorted(p.name for p in encoder.parent.iterdir()) == [matcher.name, encoder.name]


def test_session_is_like_the_model(exported: tuple[HDMNet, Path, Path], tmp_path: Path) -> None:
    model, encoder, _ = exported
    session = Session(encoder.parent, threads=1)
    supports, masks = [SUPPORT] * 2, [MASK] * 2
    ours, theirs = (x.encode_supports(supports, masks) for x in (model, session))
    expected = model.predict(QUERY, ours).probability
    for fish in (ours, theirs):
        fish.save(tmp_path / "fish.safetensors")
        loaded = SupportSet.load(tmp_path / "fish.safetensors")
        for user in (model, session):
            assert_same(user.predict(QUERY, loaded).probability, expected, 1e-4)
    several = session.predict([QUERY, SUPPORT], {"fish": theirs, "same": ours})
    assert_same(several[0]["same"].probability, expected, 1e-4)
    assert [x.probability.shape[0] for x in several] == [2, 2]


def test_session_refuses_what_does_not_fit(exported: tuple[HDMNet, Path, Path]) -> None:
    model, encoder, _ = exported
    session = Session(encoder.parent)
    with pytest.raises(ValueError, match="another model"):
        session.predict(QUERY, make(image_size=72).encode_supports([SUPPORT] * 2, [MASK] * 2))
    if model.config["shots"] == 2:
        with pytest.raises(ValueError, match="got 1 supports: this graph takes 2"):
            session.encode_supports(SUPPORT, MASK)
    negative = model.encode_supports([SUPPORT] * 2, [MASK] * 2, [QUERY])
    with pytest.raises(ValueError, match="a session has no use of negatives"):
        session.predict(QUERY, negative)
    with pytest.raises(FileNotFoundError, match="export_onnx"):
        Session(encoder.parent / "elsewhere")
    shown = [SUPPORT] * 2, [MASK] * 2
    with pytest.raises(ValueError, match="it needs 64"):  # the graphs' least
        session.predict(QUERY, *shown, augment=Augment(scales=(0.6,)))


def test_int8_of_two_graphs(exported: tuple[HDMNet, Path, Path], tmp_path: Path) -> None:
    model, encoder, matcher = exported
    supports, masks = [SUPPORT] * 2, [MASK] * 2
    paths = quantize(encoder.parent, tmp_path, [QUERY, SUPPORT], supports, masks)
    assert [path.name for path in paths] == [encoder.name, matcher.name]
    assert paths[1].stat().st_size < 0.6 * matcher.stat().st_size
    answers = [x.predict(QUERY, supports, masks) for x in (model, Session(tmp_path))]
    ours, theirs = (answer.probability for answer in answers)
    assert 0 < (ours - theirs).abs().mean() < 0.02


@pytest.fixture(scope="module")
def fish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a class, in one graph."""
    model = HDMNet.from_pretrained("hdmnet-lite0")
    return export_onnx(model, tmp_path_factory.mktemp("fish"), model.encode_supports(SUPPORT, MASK))


def segment(path: Path, image: Path | Image.Image) -> Tensor:
    picture = image if isinstance(image, Image.Image) else Image.open(image)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": np.asarray(picture.convert("RGB"))})[0])


@pytest.mark.parametrize("size", [None, (7, 4), (257, 257), (900, 640)])
def test_one_graph_of_a_class(fish: Path, size: tuple[int, int] | None) -> None:
    model = HDMNet.from_pretrained("hdmnet-lite0")
    image = Image.open(QUERY)
    image = image if size is None else image.resize(size)
    expected = model.predict(image, SUPPORT, MASK, presence_threshold=0).probability
    torch.testing.assert_close(segment(fish, image), expected, rtol=0, atol=1e-4)


def test_one_graph_with_a_base_learner(tmp_path: Path) -> None:
    model, other = make(heads=(2, 4)), make(shots=3)
    supports = model.encode_supports([SUPPORT] * 2, [MASK] * 2)
    path = export_onnx(model, tmp_path, supports)
    expected = model.predict(QUERY, supports).probability
    torch.testing.assert_close(segment(path, QUERY), expected, rtol=0, atol=1e-4)
    assert list(tmp_path.iterdir()) == [path]
    metadata = ort.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["hdmnet"])["fingerprint"] == model.fingerprint()
    with pytest.raises(ValueError, match="another model"):
        export_onnx(other, tmp_path, supports)


def test_int8_of_one_graph(fish: Path, tmp_path: Path) -> None:
    photographs = sorted(DATA.glob("*/*.jpg"))
    (path,) = quantize(fish.parent, tmp_path, photographs[::2])
    # The support's features stay in float32, and grow with the size of the images.
    assert path.stat().st_size < 0.42 * fish.stat().st_size
    ours, theirs = ([segment(x, y) > 0.5 for y in photographs[1::2]] for x in (fish, path))
    same = [(a == b).float().mean().item() for a, b in zip(ours, theirs, strict=True)]
    assert 0.97 < np.mean(same) < 1


def test_the_snippet_of_the_page(
    exported: tuple[HDMNet, Path, Path],
    fish: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets the graphs of the other tests, because exporting takes minutes."""
    model, encoder, _ = exported

    def copy(model: HDMNet, folder: str, supports: SupportSet | None = None) -> None:
        shutil.copytree((fish if supports else encoder).parent, folder)

    monkeypatch.setattr("hdmnet.onnx.export_onnx", copy)
    monkeypatch.chdir(tmp_path)
    shutil.copy(QUERY, "query.jpg")
    pair = {"supports": [SUPPORT] * 2, "masks": [MASK] * 2}
    known = {"model": model, "fish": model.encode_supports(*pair.values()), "photographs": [QUERY]}
    (snippet,) = (text for text in snippets("docs/speed.md") if "hdmnet.onnx" in text)
    exec(compile(snippet, "docs/speed.md", "exec"), known | pair)
    assert sorted(str(path) for path in Path().rglob("*int8/*")) == [
        "fish-int8/segment.onnx",
        "pair-int8/query.onnx",
        "pair-int8/supports.onnx",
    ]


def test_example_needs_no_torch(fish: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    needed = [f"{x.__name__}=={x.__version__}" for x in (np, ort)]
    pip = [python, "-m", "pip", "install", "--quiet", *needed, "pillow"]
    if subprocess.run(pip, check=False).returncode:
        pytest.skip("needs PyPI")
    script = ROOT / "examples" / "onnx_without_torch.py"
    subprocess.run([python, script, fish, QUERY, "--out", tmp_path / "mask.png"], check=True)
    mask = np.asarray(Image.open(tmp_path / "mask.png")) == 255
    assert subprocess.run(
        [python, "-c", "import torch"], check=False, capture_output=True
    ).returncode
    model = HDMNet.from_pretrained("hdmnet-lite0")
    expected = model.predict(QUERY, SUPPORT, MASK, presence_threshold=0).mask.numpy()
    assert (mask == expected).mean() > 0.9999


def test_classes_of_a_session(exported: tuple[HDMNet, Path, Path]) -> None:
    model, encoder, _ = exported
    session = Session(encoder.parent)
    names = ("fish", "rocket", "feline")
    supports = {name: [DATA / name / "support_1.jpg"] * 2 for name in names}
    masks = {name: [DATA / name / "support_1.png"] * 2 for name in names}
    for known in (names, names[:1]):
        images, labels = ({name: x[name] for name in known} for x in (supports, masks))
        expected = model.predict(QUERY, images, labels)
        found = session.predict(QUERY, images, labels)
        torch.testing.assert_close(found.probability, expected.probability, rtol=0, atol=1e-4)
