"""Weights of the Hugging Face Hub: found where they lie, or downloaded; no network here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.base.errors import WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk.families.family import WeightsFile
from pipeline.trunk.surgery import build
from pipeline.trunk.weights import load_model, resolve_weights

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
pytest.importorskip("timm", reason="timm is not installed")

from pipeline.trunk.hub import hub_file  # noqa: E402

FILE = WeightsFile(("model.safetensors", "pytorch_model.bin"), repository="timm/resnet18.tv_in1k")


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's own cache, empty, which the user has not named; and no network."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "theirs"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    for question in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, question, refused(ConnectionError("Name or service not known\nretrying")))
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is there, and has every file."""
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)


def refused(error: Exception) -> Any:
    def download(*_: object, **__: object) -> str:
        raise error

    return download


def put(cache: Path, filename: str, content: bytes = b"weights") -> Path:
    """A file in the Hub's layout of a cache."""
    home, revision = cache / "models--timm--resnet18.tv_in1k", "c" * 40
    path = home / "snapshots" / revision / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(revision)
    return path


def test_a_file_is_found_where_the_hub_keeps_it_and_in_the_workspace(theirs: Path, tmp_path: Path) -> None:
    desk = Workspace(tmp_path / "root")
    ours = put(desk.weights / "hub", "model.safetensors")
    assert hub_file(FILE, "what", desk, timeout=1, other_ways="or else") == ours
    own = put(theirs, "pytorch_model.bin")
    assert hub_file(FILE, "what", desk, timeout=1, other_ways="or else") == own  # the user's comes first
    better = put(theirs, "model.safetensors")
    assert hub_file(FILE, "what", desk, timeout=1, other_ways="or else") == better  # and what needs no unpickling


@pytest.mark.parametrize("named", [False, True])
def test_a_download_goes_to_the_workspace_unless_the_user_has_named_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: None, named: bool
) -> None:
    asked: list[Any] = []

    def download(repository: str, filename: str, *, cache_dir: Path | None, revision: str | None) -> str:
        asked.append((repository, filename, cache_dir, revision))
        return str(put(tmp_path / "got", filename))

    if named:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    desk = Workspace(tmp_path / "root")
    assert hub_file(FILE, "what", desk, timeout=1, other_ways="or else").read_bytes() == b"weights"
    assert asked == [(FILE.repository, "model.safetensors", None if named else desk.weights / "hub", None)]


@pytest.mark.parametrize(("kind", "tried"), [("RemoteEntryNotFoundError", 2), ("OfflineModeIsEnabled", 1)])
def test_the_next_name_is_tried_where_a_repository_has_no_such_file_and_not_where_there_is_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tried: int
) -> None:
    errors, asked = huggingface_hub.errors, list[str]()
    error = getattr(errors, kind, errors.EntryNotFoundError)

    def question(url: str, **_: object) -> None:
        asked.append(url.rsplit("/", 1)[1])
        if asked[-1] == "model.safetensors":
            raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", question)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: str(put(tmp_path / "got", name)))
    if tried == 2:
        found = hub_file(FILE, "what", Workspace(tmp_path), timeout=1, other_ways="or else")
        assert found.name == "pytorch_model.bin"
    else:
        with pytest.raises(WeightsError, match="what cannot be had"):
            hub_file(FILE, "what", Workspace(tmp_path), timeout=1, other_ways="or else")
    assert len(asked) == tried


def test_without_network_one_line_says_what_was_wanted_where_and_what_else_to_do(tmp_path: Path) -> None:
    desk = Workspace(tmp_path / "root")
    with pytest.raises(WeightsError) as error:
        resolve_weights("DEFAULT", "timm:resnet18.tv_in1k", desk)
    text = str(error.value)
    assert "\n" not in text
    for words in (
        *("timm:resnet18.tv_in1k", "model.safetensors", "timm/resnet18.tv_in1k", str(desk.weights / "hub")),
        *("Name or service not known", "weights='FILE.pth'", "weights='random:0'"),
    ):
        assert words in text


def test_named_weights_are_those_of_the_file_with_their_classifier(theirs: Path, tmp_path: Path) -> None:
    state = build("timm:resnet18", num_classes=1000, image_size=64, seed=5).state_dict()
    path = put(theirs, "model.safetensors", safetensors.torch.save(state))
    info = resolve_weights("DEFAULT", "timm:resnet18.tv_in1k", Workspace(tmp_path / "root"))
    assert (info.name, info.path, info.pretrained, info.guessed) == ("tv_in1k", path, True, False)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_model(info).state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in state.items())
