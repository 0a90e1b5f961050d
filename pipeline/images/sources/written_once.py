"""Folders of images that this package writes itself, once, so that they can be read like anybody's folder.

Knows temporary folders and renames. Knows nothing of the images inside.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.base.files import move, writing


def written_once(target: Path, write: Callable[[Path], None]) -> Path:
    """``target``, made by ``write(folder)`` if it is not there yet; the rename at the end is the mark 'complete'.

    Raises:
        DataError: the place cannot be written.
    """
    if target.is_dir():
        return target
    with writing(target.parent, DataError):
        target.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp gives 0700; the caller's own umask is what a shared workspace should have
        outer = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            partial = outer / "partial"
            partial.mkdir()
            write(partial)
            move(partial, target)
        except OSError:
            if not target.is_dir():  # otherwise another process has written the same images first
                raise
        finally:
            shutil.rmtree(outer, ignore_errors=True)
    return target
