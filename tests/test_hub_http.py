"""Loading from the Hub and pushing to it: the real client, with a local server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make
from hub_server import HubServer, Repo
from huggingface_hub import close_session, constants
from huggingface_hub.errors import HfHubHTTPError

from hdmnet import HDMNet

NAME = "someone/fish"
SMALL = {"backbone": "mobilenetv3_small_050", "base_classes": 0, "dim": 16, "heads": (1,)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    make(**SMALL).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer() as server:
        # The client reads HF_ENDPOINT only when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.repos[NAME] = Repo()
        server.repos[NAME].commit(files)
        yield server


def test_download_and_cache(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    model = HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    assert not model.training
    expected = make(**SMALL).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    size = len(files["model.safetensors"])
    assert server.bodies("model.safetensors") == [size]
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    assert server.bodies("model.safetensors") == [size]
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path, force_download=True)
    assert server.bodies("model.safetensors") == [size, size]
    requests = len(server.log)
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path, local_files_only=True)
    assert len(server.log) == requests


def test_no_network_with_a_warm_cache(server: HubServer, tmp_path: Path) -> None:
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    server.shutdown()
    server.server_close()
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path)


def test_revisions(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    repo = server.repos[NAME]
    first = repo.refs["main"]
    other = make(**SMALL, image_size=96)
    other.save_pretrained(tmp_path / "other")
    changed = {name: (tmp_path / "other" / name).read_bytes() for name in files}
    repo.commit(changed, "v2")
    for revision, size in ((None, 96), ("v2", 96), (first, 64)):
        model = HDMNet.from_pretrained(NAME, revision=revision, cache_dir=tmp_path / "cache")
        assert model.image_size == size


def test_a_cut_connection_is_resumed(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks
    size = len(files["model.safetensors"])
    server.cut_after = [len(files["config.json"]), 100_000]
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    assert server.bodies("model.safetensors") == [100_000, size - 100_000]


def test_a_server_error_is_retried(server: HubServer, tmp_path: Path) -> None:
    server.failures = [503, 503]
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    assert [status for _, _, status, _ in server.log][:3] == [503, 503, 200]


def test_a_token_opens_a_private_repository(server: HubServer, tmp_path: Path) -> None:
    server.repos[NAME].token = "hf_secret"
    with pytest.raises(FileNotFoundError, match=r"no repository someone/fish, or it is private.*"):
        HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    HDMNet.from_pretrained(NAME, cache_dir=tmp_path, token="hf_secret")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("some/thing", {}, FileNotFoundError, "no repository some/thing.*hdmnet-lite0"),
        (NAME, {"revision": "v9"}, FileNotFoundError, "no revision 'v9': give a branch"),
        ("some/gated", {}, PermissionError, "gated: accept its terms on http"),
        ("some/other", {}, ValueError, "not a model of hdmnet: it has no model.safetensors"),
        ("some/empty", {}, ValueError, "not a model of hdmnet: it has no config.json"),
        ("no/such/folder", {}, ValueError, "is not a bundled model"),
    ],
)
def test_errors(
    server: HubServer,
    tmp_path: Path,
    name: str,
    options: dict,
    kind: type[Exception],
    message: str,
    force: bool,
) -> None:
    server.repos["some/gated"] = Repo(gated=True, token="hf_secret")
    server.repos["some/other"], server.repos["some/empty"] = Repo(), Repo()
    server.repos["some/other"].commit({"config.json": b"{}"})
    server.repos["some/empty"].commit({"README.md": b""})
    with pytest.raises(kind, match=message):
        HDMNet.from_pretrained(name, cache_dir=tmp_path, force_download=force, **options)


@pytest.mark.slow  # the client tries again for 20 seconds
def test_nothing_cached_and_no_network(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not in the cache, and local_files_only=True"):
        HDMNet.from_pretrained(NAME, cache_dir=tmp_path, local_files_only=True)
    server.shutdown()
    server.server_close()
    close_session()  # else the client's first connection of this process stays open
    with pytest.raises(ConnectionError, match=r"cannot be reached or fails.*HF_ENDPOINT"):
        HDMNet.from_pretrained(NAME, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"config_version": 2}', "has version 2, .*pip install --upgrade"),
        (b'{"backbone": "resnet18", "colour": 1}', "unknown keys colour"),
        (b"[]", "must hold a JSON object, got list"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_configurations(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, config: bytes, message: str
) -> None:
    server.repos[NAME].commit(files | {"config.json": config})
    with pytest.raises(ValueError, match=message):
        HDMNet.from_pretrained(NAME, cache_dir=tmp_path)


@pytest.mark.parametrize("name", [NAME, "fish"])
def test_push(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The client uploads a model to the server, and loads it again."""
    # The local server does not support Xet, the client's other upload protocol.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.repos.clear()
    model = make(**SMALL, image_size=96)
    card = {"license": "apache-2.0", "trained_on": "aquarium pictures"}
    url = model.push_to_hub(name, token="hf_write", commit_message="First", model_card_kwargs=card)
    assert url.startswith(f"{server.url}/{NAME}/commit/")
    assert server.messages == ["First"]
    assert len(server.objects) == 1
    (files,) = server.repos[NAME].commits.values()
    text = files["README.md"].decode()
    assert f"from_pretrained('{NAME}')" in text
    assert "license: apache-2.0" in text
    again = HDMNet.from_pretrained(NAME, cache_dir=tmp_path)
    assert again.config == model.config
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_save_and_push(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    make(**SMALL).save_pretrained(tmp_path / "folder", push_to_hub=True, token="hf_write")
    assert server.repos["someone/folder"].commits
    assert HDMNet.from_pretrained(tmp_path / "folder").image_size == 64


def test_push_without_a_token(server: HubServer) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        make(**SMALL).push_to_hub(NAME, token=False)
    assert len(server.repos[NAME].commits) == 1


def test_the_environment_names_the_server(server: HubServer, tmp_path: Path) -> None:
    code = f"from hdmnet import HDMNet; print(HDMNet.from_pretrained({NAME!r}).image_size)"
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "64\n"
    assert server.bodies("model.safetensors")
