"""Tables of results, classes, settings, searches and files."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline.show.tables import (
    Result,
    Trial,
    files_summary,
    per_class_table,
    results_table,
    search_table,
    settings_panel,
)


def text_of(renderable, width=80, colour=False):
    out = Console(file=io.StringIO(), width=width, force_terminal=colour, color_system="256" if colour else None)
    out.print(renderable)
    return out.file.getvalue()


def bold_lines(renderable):
    return [i for i, line in enumerate(text_of(renderable, colour=True).splitlines()) if re.search(r"\x1b\[1m\S", line)]


RESULTS = [
    Result("majority", val=0.101, test=0.12, macro_f1=0.018, seconds=0.003),
    Result("k-NN", val=0.97, test=0.951, macro_f1=0.95, seconds=0.21),
    Result("logistic regression", val=0.96, test=0.96, macro_f1=0.959, seconds=185.0, note="not converged"),
]


def test_results_show_every_figure_in_its_unit():
    lines = text_of(results_table(RESULTS)).splitlines()
    assert lines[0].split() == ["Method", "Val", "Test", "Macro-F1", "Time"]
    assert re.split(r" {2,}", lines[-1].strip()) == [
        *("logistic regression", "96.0 %", "96.0 %", "95.9 %", "3 min 05 s", "not converged")
    ]


def test_a_column_without_figures_is_left_out():
    head = text_of(results_table([Result("a", test=0.5), Result("b")])).splitlines()[0]
    assert head.split() == ["Method", "Test"]


def test_a_missing_figure_among_others_is_a_dash():
    last = text_of(results_table([Result("a", val=0.5), Result("b")])).splitlines()[-1]
    assert last.split() == ["b", "–"]


def test_the_best_row_by_val_is_bold_though_another_leads_on_test():
    """S6: the test split chooses nothing, not even what is printed in bold."""
    assert bold_lines(results_table(RESULTS)) == [3]


def test_without_val_the_best_on_test_is_bold():
    rows = [Result("a", test=0.5), Result("b", test=0.6)]
    assert bold_lines(results_table(rows)) == [3]


def test_results_of_equal_val_are_both_bold():
    assert bold_lines(results_table([Result("a", val=0.5), Result("b", val=0.5), Result("c", val=0.4)])) == [2, 3]


def test_a_figure_that_is_not_a_number_is_shown_and_never_best():
    table = results_table([Result("a", val=float("nan")), Result("b", val=0.4)])
    assert "nan" in text_of(table)
    assert bold_lines(table) == [3]


def test_figures_end_in_one_column():
    lines = text_of(results_table(RESULTS)).splitlines()
    end = lines[0].index("Val") + 3
    assert all(line[end - 1] == "%" for line in lines[2:])


@pytest.mark.parametrize("width", [80, 120])
def test_a_very_long_name_is_cut_and_leaves_the_figures_whole(width):
    text = text_of(results_table([Result("x" * 200, val=0.5, test=0.25, macro_f1=0.125, seconds=1.0)]), width)
    assert "…" in text and "50.0 %" in text and "12.5 %" in text and "1.0 s" in text
    assert max(map(len, text.splitlines())) <= width


def test_markup_in_a_name_is_printed_as_it_is():
    assert "[bold]a[/bold]" in text_of(results_table([Result("[bold]a[/bold]", val=0.5)]))


def test_a_title_stands_above():
    assert text_of(results_table(RESULTS, "Baselines")).splitlines()[0].strip() == "Baselines"


def classes_of(f1s):
    return [{"name": f"c{i}", "precision": 0.5, "recall": 0.25, "f1": f, "support": 1234} for i, f in enumerate(f1s)]


def test_each_class_has_a_row():
    lines = text_of(per_class_table(classes_of([0.1, 0.2]))).splitlines()
    assert lines[0].split() == ["Class", "Precision", "Recall", "F1", "Images"]
    assert re.split(r" {2,}", lines[-1].strip()) == ["c1", "50.0 %", "25.0 %", "20.0 %", "1,234"]


def test_of_many_classes_the_worst_are_shown_and_the_rest_counted():
    text = text_of(per_class_table(classes_of([i / 1000 for i in range(999, -1, -1)]), limit=3))
    assert re.findall(r"c\d+", text) == ["c999", "c998", "c997"]
    assert "the 3 classes with the lowest F1, of 1,000" in text


def test_settings_are_pairs_with_readable_names():
    text = text_of(settings_panel({"image_size": 64, "lr": 1e-3, "cv": None, "layers": ["a", "b"]}, "Settings"))
    pairs = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    assert pairs == [["Settings"], ["image size", "64"], ["lr", "0.001"], ["cv", "–"], ["layers", "a, b"]]


TRIALS = [
    Trial({"lr": 0.01, "weight_decay": 0.0}, val=0.95, train=0.99, seconds=1.2),
    Trial({"lr": 1.0}, note="diverged"),
]


def test_a_search_is_shown_in_the_order_given():
    lines = text_of(search_table(TRIALS)).splitlines()
    assert lines[0].split() == ["lr", "weight", "decay", "Val", "Train", "Time"]
    assert lines[2].split() == ["1", "0.01", "0", "95.0", "%", "99.0", "%", "1.2", "s"]
    assert lines[3].split() == ["2", "1", "–", "–", "–", "–", "diverged"]


def test_the_first_trial_is_bold():
    assert bold_lines(search_table(TRIALS)) == [2]


def test_a_long_ranking_is_cut_and_counted():
    text = text_of(search_table([Trial({"C": float(i)}, val=0.5) for i in range(45)]))
    assert "the first 10 of 45" in text
    assert len(text.splitlines()) == 2 + 10 + 1


def test_skipped_files_are_counted_by_reason():
    """I5."""
    text = text_of(files_summary({"hidden": 3, "not an image": 1200}, []))
    assert text.strip() == "skipped 1,203 files: 3 hidden, 1,200 not an image"


def test_a_single_skipped_file_is_singular():
    assert text_of(files_summary({"hidden": 1}, [])).startswith("skipped 1 file: ")


def test_failed_images_are_listed_with_path_and_reason():
    """I1, I6: the path's every byte can be read."""
    lines = text_of(
        files_summary({}, [(b"bees/caf\xe9\n.jpg", "truncated"), ("ants/b.gif", "not an image")])
    ).splitlines()
    assert lines[0].strip() == "failed 2 images"
    assert [re.split(r" {2,}", line.strip()) for line in lines[1:]] == [
        *(["bees/caf\\xe9\\n.jpg", "truncated"], ["ants/b.gif", "not an image"])
    ]


def test_of_many_failures_the_first_are_listed_and_the_rest_counted():
    lines = text_of(files_summary({}, [(f"{i}.png", "truncated") for i in range(1010)])).splitlines()
    assert lines[0].strip() == "failed 1,010 images"
    assert lines[-1].strip() == "and 1,000 more"
    assert len(lines) == 12


def test_a_long_path_is_folded_not_cut():
    path = "deep/" * 40 + "a.png"
    text = text_of(files_summary({}, [(path, "truncated")]))
    assert re.sub(r"\s|truncated", "", text.splitlines()[1] + "".join(text.splitlines()[2:])) == path


@pytest.mark.parametrize("table", [search_table, results_table, per_class_table])
def test_a_title_wider_than_its_table_stays_on_one_line(table):
    rows = {search_table: TRIALS, results_table: [Result("a", val=0.5)], per_class_table: classes_of([0.5])}[table]
    title = "a title of more than thirty-five characters"
    assert text_of(table(rows, title)).splitlines()[0].strip() == title
