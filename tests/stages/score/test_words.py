"""Figures in words, and two heads' side by side."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipeline.heads.scores.paired import PairedDifference
from pipeline.stages.score.words import classes_of, comparison, figures_lines

FIGURES = {
    "n": 1234, "accuracy": 0.953, "balanced_accuracy": 0.94, "macro_f1": 0.935, "top5": None, "auroc": 0.99123,
    "log_loss": 0.2, "ece": 0.041, "intervals": {"accuracy": [0.93, 0.9712], "macro_f1": [0.91, 0.96]},
    "calibrated": {"temperature": 1.7, "ece": 0.012, "log_loss": 0.18},
}  # fmt: skip


def test_every_figure_is_said_with_its_interval() -> None:
    first, meaning, second = figures_lines(FIGURES, "test")
    assert first == (
        "test: accuracy 95.3 % (93.0 to 97.1), balanced accuracy 94.0 %, macro-F1 93.5 % (91.0 to 96.0), "
        "AUROC 0.9912, log-loss 0.2000, 1,234 images"
    )
    assert meaning.startswith("in brackets 95 % intervals: how much another draw of images would change a figure, not")
    assert second == (
        "calibration error 4.1 %; with all logits divided by a temperature, 1.700, fitted on val: 1.2 %, "
        "log-loss 0.1800"
    )


def test_calibration_error_stands_beside_what_a_calibrated_head_would_show() -> None:
    scaled = {"temperature": 1.7, "ece": 0.012, "ece_expected": 0.02, "log_loss": 0.18}
    line = figures_lines({**FIGURES, "ece_expected": 0.039, "calibrated": scaled}, "test")[-1]
    assert line.startswith(
        "calibration error 4.1 % (a perfectly calibrated head would show 3.9 % on 1,234 images); with"
    )
    assert line.endswith("as predict does: 1.2 % (2.0 % if perfect), log-loss 0.1800")


def test_figures_without_an_interval_for_too_few_images_a_class_say_why() -> None:
    intervals = {"accuracy": [0.93, 0.97], "balanced_accuracy": None, "macro_f1": None, "top5": [0.99, 1.0]}
    first, meaning, _ = figures_lines({**FIGURES, "top5": 0.996, "intervals": intervals}, "test")
    assert "macro-F1 93.5 %, top-5 99.6 % (99.0 to 100.0)" in first
    assert meaning.endswith(
        "; none for balanced accuracy and macro-F1: half of the classes or more have fewer than 5 images"
    )


def test_figures_of_an_older_file_are_said_as_far_as_they_go() -> None:
    old = {name: FIGURES[name] for name in ("n", "accuracy", "macro_f1", "top5", "log_loss")}
    assert figures_lines(old, "test") == ["test: accuracy 95.3 %, macro-F1 93.5 %, log-loss 0.2000, 1,234 images"]


def test_classes_without_images_are_counted() -> None:
    per_class = [{"support": n} for n in (3, 0, 2, 0)]
    assert figures_lines({**FIGURES, "per_class": per_class}, "new")[1] == (
        "2 of 4 classes have no images here: balanced accuracy, macro-F1 and AUROC are means over the other 2"
    )
    assert "no images" not in "".join(figures_lines({**FIGURES, "per_class": per_class[:1]}, "test"))


def test_without_a_temperature_that_is_said() -> None:
    assert "the run has no temperature" in figures_lines({**FIGURES, "calibrated": None}, "test")[-1]


def test_two_heads_stand_side_by_side_with_their_difference(printed: Callable[..., str]) -> None:
    other = {**FIGURES, "accuracy": 0.967, "log_loss": 0.15}
    names = ["0001-train-x", "0002-search-x"]
    table = comparison(names, [FIGURES, other], PairedDifference(0.014, -0.002, 0.031, 20, 37, 0.09, 1234))
    lines = [line.split("  ") for line in printed(table, 100).splitlines()]
    rows = {words[0].strip(): [w.strip() for w in words[1:] if w.strip()] for words in lines}
    assert rows["Accuracy"] == ["95.3 %", "96.7 %", "+1.4 points", "−0.2 to +3.1"]
    assert rows["Log-loss"] == ["0.2000", "0.1500", "−0.0500", "–"]
    assert rows["Macro-F1"][2] == "±0.0 points"


def test_two_heads_with_long_names_stand_side_by_side_on_sixty_columns(printed: Callable[..., str]) -> None:
    """By number and stage, as they are listed; by their names where those do not tell them apart."""
    paired = PairedDifference(0.014, -0.002, 0.031, 20, 37, 0.09, 1234)
    cache = "digits-resnet18-random0-32px-3da4c1ba"
    names = [f"0001-train-{cache}", f"0012-search-{cache}"]
    assert [c.heading for c in comparison(names, [FIGURES, FIGURES], paired).columns][1:3] == ["1 train", "12 search"]
    assert re.search("95.3 % +95.3 % ", printed(comparison(names, [FIGURES, FIGURES], paired), 60))
    alike = [f"0001-train-{cache}", "0001-train-other"]
    assert [c.heading for c in comparison(alike, [FIGURES, FIGURES], paired).columns][1:3] == alike
    assert "0001-train-other 95.3 %" in printed(comparison(alike, [FIGURES, FIGURES], paired), 60)


def test_of_another_cache_only_classes_that_occur_or_are_answered_are_shown() -> None:
    per_class = [{"name": name, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2} for name in "abcd"]
    confusion = [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]
    table, matrix = classes_of({"per_class": per_class, "confusion": confusion}, "all", "other")
    assert [row[0] for row in table.rows] == list(matrix.classes) == ["a", "c", "d"]
    assert matrix.cells == [(0, 0, 1), (0, 1, 1), (2, 2, 2)]
    assert table.title == "other, all rows, class by class"
