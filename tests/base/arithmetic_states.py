"""What a process has set of the arithmetic before ``arithmetic`` is entered, and what is set within and afterwards.

``python arithmetic_states.py`` prints JSON: for each state of STATES, or for that of the environment alone where the
override (OVERRIDE) is there, the settings at each moment, or the error. PyTorch is imported once; each state
is a forked child's. A warning is an error, but where the state itself is made.
"""

from __future__ import annotations

import functools
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.base.arithmetic import arithmetic

backends: Any = torch.backends
OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
OPERATIONS = ("cudnn.conv", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul")  # that are held
NEW = ("backends", "cudnn", "mkldnn", *OPERATIONS, "cudnn.rnn", "mkldnn.rnn")


def at(name: str) -> Any:
    """The object that has this ``fp32_precision``."""
    found = backends
    for part in () if name == "backends" else name.split("."):
        found = getattr(found, part)
    return found


def new(**values: str) -> Callable[[], None]:
    """Sets ``fp32_precision``; a dot is written as two underscores."""

    def make() -> None:
        for name, value in values.items():
            at(name.replace("__", ".")).fp32_precision = value

    return make


def legacy(*, matmul: bool | None = None, cudnn: bool | None = None) -> Callable[[], None]:
    """Sets ``allow_tf32``."""

    def make() -> None:
        if matmul is not None:
            backends.cuda.matmul.allow_tf32 = matmul
        if cudnn is not None:
            backends.cudnn.allow_tf32 = cudnn

    return make


def matmul(precision: str) -> Callable[[], None]:
    """Sets ``set_float32_matmul_precision``."""
    return lambda: torch.set_float32_matmul_precision(precision)


def cudnn_by_the_clock() -> None:
    """As programs do that want speed."""
    backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.enabled = True, False, False


STATES: dict[str, tuple[Callable[[], None], ...]] = {
    "default": (),
    "high": (matmul("high"),),
    "medium": (matmul("medium"),),
    "legacy products": (legacy(matmul=True),),
    "legacy, no cuDNN": (legacy(cudnn=False),),
    "legacy, both": (legacy(matmul=True, cudnn=True),),
    "medium and legacy": (matmul("medium"), legacy(cudnn=False)),
    "all tf32": (new(backends="tf32"),),
    "all ieee": (new(backends="ieee"),),
    "cudnn tf32": (new(cudnn="tf32"),),
    "cudnn ieee": (new(cudnn="ieee"),),
    "convolutions ieee": (new(cudnn__conv="ieee"),),
    "convolutions inherit": (new(cudnn__conv="none"),),
    "convolutions inherit tf32": (new(cudnn__conv="none", backends="tf32"),),
    "products tf32": (new(cuda__matmul="tf32"),),
    "products ieee": (new(cuda__matmul="ieee"),),
    "mkldnn bf16": (new(mkldnn__matmul="bf16", mkldnn__conv="bf16"),),
    "mkldnn tf32": (new(mkldnn__matmul="tf32"),),
    "all tf32, convolutions ieee": (new(backends="tf32", cudnn__conv="ieee"),),
    "all ieee, products tf32": (new(backends="ieee", cuda__matmul="tf32"),),
    "all three of the new": (new(backends="tf32", cudnn__conv="ieee", cuda__matmul="tf32"),),
    "medium, then all ieee": (matmul("medium"), new(backends="ieee")),
    "legacy, then new": (legacy(matmul=True, cudnn=False), new(backends="tf32")),
    "new, then legacy": (new(cudnn__conv="ieee"), legacy(matmul=True)),
    "new, then high": (new(cuda__matmul="ieee"), matmul("high")),
    "by the clock": (cudnn_by_the_clock,),
}
OLD = ("default", "high", "medium", "legacy products", "legacy, no cuDNN", "legacy, both", "medium and legacy")


def settings() -> dict[str, Any]:
    """Everything that there is to read, an error's words where reading is refused."""
    asked: dict[str, Callable[[], Any]] = {
        **{name: lambda name=name: at(name).fp32_precision for name in NEW},  # type: ignore[misc]
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "cuda.matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
        **{name: lambda name=name: getattr(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")},  # type: ignore[misc]
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except RuntimeError as error:
            found[name] = str(error)[:60]
    return found


def moments() -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings before, within and after each way to hold them."""
    yield "before", settings()
    for precision in ("float32", "tf32", "bfloat16", "int8"):
        with arithmetic(precision):
            yield precision, settings()
        yield f"after {precision}", settings()
    with arithmetic("tf32"):
        with arithmetic():
            yield "float32 in tf32", settings()
        yield "tf32 again", settings()
    yield "after both", settings()
    try:
        with arithmetic("tf32"):
            raise KeyError
    except KeyError:
        yield "after an error", settings()


def entered(made: tuple[Callable[[], None], ...]) -> dict[str, dict[str, Any]]:
    """The settings by moment; last, what a parent changed afterwards reaches."""
    with _allowing():
        for make in made:
            make()
    found = dict(moments())
    backends.fp32_precision = "tf32" if found["before"]["backends"] != "tf32" else "ieee"
    return {**found, "parent changed": settings()}


def untouched(made: tuple[Callable[[], None], ...]) -> dict[str, dict[str, Any]]:
    """The same change of the parent where ``arithmetic`` never was."""
    with _allowing():
        for make in made:
            make()
    backends.fp32_precision = "tf32" if backends.fp32_precision != "tf32" else "ieee"
    return {"parent changed": settings()}


def as_before_2_9(made: tuple[Callable[[], None], ...]) -> dict[str, tuple[str, bool]]:
    """The two settings of PyTorch 2.6 to 2.8, which have no ``fp32_precision``, by moment."""
    for make in made:
        make()
    del type(backends.cudnn).conv

    def two() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32

    found = {"before": two()}
    with arithmetic():
        found["float32"] = two()
        with arithmetic("tf32"):
            found["tf32"] = two()
        found["float32 again"] = two()
    return {**found, "after": two()}


@contextmanager
def _allowing() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_a_child(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or its error, in a process as it was after the imports."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            said = work()
        except BaseException:
            said = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return found


def main() -> None:
    """Print what is found."""
    if OVERRIDE in os.environ:
        asked = [("environment", way, ()) for way in (entered, untouched)]
    else:
        asked = [(name, way, made) for name, made in STATES.items() for way in (entered, untouched)]
        asked += [(name, as_before_2_9, STATES[name]) for name in OLD]
    found: dict[str, dict[str, Any]] = {}
    for name, way, made in asked:
        found.setdefault(name, {})[way.__name__] = in_a_child(functools.partial(way, made))
    print(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
