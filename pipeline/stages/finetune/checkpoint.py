"""Where a fine-tuning stands, on disk: killed at any moment, the same command goes on from there, bit for bit.

::

    cache/tuning/0123456789abcdef/     named by a hash of settings, images, labels and head
        lock                           held by the process that is at it
        state.json                     how far, the trace, and which files below belong to it: written last
        last-00000042.safetensors      what learns and the optimiser's memory after 42 steps
        best-00000034.safetensors      what learns as it scored best on val so far

The tensors are on the disk before ``state.json`` names them, and those it named before go afterwards: at every moment
one whole state is there. The folder goes when the run is published.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import safetensors
import safetensors.torch
import torch

from pipeline.base.errors import HeadError
from pipeline.base.files import locked, make_folder, remove, write_bytes, write_json, writing
from pipeline.base.records import parse, read_file, reason
from pipeline.base.schema import Count, Malformed, Rule, Sha256
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace

Tensors = Mapping[str, torch.Tensor]

STATE = "state.json"
LOCK = "lock"
FORMAT_VERSION = 1


def state_folder(desk: Workspace, identity: Mapping[str, Any]) -> Path:
    """The folder of the training that ``identity`` (plain JSON values) decides."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return desk.tuning / hashlib.sha256(text.encode()).hexdigest()[:16]


class _File(TypedDict):
    name: Annotated[str, Rule("a file of tensors", re.compile(r"(last|best)-\d+\.safetensors").fullmatch)]
    sha256: Sha256


class Kept(TypedDict):
    """What stands in ``state.json`` beside how far the training is, which its writer knows."""

    format_version: Literal[1]
    step: Count
    files: Annotated[dict[str, _File], Rule("an object with last", lambda files: "last" in files)]


class Checkpoint:
    """The state kept in ``folder``; only one process writes it, any number read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training the same at the same time.

        Raises:
            HeadError: one does, or the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            with writing(self.folder):
                make_folder(self.folder)
                busy = HeadError(
                    f"another process is at this very fine-tuning ({self.folder}): wait for it, or stop it and run "
                    "again"
                )
                held.enter_context(locked(self.folder / LOCK, busy=busy))
            try:
                yield
            finally:
                if self.folder.exists() and [p.name for p in self.folder.iterdir()] == [LOCK]:
                    shutil.rmtree(self.folder, ignore_errors=True)  # nothing was kept

    def write(self, state: Mapping[str, Any], last: Tensors, best: Tensors | None) -> None:
        """Replace the state in one step; ``best`` None keeps the best that is there.

        Raises:
            HeadError: the disk is full or the folder cannot be written; the state before is still there.
        """
        with writing(self.folder):
            before = self.read()
            files = {"last": self._save("last", state["step"], last)}
            if best is not None:
                files["best"] = self._save("best", state["step"], best)
            elif before and "best" in before["files"]:
                files["best"] = before["files"]["best"]
            write_json(self.folder / STATE, {"format_version": FORMAT_VERSION, **state, "files": files})
            named = {record["name"] for record in files.values()}
            for path in self.folder.glob("*.safetensors*"):
                if path.name not in named:
                    remove(path)

    def _save(self, kind: str, step: int, tensors: Tensors) -> _File:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        path = self.folder / f"{kind}-{step:08d}.safetensors"
        write_bytes(path, data)
        return {"name": path.name, "sha256": hashlib.sha256(data).hexdigest()}

    def read(self) -> Kept | None:
        """The state, or None where there is none.

        Raises:
            HeadError: it is damaged or of another format version.
        """
        path = self.folder / STATE
        try:
            return parse(read_file(path), Kept)
        except FileNotFoundError:
            return None
        except (OSError, Malformed) as error:
            raise self.damaged(reason(error)) from error

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        """The ``last`` or ``best`` tensors of the state, their checksum verified.

        Raises:
            HeadError: they are missing or damaged.
        """
        state = self.read()
        record = None if state is None else state["files"].get(kind)
        if record is None:
            raise self.damaged(f"no {kind} tensors are named")
        name = record["name"]
        try:
            data = read_file(self.folder / name, None)
            if hashlib.sha256(data).hexdigest() != record["sha256"]:
                raise self.damaged("its bytes are not those that were written", name)
            return dict(safetensors.torch.load(data))
        except (OSError, Malformed) as error:
            raise self.damaged(reason(error), name) from error
        except safetensors.SafetensorError as error:
            raise self.damaged(error, name) from error

    def damaged(self, why: object, name: str = STATE) -> HeadError:
        """The error of a file of the state that is not what it was."""
        return HeadError(f"{self.folder / name} cannot be used ({why}): start over with {option('fresh', True)}")

    def digest(self) -> str | None:
        """The SHA-256 of what ``state.json`` says, None where there is none: the run that comes of it keeps it.

        Raises:
            HeadError: it cannot be read.
        """
        try:
            return hashlib.sha256(read_file(self.folder / STATE)).hexdigest()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.damaged(reason(error)) from error

    def clear(self) -> None:
        """Forget the state, ``state.json`` first, so that no half of one is ever found; the lock stays.

        Raises:
            HeadError: the folder cannot be written.
        """
        with writing(self.folder):
            remove(self.folder / STATE)
            self._remove_others()

    def remove(self) -> None:
        """Forget the state, of which a run has come, and its folder.

        ``state.json`` goes last: as long as it is there, its digest leads to the run.

        Raises:
            HeadError: the folder cannot be written.
        """
        with writing(self.folder):
            self._remove_others()
            remove(self.folder / STATE)
            shutil.rmtree(self.folder)

    def _remove_others(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (LOCK, STATE):
                remove(path)
