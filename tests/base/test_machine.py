"""What a machine tells of itself, also where the system lacks a way to ask."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(("here", "share"), [("1", 8), ("2", 4), ("3", 2), ("16", 1)])
def test_the_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, here: str, share: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert (machine.cores(), machine.cores_in_all(), machine.hardware()["cores"]) == (share, 8, 8)


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


CARD = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: CARD)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(
        machine, "_driver_description", lambda: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri 2025\n"
    )


def test_a_gpu_tells_what_decides_its_numbers(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"name": "NVIDIA H200", "capability": "9.0", "cuda": "12.8", "cudnn": "91002", "driver": "570.86.15"}
    assert machine.gpu("cuda") == told
    there = machine.hardware()
    assert [there[name] for name in ("gpu", "cuda", "cudnn")] == ["NVIDIA H200", "12.8", "91002"]
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.2.4")
    monkeypatch.setattr(machine, "_driver_description", lambda: "")
    assert machine.gpu("cuda") == {"name": "NVIDIA H200", "capability": "9.0", "rocm": "6.2.4", "cudnn": "91002"}


def test_without_a_gpu_there_is_nothing_to_tell_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [machine.hardware()[name] for name in ("gpu", "cuda", "cudnn")] == [None, None, None]


def test_a_driver_that_is_broken_is_recorded_as_such(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("CUDA error: out of\n memory")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fails)
    assert machine.hardware()["gpu"] == "cannot be asked: CUDA error: out of memory"
