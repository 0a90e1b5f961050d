"""Folders of images that this package writes itself, once, so that they can be read like anybody's folder.

Knows drafts and renames. Knows nothing of the images inside.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.base.files import make_folder, whole_folder, writing


def written_once(target: Path, write: Callable[[Path], None]) -> Path:
    """``target``, made by ``write(folder)`` if it is not there yet; the rename at the end is the mark 'complete'.

    Raises:
        DataError: the place cannot be written.
    """
    if target.is_dir():
        return target
    with writing(target.parent, DataError):
        make_folder(target.parent)
        try:
            with whole_folder(target) as folder:
                write(folder)
                os.sync()  # all of them at once: a set may have 100,000 files
        except OSError:
            if not target.is_dir():  # otherwise another process has written the same images first
                raise
    return target
