import io

import pytest
from rich.console import Console

from pipeline.show.bench import BenchRow, bench_table, figure


def printed(rows, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(bench_table(rows, caption="where it was measured"))
    return console.file.getvalue()


def test_a_missed_floor_is_said_in_words():
    row = BenchRow(
        "read", "batches", 0.7, 0.6, 0.8, floor=0.9, aim=1, floor_met=False, ways=(1.4, 2.0), ways_unit="GB/s"
    )
    lines = [line.split() for line in printed([row], width=80).splitlines()]
    assert ["batches", "0.7", "0.6…0.8", "≥", "0.9", "≥", "1", "MISSED"] in lines
    assert ["1.4", "/", "2", "GB/s"] in lines


def test_the_aim_has_a_column_only_where_some_figure_has_one():
    assert "Aim" not in printed([BenchRow("read", "batches", 1, 1, 1, floor=0.9, floor_met=True)])


def test_met_and_aimed_at_are_told_apart():
    met = BenchRow("a", "one", 2.1, 2.1, 2.1, floor=2.0, aim=2.4, floor_met=True, aim_met=False)
    aimed = BenchRow("a", "two", 2.5, 2.5, 2.5, floor=2.0, aim=2.4, floor_met=True, aim_met=True)
    one, two = (x for x in printed([met, aimed]).splitlines() if "one" in x or "two" in x)
    assert one.rstrip().endswith("  met")
    assert two.rstrip().endswith("aim met")


def test_an_aim_without_a_floor_is_said_to_be_met():
    met = BenchRow("a", "one", 1.2, 1.2, 1.2, aim=1.5, sense="most", aim_met=True)
    open_ = BenchRow("a", "two", 1.7, 1.7, 1.7, aim=1.5, sense="most", aim_met=False)
    one, two = (x for x in printed([met, open_]).splitlines() if "one" in x or "two" in x)
    assert one.rstrip().endswith("aim met") and two.rstrip().endswith("1.5")


def test_an_entry_is_named_once_and_limits_show_their_side():
    rows = [
        BenchRow("rerun", "time", 1.2, 1.1, 1.3, unit="s", floor=3, sense="most", floor_met=True),
        BenchRow("rerun", "forwards", 100, 100, 100, unit="images", floor=100, sense="exactly", floor_met=True),
    ]
    text = printed(rows)
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
