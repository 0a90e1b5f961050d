"""What a device has, what it lacks and in which words, and what `auto` makes of it; processors and GPUs are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.base import precision as room
from pipeline.base.errors import ConfigError
from pipeline.base.precision import LEARNING, PRECISIONS, bits_of_weights, choose_precision, lacks

X86 = "processor\t: 0\nmodel name\t: Made\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni{more}\nbugs\t\t:\n"


def processor(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(room, "cpu_description", lambda: told)


@pytest.mark.parametrize(
    ("told", "there"),
    [
        (X86.format(more=""), False),
        (X86.format(more=" avx512_bf16"), True),
        (X86.format(more=" amx_bf16 amx_int8"), True),
        (X86.format(more=" avx512_bf16x"), False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
    ],
)
def test_a_processor_is_known_by_its_instructions(monkeypatch: pytest.MonkeyPatch, told: str, there: bool) -> None:
    processor(monkeypatch, told)
    assert (lacks("bfloat16", "cpu") is None) == there
    assert choose_precision("auto", "cpu") == ("bfloat16" if there else "float32")
    assert lacks("float32", "cpu") is None


@pytest.mark.parametrize("there", [True, False])
def test_where_there_is_no_linux_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    processor(monkeypatch, "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": there, "neon": True}, raising=False)
    assert (lacks("bfloat16", "cpu") is None) == there
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older PyTorch
    assert lacks("bfloat16", "cpu") is not None


def test_what_is_only_emulated_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, X86.format(more=""))
    with pytest.raises(ConfigError) as caught:
        choose_precision("bfloat16", "cpu")
    assert str(caught.value) == (
        "precision='bfloat16' needs a processor that has it in hardware (AVX512-BF16, AMX or Arm's BF16), or a GPU: "
        "give precision='float32', or precision='auto', which takes what the device has; force_precision=True computes "
        "it all the same, many times as slowly"
    )
    assert choose_precision("bfloat16", "cpu", forced=True) == "bfloat16"
    assert choose_precision("auto", "cpu", forced=True) == "float32"  # it is the fastest that is asked for
    with pytest.raises(ConfigError, match="take|needs"):
        choose_precision("bfloat16", "mps", forced=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    asked: list[Any] = []

    class Device:
        def __init__(self, name: str) -> None:
            asked.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def supported(*, including_emulation: bool) -> bool:
        assert not including_emulation
        return there

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device=Device, is_bf16_supported=supported))
    assert (lacks("bfloat16", "cuda:1") is None) == there
    assert asked == ["cuda:1"]
    assert choose_precision("auto", "cuda:1") == ("bfloat16" if there else "float32")
    if not there:
        with pytest.raises(ConfigError, match="needs a GPU that has it in hardware: give precision='float32'"):
            choose_precision("bfloat16", "cuda:1", forced=True)


def test_float32_is_there_on_every_device() -> None:
    assert [choose_precision("float32", device) for device in ("cpu", "cuda", "mps")] == ["float32"] * 3
    assert PRECISIONS[0] == "float32"


def test_int8_is_for_cpus_and_only_to_run_in() -> None:
    assert lacks("int8", "cpu") is None
    for device in ("cuda", "mps"):
        with pytest.raises(ConfigError, match="precision='int8' needs a CPU: give precision='float32'"):
            choose_precision("int8", device)
    assert set(LEARNING) < set(PRECISIONS) and "int8" not in LEARNING


@pytest.mark.parametrize(
    ("machine", "told", "bits"),
    [
        ("x86_64", "flags : avx2 avx512f", 7),
        ("x86_64", "flags : avx2 avx_vnni", 8),
        ("AMD64", "flags : avx512_vnni", 8),
        ("aarch64", "Features : fp asimd", 8),
    ],
)
def test_weights_have_the_bits_whose_sums_do_not_overflow(
    monkeypatch: pytest.MonkeyPatch, machine: str, told: str, bits: int
) -> None:
    processor(monkeypatch, told)
    monkeypatch.setattr("pipeline.base.precision.platform.machine", lambda: machine)
    assert bits_of_weights() == bits
