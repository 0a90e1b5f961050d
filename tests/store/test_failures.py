"""The words of failed images, through kills and awkward names."""

from __future__ import annotations

from pathlib import Path

from pipeline.store import Failure, append_failures, failures_path, read_failures, write_failures


def test_names_of_any_bytes_round_trip_and_the_last_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    odd = b"a\n\xff/\xf0\x9f\x90\x9d.png"
    append_failures(path, [Failure(odd, "truncated", "ends early", b"\1" * 32)])
    append_failures(
        path, [Failure(odd, "unreadable", "no image", b"\2" * 32), Failure(b"b", "vanished", "gone", bytes(32))]
    )
    found = read_failures(path)
    assert found[odd] == Failure(odd, "unreadable", "no image", b"\2" * 32)
    assert set(found) == {odd, b"b"}


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    append_failures(path, [Failure(b"a", "truncated", "ends early", b"\1" * 32)])
    with path.open("a") as file:
        file.write('{"id": "b", "kin')
    assert set(read_failures(path)) == {b"a"}


def test_no_failures_leave_no_file(tmp_path: Path) -> None:
    path = failures_path(tmp_path / "x.h5")
    assert path.name == "x.failures.jsonl"
    write_failures(path, [Failure(b"a", "truncated", "ends early", b"\1" * 32)])
    assert path.exists()
    write_failures(path, [])
    assert not path.exists()
