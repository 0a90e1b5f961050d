"""Makers of small images, files and listings for this room's tests."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import Files, formats
from pipeline.images.listing import Item, Listing, assemble


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """plant("a/b.png", ...) makes those files, each with its own name as content, under a new folder."""

    def make(*names: str | bytes, under: str = "source") -> Path:
        root = tmp_path / under
        root.mkdir(exist_ok=True)
        for name in names:
            path = os.path.join(bytes(root), os.fsencode(name))
            if path.endswith(b"/"):
                os.makedirs(path, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(os.fsencode(name))
            os.utime(path, ns=(10**18, 10**18))  # long ago: the time of a new file is not relied on
        return root

    return make


@pytest.fixture
def all_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every package were there that a format needs."""
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS)


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """noise(height, width, channels) gives reproducible uint8 pixels; smooth enough for JPEG to keep."""

    def make(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)

    return make


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """encode(image, "PNG", **options) gives the file's bytes."""

    def make(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        if kind == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()  # Pillow's save knows the format from then on
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def listing_of() -> Callable[..., Listing]:
    """listing_of([(class or None, split), ...]) gives a listing of made-up files in that order of ids."""

    def make(rows: list[tuple[str | None, int]], names: list[bytes] | None = None) -> Listing:
        ids = names or [b"%06d.png" % i for i in range(len(rows))]
        items = [Item(id, label, split, 1, 1) for id, (label, split) in zip(ids, rows, strict=True)]
        return assemble(items, source="made", name="made", images=Files("/made"), skipped={})

    return make
