"""What a machine tells of itself, also where the system lacks a way to ask."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base import machine


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert machine.cores() == 3


def test_the_cores_are_counted_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert machine.cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_the_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}
    monkeypatch.setattr(os, "sysconf", said.__getitem__, raising=False)
    assert machine.memory_bytes() == 4 << 30


def _unknown_name(_: str) -> int:
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("lacking", ["the function", "the name"])
def test_the_memory_is_asked_of_sysctl_where_sysconf_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        asked.append(words)
        return SimpleNamespace(stdout="17179869184\n")

    if lacking == "the function":
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", _unknown_name)
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.memory_bytes() == 16 << 30
    assert asked == [["sysctl", "-n", "hw.memsize"]]


def test_a_memory_that_nobody_tells_is_not_invented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.memory_bytes() is None
    assert machine.hardware()["memory_bytes"] is None


@pytest.mark.parametrize("told", ["", "processor : 0\nmodel name\t: Cray-1 @ 80 MHz \nmodel name\t: two\n"])
def test_the_processor_has_a_name_on_every_system(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(machine, "cpu_description", lambda: told)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert machine.processor() == ("Cray-1 @ 80 MHz" if told else "arm")


def test_versions_leave_out_what_is_not_installed_and_take_more_on_request() -> None:
    found = machine.versions()
    assert {"python", "torch", "numpy", "h5py"} <= set(found)
    assert "pytest" not in found
    more = machine.versions("pytest", "no-such-package")
    assert set(more) == {*found, "pytest"}
