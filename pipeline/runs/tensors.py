"""Files of arrays that a run keeps beside its records: believed only as far as their types and shapes are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import safetensors.numpy

from pipeline.base.errors import HeadError
from pipeline.base.records import read_file
from pipeline.base.schema import Malformed


class Tensors(Protocol):
    """A dataclass of arrays, by their names in the file."""

    def fits(self) -> bool:
        """Whether these are arrays of such types and shapes; what is read from a file need not be."""


T = TypeVar("T", bound=Tensors)


def read_tensors(path: Path, kind: type[T], cure: str) -> T:
    """The arrays in the file at ``path``.

    Raises:
        HeadError: there is none, or it is damaged; ``cure`` is the message's end.
    """
    try:
        arrays: dict[str, Any] = safetensors.numpy.load(read_file(path, None))
        found = kind(**arrays)
        if not found.fits():
            raise Malformed("its tensors are not of one number of rows, or of other types")
    except (OSError, TypeError, Malformed, safetensors.SafetensorError) as error:
        raise HeadError(f"{path} is damaged ({error}): {cure}") from error
    return found
