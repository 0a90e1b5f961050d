"""The one rule by which something is chosen."""

import pytest

from pipeline.heads.choice import METRICS, PENALTIES, at_the_end, order


def figures(**more):
    return {"log_loss": 0.5, "accuracy": 0.8, "balanced_accuracy": 0.8, "macro_f1": 0.8, **more}


@pytest.mark.parametrize("metric", METRICS)
def test_the_better_figure_comes_first_then_the_lower_log_loss_then_the_stronger_penalty(metric):
    better = figures(**{metric: 0.4 if metric == "log_loss" else 0.9})
    assert order(better, metric, C=9.0) < order(figures(log_loss=0.5), metric, C=0.1)
    if metric != "log_loss":
        assert order(figures(log_loss=0.4), metric, C=9.0) < order(figures(), metric, C=0.1)
    assert order(figures(), metric, C=0.1) < order(figures(), metric, C=9.0)


def test_the_log_loss_chooses_unless_another_is_asked_for():
    assert order(figures(log_loss=0.1, accuracy=0.1)) < order(figures())


def test_the_end_of_a_path_is_said_and_a_single_value_has_none():
    assert at_the_end(PENALTIES, 10.0) == "highest" and at_the_end(PENALTIES, PENALTIES[0]) == "lowest"
    assert at_the_end(PENALTIES, PENALTIES[3]) is None and at_the_end([1.0], 1.0) is None
