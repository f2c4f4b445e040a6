"""Saving and loading models in local folders."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import episode, make
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from hdmnet import HDMNet, list_pretrained

OPTIONS = {
    "backbone": "mobilenetv3_small_050",
    "base_classes": 2,
    "shots": 3,
    "image_size": 49,
    "dim": 16,
    "heads": (1, 2),
    "dropout": 0.2,
    "feature_dropout": 0.25,
    "shot_hidden_dim": 0,
    "frozen_norm": False,
    "layers": None,
    "high_level": True,
    "presence": {"scale": 2.0, "bias": -1.0, "center": [0.5] * 288},
    "contrast": True,
    "calibration": {"temperature": 1.5, "threshold": 0.4, "growth": 0.3},
}


CARD_TITLES = {"license": "license", "trained_on": "trained on", "metric": "measured"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[HDMNet, Path]:
    model = make(**OPTIONS)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_round_trip(saved: tuple[HDMNet, Path], capfd: pytest.CaptureFixture) -> None:
    model, folder = saved
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = HDMNet.from_pretrained(folder)
    assert capfd.readouterr() == ("", "")
    assert not again.training
    assert again.config == model.config == OPTIONS
    assert isinstance(again.config["heads"], tuple)
    assert HDMNet(**again.config).config == OPTIONS
    inputs = episode(shots=3)
    for a, b in zip(model(*inputs), again(*inputs), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)


def test_second_round_trip_is_identical(saved: tuple[HDMNet, Path], tmp_path: Path) -> None:
    _, folder = saved
    HDMNet.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_reload_never_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda *_, **__: downloads.append(1)
    )
    model = make(backbone="resnet18", pretrained_backbone=True)
    assert downloads == [1]
    model.save_pretrained(tmp_path)
    assert "pretrained_backbone" not in json.loads((tmp_path / "config.json").read_text())
    HDMNet.from_pretrained(tmp_path)
    assert downloads == [1]


def test_a_configuration_cannot_ask_for_a_download(
    saved: tuple[HDMNet, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_backbone": True}))
    downloads = []
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda *_, **__: downloads.append(1)
    )
    HDMNet.from_pretrained(folder)
    assert not downloads


def test_what_changed_on_the_model_is_saved(saved: tuple[HDMNet, Path], tmp_path: Path) -> None:
    model, _ = saved
    model.image_size, model.frozen_norm = 96, True
    model.save_pretrained(tmp_path / "changed")
    again = HDMNet.from_pretrained(tmp_path / "changed")
    assert again.config == model.config == OPTIONS | {"image_size": 96, "frozen_norm": True}


def test_unknown_arguments_of_a_save(fresh: HDMNet, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="licence: expected with push_to_hub=True only"):
        fresh.save_pretrained(tmp_path / "model", licence="apache-2.0")
    assert not list(tmp_path.iterdir())


def test_loads_to_a_device(saved: tuple[HDMNet, Path]) -> None:
    again = HDMNet.from_pretrained(saved[1], map_location="meta")
    assert {p.device.type for p in again.parameters()} == {"meta"}


def test_half_precision_storage_loads_as_float32(saved: tuple[HDMNet, Path]) -> None:
    _, folder = saved
    file = folder / "model.safetensors"
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(half, file, {"format": "pt"})
    again = HDMNet.from_pretrained(folder)
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_strict(saved: tuple[HDMNet, Path], change: str) -> None:
    _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "cascade.classifier.0.weight"
    if change == "missing":
        del tensors[name]
    elif change == "surplus":
        tensors["extra"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3)
    save_file(tensors, file, {"format": "pt"})
    message = {
        "missing": f"missing: {name}",
        "surplus": "left over: extra",
        "shape": f"of another shape: {name}",
    }[change]
    with pytest.raises(ValueError, match=rf"does not fit its config.json: tensors {message}\."):
        HDMNet.from_pretrained(folder)
    if change != "shape":
        HDMNet.from_pretrained(folder, strict=False)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_folder(saved: tuple[HDMNet, Path], name: str) -> None:
    _, folder = saved
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        HDMNet.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lite0", ": did you mean 'hdmnet-lite0'?"), ("HDMNet-Lite", ": did you mean 'hdmnet-lite0'?")]
    + [(name, "") for name in ("gpt2", "resnet50", "", "models\\fish")],
)
def test_an_unknown_name_asks_no_hub(
    name: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr("hdmnet.hub.hf_hub_download")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not a bundled model") as caught:
        HDMNet.from_pretrained(name)
    assert str(caught.value) == (
        f"{name!r} is not a bundled model (hdmnet-lite0, hdmnet-lite0@1), a folder or a repository "
        f'"user/name" of the Hub{hint}'
    )


class TestModelCard:
    """The README.md of a saved model."""

    def test_states_the_configuration(self, saved: tuple[HDMNet, Path]) -> None:
        text = (saved[1] / "README.md").read_text()
        card = ModelCard(text)
        assert card.data.library_name == "hdmnet"
        assert card.data.license is None
        for line in (
            "| backbone | `mobilenetv3_small_050` |",
            "| trained with | 3 shots |",
            "| base classes | 2 |",
            "| input | 49 × 49 pixels |",
            "| trained on | not stated: ask the publisher of these weights |",
            "| license | not stated: ask the publisher of these weights |",
            "@inproceedings{peng2023hierarchical,",
        ):
            assert line in text

    def test_states_the_given_facts(self, tmp_path: Path) -> None:
        told = {"license": "mit", "trained_on": "photographs of fish", "metric": "mIoU 0.5 of 10"}
        make(**OPTIONS).save_pretrained(tmp_path, model_card_kwargs=told)
        text = (tmp_path / "README.md").read_text()
        assert ModelCard(text).data.license == "mit"
        for key, value in told.items():
            assert f"| {CARD_TITLES[key]} | {value} |" in text

    def test_the_snippet_runs(
        self, saved: tuple[HDMNet, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(saved[1])
        snippet = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
        for name in ("query.jpg", "support.jpg"):
            Image.new("RGB", (60, 50), (200, 100, 0)).save(name)
        Image.new("L", (60, 50), 255).save("support_mask.png")
        exec(snippet, {})
        assert Image.open("mask.png").size == (60, 50)

    def test_keeps_an_existing_page(self, saved: tuple[HDMNet, Path]) -> None:
        model, folder = saved
        (folder / "README.md").write_text("mine")
        model.save_pretrained(folder)
        assert (folder / "README.md").read_text() == "mine"
        assert len(list(folder.iterdir())) == 3


class TestBundled:
    def test_listed(self) -> None:
        assert [info.name for info in list_pretrained()] == ["hdmnet-lite0", "hdmnet-lite0@1"]
        assert sum((i.path / "model.safetensors").stat().st_size for i in list_pretrained()) < 45e6
        for info in list_pretrained():
            config = json.loads((info.path / "config.json").read_text())
            assert config["backbone"] == info.backbone == "tf_efficientnet_lite0"
            assert config["image_size"] == info.image_size
            assert config["base_classes"] == 0
            assert info.name in (info.path / "README.md").read_text(encoding="utf-8")

    def test_version_1_is_the_model_that_it_was(self) -> None:
        """The numbers were written down when this was the only bundled model."""
        model = HDMNet.from_pretrained("hdmnet-lite0@1")
        data = Path(__file__).parents[1] / "examples" / "data" / "fish"
        p = model.predict(
            data / "query_1.jpg", data / "support_1.jpg", data / "support_1.png"
        ).probability
        assert p.mean().item() == pytest.approx(0.33696, abs=1e-4)

    def test_files_match_the_list(self) -> None:
        for info in list_pretrained():
            content = (info.path / "model.safetensors").read_bytes()
            assert len(content) == info.size
            assert hashlib.sha256(content).hexdigest() == info.sha256

    def test_the_readme_has_the_list(self) -> None:
        """The table in the README has the values of `list_pretrained`."""
        readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
        for info in list_pretrained():
            columns = (
                f"`{info.name}`",
                info.source,
                info.backbone,
                info.trained_on,
                info.metric,
                info.protocol,
                info.licence,
                f"{info.size / 1e6:.1f}",
                f"`{info.sha256[:12]}…`",
            )
            assert f"| {' | '.join(columns)} |\n" in readme

    def test_needs_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the network was used")

        monkeypatch.setattr("socket.socket.connect", refuse)
        model = HDMNet.from_pretrained("hdmnet-lite0")
        assert all(p.isfinite().all() for p in model.parameters())
        assert model.config["frozen_norm"]
