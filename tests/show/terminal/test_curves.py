"""The curve in the terminal."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from pipeline.base.values import Curve
from pipeline.show.terminal.blocks import block
from pipeline.show.terminal.curves import draw


def of(series, x_first=1, y_label="loss", **more):
    length = max((len(values) for values in series.values()), default=0)
    return Curve(series, range(x_first, x_first + length), "epoch", y_label, **more)


def curve(series, width=60, height=10, ascii_only=False, **more):
    lines = draw(of(series, **more), width, height, ascii_only=ascii_only)
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def plot_of(text):
    """The plot's lines without axis and labels."""
    return [line.split("│", 1)[-1].split("┤", 1)[-1] for line in text.splitlines() if "│" in line or "┤" in line]


def test_the_drawing_has_the_size_asked_for():
    lines = curve({"train": [3, 2, 1]}, width=40, height=6).splitlines()
    assert len(lines) == 6 + 3  # legend, plot, axis, numbers
    assert max(map(len, lines)) <= 40


def test_a_falling_series_goes_from_upper_left_to_lower_right():
    plot = plot_of(curve({"train": [2.0, 1.0]}, width=40, height=8))
    assert plot[0][0] != " "
    assert plot[0].rstrip() == plot[0].strip() and len(plot[0].strip()) < 10
    assert plot[-1].startswith(" ") and len(plot[-1]) == max(map(len, plot))


def test_the_axis_carries_round_numbers_and_the_first_and_last_epoch():
    text = curve({"train": [1.0, 0.75, 0.5, 0.0]}, x_first=1)
    labels = [line.split("┤")[0].strip() for line in text.splitlines() if "┤" in line]
    assert labels == ["1.0", "0.8", "0.6", "0.4", "0.2", "0.0"]
    assert text.splitlines()[-1].split() == ["1", "epoch", "4"]


@pytest.mark.parametrize("ends", [[0.0, 1.0], [0.013, 2.71], [0.001, 900.0]])
def test_each_tick_stands_in_the_row_of_its_value(ends):
    """A flat series at the tick's value is drawn in the tick's row."""
    ticks = [line.split("┤")[0].strip() for line in curve({"train": ends}).splitlines() if "┤" in line]
    assert len(ticks) >= 3
    for tick in ticks:
        lines = curve({"train": ends, "val": [float(tick)] * 2}).splitlines()
        assert [line.split("┤")[0].strip() for line in lines[1:] if "●" in line] == [tick]


def test_x_numbering_can_begin_at_zero():
    assert curve({"train": [2, 1]}, x_first=0).splitlines()[-1].split() == ["0", "epoch", "1"]


def test_train_and_val_have_different_marks_and_a_legend():
    text = curve({"train": [3, 2, 1], "val": [3.2, 2.5, 2.4]})
    legend, plot = text.splitlines()[0], "".join(plot_of(text))
    assert "⠒⠒ train" in legend and "● val" in legend
    assert plot.count("●") == 3
    assert any("\u2800" < c <= "\u28ff" for c in plot)


def test_one_point_is_drawn_as_a_mark():
    text = curve({"train": [0.5]})
    assert sum(line.count("•") for line in plot_of(text)) == 1
    assert text.splitlines()[-1].strip() == "epoch 1"


@pytest.mark.parametrize("level", [0.0, 0.5, -3.0, 1e-12, 1e9])
def test_a_constant_series_is_one_level_line(level):
    plot = plot_of(curve({"train": [level] * 5}))
    assert sum(bool(line.strip()) for line in plot) == 1


def test_values_that_are_not_finite_leave_a_gap_and_are_counted():
    text = curve({"train": [3.0, 2.5, math.nan, math.inf, 1.0, 0.5]}, width=60, height=4)
    assert text.splitlines()[-1].strip() == "2 values not finite, not drawn"
    columns = {i for line in plot_of(text) for i, c in enumerate(line) if c != " "}
    middle = range(14, 40)
    assert columns and not columns & set(middle)


