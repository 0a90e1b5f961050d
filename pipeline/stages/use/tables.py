"""Tables of many rows as files: npz, csv, parquet, written a chunk at a time.

Knows columns and formats; nothing of caches or runs. An id that is not UTF-8 keeps its bytes in npz (as Python's
surrogates) and csv; in parquet, whose texts are UTF-8, they are escapes.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.base.items import ROW_COLUMNS
from pipeline.base.watch import Tracker
from pipeline.stages.use.results import class_columns

NAMES = 65_536  # ids that are handled at once where no values go with them


@dataclass(frozen=True)
class About:
    """What a table of ``rows`` rows holds besides names: ``width`` features, or the classes' probabilities."""

    kind: str
    dtype: np.dtype[Any]
    width: int
    classes: tuple[str, ...]
    rows: int

    @property
    def columns(self) -> list[str]:
        """The values' names."""
        if self.kind == "features":
            return [f"f{i}" for i in range(self.width)]
        return class_columns(self.classes, ROW_COLUMNS)


@dataclass(frozen=True, eq=False)
class Names:
    """A few rows' ids, labels (m,) int64, -1 where there is none, and the split that they are all of."""

    ids: list[str]
    labels: NDArray[np.int64]
    split: str

    def classes(self, about: About) -> list[str | None]:
        """Their classes' names."""
        return [about.classes[label] if label >= 0 else None for label in self.labels.tolist()]


Chunks = Callable[[], Iterable[tuple[Names, NDArray[Any]]]]
NamesOf = Callable[[], Iterable[Names]]


def write_npz(path: Path, about: About, names: NamesOf, chunks: Chunks, tracker: Tracker) -> None:
    """Members ``id label class split classes``, and ``features`` or ``probabilities``: all load without pickle."""
    longest = max((len(one) for part in names() for one in part.ids), default=1)
    texts = np.array(about.classes or ("",), dtype=np.str_)
    width = max(1, texts.dtype.itemsize // 4)

    def values() -> Iterator[NDArray[Any]]:
        for _, part in chunks():
            yield part
            tracker.advance(len(part))

    n = about.rows
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        _member(archive, "id", f"<U{max(1, longest)}", (n,), (np.array(part.ids) for part in names()))
        _member(archive, "label", "<i8", (n,), (part.labels for part in names()))
        _member(archive, "class", f"<U{width}", (n,), (np.array([c or "" for c in p.classes(about)]) for p in names()))
        _member(archive, "split", "<U5", (n,), (np.full(len(part.ids), part.split) for part in names()))
        _member(archive, "classes", f"<U{width}", (len(about.classes),), [np.array(about.classes, f"<U{width}")])
        _member(archive, about.kind, about.dtype.newbyteorder("<").str, (n, about.width), values())


def _member(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]
) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


def write_csv(path: Path, about: About, names: NamesOf, chunks: Chunks, tracker: Tracker) -> None:  # noqa: ARG001
    """Columns ``id label class split``, then ``f0 f1 ...`` or the classes' names; figures with all their digits."""
    digits = {"float16": 5, "float32": 9}.get(about.dtype.name, 17)  # what brings the same number back
    line = ",".join([f"%.{digits}g"] * about.width) + "\n"
    with path.open("wb") as file:
        file.write(_cells([*ROW_COLUMNS, *about.columns]) + b"\n")
        for part, values in chunks():
            for one, label, name, figures in zip(
                part.ids, part.labels.tolist(), part.classes(about), values.tolist(), strict=True
            ):
                file.write(_cells([one, label if label >= 0 else "", name or "", part.split]) + b",")
                file.write((line % tuple(figures)).encode("ascii"))
            tracker.advance(len(part.ids))


def _cells(cells: list[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue().encode("utf-8", "surrogateescape")


def write_parquet(path: Path, about: About, names: NamesOf, chunks: Chunks, tracker: Tracker) -> None:  # noqa: ARG001
    """Columns ``id label class split``, then ``features`` (a list of float32) or a column for each class."""
    import pyarrow
    import pyarrow.parquet

    texts = [pyarrow.field(name, pyarrow.string()) for name in ("class", "split")]
    fields = [pyarrow.field("id", pyarrow.string()), pyarrow.field("label", pyarrow.int64()), *texts]
    if about.kind == "features":
        kind = pyarrow.list_(pyarrow.float32(), about.width)
        fields.append(pyarrow.field("features", kind))
    else:
        fields += [pyarrow.field(_utf8(name), pyarrow.float64()) for name in about.columns]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part, values in chunks():
            labels = [label if label >= 0 else None for label in part.labels.tolist()]
            named = [None if name is None else _utf8(name) for name in part.classes(about)]
            columns: list[Any] = [list(map(_utf8, part.ids)), labels, named, [part.split] * len(part.ids)]
            if about.kind == "features":
                columns.append(list(values.astype(np.float32)))
            else:
                columns += list(np.ascontiguousarray(values.T))
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            tracker.advance(len(part.ids))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


WRITERS: dict[str, Callable[[Path, About, NamesOf, Chunks, Tracker], None]] = {
    ".npz": write_npz,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
