"""A folder of hostile files among good images: each is a listed failure, the job ends well, the good rows are right."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import extract, open_cache, predict
from pipeline.cli.main import main

Quick = dict[str, Any]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def of_many_scans() -> bytes:
    """A grey megapixel, drawn in 2,000 scans."""
    blob = encoded(Image.new("L", (1000, 1000), 90), "JPEG", progressive=True)
    last = blob.rindex(b"\xff\xda")
    return blob[:last] + blob[last:-2] * 2000 + blob[-2:]


def tiff_in_a_circle() -> bytes:
    """A directory that names itself as the next one, and has no image."""
    entry = struct.pack("<HHII", 256, 4, 1, 10)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


def tiff_of_strips() -> bytes:
    """A directory that claims a billion strips."""
    tags = [(256, 4, 1, 100), (257, 4, 1, 100), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1 << 30, 8)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + struct.pack("<I", 0)


CORPUS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "wide.png": ("too_large", lambda: png(89_478_485, 1, data=bytes(100))),
    "tall.png": ("too_large", lambda: png(1, 89_478_485, data=bytes(100))),
    "square.png": ("too_large", lambda: png(30_000, 30_000, data=bytes(100))),
    "largest.png": ("too_large", lambda: png((1 << 31) - 1, (1 << 31) - 1)),
    "canvas.gif": ("too_large", lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";"),
    "scans.jpg": ("too_large", of_many_scans),
    "nothing.png": ("unreadable", lambda: png(0, 0)),
    "text.png": ("unreadable", lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8 << 20), 9)))),
    "profile.png": ("unreadable", lambda: png(8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(8 << 20), 9)))),
    "checksum.png": ("unreadable", lambda: png(8, 8, data=bytes(200)).replace(b"IHDR", b"IHDX")),
    "short.png": ("truncated", lambda: png(64, 64, data=bytes(100))),
    "circle.tif": ("unreadable", tiff_in_a_circle),
    "strips.tif": ("unreadable", tiff_of_strips),
    "half.jpg": ("truncated", lambda: encoded(noise(64), "JPEG")[:900]),
    "half.webp": ("truncated", lambda: encoded(noise(64), "WEBP")[:900]),
    "half.gif": ("truncated", lambda: encoded(noise(64).convert("P"), "GIF")[:900]),
    "half.bmp": ("truncated", lambda: encoded(noise(64), "BMP")[:900]),
    "negative.bmp": ("truncated", lambda: b"BM" + struct.pack("<IIIIiiHHI", 54, 0, 54, 40, -5, -5, 1, 24, 0)),
    "empty.jpg": ("unreadable", lambda: b""),
    "page.jpg": ("unreadable", lambda: b"<html><body>404 not found</body></html>" * 9),
    "archive.png": ("unreadable", lambda: b"PK\x03\x04" + bytes(500)),
    "script.jpg": ("unreadable", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(r) file"),
}


@pytest.fixture(scope="module")
def corpus() -> dict[str, bytes]:
    return {f"hostile-{name}": make() for name, (_, make) in CORPUS.items()}


@pytest.fixture
def folder(photos: Path, tmp_path: Path, corpus: dict[str, bytes]) -> Path:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    for name, blob in corpus.items():
        (root / "bee" / name).write_bytes(blob)
    with (root / "bee" / "hostile-sparse.png").open("wb") as file:
        file.truncate(200 << 30)
    os.mkfifo(root / "bee" / "pipe.png")
    (root / "bee" / "zero.png").symlink_to("/dev/zero")
    (root / "bee" / "up").symlink_to(root)
    return root


def test_each_hostile_file_is_a_listed_failure_and_good_rows_are_what_they_are_alone(
    folder: Path, photos: Path, tmp_path: Path, quick: Quick
) -> None:
    made = extract(folder, workspace=tmp_path, out=tmp_path / "it.h5", max_failures=0.5, **quick)
    told = {e["id"]: e["kind"] for e in map(json.loads, (tmp_path / "it.failures.jsonl").read_text().splitlines())}
    expected = {f"bee/hostile-{name}": kind for name, (kind, _) in CORPUS.items()}
    assert told == {**expected, "bee/hostile-sparse.png": "too_large"}
    assert made.skipped["not a regular file"] == 2
    alone = open_cache(extract(photos, workspace=tmp_path, out=tmp_path / "alone.h5", **quick).cache)
    cache = open_cache(made.cache, verify=True)
    good = {item: row for row, item in enumerate(cache.ids) if b"hostile" not in item}
    assert len(good) == 60
    for row, item in enumerate(alone.ids):
        assert (cache.features[good[item]] == alone.features[row]).all()


def test_predicting_them_ends_well_and_says_what_is_wrong_with_each(
    folder: Path, workshop: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predict(workshop.head.run, folder / "bee", workspace=workshop.root)
    wrong = {Path(p.path).name: p.error for p in found if p.error is not None}
    assert len(found) == 60 + len(wrong) and set(wrong) == {f"hostile-{name}" for name in (*CORPUS, "sparse.png")}
    words = [
        "predict",
        str(workshop.head.run),
        str(folder / "bee"),
        "--workspace",
        str(workshop.root),
        "--format",
        "csv",
    ]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(found)