@pytest.mark.parametrize("series", [{}, {"train": []}, {"train": [math.nan, math.inf]}])
def test_nothing_finite_is_said_in_words(series):
    assert curve(series, y_label="loss") == "no finite loss to draw"


def test_thousands_of_points_are_drawn_within_the_width():
    values = [math.sin(i / 300) for i in range(20_000)]
    text = curve({"train": values, "val": values}, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(plot_of(text)).count("●") <= 30  # the marks leave the line visible


def test_a_wide_range_is_drawn_by_logarithm_and_says_so():
    text = curve({"train": [1000.0, 100.0, 10.0, 1.0]}, width=60, height=12)
    assert "loss (log)" in text.splitlines()[0]
    labels = [line.split("┤")[0].strip() for line in text.splitlines() if "┤" in line]
    assert labels == ["1000", "100", "10", "1"]


def test_a_wide_range_with_a_zero_stays_linear():
    assert "(log)" not in curve({"train": [1000.0, 0.0]})


def test_ascii_only_uses_no_other_character():
    text = curve({"train": [3, 2, 1], "val": [3.2, 2.5, math.nan]}, ascii_only=True)
    assert text.isascii()
    assert "* train" in text and "o val" in text


def test_values_stand_at_their_x_however_far_apart():
    """Rows 1, 2 and 10: the second stands near the left end, with nothing between it and the third."""
    sparse = Curve({"train": [1.0, 1.0, 1.0], "val": [0.9, 0.5, 0.7]}, [1, 2, 10], "iteration", "loss")
    lines = ["".join(text for text, _ in line).rstrip() for line in draw(sparse, 60)]
    first, second, third = sorted(line.split("│")[-1].split("┤")[-1].index("●") for line in lines[1:] if "●" in line)
    assert first == 0 and (second - first) / (third - first) == pytest.approx(1 / 9, abs=0.02)
    assert lines[-1].split() == ["1", "iteration", "10"]


def test_x_spread_by_logarithm_are_evenly_apart():
    path = Curve({"train": [1.0, 1.0, 1.0], "val": [0.9, 0.5, 0.7]}, [0.01, 1, 100], "C", "accuracy", log_x=True)
    lines = ["".join(text for text, _ in line).rstrip() for line in draw(path, 60)]
    first, second, third = sorted(line.split("│")[-1].split("┤")[-1].index("●") for line in lines[1:] if "●" in line)
    assert second - first == pytest.approx(third - second, abs=1)


@pytest.mark.parametrize(("ascii_only", "mark"), [(False, "◆"), (True, "@")])
def test_what_was_chosen_is_marked_on_the_last_series(ascii_only, mark):
    chosen = Curve({"train": [0.5, 0.6, 1.0], "val": [0.5, 0.9, 0.6]}, [1, 2, 3], "C", "accuracy", chosen=2)
    (line,) = [
        line
        for line in ("".join(text for text, _ in line) for line in draw(chosen, 60, ascii_only=ascii_only))
        if mark in line
    ]
    assert line.split()[0] == "0.9" and abs(line.index(mark) - 32) < 4


def test_shares_are_labelled_in_percent():
    text = curve({"train": [0.5, 0.9]}, shares=True)
    assert [line.split("┤")[0].strip() for line in text.splitlines() if "┤" in line] == [
        *("90 %", "80 %", "70 %", "60 %", "50 %")
    ]


def test_the_renderable_takes_the_terminals_width():
    for width in (30, 80):
        out = Console(file=io.StringIO(), width=width)
        out.print(block(of({"train": [3, 2, 1]})))
        lines = out.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == 13


def test_the_renderable_falls_back_to_ascii_where_the_stream_cannot_do_more():
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=60)
    out.print(block(of({"train": [3, 2, 1]})))
    assert b"* train" in raw.getvalue()


def test_the_renderable_draws_what_the_text_says():
    series = {"train": [3.0, 1.5, 1.0], "val": [3.0, 2.0, 1.9]}
    out = Console(file=io.StringIO(), width=60)
    out.print(block(of(series)))
    assert [line.rstrip() for line in out.file.getvalue().splitlines()] == curve(series, width=60).splitlines()
