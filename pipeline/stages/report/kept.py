"""Arrays that take a while to compute: kept among the workspace's reports, so that a second page has them at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.numpy

from pipeline.base.files import make_folder, write_bytes
from pipeline.base.workspace import Workspace
from pipeline.runs.tensors import Tensors, read_tensors

T = TypeVar("T", bound=Tensors)


def kept(path: Path, kind: type[T], compute: Callable[[], T], desk: Workspace) -> T:
    """The arrays in the file at ``path``, which is named by all that decides them; computed where it is not there yet.

    Where they cannot be kept, that is told, and the page has them all the same.

    Raises:
        HeadError: the file is damaged.
    """
    if path.exists():
        return read_tensors(path, kind, "delete it, and it is computed again")
    found = compute()
    arrays = {name: np.ascontiguousarray(array) for name, array in vars(found).items()}
    try:
        make_folder(path.parent)
        write_bytes(path, safetensors.numpy.save(arrays))
    except OSError as error:
        desk.watch.say(f"what was computed for the page is not kept: {path.parent}: {error.strerror or error}")
    return found
