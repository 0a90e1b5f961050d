"""The words of a stage on a terminal, or as plain lines where there is none.

Knows streams and their kinds; nothing of what the words mean. Progress goes to standard error always; the rest to
standard output, or to standard error where standard output carries JSON.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from typing import Literal

import rich.console
from rich.cells import cell_len
from rich.progress import Progress
from rich.text import Text

from pipeline.base.values import Curve, Value
from pipeline.base.watch import TraceRow, Tracker, Watch
from pipeline.base.words import visible
from pipeline.show import trace
from pipeline.show.terminal.blocks import block
from pipeline.show.terminal.progress import BarTracker, LineTracker, Pace, bars, summary

PIPED_WIDTH = 200

# One character for one, so that columns stay where they are.
_PLAIN = str.maketrans("–−×÷·…→≥≤│─█▉▊▋▌▍▎▏", "--x:.~>><|-#####   ")


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    """For :func:`codecs.register_error`: the nearest ASCII character, else ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(c if c.isascii() else "?" for c in text), error.end


def _console(stderr: bool) -> rich.console.Console:
    stream = sys.stderr if stderr else sys.stdout
    # An arrow that a stream's encoding does not have must not end a job of hours.
    if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
        codecs.register_error("pipeline-plain", _write_plainly)
        stream.reconfigure(errors="pipeline-plain")
    # A file or a pipe has no width: lines are not wrapped there, so that paths can be searched for.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return rich.console.Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def fail(message: str) -> None:
    """The one red line ``error: ...`` on standard error, whole however long it is."""
    _print_line(Text.assemble(("error:", "bold red"), " ", visible(message)))


def stopped(message: str) -> None:
    """The one line on standard error of a job that was asked to stop, and what is kept of it."""
    _print_line(Text(visible(message), "yellow"))


def _print_line(text: Text) -> None:
    """A line on standard error, whole; on a terminal broken between words where it is too narrow."""
    console = _console(stderr=True)
    console.print(_broken(text, console.width) if console.is_terminal else text, soft_wrap=True)


def _broken(text: Text, width: int) -> Text:
    """The line in lines of at most ``width``, broken between words; a longer word, such as a path, stays whole."""
    words, breaks, filled, at = text.plain.split(" "), [], 0, 0
    for word in words:
        if filled and filled + 1 + cell_len(word) > width:
            breaks.append(at)
            filled = 0
        filled += cell_len(word) + (1 if filled else 0)
        at += len(word) + 1
    lines = text.divide(breaks)
    for line in lines[:-1]:
        line.rstrip()
    return Text("\n").join(lines)


