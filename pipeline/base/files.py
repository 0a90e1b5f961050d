"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import HeadError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` in one step: whole, or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def unwritable(folder: Path, error: OSError) -> HeadError:
    """The error for a run that the system will not let us write."""
    return HeadError(
        f"cannot write in {folder}: {error.strerror or error}; free space, permit writing there, or choose --workspace"
    )


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes ``path`` when the block ends well, and is removed when not."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
