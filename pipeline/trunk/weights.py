"""Weights: a name, a local file or a seed -> which bytes exactly, and a model that holds them.

Reads weights files and writes one folder (``weights/`` under the cache root). A state dict is only ever read without
unpickling code, and the bytes loaded are the bytes whose SHA-256 was recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.base.errors import ConfigError, WeightsError
from pipeline.base.files import make_folder, open_regular, whole
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.trunk import identity
from pipeline.trunk.cut import Pooled, halves, shape_of
from pipeline.trunk.families import parted
from pipeline.trunk.families.family import CLASSES, Anatomy, Entry, family_of, skeleton
from pipeline.trunk.identity import WeightsInfo
from pipeline.trunk.surgery import build, fingerprint, freeze, load_tensors

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer, so that a machine without network says so soon
_CHUNK = 1 << 20
_WRAPPERS = ("state_dict", "model")
_DATA_PARALLEL = "module."  # DataParallel and DistributedDataParallel put it before every name


def _other_ways() -> str:
    return f"or give {option('weights', 'FILE.pth')}, or {option('weights', 'random:0')}"


def resolve_weights(spec: str, trunk: str, desk: Workspace, preset: str | None = None) -> WeightsInfo:
    """Which weights ``spec`` means for ``trunk``, found or downloaded, hashed, and remembered for ``identity.recall``.

    ``spec`` is one of the names that the trunk's family has (``DEFAULT``: its best, or the tag in the trunk's name),
    the path of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` state dict, or ``random:SEED``. The transform is that
    of the named weights; a file and random weights get that of ``DEFAULT``, all of them that of ``preset`` where one is
    given: a name of the same network's weights, or another network of timm, as ``timm:NAME.TAG``.

    Raises:
        ConfigError: unknown trunk or preset, or a trunk without a linear classifier.
        WeightsError: unknown name, malformed seed, a missing or damaged file, or a download that failed.
    """
    family, network = family_of(trunk)
    named, entry = _named(spec), _own(spec, trunk)
    # The network's own, also with another's preset: random numbers are known by their fingerprint, and a vision
    # transformer draws as many for position embeddings as its images have patches.
    size = entry.transform.crop
    path: Path | None = None
    if spec.startswith("random:"):
        name, whole = spec, build(trunk, num_classes=CLASSES, image_size=size, seed=_seed(spec))
        sha256 = fingerprint(whole)
    elif not named:
        name, path = "file", Path(os.path.abspath(spec))
        sha256 = sha256_of(path)
        whole = _from_file(path, trunk, size, with_head=False)  # what does not fit is said now, and never remembered
    else:
        whole = skeleton(family, network, num_classes=CLASSES, image_size=size)
        name, (path, sha256) = entry.name, _named_file(entry, trunk, desk)
    info = WeightsInfo(
        trunk=trunk,
        spec=spec,
        name=name,
        sha256=sha256,
        path=path,
        pretrained=path is not None,
        layers=_layers(family.anatomy(network, whole), whole, size),
        **_how_to_see(spec, trunk, preset),
    )
    identity.remember(info, preset, desk)
    return info


def confirm(spec: str, trunk: str, preset: str | None, desk: Workspace) -> None:
    """Hold what ``identity.recall`` says of weights against their family, which it could not be asked without PyTorch.

    Raises:
        WeightsError: it says something else; it is forgotten, so that the same command resolves the weights again.
    """
    known = identity.recall(spec, trunk, preset, desk)
    if known is None:
        return
    for name, said in _how_to_see(spec, trunk, preset).items():
        if (there := getattr(known, name)) != said:
            identity.forget(spec, trunk, preset, desk)
            raise WeightsError(
                f"{desk.weights / 'known.json'} was changed: its {name} of {trunk} {spec} was {there}, and is {said}; "
                "that is forgotten now: run again"
            )


def _named(spec: str) -> bool:
    return not spec.startswith("random:") and not identity.is_file_spec(spec)


def _own(spec: str, trunk: str) -> Entry:
    """The family's entry of named weights, of others that of its best."""
    return _entry(trunk, spec if _named(spec) else None)


def _how_to_see(spec: str, trunk: str, preset: str | None) -> dict[str, Any]:
    """Those fields of a WeightsInfo that are about the transform."""
    entry = _own(spec, trunk)
    source = entry if preset is None else _preset(trunk, preset)
    # A file says nothing of how its images were made, unless its network's name does.
    silent = identity.is_file_spec(spec) and not spec.startswith("random:") and not trunk.endswith(f".{entry.name}")
    return {
        "transform": source.transform,
        "preset": preset or source.name,
        "guessed": silent and preset is None,
        "missing": source.missing,
    }


def load_model(info: WeightsInfo) -> nn.Module:
    """The whole network with these weights, frozen; a file's own classifier becomes zeros.

    Raises:
        WeightsError: the bytes are not those of ``info.sha256``, or do not fit the trunk.
        ConfigError: an image size that the network cannot take.
    """
    size = info.transform.crop
    if info.path is None:
        model = build(info.trunk, num_classes=CLASSES, image_size=size, seed=_seed(info.spec))
        if fingerprint(model) != info.sha256 and _at_its_own_size(info) != info.sha256:
            raise WeightsError(
                f"{info.spec} gives other numbers here than recorded: another PyTorch or kind of processor; go on "
                f"where it was made, or start afresh with another {option('workspace')}"
            )
        freeze(model)
        return model
    found = sha256_of(info.path)
    if found != info.sha256:
        raise WeightsError(
            f"{info.path} has changed: SHA-256 {found[:12]}..., recorded as {info.sha256[:12]}...; bring back that file"
        )
    return _from_file(info.path, info.trunk, size, with_head=info.name != "file")


def _at_its_own_size(info: WeightsInfo) -> str:
    """The fingerprint of a network of random numbers as it was recorded: some have position embeddings by size."""
    size = _entry(info.trunk, None).transform.crop
    return fingerprint(build(info.trunk, num_classes=CLASSES, image_size=size, seed=_seed(info.spec)))


def _entry(trunk: str, weights: str | None) -> Entry:
    """The family's weights of that name; None and ``DEFAULT``: its best.

    Raises:
        WeightsError: there are none of that name.
    """
    family, name = family_of(trunk)
    try:
        return family.entry(name, None if weights == "DEFAULT" else weights)
    except KeyError:
        raise WeightsError(
            f"{trunk} has no weights {weights!r}: choose from {', '.join([*family.entries(name), 'DEFAULT'])}, "
            "a .pth or .safetensors file, or random:SEED"
        ) from None


def _preset(trunk: str, preset: str) -> Entry:
    """The weights whose transform is taken."""
    family, name = family_of(trunk)
    if preset in family.entries(name):
        return family.entry(name, preset)
    if parted(preset)[0]:
        return _entry(preset, None)
    raise ConfigError(
        f"{option('preset', preset)} is not known: choose from {', '.join(family.entries(name))}, or give "
        "another network's, "
        "as in timm:resnet50.a1_in1k"
    )


def _layers(anatomy: Anatomy, whole: nn.Module, image_size: int) -> tuple[tuple[str, int], ...]:
    """What features may be of, with their number: the last stage's, and where it can be cut those before it."""
    last, previous = anatomy.layers
    found = [(last, anatomy.dim)]
    try:
        front, _ = halves(whole.eval(), anatomy)
        found.append((previous, Pooled(front, shape_of(front, image_size)).dim))
    except (ConfigError, RuntimeError, NotImplementedError, AssertionError):
        pass  # one layer less to choose from: asking for it says which there are
    return tuple(found)


def _from_file(path: Path, trunk: str, image_size: int, *, with_head: bool) -> nn.Module:
    family, name = family_of(trunk)
    with torch.random.fork_rng(devices=[]):
        model, state = family.load(name, _read_state_dict(path), image_size=image_size)
    head = f"{family.anatomy(name, model).classifier}."
    if not with_head:
        state = {k: v for k, v in state.items() if not k.startswith(head)}
    _check_fit(state, model, head, path=path, trunk=trunk)
    zeros = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in model.state_dict().items() if k not in state}
    load_tensors(model, {**zeros, **state})
    freeze(model)
    return model


def _seed(spec: str) -> int:
    found = re.fullmatch(r"random:(\d{1,18})", spec)
    if found is None:
        raise WeightsError(f"{option('weights', spec)}: a seed is a whole number from 0, as in random:0")
    return int(found[1])


# -- files ------------------------------------------------------------------------------------------------------------


def _named_file(entry: Entry, trunk: str, desk: Workspace) -> tuple[Path, str]:
    """The file of weights that have a name, and its SHA-256, downloaded if it is nowhere.

    It is looked for where PyTorch and the Hugging Face Hub keep theirs (TORCH_HOME, HF_HOME), then in the workspace; a
    download goes to the first where the user has named that place, otherwise to the workspace.
    """
    file, what = entry.file, f"{trunk} {entry.name}"
    if file is None:
        raise WeightsError(f"{what} has no weights that can be had: {_other_ways().removeprefix('or ')}")
    if file.repository:
        from pipeline.trunk.hub import hub_file  # an optional dependency

        path = hub_file(file, what, desk, timeout=DOWNLOAD_TIMEOUT, other_ways=_other_ways())
        return path, sha256_of(path)
    (filename,) = file.filenames
    places = [Path(torch.hub.get_dir()) / "checkpoints" / filename, desk.weights / filename]
    for path in places:
        if path.is_file():
            sha256 = sha256_of(path)
            if not sha256.startswith(file.sha256):
                raise WeightsError(
                    f"{path} is damaged: its SHA-256 starts with {sha256[:8]}, not {file.sha256}; remove it"
                )
            return path.absolute(), sha256
    path = places[0 if os.environ.get("TORCH_HOME") else 1].absolute()
    try:
        return path, _download(file.url, path, file.sha256)
    except (urllib.error.URLError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise WeightsError(
            f"weights {what} cannot be had ({reason}): {filename} is neither in {places[0].parent} nor in "
            f"{places[1].parent}; put it there from {file.url}, {_other_ways()}"
        ) from error


def _download(url: str, path: Path, prefix: str) -> str:
    """Fetch ``url`` into ``path``, whole or not at all; returns its SHA-256.

    torch.hub's own function waits without limit for a server that does not answer, hence this one.
    """
    make_folder(path.parent)
    digest = hashlib.sha256()
    with whole(path) as draft:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as source, draft.open("wb") as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
        if not digest.hexdigest().startswith(prefix):
            raise OSError(f"the download is damaged: its SHA-256 starts with {digest.hexdigest()[:8]}, not {prefix}")
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(
            f"weights file {path} cannot be read ({error.strerror}): give a .pth or .safetensors file that is there, "
            "a name such as IMAGENET1K_V2, or random:0"
        ) from error
    return digest.hexdigest()


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, with the common wrappers taken off."""
    try:
        loaded = _load(path)
    except Exception as error:  # what a damaged or hostile file raises cannot be listed; all of it means: not weights
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"{path} is not a state dict that can be read safely ({type(error).__name__}: {reason}); save it with "
            "torch.save(model.state_dict(), ...) or safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(k, str) for k in loaded):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict of tensors by name")
    state = dict(loaded)
    if all(k.startswith(_DATA_PARALLEL) for k in state):
        state = {k.removeprefix(_DATA_PARALLEL): v for k, v in state.items()}
    strange = [k for k, v in state.items() if not isinstance(v, torch.Tensor) or v.layout is not torch.strided]
    if strange:
        raise WeightsError(f"{path} is not a state dict of dense tensors: {_listed(strange)}")
    return state


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files: remarks on storage types, of no use to a reader
        # Only the newer, zipped kind of file can be mapped; torchvision's oldest are of the other kind.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _check_fit(state: Mapping[str, torch.Tensor], model: nn.Module, head: str, *, path: Path, trunk: str) -> None:
    """Raises WeightsError unless ``state`` has all that ``model`` has but for its classifier, ``head``."""
    wanted = model.state_dict()
    # Files from before BatchNorm counted its batches lack the counter, which an eval-mode network does not read.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked") and not k.startswith(head)]
    unexpected = [k for k in state if k not in wanted]
    shapes = [
        f"{k} {tuple(v.shape)} instead of {tuple(wanted[k].shape)}"
        for k, v in state.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    wrong = [
        f"{len(found)} {what} ({_listed(found)})"
        for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if wrong:
        raise WeightsError(
            f"{path} does not fit {trunk}: {'; '.join(wrong)}; give the {option('trunk')} that it was made with"
        )
    # Whole numbers are a quantised network's codes, which mean nothing without their scale.
    unreal = [k for k, v in state.items() if wanted[k].is_floating_point() and not v.is_floating_point()]
    if unreal:
        raise WeightsError(
            f"{path} has tensors that are not floating-point numbers: {_listed(unreal)}; save it as float32"
        )
    spoilt = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if spoilt:
        raise WeightsError(f"{path} has values that are not finite numbers: {_listed(spoilt)}; its training failed")


def _listed(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