class Console(Watch):
    """Shows a stage's words on standard output (``stderr=True``: on standard error); ``quiet`` leaves out what is
    neither a result nor a warning: notes, progress, traces.

    Warnings are on standard error, so that output for other programs holds nothing else.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        self._quiet = quiet
        self._err = _console(stderr=True)
        self._out = self._err if stderr else _console(stderr=False)
        self._progress: Progress | None = None
        self._depth = 0  # jobs being followed, one inside the other
        self._rows: list[TraceRow] = []
        self._step = "Epoch"
        self._places: frozenset[int] = frozenset()  # of the rows that are shown
        self._shown: list[TraceRow] = []
        self._remarks = trace.Remarks()
        self._after: Literal["nothing", "line", "block"] = "nothing"  # what was printed last

    def say(self, text: str) -> None:
        """One line for the user; what would break the line is escaped."""
        if not self._quiet:
            self._line(Text(visible(text)))

    def warn(self, text: str) -> None:
        """One line on standard error, marked ``warning:``; shown even when quiet."""
        self._out.file.flush()  # so that in one stream it comes after what it is about
        self._line(Text.assemble(("warning:", "bold yellow"), " ", visible(text)), to=self._err)

    def write(self, text: str) -> None:
        """Output that another program reads, as it is, also when quiet; bytes of names come out as they were.

        On a terminal no program reads it, and a file's name must not steer that: it is escaped as in all other words.
        """
        self._out.file.flush()
        if self._out.file.isatty():
            text = "\n".join(visible(line) for line in text.split("\n"))
        stream = getattr(self._out.file, "buffer", None)
        if stream is None:
            self._out.file.write(text)
        else:
            stream.write(text.encode("utf-8", "surrogateescape"))
            stream.flush()

    def confirm(self, question: str) -> bool:
        """Ask on standard error; the answer is a line of standard input, from whoever sits there or from a pipe."""
        if sys.stdin is None or (sys.stdin.isatty() and not self._err.is_terminal):
            return False  # nobody sees the question
        self._line(Text.assemble(visible(question), " [y/N]"), to=self._err)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def show(self, value: Value) -> None:
        """A table, a curve or the like, with an empty line before and after it."""
        if not self._quiet:
            self._block(value)

    def result(self, told: str | Value) -> None:
        """A line or a table of what was asked for; shown even when quiet."""
        if isinstance(told, str):
            self._line(Text(visible(told)))
        else:
            self._block(told)

    def _block(self, value: Value) -> None:
        self._open_block()
        self._print(block(value))
        self._after = "block"

    def trace(self, row: TraceRow, *, of: int, step: str = "Epoch") -> None:
        """Print a row of the trace if it is one of the few that are shown, the header before the first one.

        A new best val accuracy is bold; an observation stands there once.
        """
        if self._quiet:
            return
        if not self._rows:
            self._step, self._shown, self._remarks = step, [], trace.Remarks()
            self._places = frozenset(trace.places(of, trace.ROWS[step]))
            self._open_block()
            self._print(Text(trace.header(step, self._out.width), "dim"), soft_wrap=True)
            self._after = "block"
        self._rows.append(row)
        if len(self._rows) - 1 in self._places or not row.loss < float("inf"):
            self._trace_row(row)

    def _trace_row(self, row: TraceRow) -> None:
        told = dataclasses.replace(row, observation=self._remarks.new(row.observation))
        for line in _trace_lines(told, self._rows[:-1], self._step, self._out.width):
            self._print(line, soft_wrap=True)
        self._shown.append(row)

    def end_trace(self) -> None:
        """Print the last row, and draw the loss curve of all rows since the last call, where there are at least two."""
        if self._rows and self._rows[-1] is not self._shown[-1]:
            self._trace_row(self._rows[-1])
        rows, self._rows = self._rows, []
        if len(rows) > 1:
            series = {"train": [r.loss for r in rows]}
            if any(r.val_loss is not None for r in rows):
                series["val"] = [float("nan") if r.val_loss is None else r.val_loss for r in rows]
            self.show(Curve(series, x=[r.epoch for r in rows], x_label=self._step.lower(), y_label="loss"))

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:
        """A bar on a terminal, otherwise a plain line now and then; a closing line for the outermost job."""
        if self._quiet:
            yield Tracker()
            return
        pace = Pace(done)
        self._depth += 1
        tracker: BarTracker | LineTracker
        if self._err.is_terminal and self._err.is_interactive:
            tracker = self._open_bar(what, total, unit, pace)
        else:
            tracker = LineTracker(what, total, unit, pace, self._stderr_line)
        try:
            yield tracker
        finally:
            self._depth -= 1
            if isinstance(tracker, BarTracker):
                self._close_bar(tracker)
        if not self._depth and not self._rows:  # between the rows of a trace a line would break the table
            self._stderr_line(summary(visible(what), total, unit, pace, tracker.remark))
            self._after = "line"

    def _open_bar(self, what: str, total: int, unit: str, pace: Pace) -> BarTracker:
        if self._progress is None:
            self._progress = bars(self._err)
            self._progress.start()
        return BarTracker(self._progress, what, total, unit, pace)

    def _close_bar(self, bar: BarTracker) -> None:
        bar.remove()
        if not self._depth and self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, text: Text, to: rich.console.Console | None = None) -> None:
        to = to or self._out
        if self._after == "block" and not self._rows and to.is_terminal == self._out.is_terminal:
            self._print("", to=to)
        self._print(text, soft_wrap=True, to=to)
        self._after = "line"

    def _open_block(self) -> None:
        if self._after != "nothing":
            self._print("")

    def _stderr_line(self, text: str) -> None:
        self._err.print(Text(text), soft_wrap=True)

    def _print(self, renderable: object, soft_wrap: bool = False, to: rich.console.Console | None = None) -> None:
        # While a bar is drawn on the terminal, what else goes to that terminal must pass through the bar's console.
        to = self._err if self._progress is not None and self._out.is_terminal else to or self._out
        if to.is_terminal:
            lines = _broken(renderable, to.width) if soft_wrap and isinstance(renderable, Text) else renderable
            to.print(lines, soft_wrap=soft_wrap)
            return
        with to.capture() as captured:  # cells are padded for a terminal's sake; a file has no use for it
            to.print(renderable, soft_wrap=soft_wrap)
        to.file.write("".join(line.rstrip() + "\n" for line in captured.get().removesuffix("\n").split("\n")))
        to.file.flush()


def _trace_lines(row: TraceRow, before: list[TraceRow], step: str, width: int) -> list[Text]:
    """The row as a line; as two where the observation has no room beside the figures."""
    number, loss, accuracy, val, observation = trace.cells(row, step)
    known = [r.val_accuracy for r in before if r.val_accuracy is not None]
    best = row.val_accuracy is not None and (not known or row.val_accuracy > max(known))
    bad = not (row.loss < float("inf"))
    parts = ((number, ""), (loss, "red" if bad else ""), (accuracy, ""), (val, "bold" if best else ""))
    line = Text()
    for part, style in parts:
        line.append(part, style).append(trace.GAP)
    said = Text(visible(observation), "red" if bad else "")
    if line.cell_len + said.cell_len > width:
        return [line, Text.assemble(" " * len(number), trace.GAP, said)]
    return [line.append(said)]
