"""Tables of results and classes."""

from __future__ import annotations

import re

import pytest

from pipeline.show.tables import (
    per_class_table,
    results_table,
)


@pytest.fixture
def text_of(printed):
    return printed


@pytest.fixture
def bold_lines(printed):
    def lines(value):
        return [i for i, line in enumerate(printed(value, colour=True).splitlines()) if re.search(r"\x1b\[1m\S", line)]

    return lines


result = dict
RESULTS = [
    result(name="majority", val=0.101, test=0.12, macro_f1=0.018, seconds=0.003),
    result(name="k-NN", val=0.97, test=0.951, macro_f1=0.95, seconds=0.21),
    result(name="logistic regression", val=0.96, test=0.96, macro_f1=0.959, seconds=185.0, note="not converged"),
]


def test_results_show_every_figure_in_its_unit(text_of):
    lines = text_of(results_table(RESULTS)).splitlines()
    assert lines[0].split() == ["Method", "Val", "Test", "Macro-F1", "Time"]
    assert re.split(r" {2,}", lines[-1].strip()) == [
        *("logistic regression", "96.0 %", "96.0 %", "95.9 %", "3 min 05 s", "not converged")
    ]


def test_a_column_without_figures_is_left_out(text_of):
    head = text_of(results_table([result(name="a", test=0.5), result(name="b")])).splitlines()[0]
    assert head.split() == ["Method", "Test"]


def test_a_missing_figure_among_others_is_a_dash(text_of):
    last = text_of(results_table([result(name="a", val=0.5), result(name="b")])).splitlines()[-1]
    assert last.split() == ["b", "–"]


def test_the_best_row_by_val_is_bold_though_another_leads_on_test(bold_lines):
    """The test split chooses nothing, not even what is printed in bold."""
    assert bold_lines(results_table(RESULTS)) == [3]


def test_without_val_nothing_is_bold_whatever_test_says(bold_lines):
    rows = [result(name="a", test=0.5), result(name="b", test=0.6)]
    assert bold_lines(results_table(rows)) == []


def test_a_val_figure_that_its_row_was_chosen_by_is_called_optimistic(text_of):
    rows = [
        result(name="fixed", val=0.95, test=0.94),
        result(name="one", val=0.96, test=0.94, chosen_from=1),
        result(name="chosen", val=0.967, test=0.94, chosen_from=1234),
        result(name="elsewhere", test=0.94, chosen_from=45),
    ]
    fixed, one, chosen, elsewhere = (
        re.split(r" {2,}", line.strip()) for line in text_of(results_table(rows), 120).splitlines()[2:]
    )
    assert fixed == ["fixed", "95.0 %", "94.0 %"] and one == ["one", "96.0 %", "94.0 %"]
    assert chosen == ["chosen", "96.7 % (best of 1,234: optimistic)", "94.0 %"]
    assert elsewhere == ["elsewhere", "–", "94.0 %"]


def test_results_of_equal_val_are_both_bold(bold_lines):
    rows = [result(name="a", val=0.5), result(name="b", val=0.5), result(name="c", val=0.4)]
    assert bold_lines(results_table(rows)) == [2, 3]


def test_a_figure_that_is_not_a_number_is_shown_and_never_best(text_of, bold_lines):
    table = results_table([result(name="a", val=float("nan")), result(name="b", val=0.4)])
    assert "nan" in text_of(table)
    assert bold_lines(table) == [3]


def test_figures_end_in_one_column(text_of):
    lines = text_of(results_table(RESULTS)).splitlines()
    end = lines[0].index("Val") + 3
    assert all(line[end - 1] == "%" for line in lines[2:])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_very_long_name_goes_on_in_the_next_lines_and_leaves_the_figures_whole(text_of, width):
    text = text_of(results_table([result(name="x" * 200, val=0.5, test=0.25, macro_f1=0.125, seconds=1.0)]), width)
    assert "50.0 %" in text and "12.5 %" in text and "1.0 s" in text
    assert text.count("x") == 200 and "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_name_is_broken_between_its_parts(text_of):
    rows = [result(name="digits-resnet18-random0-32px-3da4c1ba", val=0.5, test=0.25, macro_f1=0.125, seconds=1.0)]
    names = [line.split("  ")[0].strip() for line in text_of(results_table(rows), 60).splitlines()[2:]]
    assert names == ["digits-resnet18-", "random0-32px-3da4c1ba"]


def test_markup_in_a_name_is_printed_as_it_is(text_of):
    assert "[bold]a[/bold]" in text_of(results_table([result(name="[bold]a[/bold]", val=0.5)]))


def test_a_title_stands_above(text_of):
    assert text_of(results_table(RESULTS, "Baselines")).splitlines()[0].strip() == "Baselines"


def classes_of(f1s):
    return [{"name": f"c{i}", "precision": 0.5, "recall": 0.25, "f1": f, "support": 1234} for i, f in enumerate(f1s)]


def test_each_class_has_a_row(text_of):
    lines = text_of(per_class_table(classes_of([0.1, 0.2]))).splitlines()
    assert lines[0].split() == ["Class", "Precision", "Recall", "F1", "Images"]
    assert re.split(r" {2,}", lines[-1].strip()) == ["c1", "50.0 %", "25.0 %", "20.0 %", "1,234"]


def test_of_many_classes_the_worst_are_shown_and_the_rest_counted(text_of):
    text = text_of(per_class_table(classes_of([i / 1000 for i in range(999, -1, -1)]), limit=3))
    assert re.findall(r"c\d+", text) == ["c999", "c998", "c997"]
    assert "the 3 classes with the lowest F1, of 1,000" in text


@pytest.mark.parametrize("table", [results_table, per_class_table])
def test_a_title_wider_than_its_table_stays_on_one_line(text_of, table):
    rows = {results_table: [result(name="a", val=0.5)], per_class_table: classes_of([0.5])}[table]
    title = "a title of more than thirty-five characters"
    assert text_of(table(rows, title)).splitlines()[0].strip() == title
