import pytest

from pipeline.bench.measure import Figure, Goal
from pipeline.bench.words import figure, measured, missed


def test_a_missed_floor_is_said_in_words(printed):
    ways = {"one": (1.4, 1.2, 1.6), "other": (2.0, 2.0, 2.0)}
    row = Figure("read", "batches", (0.7, 0.6, 0.8), ways, "GB/s", goal=Goal(0.9, 1))
    lines = [line.split() for line in printed(measured([row])).splitlines()]
    assert ["batches", "0.7", "0.6…0.8", "≥", "0.9", "≥", "1", "MISSED"] in lines
    assert ["1.4", "/", "2", "GB/s"] in lines
    assert missed([row, Figure("read", "open", (1.0,), {}, goal=Goal(0.9))]) == "1 of 2 floors missed: read: batches"


def test_where_no_floor_is_missed_nothing_is_said():
    assert missed([Figure("read", "batches", (1.0,), {}, goal=Goal(0.9)), Figure("read", "open", (1.0,), {})]) == ""


def test_the_aim_has_a_column_only_where_some_figure_has_one(printed):
    assert "Aim" not in printed(measured([Figure("read", "batches", (1,), {}, goal=Goal(0.9))]))


def test_met_and_aimed_at_are_told_apart(printed):
    met = Figure("a", "one", (2.1,), {}, goal=Goal(2.0, 2.4))
    aimed = Figure("a", "two", (2.5,), {}, goal=Goal(2.0, 2.4))
    one, two = (x for x in printed(measured([met, aimed])).splitlines() if "one" in x or "two" in x)
    assert one.rstrip().endswith("  met")
    assert two.rstrip().endswith("aim met")


def test_an_aim_without_a_floor_is_said_to_be_met(printed):
    met = Figure("a", "one", (1.2,), {}, goal=Goal(None, 1.5, "most"))
    open_ = Figure("a", "two", (1.7,), {}, goal=Goal(None, 1.5, "most"))
    one, two = (x for x in printed(measured([met, open_])).splitlines() if "one" in x or "two" in x)
    assert one.rstrip().endswith("aim met") and two.rstrip().endswith("1.5")


def test_an_entry_is_named_once_and_limits_show_their_side(printed):
    rows = [
        Figure("rerun", "time", (1.2, 1.1, 1.3), {"a": (1.2,)}, "s", "s", Goal(3, sense="most")),
        Figure("rerun", "forwards", (100,), {}, "", "images", Goal(100, sense="exactly")),
    ]
    text = printed(measured(rows, "where it was measured"))
    assert text.count("rerun") == 1 and "≤ 3" in text and "= 100" in text and "where it was measured" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9342, "0.934"),
        (2.414, "2.41"),
        (20.83, "20.8"),
        (1530.2, "1,530"),
        (100, "100"),
        (9.999, "10.0"),
        (float("inf"), "inf"),
    ],
)
def test_a_figure_has_three_digits_that_mean_something(value, text):
    assert figure(value) == text
