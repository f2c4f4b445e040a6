"""The command `python -m hdmnet.convert`, on files of torch.save."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import assert_same
from safetensors.torch import load_file
from test_reference import inputs, official_state
from torch import Tensor

from hdmnet import HDMNet, convert
from hdmnet.convert import __main__ as command
from hdmnet.convert import read_checkpoint


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return convert.to_official(HDMNet("vgg16", base_classes=15))


@pytest.fixture
def checkpoint(official: dict[str, Tensor], tmp_path: Path) -> Path:
    """A checkpoint in the format of the authors' training script."""
    path = tmp_path / "checkpoint.pth"
    state = {f"module.{key}": value for key, value in official.items()}
    optimizer = {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": optimizer}, path)
    return path


def test_in_a_new_process(checkpoint: Path, official: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-m",
            "hdmnet.convert",
            checkpoint,
            out,
            "--check",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "recognised: HDMNet, vgg16, 15 base classes, 1 shot(s), 473 px"
    assert f"mapped ({len(official)})" in lines
    assert "  module.gram_merge.weight -> ensemble.gram_merge.weight (1, 2, 1, 1)" in lines
    assert "dropped (2)" in lines
    assert "  optimizer: not a part of the network" in lines
    assert "missing, initialised at random: train the matching network (0)" in lines
    assert lines[-1].startswith(f"checked: {len(official)} tensors")
    model = HDMNet.from_pretrained(out)
    back = convert.to_official(model)
    assert all(torch.equal(back[key], value) for key, value in official.items())


def test_outputs_are_the_released_models(reference: Path, tmp_path: Path) -> None:
    """A checkpoint, converted to a folder and loaded, gives the reference outputs."""
    case = "resnet50_pascal_5shot"
    state, arguments = official_state(reference, case)
    torch.save({"state_dict": state}, tmp_path / "reference.pth")
    assert command.main([str(tmp_path / "reference.pth"), str(tmp_path / "out"), "--check"]) == 0
    model = HDMNet.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        output = model(*inputs(arguments))
    assert_same(output.final, load_file(reference / f"{case}.safetensors")["final"])


def test_a_base_learner(
    official: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = {k: v for k, v in official.items() if k.startswith(("layer", "ppm.", "cls."))}
    state |= {f"encoder.{k[5:]}": v.clone() for k, v in state.items() if k.startswith("layer")}
    state |= {f"cls.4.{x}": official[f"base_learnear.2.{x}"] for x in ("weight", "bias")}
    torch.save({"state_dict": state}, tmp_path / "base.pth")
    assert command.main([str(tmp_path / "base.pth"), str(tmp_path / "out"), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "recognised: base learner, vgg16" in printed
    assert "encoder.0.0.weight: a copy of a mapped tensor" in printed
    assert "\n  cascade.classifier.0.weight\n" in printed
    model = HDMNet.from_pretrained(tmp_path / "out")
    assert torch.equal(model.base_learner.classifier.bias, official["base_learnear.2.bias"])


class Run:
    """An object that runs a command when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["beside the state dict", "in the state dict", "the whole file"])
def test_a_malicious_pickle(
    tmp_path: Path, capsys: pytest.CaptureFixture, legacy: bool, place: str
) -> None:
    touched, path, out = tmp_path / "touched", tmp_path / "evil.pth", tmp_path / "out"
    evil = Run(touched)
    content = {
        "beside the state dict": {"state_dict": {"a": torch.zeros(1)}, "optimizer": evil},
        "in the state dict": {"state_dict": {"a": evil}},
        "the whole file": evil,
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert command.main([str(path), str(out)]) == 1
    message = capsys.readouterr().err
    assert "is refused, and no code in it was run" in message
    assert "It names posix.system" in message
    assert not touched.exists()
    assert not out.exists()
    # Check that the file is malicious: without weights_only, its command runs.
    torch.load(path, weights_only=False)
    assert touched.exists()


def test_a_plain_malicious_pickle(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Run(touched)))
    with pytest.raises(ValueError, match=r"is refused|is not a checkpoint"):
        read_checkpoint(path)
    assert not touched.exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.txt", "x")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x02garbage"),
        lambda path: path.write_text("<html>Sign in to download</html>"),
        _truncate,
        _archive,
    ],
)
def test_damaged_files(checkpoint: Path, damage, tmp_path: Path) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.pth is (refused|not a checkpoint)"):
        read_checkpoint(checkpoint)
    assert not (tmp_path.parent / "escaped.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list: expected a state dict"),
        ({}, "holds a dict: expected a state dict"),
        ({"state_dict": {"a": 1}}, "holds 'a', a int"),
        ({"state_dict": {1: torch.zeros(1)}}, "holds 1, a Tensor"),
        ({"a": torch.eye(3).to_sparse()}, "sparse or quantised"),
        ({"a": torch.zeros(1)}, "not an official HDMNet checkpoint"),
    ],
)
def test_other_contents(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert command.main([str(tmp_path / "other.pth"), str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main([str(tmp_path / "none.pth"), str(tmp_path / "out")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["a tensor", "an output"])
def test_the_check_can_fail(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    load = HDMNet.from_pretrained

    def altered(folder: Path) -> HDMNet:
        model = load(folder)
        if what == "a tensor":
            model.ensemble.gram_merge.weight.data += 1
        else:
            model.ensemble.base_merge.register_forward_hook(lambda *args: args[-1] + 1)
        return model

    monkeypatch.setattr(HDMNet, "from_pretrained", altered)
    assert command.main([str(checkpoint), str(tmp_path / "out"), "--check"]) == 1
    expected = (
        "differs from module.gram_merge.weight" if what == "a tensor" else "final of the loaded"
    )
    assert expected in capsys.readouterr().err


def test_the_written_folder(checkpoint: Path, tmp_path: Path) -> None:
    command.main([str(checkpoint), str(tmp_path / "out")])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["backbone"] == "vgg16"
    assert load_file(tmp_path / "out" / "model.safetensors")
    assert "not stated" in (tmp_path / "out" / "README.md").read_text()
