"""Speed, time left, and the plain lines of a long job."""

from __future__ import annotations

import pytest

from pipeline.show.terminal.progress import LineTracker, Pace, summary


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run(clock, tracker, steps, seconds_each, n=1):
    for _ in range(steps):
        clock.now += seconds_each
        tracker.advance(n)


def test_nothing_done_has_no_speed_and_no_time_left(clock):
    pace = Pace(0, clock)
    clock.now += 5
    assert (pace.recent, pace.overall, pace.left(10)) == (None, None, None)


def test_speed_is_units_over_time(clock):
    pace = Pace(0, clock)
    run(clock, pace, 10, 0.5, n=4)
    assert pace.recent == pytest.approx(8.0)
    assert pace.overall == pytest.approx(8.0)
    assert pace.left(80) == pytest.approx(5.0)


def test_units_done_before_a_resume_count_for_the_place_but_not_for_the_speed(clock):
    """A resumed job must not promise to end at once."""
    pace = Pace(900, clock)
    run(clock, pace, 10, 1.0)
    assert pace.done == 910
    assert pace.overall == pytest.approx(1.0)
    assert pace.left(1000) == pytest.approx(90.0)


def test_time_left_follows_the_last_half_minute(clock):
    pace = Pace(0, clock)
    run(clock, pace, 100, 1.0)
    run(clock, pace, 100, 0.5)
    assert pace.recent == pytest.approx(2.0, rel=0.03)
    assert pace.overall == pytest.approx(200 / 150)


def test_a_million_quick_units_keep_few_samples(clock):
    """Memory does not grow with the number of images."""
    pace = Pace(0, clock)
    run(clock, pace, 200_000, 0.001)
    assert pace.recent == pytest.approx(1000, rel=0.02)
    assert len(pace._samples) < 100


def test_time_left_is_never_negative(clock):
    pace = Pace(0, clock)
    run(clock, pace, 12, 1.0)
    assert pace.left(10) == 0


def test_a_line_comes_after_ten_seconds_and_ten_percent(clock):
    lines = []
    tracker = LineTracker("extract", 100, "images", Pace(0, clock), lines.append)
    run(clock, tracker, 9, 1.0)  # 9 s, 9 %
    assert lines == []
    run(clock, tracker, 1, 1.0)
    assert lines == ["extract: 10/100 images, 1.0 images/s, 1 min 30 s left"]


def test_a_quick_job_writes_no_line_on_the_way(clock):
    lines = []
    run(clock, LineTracker("extract", 100, "images", Pace(0, clock), lines.append), 100, 0.05)
    assert lines == []


def test_a_slow_job_is_heard_of_every_minute(clock):
    lines = []
    run(clock, LineTracker("extract", 1_000_000, "images", Pace(0, clock), lines.append), 600, 1.0)
    assert len(lines) == 10


def test_the_last_unit_is_left_to_the_closing_line(clock):
    lines = []
    run(clock, LineTracker("extract", 2, "images", Pace(0, clock), lines.append), 2, 100.0)
    assert len(lines) == 1


def test_the_remark_ends_the_line(clock):
    lines = []
    tracker = LineTracker("extract", 2, "images", Pace(0, clock), lines.append)
    tracker.note("3 failed")
    run(clock, tracker, 1, 100.0)
    assert lines[0].endswith("left, 3 failed")


def test_the_summary_says_count_time_speed_and_remark(clock):
    pace = Pace(0, clock)
    run(clock, pace, 1, 12.0, n=397)
    said = summary("extract", 397, "images", pace, "3 failed")
    assert said == "extract: 397 images in 12 s (33.1 images/s), 3 failed"


def test_the_summary_of_one_unit_is_singular(clock):
    pace = Pace(0, clock)
    run(clock, pace, 1, 0.5)
    assert summary("predict", 1, "images", pace, "") == "predict: 1 image in 0.50 s (2.0 images/s)"


def test_the_summary_of_an_unfinished_job_says_of_how_many(clock):
    pace = Pace(0, clock)
    run(clock, pace, 1, 2.0)
    assert summary("extract", 397, "images", pace, "").startswith("extract: 1 of 397 images in 2.0 s")
