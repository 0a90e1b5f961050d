"""What a file says of itself, unchecked and in a millisecond: which of hundreds of files is worth opening.

Whoever takes something from a file that was chosen so opens it, with all checks; one that says nothing sensible is
not chosen.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import CacheError
from pipeline.store.check import UNREADABLE, file_size


def digests_at(path: Path, key: str) -> NDArray[np.uint8] | None:
    """(N, 32) uint8, the digests that the cache at ``path`` says it has, finished or not; None if it is not of that
    key.
    """
    try:
        size = file_size(path)
        with h5py.File(path, "r") as file:
            told = file.attrs.get("key")
            if (told.decode() if isinstance(told, bytes) else told) != key:
                return None
            digests = file["/items/digest"]
            if digests.chunks is not None or digests.nbytes > size:  # it would unfold to more than there is
                return None
            found: NDArray[np.uint8] = digests[()]
    except (CacheError, *UNREADABLE):
        return None
    return found if found.shape[1:] == (32,) and found.dtype == np.uint8 else None
