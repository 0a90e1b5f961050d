"""Which weights exactly: names, files and seeds; what does not fit or is not safe is refused in one line."""

import hashlib
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk import identity
from pipeline.trunk.identity import Transform
from pipeline.trunk.surgery import build, fingerprint
from pipeline.trunk.weights import load_model, resolve_weights

State = dict[str, torch.Tensor]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(error: pytest.ExceptionInfo[WeightsError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's checkpoints folder, empty; and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A resnet18 whose every number, BatchNorm's included, is its own; its head has 7 classes.

    In float16, which every float32 holds exactly: the files are half as large.
    """
    model = build("resnet18", num_classes=7, image_size=224)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + (0.5 if "bn" in name else 0))
    return model.half()


@pytest.fixture
def state(trained: nn.Module) -> State:
    return dict(trained.state_dict())


def assert_same_trunk(model: nn.Module, expected: State, classes: int) -> None:
    got = model.state_dict()
    assert got["fc.weight"].shape == (classes, 512)
    assert not got["fc.weight"].any() and not got["fc.bias"].any()
    for name, tensor in expected.items():
        if not name.startswith("fc."):
            assert torch.equal(got[name], tensor.to(got[name].dtype)), name


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_random_weights_are_torchvisions_for_that_seed_and_not_called_pretrained(tmp_path: Path) -> None:
    info = resolve_weights("random:11", "resnet18", Workspace(tmp_path))
    torch.manual_seed(11)
    expected = torchvision.models.resnet18()
    assert fingerprint(load_model(info)) == fingerprint(expected) == info.sha256
    assert (info.name, info.path, info.pretrained) == ("random:11", None, False)
    assert identity.recall("random:11", "resnet18", None, Workspace(tmp_path)) == info


def test_random_weights_that_are_not_as_recorded_are_refused(tmp_path: Path) -> None:
    info = resolve_weights("random:0", "resnet18", Workspace(tmp_path))
    other = identity.dataclasses.replace(info, sha256="0" * 64)
    with pytest.raises(WeightsError, match="random:0 gives other numbers here"):
        load_model(other)


@pytest.mark.parametrize("spec", ["random:", "random:x", "random:-1", "random:1.5", "random:" + "9" * 30])
def test_a_malformed_seed_is_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(WeightsError, match="whole number from 0"):
        resolve_weights(spec, "resnet18", Workspace(tmp_path))


def test_an_unknown_trunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'resnet51' is not known: did you mean .*resnet50"):
        resolve_weights("random:0", "resnet51", Workspace(tmp_path))


@pytest.mark.slow
def test_the_transform_of_random_weights_is_that_of_the_trunks_best_entry(tmp_path: Path) -> None:
    for trunk, resize in (("resnet50", 232), ("resnet18", 256)):
        info = resolve_weights("random:0", trunk, Workspace(tmp_path))
        assert info.transform == Transform(resize, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert info.preset == torchvision.models.get_model_weights(trunk).DEFAULT.name


# -- torchvision's names ----------------------------------------------------------------------------------------------


@pytest.fixture
def published(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that torchvision's resnet18 entry names, on a server that is a folder."""
    draft = tmp_path / "draft"
    model = torchvision.models.resnet18()
    torch.save({**trained.state_dict(), **{f"fc.{k}": v for k, v in model.fc.state_dict().items()}}, draft)
    path = tmp_path / "server" / f"resnet18-{sha256(draft)[:8]}.pth"
    path.parent.mkdir()
    draft.rename(path)
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", path.as_uri())
    return path


def serve(monkeypatch: pytest.MonkeyPatch, asked: list[str] | None = None) -> None:
    def urlopen(url: str, timeout: float) -> Any:
        assert timeout > 0
        if asked is not None:
            asked.append(url)
        return Path(url.removeprefix("file://")).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_default_is_recorded_under_its_explicit_name(published: Path, hub: Path, tmp_path: Path) -> None:
    """The name and the whole SHA-256 of the file."""
    (hub / published.name).write_bytes(published.read_bytes())
    info = resolve_weights("DEFAULT", "resnet18", Workspace(tmp_path / "cache"))
    assert (info.spec, info.name, info.pretrained) == ("DEFAULT", "IMAGENET1K_V1", True)
    assert info.sha256 == sha256(published)
    assert info.path == hub / published.name


def test_named_weights_are_loaded_with_their_classifier_and_frozen(published: Path, hub: Path, tmp_path: Path) -> None:
    (hub / published.name).write_bytes(published.read_bytes())
    info = resolve_weights("IMAGENET1K_V1", "resnet18", Workspace(tmp_path / "cache"))
    model = load_model(info)
    expected = torch.load(published, weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert not any(p.requires_grad for p in model.parameters())
    before = fingerprint(model)
    model.train()(torch.zeros(2, 3, 32, 32))
    assert not any(m.training for m in model.modules())
    assert fingerprint(model) == before


@pytest.fixture
def unnamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's checkpoints folder where the user has named no place for it."""
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "torch" / "hub" / "checkpoints"


def test_named_weights_are_downloaded_once_into_the_cache_root(
    published: Path, unnamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    serve(monkeypatch, asked)
    root = tmp_path / "cache"
    for _ in range(2):
        info = resolve_weights("IMAGENET1K_V1", "resnet18", Workspace(root))
        assert info.path == root / "weights" / published.name
        assert sha256(info.path) == info.sha256 == sha256(published)
    assert asked == [published.as_uri()]
    assert not unnamed.exists()
    assert {p.name for p in (root / "weights").iterdir()} == {published.name, "known.json"}


def test_a_download_goes_to_torch_hubs_folder_where_the_user_has_named_it(
    published: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    info = resolve_weights("IMAGENET1K_V1", "resnet18", Workspace(tmp_path / "cache"))
    assert info.path == hub / published.name and sha256(info.path) == sha256(published)
    assert [p.name for p in (tmp_path / "cache" / "weights").iterdir()] == ["known.json"]


@pytest.mark.parametrize("named", [False, True])
def test_a_damaged_download_leaves_nothing(
    published: Path, hub: Path, tmp_path: Path, named: bool, request: pytest.FixtureRequest
) -> None:
    if not named:
        request.getfixturevalue("unnamed")
    published.write_bytes(published.read_bytes()[:-1])
    serve(request.getfixturevalue("monkeypatch"))
    with pytest.raises(WeightsError, match="the download is damaged") as error:
        resolve_weights("IMAGENET1K_V1", "resnet18", Workspace(tmp_path / "cache"))
    one_line(error)
    assert list((hub if named else tmp_path / "cache" / "weights").iterdir()) == []


def test_without_network_one_line_says_what_was_wanted_where_and_what_else_to_do(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        resolve_weights("IMAGENET1K_V2", "resnet50", Workspace(tmp_path / "cache"))
    text = one_line(error)
    for words in (
        *("resnet50-11ad3fa6.pth", str(hub), str(tmp_path / "cache" / "weights")),
        *("weights='FILE.pth'", "weights='random:0'", "Name or service not known"),
    ):
        assert words in text


def test_a_damaged_file_of_torch_hub_is_named(published: Path, hub: Path, tmp_path: Path) -> None:
    (hub / published.name).write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="is damaged.*remove it") as error:
        resolve_weights("IMAGENET1K_V1", "resnet18", Workspace(tmp_path / "cache"))
    assert str(hub / published.name) in one_line(error)


def test_a_name_that_torchvision_does_not_have_for_the_trunk_lists_the_legal_ones(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="resnet18 has no weights 'IMAGENET1K_V2': choose from IMAGENET1K_V1, DEFAULT"
    ) as error:
        resolve_weights("IMAGENET1K_V2", "resnet18", Workspace(tmp_path))
    one_line(error)


# -- local files ------------------------------------------------------------------------------------------------------


def _legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _without_counters(state: State, path: Path) -> None:
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)


SAVERS: dict[str, tuple[str, Callable[[State, Path], None]]] = {
    "plain": ("a.pth", torch.save),
    "safetensors": ("a.safetensors", safetensors.torch.save_file),
    "legacy format": ("a.pt", _legacy),
    "state_dict wrapper": ("a.pth", lambda s, p: torch.save({"epoch": 3, "state_dict": s}, p)),
    "model wrapper": ("a.pth", lambda s, p: torch.save({"model": s, "args": [1]}, p)),
    "data parallel": ("a.pth", lambda s, p: torch.save({"module." + k: v for k, v in s.items()}, p)),
    "without counters": ("a.pth", _without_counters),
    "without a head": ("a.pth", lambda s, p: torch.save({k: v for k, v in s.items() if k[:3] != "fc."}, p)),
}


@pytest.mark.parametrize("kind", SAVERS)
def test_a_local_state_dict_is_loaded_and_its_own_head_ignored(kind: str, state: State, tmp_path: Path) -> None:
    filename, save = SAVERS[kind]
    path = tmp_path / filename
    save(state, path)
    info = resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    assert (info.name, info.path, info.sha256, info.pretrained) == ("file", path, sha256(path), True)
    # Its classifier keeps its number of classes, and none of its numbers.
    assert_same_trunk(load_model(info), state, classes=1000 if kind == "without a head" else 7)
    assert identity.recall(str(path), "resnet18", None, Workspace(tmp_path)) == info


def test_a_file_that_changed_since_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    info = resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    state["conv1.weight"] = state["conv1.weight"] + 1
    torch.save(state, path)
    with pytest.raises(WeightsError, match="a.pth has changed") as error:
        load_model(info)
    one_line(error)


def test_keys_that_do_not_fit_are_listed_and_counted(state: State, tmp_path: Path) -> None:
    del state["conv1.weight"]
    state["layer1.0.conv9.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(65)
    path = tmp_path / "a.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError) as error:
        resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    text = one_line(error)
    assert "1 missing (conv1.weight)" in text
    assert "1 unexpected (layer1.0.conv9.weight)" in text
    assert "1 of another shape (bn1.weight (65,) instead of (64,))" in text
    assert identity.recall(str(path), "resnet18", None, Workspace(tmp_path)) is None


def test_a_file_of_another_trunk_is_refused_with_the_first_keys_and_the_count(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    with pytest.raises(
        WeightsError, match=r"does not fit resnet34: 80 missing \(layer1.2.conv1.weight, .* and 77 more\)"
    ) as error:
        resolve_weights(str(path), "resnet34", Workspace(tmp_path))
    assert len(one_line(error)) < 600


def test_weights_that_are_not_finite_are_refused(state: State, tmp_path: Path) -> None:
    state["bn1.bias"] = torch.full((64,), float("nan"))
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="not finite numbers: bn1.bias"):
        resolve_weights(str(tmp_path / "a.pth"), "resnet18", Workspace(tmp_path))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "owned"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"conv1.weight": Malicious(trap)}))
    else:
        torch.save({"conv1.weight": Malicious(trap)}, path)
    with pytest.raises(WeightsError, match="evil.pth is not a state dict that can be read safely") as error:
        resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    one_line(error)
    assert not trap.exists()


@pytest.mark.parametrize("filename", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"an ordinary text\n" * 40, b"PK\x03\x04 cut"])
def test_a_file_that_holds_no_weights_is_refused(filename: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / filename).write_bytes(content)
    with pytest.raises(WeightsError, match="not a state dict that can be read safely") as error:
        resolve_weights(str(tmp_path / filename), "resnet18", Workspace(tmp_path))
    one_line(error)


@pytest.mark.parametrize("held", [[1, 2], {}, torch.zeros(3), {1: torch.zeros(1)}, {"conv1.weight": 3}])
def test_something_else_than_tensors_by_name_is_refused(held: Any, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="a.pth .*not a state dict of") as error:
        resolve_weights(str(tmp_path / "a.pth"), "resnet18", Workspace(tmp_path))
    one_line(error)


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_is_no_regular_file_is_neither_waited_for_nor_read(what: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match="w.pth cannot be read .it is not a regular file.: give a .pth") as error:
        resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    one_line(error)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere.pth cannot be read .No such file") as error:
        resolve_weights(str(tmp_path / "nowhere.pth"), "resnet18", Workspace(tmp_path))
    one_line(error)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_weights_that_are_not_floating_point_numbers_are_refused(
    dtype: torch.dtype, state: State, tmp_path: Path
) -> None:
    """A quantised network's codes would load as if they were its weights."""
    path = tmp_path / "mine.pth"
    torch.save({**state, "conv1.weight": state["conv1.weight"].to(dtype)}, path)
    with pytest.raises(WeightsError, match=r"conv1\.weight") as error:
        resolve_weights(str(path), "resnet18", Workspace(tmp_path))
    one_line(error)
