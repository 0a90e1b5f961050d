"""Digests of files."""

from __future__ import annotations

import hashlib
import os

import pytest

from pipeline.images import Files, digest_many


def test_digest_is_the_sha256_of_the_files_bytes(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert digest_many(Files(bytes(tmp_path)), [b"x"], workers=1).tobytes() == hashlib.sha256(content).digest()


def test_many_digests_come_in_the_order_of_the_ids(tmp_path):
    ids = []
    for i in range(150):
        (tmp_path / str(i)).write_text(str(i))
        ids.append(b"%d" % i)
    digests = digest_many(Files(bytes(tmp_path)), ids[::-1], workers=4)
    assert digests.shape == (150, 32)
    assert [row.tobytes() for row in digests] == [hashlib.sha256(str(i).encode()).digest() for i in range(149, -1, -1)]


def test_files_that_cannot_be_read_get_zeros_and_harm_no_other(tmp_path):
    (tmp_path / "x").write_text("x")
    digests = digest_many(Files(bytes(tmp_path)), [b"gone", b".", b"x"], workers=1)
    assert not digests[:2].any()
    assert digests[2].tobytes() == hashlib.sha256(b"x").digest()


def test_progress_counts_every_file_once(tmp_path):
    (tmp_path / "x").write_text("x")
    seen: list[int] = []
    digest_many(Files(bytes(tmp_path)), [b"x"] * 100, workers=2, progress=seen.append)
    assert sum(seen) == 100


def test_no_ids_give_no_digests():
    assert digest_many(Files(""), [], workers=2).shape == (0, 32)


def test_an_error_in_progress_is_not_swallowed(tmp_path):
    (tmp_path / "x").write_text("x")

    def stop(_n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digest_many(Files(bytes(tmp_path)), [b"x"] * 1000, workers=2, progress=stop)
