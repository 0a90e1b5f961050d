"""How far a long job has come, how fast, and how long still: as a bar, or as a plain line now and then.

Knows counts and a clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from pipeline.base.watch import Tracker
from pipeline.base.words import count, rate, seconds, visible

LINE_EVERY_S = 10.0  # without a terminal: never more often than this ...
LINE_EVERY_SHARE = 0.1  # ... and then only when this much more is done,
LINE_AT_LEAST_EVERY_S = 60.0  # ... or after this long
PACE_WINDOW_S = 30.0  # the speed shown is that of the last half minute


class Pace:
    """Units done and their speed over the last half minute; ``clock`` gives seconds."""

    def __init__(self, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first = done
        self._samples: deque[tuple[float, int]] = deque([(self._start, done)])
        self._latest = self._start
        self.done = done

    def advance(self, n: int) -> None:
        """Count ``n`` more."""
        self.done += n
        self._latest = now = self._clock()
        if now - self._samples[-1][0] >= PACE_WINDOW_S / 60:  # a handful of samples, however fast the units come
            self._samples.append((now, self.done))
        while len(self._samples) > 2 and now - self._samples[1][0] > PACE_WINDOW_S:
            self._samples.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def recent(self) -> float | None:
        """Units per second lately; ``None`` before the first is done."""
        t0, n0 = self._samples[0]
        t1, n1 = self._latest, self.done
        return (n1 - n0) / (t1 - t0) if t1 > t0 and n1 > n0 else None

    @property
    def overall(self) -> float | None:
        """Units per second since the start, those done before it not counted; ``None`` where none were done."""
        new, elapsed = self.done - self._first, self.elapsed
        return new / elapsed if new and elapsed > 0 else None

    def left(self, total: int) -> float | None:
        """Seconds to go at the recent speed."""
        recent = self.recent
        return None if recent is None else max(total - self.done, 0) / recent


def summary(what: str, total: int, unit: str, pace: Pace, remark: str) -> str:
    """The closing line of a job: ``extract: 397 images in 12 s (33.1 images/s), 3 failed``."""
    number = count(pace.done) if pace.done == total else f"{count(pace.done)} of {count(total)}"
    speed = f" ({rate(pace.overall, unit)})" if pace.overall is not None else ""
    units = unit.removesuffix("s") if total == 1 else unit
    return f"{what}: {number} {units} in {seconds(pace.elapsed)}{speed}{', ' + remark if remark else ''}"


class LineTracker(Tracker):
    """Progress where there is no terminal: a line now and then through ``write``."""

    def __init__(self, what: str, total: int, unit: str, pace: Pace, write: Callable[[str], None]) -> None:
        self._what, self._total, self._unit = visible(what), total, unit
        self._pace, self._write = pace, write
        self.remark = ""
        self._last_s, self._last_done = 0.0, pace.done

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more; a line where one is due."""
        self._pace.advance(n)
        waited = self._pace.elapsed - self._last_s
        moved = self._pace.done - self._last_done
        due = (waited >= LINE_EVERY_S and moved >= LINE_EVERY_SHARE * self._total) or waited >= LINE_AT_LEAST_EVERY_S
        if due and self._pace.done < self._total:
            self._last_s, self._last_done = self._pace.elapsed, self._pace.done
            self._write(self._line())

    def note(self, text: str) -> None:
        """The remark that the next line ends with."""
        self.remark = visible(text)

    def _line(self) -> str:
        pace = self._pace
        parts = [f"{count(pace.done)}/{count(self._total)} {self._unit}"]
        left = pace.left(self._total)
        if left is not None:
            parts += [rate(pace.recent, self._unit), f"{seconds(left)} left"]
        return f"{self._what}: {', '.join([*parts, self.remark] if self.remark else parts)}"


def bars(console: Console) -> Progress:
    """The display in which each :class:`BarTracker` is a line; it leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24, style="dim", complete_style="blue", finished_style="blue"),
        _Figures(),
        console=console,
        transient=True,
    )


class _Figures(ProgressColumn):
    """Done/total, speed, time left, remark."""

    def render(self, task: Task) -> Text:
        tracker: BarTracker | None = task.fields.get("tracker")
        return Text("" if tracker is None else tracker.figures(), no_wrap=True, overflow="ellipsis")


class BarTracker(Tracker):
    """Progress as a bar on a terminal."""

    def __init__(self, progress: Progress, what: str, total: int, unit: str, pace: Pace) -> None:
        self._progress, self._total, self._unit, self._pace = progress, total, unit, pace
        self.remark = ""
        self._task: TaskID = progress.add_task(visible(what), total=total, completed=pace.done, tracker=self)

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more and lengthen the bar."""
        self._pace.advance(n)
        self._progress.update(self._task, completed=self._pace.done)

    def note(self, text: str) -> None:
        """The remark at the end of the bar's line."""
        self.remark = visible(text)

    def figures(self) -> str:
        """``128/397  33.1 images/s  8.1 s left  3 failed``."""
        pace, left = self._pace, self._pace.left(self._total)
        parts = [f"{count(pace.done)}/{count(self._total)}"]
        if left is not None:
            parts += [rate(pace.recent, self._unit), f"{seconds(left)} left"]
        return "  ".join([*parts, self.remark] if self.remark else parts)

    def remove(self) -> None:
        """Take the bar off the screen."""
        self._progress.remove_task(self._task)
