"""Ctrl-C at any moment: one line that says what is kept and what the same command will do, exit 130, no traceback."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.stages.extract.job
import pipeline.stages.finetune.job
import pipeline.stages.learn.search
import pipeline.stages.learn.task
import pipeline.stages.learn.train
import pipeline.stages.score.evaluate
import pipeline.stages.upkeep.audit
import pipeline.stages.upkeep.inspect
import pipeline.stages.use.export
import pipeline.stages.use.predict
from pipeline.base.errors import HeadError
from pipeline.base.interrupt import held_while_importing, is_stop, on_interrupt, told
from pipeline.cli.main import main
from pipeline.stages import extract, finetune, learn, score, upkeep, use

MOMENTS = {
    "extract": (extract.job, "plan_file", "finished blocks are kept: the same command goes on from there"),
    "train": (learn.task, "fit_exact", "no half run is left: the same command begins anew"),
    "train --solver sgd": (learn.train, "fit_minibatch", "no half run is left: the same command begins anew"),
    "search": (learn.task, "fit_exact", "no half run is left: the same command begins anew"),
    "search --space mlp": (learn.search, "minibatch_search", "heads that were tried to the end are kept: the same"),
    "search --space mlp --optuna j.log": (learn.search, "minibatch_search", "finished trials are in j.log: the same"),
    "evaluate": (
        score.evaluate.runs,
        "find_run",
        "figures on test are kept whole or not at all: the same command goes on",
    ),
    "finetune": (finetune.job, "attach", "finished maps, epochs and checkpoints are kept: the same command goes on"),
    "predict": (use.predict.runs, "find_run", "what was printed stands: the same command begins anew"),
    "export": (use.export.runs, "find_run", "no half file is left: the same command begins anew"),
    "inspect": (upkeep.inspect, "find_cache", "nothing was changed: the same command begins anew"),
    "audit": (upkeep.audit, "find_cache", "the cache is whole, as it was or as it was to be"),
}


@pytest.mark.parametrize("command", MOMENTS)
def test_a_stopped_command_says_what_is_kept(
    command: str, workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, name, kept = MOMENTS[command]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stop)
    words = command.split()
    words += {"extract": ["digits"], "predict": ["latest", "a.png"]}.get(words[0], [])
    words += [str(workshop.cache.cache)] if words[0] in ("train", "search") else []
    assert main([*words, "--workspace", str(workshop.root)]) == 130
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: the features")]
    assert len(lines) == 1 and lines[0].startswith(f"stopped; {kept}")


def test_of_several_who_say_what_is_kept_the_innermost_is_heard() -> None:
    with pytest.raises(KeyboardInterrupt) as stop, on_interrupt("outer"), on_interrupt("inner"):
        raise KeyboardInterrupt
    assert told(stop.value) == "stopped; inner"
    assert told(KeyboardInterrupt()) == "stopped; nothing was changed: the same command begins anew"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is Python's own, whatever it was for the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_stop_that_comes_while_a_library_is_imported_waits_until_that_is_done(
    ctrl_c: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_library.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_library", raising=False)
    with pytest.raises(KeyboardInterrupt), held_while_importing():
        importlib.import_module("planted_library")
        time.sleep(60)
    assert sys.modules["planted_library"].whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), held_while_importing():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it did not come at once")


def test_a_stop_that_is_ignored_stays_so(ctrl_c: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_while_importing():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def heard() -> None:
    """In the child: Ctrl-C is heard, also where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(words: list[str], root: Path, after: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *words, "--workspace", str(root)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, preexec_fn=heard
    )
    time.sleep(after)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def lines_but_progress(text: str) -> list[str]:
    progress = re.compile(r"[\w -]+: [\d,]+(/[\d,]+)? \w+")  # how far a job is, or how long it took
    told = (line for line in text.splitlines() if line.strip())
    return [line for line in told if not (line.startswith("warning:") or progress.match(line))]


def test_while_the_program_is_being_loaded_it_is_one_line_too(tmp_path: Path) -> None:
    """The moment is made sure: the first import of the program waits for the signal."""
    slow = tmp_path / "sitecustomize.py"
    slow.write_text(
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pipeline.cli.parser':\n"
        "            sys.stdout.write('loading\\n'); sys.stdout.flush(); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(pipeline.__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "inspect"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=heard,
    )
    assert child.stdout is not None and child.stdout.readline() == "loading\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "stopped; nothing was begun\n")


def test_an_error_that_a_library_made_of_a_stop_is_a_stop(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise HeadError("could not be exported: give another format") from stop

    monkeypatch.setattr(use.export.runs, "find_run", swallow)
    assert main(["export", "--workspace", str(workshop.root)]) == 130
    assert capsys.readouterr().err.startswith("stopped; ")


def test_what_python_makes_of_a_stop_while_a_class_is_made_is_a_stop() -> None:
    """Up to Python 3.11, an error in __set_name__ becomes a RuntimeError that has it for its cause."""
    try:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
    except RuntimeError as error:
        assert is_stop(error)
    assert not is_stop(RuntimeError("else"))


COMMANDS = [
    ["train", "latest"],
    ["train", "latest", "--solver", "adamw", "--epochs", "100000"],
    ["search", "latest", "--space", "mlp", "--trials", "500", "--epochs", "60"],
    ["finetune", "1", "--epochs", "100"],
    ["predict", "1", "PHOTOS"],
    ["export", "1"],
    ["audit", "latest", "--near", "0.9"],
    ["extract", "PHOTOS", "--trunk", "resnet18", "--weights", "random:1", "--image-size", "224", "--engine", "torch"],
]


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.6, 1.5, 3.0, 6.0])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_signal_at_any_moment_is_one_line(
    words: list[str], after: float, workshop: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(workshop.root / "features", tmp_path / "features")
    shutil.copytree(workshop.root / "runs", tmp_path / "runs")
    words = [str(workshop.photos) if word == "PHOTOS" else word for word in words]
    done = interrupted(words, tmp_path, after)
    if done.returncode == 0:
        return  # it was quicker
    # Where it fell into code that a C library runs, Python ends by the signal itself: to a shell it is 130, too.
    assert done.returncode in (130, -signal.SIGINT)
    lines = lines_but_progress(done.stderr)
    if done.returncode == -signal.SIGINT and not lines:
        # It had ended, and Python was being taken down, which no program can say anything of any more.
        assert done.stdout.strip()
        return
    if lines and lines[-1] == "KeyboardInterrupt" and "_get_module_details" in done.stderr:
        return  # a busy machine: the package itself was still being imported, and a package takes no signals
    if any(line.startswith("Exception ignored") for line in lines):
        # Python itself prints where a signal fell into a callback (of an import, say) that cannot pass it on.
        lines = [line for line in lines if line.startswith("stopped")]
    assert len(lines) == 1 and lines[0].startswith("stopped"), done.stderr
    (line,) = lines
    assert "the same command" in line or "nothing was begun" in line
