"""The training trace: what the numbers say."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from pipeline.base.watch import TraceRow
from pipeline.show.trace import LONGEST_OBSERVATION, Remarks, cells, header, observe, places


def rows_of(losses, accuracies=None, vals=None, first=1):
    accuracies = accuracies or [0.5] * len(losses)
    vals = vals or [None] * len(losses)
    return [TraceRow(first + i, *figures) for i, figures in enumerate(zip(losses, accuracies, vals, strict=True))]


def test_no_rows_say_nothing():
    assert observe([]) == ""


@pytest.mark.parametrize(
    ("accuracy", "n_classes", "said"),
    [
        (0.70, 10, "first pass: far above chance (10 %)"),
        (0.30, 10, "first pass: above chance (10 %)"),
        (0.12, 10, "first pass: near chance (10 %)"),
        (0.02, 10, "first pass: below chance (10 %)"),
        (0.90, 2, "first pass: far above chance (50 %)"),
        (0.52, 2, "first pass: near chance (50 %)"),
        (0.60, 3, "first pass: above chance (33.3 %)"),
        (0.60, None, "first pass"),
    ],
)
def test_first_row_is_compared_with_guessing(accuracy, n_classes, said):
    assert observe([TraceRow(1, 1.0, accuracy, None)], n_classes) == said


def test_first_row_is_judged_by_val_where_there_is_one():
    assert observe([TraceRow(1, 1.0, 0.99, 0.10)], 10) == "first pass: near chance (10 %)"


def test_epoch_zero_is_the_state_before_training():
    assert observe([TraceRow(0, 1.0, 0.9, 0.9)], 10) == "before training"


def test_the_loss_before_training_is_no_yardstick_for_that_of_weights_that_move():
    before = TraceRow(0, 0.14, 0.97, 0.96)
    assert observe([before, TraceRow(1, 0.16, 0.96, 0.96)]) == "first epoch"
    assert observe([before, TraceRow(1, 0.16, 0.96, 0.96), TraceRow(2, 0.07, 0.98, 0.96)]) == "loss halved"
    assert observe([before, TraceRow(1, 5.0, 0.96, 0.96)]) == "loss exploded: lower the learning rate"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_called_diverged(loss):
    assert observe(rows_of([1.0, loss])) == "diverged: loss is not a number"


def test_first_row_can_diverge_too():
    assert observe(rows_of([math.nan]), 10) == "diverged: loss is not a number"


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.0, 1.0], "loss halved"),
        ([2.0, 1.4], "loss still falling"),
        ([2.0, 1.4, 0.9], "loss 1/2 of epoch 1"),
        ([2.0, 1.2, 0.7, 0.49], "loss 1/4 of epoch 1"),
        ([2.0, 1.2, 0.9, 0.85], "loss still falling"),
        ([2.0, 1.999], "loss flat"),
        ([2.0, 2.02], "loss flat"),
        ([2.0, 2.2], "loss rising: learning rate too high?"),
        ([2.0, 2.06, 2.12], "loss rising: learning rate too high?"),
        ([2.0, 7.0], "loss exploded: lower the learning rate"),
        ([0.0010, 0.0012], "loss flat"),
        ([0.0, 0.0], "loss flat"),
    ],
)
def test_loss_alone_is_put_into_words(losses, said):
    assert observe(rows_of(losses)) == said


def test_best_val_so_far_comes_before_what_the_loss_did():
    assert observe(rows_of([2.0, 1.0], vals=[0.5, 0.6])) == "best val so far, loss halved"


def test_an_equal_val_is_not_a_new_best():
    assert "best" not in observe(rows_of([2.0, 1.9], vals=[0.6, 0.6]))


@pytest.mark.parametrize(("epochs", "flat"), [(3, False), (4, True)])
def test_val_is_flat_after_three_epochs_without_change(epochs, flat):
    said = observe(rows_of([2.0 - 0.001 * i for i in range(epochs)], vals=[0.9] * epochs))
    assert said.startswith("val flat for 3 epochs") is flat


def test_the_flat_run_is_counted_from_where_val_last_moved():
    assert observe(rows_of([1.0] * 7, vals=[0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])).startswith("val flat for 5 epochs")


def test_full_train_accuracy_and_falling_val_is_overfitting():
    rows = rows_of([0.1, 0.09, 0.08], [1.0, 1.0, 1.0], [0.95, 0.93, 0.91])
    assert observe(rows) == "train 100 %, val falling: overfitting"


def test_better_train_and_falling_val_is_overfitting():
    rows = rows_of([0.5, 0.4, 0.3], [0.8, 0.9, 0.95], [0.95, 0.93, 0.91])
    assert observe(rows) == "train better, val falling: overfitting"


def test_one_bad_epoch_is_not_yet_overfitting():
    rows = rows_of([0.5, 0.49], [0.8, 0.8], [0.95, 0.91])
    assert observe(rows) == "val 4.0 points below epoch 1"


def test_rising_loss_with_falling_val_is_not_called_overfitting():
    rows = rows_of([0.5, 0.6, 0.8], [0.9, 0.8, 0.7], [0.95, 0.93, 0.91])
    assert "overfitting" not in observe(rows)


def test_reaching_full_train_accuracy_is_said_once():
    rows = rows_of([0.50, 0.45, 0.44], [0.99, 1.0, 1.0])
    assert [observe(rows[:2]), observe(rows)] == ["train 100 %, loss still falling", "loss still falling"]


def test_a_finite_loss_after_an_infinite_one_is_judged_without_it():
    assert observe(rows_of([math.inf, 1.0])) == "loss still falling"


def test_every_observation_is_short_and_the_same_each_time():
    values = (0.0, 1e-9, 0.5, 1.0, 3.7, 1e6, math.inf, math.nan)
    draw = random.Random(0)
    for losses in itertools.product(values, repeat=3):
        vals = [draw.choice([None, 0.0, 0.7, 0.91, 0.9105, 1.0, math.nan]) for _ in losses]
        rows = rows_of(losses, [draw.random() for _ in losses], vals, first=1234)
        said = observe(rows, 1000)
        assert 0 < len(said) <= LONGEST_OBSERVATION
        assert observe(list(rows), 1000) == said


@pytest.mark.parametrize("step", ["Epoch", "Iteration"])
def test_rows_line_up_under_the_header(step):
    head = header(step)
    for row in (TraceRow(1, 0.6931, 0.953, None), TraceRow(1000, 1.234e-05, 1.0, 1.0), TraceRow(7, math.nan, 0.0, 0.5)):
        *figures, _ = cells(row, step)
        line = "  ".join(figures)
        ends = [head.index(title) + len(title) for title in (step, "Loss", "Accuracy", "Val accuracy")]
        assert all(line[end - 1] != " " and line[end : end + 2].strip() == "" for end in ends)


def test_a_row_with_the_longest_observation_fits_eighty_columns():
    row = TraceRow(99, 0.5, 1.0, 1.0, observation="x" * LONGEST_OBSERVATION)
    assert len("  ".join(cells(row))) <= 80


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 12, 100, 5000])
def test_rows_that_are_shown_are_few_and_ever_further_apart(total):
    chosen = places(total, 8)
    assert len(chosen) == min(total, 8) and chosen[0] == 0 and chosen[-1] == total - 1
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert all(gap >= 1 for gap in gaps)
    assert total < 100 or gaps[-1] > 4 * gaps[0]


def test_a_remark_is_made_once_whatever_its_numbers():
    remarks = Remarks()
    told = [
        remarks.new(text)
        for text in ("best val so far, loss halved", "best val so far, loss flat", "val flat for 3 epochs")
    ]
    assert told == ["best val so far, loss halved", "loss flat", "val flat for 3 epochs"]
    assert remarks.new("val flat for 4 epochs") == ""
