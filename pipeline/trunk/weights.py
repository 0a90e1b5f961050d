"""Weights: a name of torchvision's, a local file or a seed -> which bytes exactly, and a model that holds them.

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
import torchvision
from torch import nn

from pipeline.base.errors import WeightsError
from pipeline.base.files import whole
from pipeline.base.workspace import Workspace
from pipeline.trunk import identity
from pipeline.trunk.identity import WeightsInfo
from pipeline.trunk.surgery import build, fingerprint, freeze

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer, so that a machine without network says so soon
_CHUNK = 1 << 20
_WRAPPERS = ("state_dict", "model")
_DATA_PARALLEL = "module."  # DataParallel and DistributedDataParallel put it before every name
_OTHER_WAYS = "or give --weights FILE.pth, or --weights random:0"


def resolve_weights(spec: str, trunk: str, desk: Workspace) -> WeightsInfo:
    """Which weights ``spec`` means for ``trunk``, found or downloaded, hashed, and remembered for ``identity.recall``.

    ``spec`` is a name of torchvision's enum (``DEFAULT`` is resolved to the explicit name), the path of a ``.pth``,
    ``.pt`` or ``.safetensors`` state dict, or ``random:SEED``. A named file is looked for in torch.hub's checkpoints
    folder, then in the workspace's ``weights``, and downloaded only into the latter. The transform is the enum entry's
    own; a file and random weights get that of the trunk's best entry (``DEFAULT``: IMAGENET1K_V2 where torchvision has
    it).

    Raises:
        ConfigError: unknown trunk.
        WeightsError: unknown name, malformed seed, a missing or damaged file, or a download that failed.
    """
    identity.check_trunk(trunk)
    entries = torchvision.models.get_model_weights(trunk)
    entry: Any = entries.DEFAULT
    path: Path | None = None
    if spec.startswith("random:"):
        name = spec
        sha256 = fingerprint(build(trunk, num_classes=1000, seed=_seed(spec)))
    elif identity.is_file_spec(spec):
        name, path = "file", Path(os.path.abspath(spec))
        sha256 = _sha256(path)
    else:
        if spec not in entries.__members__:
            raise WeightsError(
                f"torchvision has no weights {spec!r} for {trunk}: choose from "
                f"{', '.join([*(e.name for e in entries), 'DEFAULT'])}, a .pth or .safetensors file, or random:SEED"
            )
        entry = entries[spec]
        name = entry.name
        path, sha256 = _named_file(entry.url, desk, f"{trunk} {name}")
    preset = entry.transforms()
    info = WeightsInfo(
        trunk=trunk,
        spec=spec,
        name=name,
        sha256=sha256,
        path=path,
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        pretrained=path is not None,
    )
    if name == "file":
        assert path is not None
        _from_file(path, trunk, with_head=False)  # what does not fit is said now, and never remembered
    identity.remember(info, desk)
    return info


def load_model(info: WeightsInfo, *, trunk: str) -> nn.Module:
    """torchvision's whole network with these weights, frozen; a file's own classifier becomes zeros.

    Raises:
        WeightsError: the bytes are not those of ``info.sha256``, or do not fit the trunk.
    """
    if info.path is None:
        model = build(trunk, num_classes=1000, seed=_seed(info.spec))
        if fingerprint(model) != info.sha256:
            raise WeightsError(
                f"{info.spec} gives other numbers here than recorded: another PyTorch or kind of processor; go on "
                "where it was made, or start afresh with another --workspace"
            )
        freeze(model)
        return model
    found = _sha256(info.path)
    if found != info.sha256:
        raise WeightsError(
            f"{info.path} has changed: SHA-256 {found[:12]}..., recorded as {info.sha256[:12]}...; bring back that file"
        )
    return _from_file(info.path, trunk, with_head=info.name != "file")


def _from_file(path: Path, trunk: str, *, with_head: bool) -> nn.Module:
    state = _read_state_dict(path)
    if not with_head:
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with torch.device("meta"):  # shapes only: drawing random numbers to overwrite them takes half a second
        model = build(trunk, num_classes=1000)
    _check_fit(state, model, path, trunk, with_head=with_head)
    zeros = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in model.state_dict().items() if k not in state}
    model.to_empty(device="cpu").load_state_dict({**zeros, **state})
    freeze(model)
    return model


def _seed(spec: str) -> int:
    found = re.fullmatch(r"random:(\d{1,18})", spec)
    if found is None:
        raise WeightsError(f"--weights {spec!r}: a seed is a whole number from 0, as in random:0")
    return int(found[1])


# -- files ------------------------------------------------------------------------------------------------------------


def _named_file(url: str, desk: Workspace, what: str) -> tuple[Path, str]:
    """The file of one of torchvision's names and its SHA-256, downloaded if it is nowhere."""
    filename = url.rsplit("/", 1)[1]
    # torchvision's names end in the first digits of the file's SHA-256.
    prefix = filename.rsplit("-", 1)[1].split(".")[0]
    places = [Path(torch.hub.get_dir()) / "checkpoints" / filename, desk.weights / filename]
    for path in places:
        if path.is_file():
            sha256 = _sha256(path)
            if not sha256.startswith(prefix):
                raise WeightsError(f"{path} is damaged: its SHA-256 starts with {sha256[:8]}, not {prefix}; remove it")
            return path.absolute(), sha256
    path = places[1].absolute()
    try:
        return path, _download(url, path, prefix)
    except (urllib.error.URLError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise WeightsError(
            f"weights {what} cannot be had ({reason}): {filename} is neither in {places[0].parent} nor in "
            f"{places[1].parent}; put it there from {url}, {_OTHER_WAYS}"
        ) from error


def _download(url: str, path: Path, prefix: str) -> str:
    """Fetch ``url`` into ``path``, whole or not at all; returns its SHA-256.

    torch.hub's own function waits without limit for a server that does not answer, hence this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with whole(path) as draft:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as source, draft.open("wb") as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
        if not digest.hexdigest().startswith(prefix):
            raise OSError(f"the download is damaged: its SHA-256 starts with {digest.hexdigest()[:8]}, not {prefix}")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
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
    # Whole numbers are a quantised network's codes, which mean nothing without their scale.
    unreal = [k for k, v in state.items() if not v.is_floating_point() and not k.endswith("num_batches_tracked")]
    if unreal:
        raise WeightsError(
            f"{path} has tensors that are not floating-point numbers: {_listed(unreal)}; save it as float32"
        )
    return state


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files: remarks on storage types, of no use to a reader
        # Only the newer, zipped kind of file can be mapped; torchvision's oldest are of the other kind.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _check_fit(state: Mapping[str, torch.Tensor], model: nn.Module, path: Path, trunk: str, *, with_head: bool) -> None:
    wanted = model.state_dict()
    # Files from before BatchNorm counted its batches lack the counter, which an eval-mode network does not read.
    missing = [
        k
        for k in wanted
        if k not in state and not k.endswith("num_batches_tracked") and (with_head or not k.startswith("fc."))
    ]
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
        raise WeightsError(f"{path} does not fit {trunk}: {'; '.join(wrong)}; give the --trunk that it was made with")
    spoilt = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if spoilt:
        raise WeightsError(f"{path} has values that are not finite numbers: {_listed(spoilt)}; its training failed")


def _listed(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
