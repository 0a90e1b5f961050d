"""Bytes that are no record are one line, whatever they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import HeadError
from pipeline.base.records import DEEPEST, parse, parse_lines, read_file, read_record
from pipeline.base.schema import Malformed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 100_000, f"it is nested deeper than {DEEPEST}"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), f"it is nested deeper than {DEEPEST}"),
        (b'{"a": 1, "a": 1}', "it names a field twice"),
        (b"\xff", "it is not JSON .*codec"),
        (b"\xef\xbb\xbf{}", "it is not JSON .*Expecting value"),
        (b"", "it is not JSON"),
        (b"{}{}", "it is not JSON .*Extra data"),
        (b"1" * 5000, "it is not JSON .*4300 digits"),
        (b"[1e999]", "0 is inf: a finite number is needed"),
        (b'{"a": -Infinity}', "a is -inf: a finite number is needed"),
    ],
)
def test_what_is_no_record_is_named(data: bytes, words: str) -> None:
    with pytest.raises(Malformed, match=words) as caught:
        parse(data, Any)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_as_deep_as_allowed_is_read() -> None:
    found: Any = parse(b"[" * DEEPEST + b"]" * DEEPEST, list[Any])
    for _ in range(DEEPEST - 1):
        (found,) = found
    assert found == []


def test_only_regular_files_of_a_records_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="it is (a folder|not a regular file)"):
            read_file(place)
    (tmp_path / "large").write_bytes(b"12345")
    assert read_file(tmp_path / "large", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, the limit is 4"):
        read_file(tmp_path / "large", 4)


def test_an_error_names_the_file_the_field_and_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(HeadError, match="a.json: No such file or directory; train again"):
        read_record(path, dict[str, int], HeadError, "train again")
    path.write_text('{"n": "x"}')
    with pytest.raises(HeadError, match="a.json: n is 'x': a whole number is needed; train again"):
        read_record(path, dict[str, int], HeadError, "train again")
    path.write_text('{"n": 3}')
    assert read_record(path, dict[str, int], HeadError, "train again") == {"n": 3}


def test_lines_that_are_no_records_are_left_out() -> None:
    data = b'{"n": 1}\n{"n": "x"}\n[]\n\n\xff\n' + b"[" * 10_000 + b'\n{"n": 2}\n{"n": '
    assert list(parse_lines(data, dict[str, int])) == [{"n": 1}, {"n": 2}]
