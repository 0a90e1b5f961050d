"""The confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len

from pipeline.base.values import Matrix
from pipeline.show.terminal import matrix


@pytest.fixture
def lines_of(printed):
    def lines(counts, classes, width=80, colour=False):
        cells = [(i, j, n) for i, row in enumerate(counts) for j, n in enumerate(row) if n]
        return printed(Matrix(cells, classes), width, colour).splitlines()

    return lines


def test_each_row_is_a_true_class_with_its_counts_and_recall(lines_of):
    lines = lines_of([[20, 3], [0, 40]], ["ants", "bees"])
    assert [line.split() for line in lines] == [
        ["predicted"],
        ["true", "ants", "bees", "recall"],
        ["ants", "20", "3", "87.0", "%"],
        ["bees", "·", "40", "100.0", "%"],
    ]


def test_counts_stand_under_the_heads_of_their_columns(lines_of):
    lines = lines_of([[5, 1, 0], [0, 6, 2], [3, 0, 7]], ["a", "b", "c"])
    columns = [lines[1].index(name, len("true")) for name in "abc"]
    assert ["".join(line[c] for line in lines[2:]) for c in columns] == ["5·3", "16·", "·27"]


def test_long_names_are_numbered_at_the_row_and_head_the_columns_by_number(lines_of):
    lines = lines_of([[1, 0], [0, 1]], ["airplane", "automobile"])
    assert lines[1].split() == ["true", "0", "1", "recall"]
    assert lines[2].startswith("0  airplane") and lines[3].startswith("1  automobile")


def test_a_class_without_images_has_no_recall(lines_of):
    assert lines_of([[1, 0], [0, 0]], ["a", "b"])[-1].split() == ["b", "·", "·", "–"]


@pytest.mark.parametrize(("n", "whole"), [(20, True), (21, False)])
def test_beyond_twenty_classes_the_most_confused_pairs_are_shown_instead(lines_of, n, whole):
    lines = lines_of(np.eye(n, dtype=int) * 5 + np.eye(n, k=1, dtype=int), [f"c{i}" for i in range(n)], width=120)
    assert (lines[0].strip() == "predicted") is whole
    assert lines[0].startswith("images") is not whole


def test_twenty_classes_that_do_not_fit_the_width_give_the_pairs(lines_of):
    counts = np.eye(20, dtype=int) * 5000 + 1
    lines = lines_of(counts, [f"class {i}" for i in range(20)], width=80)
    assert lines[0].startswith("images")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [40, 60, 100])
def test_long_names_are_whole_in_the_pairs(lines_of, width):
    counts = np.eye(20, dtype=int) * 5000 + 1
    names = [f"a class of which the name, number {i}, has more words than one line" for i in range(20)]
    lines = lines_of(counts, names, width=width)
    assert max(map(len, lines)) <= width
    assert f"{names[0]} → {names[1]}" in " ".join(" ".join(line.strip() for line in lines).split())


def test_pairs_are_ranked_by_images_with_their_share_of_the_true_class(lines_of, monkeypatch):
    monkeypatch.setattr(matrix, "LARGEST_MATRIX", 2)
    lines = lines_of([[7, 3, 0], [0, 5, 5], [1, 0, 9]], ["ant", "bee", "cat"])
    assert [line.split() for line in lines[1:]] == [
        ["5", "50.0", "%", "bee", "→", "cat"],
        ["3", "30.0", "%", "ant", "→", "bee"],
        ["1", "10.0", "%", "cat", "→", "ant"],
    ]


def test_of_many_pairs_ten_are_shown_and_the_rest_counted(lines_of):
    lines = lines_of(np.ones((30, 30), dtype=int), [str(i) for i in range(30)])
    assert len(lines) == 1 + 10 + 1
    assert lines[-1] == "the 10 pairs most often confused, of 870"


def test_a_perfect_result_of_many_classes_is_said_in_words(lines_of):
    assert lines_of(np.eye(30, dtype=int), [str(i) for i in range(30)]) == ["no image was given a wrong class"]


def test_right_and_wrong_are_shaded_in_different_colours_and_zero_not_at_all(lines_of):
    lines = lines_of([[9, 1], [0, 8]], ["a", "b"], colour=True)
    background = [line.count("48;5;") for line in lines]
    assert background == [0, 0, 2, 1]


def test_a_names_control_characters_are_escaped(lines_of):
    assert lines_of([[1, 0], [0, 1]], ["a\n", "b"])[2].startswith("a\\n")


def test_wide_characters_keep_the_columns_in_line(lines_of):
    lines = lines_of([[1, 0], [0, 1]], ["蟻", "ant"])
    assert cell_len(lines[2]) == cell_len(lines[3])
