"""Where a stage's words go, and what they look like there."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys

import pytest

from pipeline.base.values import Heading
from pipeline.base.watch import TraceRow, Tracker, Watch
from pipeline.show.tables import results_table
from pipeline.show.terminal.console import Console, fail

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_words_go_to_standard_output(capsys):
    Console().say("397 images")
    assert capsys.readouterr() == ("397 images\n", "")


def test_words_go_to_standard_error_where_standard_output_carries_json(capsys):
    console = Console(stderr=True)
    console.say("397 images")
    console.show(results_table([{"name": "head", "val": 0.9}]))
    console.trace(TraceRow(1, 1.0, 0.5, None), of=5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "397 images" in err and "90.0 %" in err and "Observation" in err


def test_quiet_leaves_warnings_only(capsys):
    console = Console(quiet=True)
    console.say("397 images")
    console.show(Heading("table"))
    console.trace(TraceRow(1, 1.0, 0.5, None), of=5)
    console.trace(TraceRow(2, 1.0, 0.5, None), of=5)
    console.end_trace()
    with console.track("extract", 3) as tracker:
        tracker.advance(3)
    console.warn("3 failed")
    assert capsys.readouterr() == ("", "warning: 3 failed\n")


def test_quiet_keeps_results(capsys):
    console = Console(quiet=True)
    console.say("397 images")
    console.result("head: val 95.3 %")
    console.result(results_table([{"name": "head", "val": 0.9}]))
    out, err = capsys.readouterr()
    assert out.startswith("head: val 95.3 %\n\nMethod") and "90.0 %" in out
    assert not err


def test_a_watch_that_makes_no_difference_hears_results_as_lines_and_tables():
    heard = []

    class Listening(Watch):
        def say(self, text):
            heard.append(text)

        def show(self, value):
            heard.append(value)

    watch = Listening()
    watch.result("a line")
    watch.result(Heading("a table"))
    assert heard == ["a line", Heading("a table")]


def test_a_long_line_is_not_broken(capsys):
    text = "word " * 60 + "end"
    Console().say(text)
    fail(text)
    assert capsys.readouterr() == (text + "\n", "error: " + text + "\n")


def test_a_long_line_is_broken_between_words_on_a_terminal_and_a_path_never(capsys, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    path = "/somewhere/" + "very-" * 20 + "deep/head.safetensors"
    Console().say("the head is kept, with all its figures, for whoever wants to see them again -> " + path)
    fail("word " * 30 + path)
    out, err = capsys.readouterr()
    for text in (out, ESCAPE.sub("", err)):
        lines = text.splitlines()
        assert len(lines) > 2 and lines[-1] == path
        assert all(len(line) <= 60 and not line.endswith(" ") for line in lines[:-1])


def test_markup_in_the_users_text_is_printed_as_it_is(capsys):
    fail("no folder [bold]x[/bold] [/nonsense] :ant:")
    assert capsys.readouterr().err == "error: no folder [bold]x[/bold] [/nonsense] :ant:\n"


def test_an_error_is_one_line_whatever_a_path_holds(capsys):
    """Newlines and terminal commands in file names."""
    fail("cannot read 'a\nb\x1b[2J.png'")
    assert capsys.readouterr().err == "error: cannot read 'a\\nb\\x1b[2J.png'\n"


def test_no_colour_codes_without_a_terminal(capsys):
    console = Console()
    console.say("a")
    console.warn("b")
    console.show(results_table([{"name": "head", "val": 0.9}]))
    with console.track("extract", 1) as tracker:
        tracker.advance()
    fail("c")
    out, err = capsys.readouterr()
    assert not ESCAPE.search(out + err)


def test_the_error_is_red_on_a_terminal(capsys, terminal):
    fail("no such folder")
    err = capsys.readouterr().err
    assert re.search(r"\x1b\[[0-9;]*31m", err)
    assert ESCAPE.sub("", err) == "error: no such folder\n"


def test_no_color_is_respected(capsys, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    fail("no such folder")
    assert "31m" not in capsys.readouterr().err


def test_lines_in_a_file_have_no_spaces_at_their_end(capsys):
    Console().show(
        results_table([{"name": "head", "val": 0.9, "note": "a"}, {"name": "logistic regression", "val": 0.8}])
    )
    out = capsys.readouterr().out
    assert out and not re.search(r" +\n", out)


def test_blocks_are_set_apart_by_one_empty_line(capsys):
    console = Console()
    console.show(Heading("first"))
    console.show(Heading("second"))
    console.say("a")
    console.say("b")
    console.show(Heading("third"))
    assert capsys.readouterr().out == "first\n\nsecond\n\na\nb\n\nthird\n"


def test_the_trace_has_one_header_and_a_line_for_each_row(capsys):
    console = Console()
    for epoch in (1, 2):
        console.trace(TraceRow(epoch, 1 / epoch, 0.953, None, observation="loss halved"), of=5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Epoch", "1", "2"]
    assert lines[1].split("  ")[-1] == "loss halved"
    assert lines[1].index("loss halved") == lines[0].index("Observation")


def test_each_row_of_the_trace_appears_as_it_comes(capsys):
    console = Console()
    console.trace(TraceRow(1, 1.0, 0.5, None), of=5)
    assert "1.000" in capsys.readouterr().out


@pytest.mark.parametrize(("step", "most"), [("Epoch", 12), ("Iteration", 8)])
def test_of_a_long_trace_few_rows_are_shown_the_first_and_the_last_among_them(capsys, step, most):
    console = Console()
    for number in range(1, 101):
        console.trace(
            TraceRow(number, 1 / number, 0.5, 0.5, observation=f"val flat for {number} steps"), of=100, step=step
        )
    console.end_trace()
    out = capsys.readouterr().out
    table = out.split("\n\n")[0].splitlines()[1:]
    numbers = [int(line.split()[0]) for line in table]
    assert len(numbers) == most and numbers[0] == 1 and numbers[-1] == 100
    assert out.count("val flat") == 1, "what was said once is not said again"


def test_the_last_row_of_a_trace_that_ends_early_is_shown(capsys):
    console = Console()
    for number in range(1, 72):
        console.trace(TraceRow(number, 1 / number, 0.5, 0.5), of=100)
    assert "\n   71 " not in capsys.readouterr().out
    console.end_trace()
    assert capsys.readouterr().out.startswith("   71 ")


def test_a_row_whose_loss_is_no_number_is_shown_wherever_it_stands(capsys):
    console = Console()
    for number in range(1, 60):
        console.trace(TraceRow(number, math.nan if number == 59 else 1.0, 0.5, 0.5), of=100)
    assert "nan" in capsys.readouterr().out


def test_the_end_of_a_trace_draws_train_and_val_loss(capsys):
    console = Console()
    for epoch in (1, 2, 3):
        console.trace(TraceRow(epoch, 1 / epoch, 0.5, 0.5, val_loss=1.1 / epoch if epoch > 1 else None), of=5)
    capsys.readouterr()
    console.end_trace()
    out = capsys.readouterr().out
    assert "train" in out and "val" in out and "epoch" in out
    assert out.count("●") == 2 + 1  # two points and the legend


def test_a_second_trace_gets_its_own_header_and_step(capsys):
    console = Console()
    console.trace(TraceRow(1, 1.0, 0.5, None), of=5)
    console.end_trace()
    console.trace(TraceRow(1, 1.0, 0.5, None), of=5, step="Iteration")
    out = capsys.readouterr().out
    assert out.count("Observation") == 2
    assert "Iteration" in out


def test_a_new_best_val_is_bold_and_a_broken_loss_red(capsys, terminal):
    console = Console()
    for epoch, (loss, val) in enumerate([(1.0, 0.5), (0.9, 0.4), (math.nan, 0.4)], start=1):
        console.trace(TraceRow(epoch, loss, 0.5, val), of=5)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert ["\x1b[1m" in row for row in rows] == [True, False, False]
    assert ["\x1b[31m" in row for row in rows] == [False, False, True]


def test_without_a_terminal_progress_ends_in_one_plain_line_on_standard_error(capsys):
    console = Console()
    with console.track("extract", 3) as tracker:
        tracker.advance(2)
        tracker.note("1 failed")
        tracker.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"extract: 3 images in .*s \(.* images/s\), 1 failed\n", err)


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(capsys, terminal):
    console = Console()
    with console.track("extract", 300, done=100) as tracker:
        tracker.advance(200)
    out, err = capsys.readouterr()
    assert out == ""
    assert "━" in err and "100/300" in ESCAPE.sub("", err)
    assert "extract: 300 images in" in ESCAPE.sub("", err.splitlines()[-1])
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1  # the cursor is given back


def test_words_said_while_a_bar_is_drawn_pass_above_it(capsys, terminal):
    console = Console()
    with console.track("extract", 3) as tracker:
        console.say("one odd image")
        tracker.advance(3)
    out, err = capsys.readouterr()
    assert out == "" and "one odd image" in err  # standard output is the same terminal here


@pytest.mark.parametrize("kind", ["file", "terminal"])
def test_inner_jobs_leave_no_line_of_their_own(capsys, monkeypatch, kind):
    if kind == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    console = Console()
    with console.track("fine-tune", 2, "epochs") as outer:
        for _ in range(2):
            with console.track("one epoch", 5) as inner:
                inner.advance(5)
            outer.advance()
    err = ESCAPE.sub("", capsys.readouterr().err)
    assert "one epoch: " not in err
    assert err.count("fine-tune: 2 epochs in") == 1


@pytest.mark.parametrize("kind", ["file", "terminal"])
def test_an_error_inside_a_job_passes_through_and_no_success_is_claimed(capsys, monkeypatch, kind):
    if kind == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    console = Console()
    with pytest.raises(RuntimeError, match="boom"), console.track("extract", 3) as tracker:
        tracker.advance()
        raise RuntimeError("boom")
    err = capsys.readouterr().err
    assert " in " not in ESCAPE.sub("", err)
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h")
    with console.track("extract", 1) as tracker:  # and the next job is followed as ever
        tracker.advance()
    assert "extract: 1 image in" in ESCAPE.sub("", capsys.readouterr().err)


def test_a_job_of_nothing_is_followed_too(capsys):
    with Console().track("extract", 0):
        pass
    assert capsys.readouterr().err.startswith("extract: 0 images in")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_stream_that_lacks_our_characters_gets_plain_ones(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    Console().say("input → 95.3 % ⚡")
    assert raw.getvalue().decode(encoding).replace("\r\n", "\n") == "input > 95.3 % ?\n"


def test_a_silent_watch_prints_nothing(capsys):
    watch = Watch()
    watch.say("a")
    watch.warn("b")
    watch.show(Heading("c"))
    watch.trace(TraceRow(1, 1.0, 0.5, None), of=5)
    watch.end_trace()
    with watch.track("extract", 3) as tracker:
        tracker.advance(3)
        tracker.note("d")
    assert isinstance(tracker, Tracker)
    assert capsys.readouterr() == ("", "")


def test_a_silent_watch_imports_no_terminal_library():
    code = "import sys, pipeline.base.watch; print([m for m in ('rich', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_names_steer_no_terminal_and_reach_other_programs_as_they_are(on_a_terminal):
    """``pipeline predict --format csv`` of a file whose name rings the bell and moves the cursor."""
    code = "from pipeline.show.terminal.console import Console\nConsole().write('a\\x1b[2J\\x07.png,bee\\n')"
    ours, theirs = os.openpty() if on_a_terminal else os.pipe()
    out = theirs
    subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    os.close(out)
    told = os.read(ours, 1000)
    os.close(ours)
    expected = b"a\\x1b[2J\\x07.png,bee\r\n" if on_a_terminal else b"a\x1b[2J\x07.png,bee\n"
    assert told == expected
