"""What learning says: rankings, the path of penalties, few-shot figures."""

from __future__ import annotations

import re

import pytest

from pipeline.stages.learn import words
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.trials import Trial

SETTINGS = SearchSettings(cache="latest", metric="accuracy")


def trial(settings, val=0.5, train=0.6, note=""):
    scores = ({"accuracy": v, "log_loss": 1 - v, "macro_f1": v, "balanced_accuracy": v} for v in (val, train))
    return Trial(settings, *scores, note)


TRIALS = [trial({"lr": 0.01, "weight_decay": 0.0}, 0.95, 0.99), trial({"lr": 1.0}, 0.1, 0.1, "diverged")]


def test_a_search_is_shown_in_the_order_given(printed):
    lines = printed(words.ranking(TRIALS, SETTINGS)).splitlines()
    assert lines[0] == "2 heads, ranked by accuracy on val, then log-loss"
    assert lines[1].split() == ["lr", "weight", "decay", "Val", "Train"]
    assert lines[3].split() == ["1", "0.01", "0", "95.0", "%", "99.0", "%"]
    assert lines[4].split() == ["2", "1", "–", "10.0", "%", "10.0", "%", "diverged"]


def test_the_first_trial_is_bold(printed):
    lines = printed(words.ranking(TRIALS, SETTINGS), colour=True).splitlines()[1:]
    assert [i for i, line in enumerate(lines) if re.search(r"\x1b\[1m\S", line)] == [2]


def test_a_long_ranking_is_cut_and_counted(printed):
    text = printed(words.ranking([trial({"C": float(i)}) for i in range(45)], SETTINGS))
    assert "the first 10 of 45" in text
    assert len(text.splitlines()) == 1 + 2 + 10 + 1


def test_a_ranking_by_log_loss_shows_no_percentages(printed):
    text = printed(words.ranking(TRIALS, SearchSettings(cache="latest", metric="log_loss", cv=5)))
    assert re.search(r"0\.05000 +0\.01000 +95\.0 %", text)  # log-loss on what chose and on train, accuracy
    assert text.startswith("2 heads, ranked by log-loss on 5 folds\n")
    assert "5 folds chose: its best figures are optimistic" in text


def test_a_title_wider_than_its_table_stays_on_one_line(printed):
    text = printed(words.ranking([trial({"C": 1.0})], SETTINGS))
    assert text.splitlines()[0].strip() == "1 head, ranked by accuracy on val, then log-loss"
    assert max(map(len, text.splitlines()[1:])) < len(text.splitlines()[0].strip())


PATH = [trial({"C": C}, val, train) for C, val, train in ((1e-3, 0.5, 0.5), (1e-2, 0.8, 0.75), (1e-1, 0.6, 1.0))]


def test_the_title_names_the_metric_the_chosen_penalty_and_its_figure():
    curve = words.path(PATH, "accuracy", 1e-2)
    assert curve.title == "accuracy against C: chosen C = 0.01, val 80.0 %"
    assert curve.shares and curve.log_x and curve.chosen == 1e-2


def test_the_path_holds_train_and_val_against_the_penalty_val_last():
    curve = words.path(PATH, "accuracy", 1e-2)
    assert list(curve.x) == [1e-3, 1e-2, 1e-1]
    assert list(curve.series.items()) == [("train", [0.5, 0.75, 1.0]), ("val", [0.5, 0.8, 0.6])]


def test_a_loss_is_no_percentage():
    curve = words.path(PATH, "log_loss", 1e-2)
    assert curve.title == "log-loss against C: chosen C = 0.01, val 0.2000" and not curve.shares


@pytest.mark.parametrize(("metric", "said"), [("accuracy", "90.0 % ± 1.0"), ("log_loss", "0.9000 ± 0.010")])
def test_few_shot_figures_carry_their_deviation_where_there_are_several_draws(printed, metric, said):
    shares = {"accuracy": 0.9, "accuracy_deviation": 0.01, "centroid": 0.8, "centroid_deviation": 0.02}
    several = {
        "shots": 5,
        "draws": 3,
        "val": 0.9,
        "val_deviation": 0.01,
        "test": None,
        "test_deviation": None,
        **shares,
    }
    several["C"] = 1
    one = {**several, "shots": 1, "draws": 1, **{name: None for name in several if name.endswith("deviation")}}
    settings = SearchSettings(cache="latest", metric=metric, shots=(1, 5), draws=3)
    more = [] if metric == "accuracy" else ["90.0 % ± 1.0"]
    lines = printed(words.few_shot([several, one], settings), width=160).splitlines()
    heads = ["Val accuracy"] if more else []
    assert re.split(r" {2,}", lines[1].strip()) == [
        *("Shots", "Draws", "Val (chose C)", *heads, "Cosine centroid, val accuracy", "Median C")
    ]
    assert re.split(r" {2,}", lines[3].strip()) == ["5", "3", said, *more, "80.0 % ± 2.0", "1"]
    alone = [cell.split(" ±")[0] for cell in (said, *more, "80.0 %")]
    assert re.split(r" {2,}", lines[4].strip()) == ["1", "1", *alone, "1"]
    tested = printed(words.few_shot([{**several, "test": 0.5}, one], settings), width=160)
    assert "Test" in tested and "Cosine centroid, test accuracy" in tested and "end of the path" not in tested
    assert "end of the path (5 shots: 10)" in printed(words.few_shot([{**several, "C": 10.0}], settings), width=160)


LAW = {"a": 0.1, "b": 0.9, "c": 0.35}
AHEAD = [{"images": 17000, "val": 0.8123, "low": 0.8, "high": 0.825}]
MORE = {"now": 8500, "error": 0.2, "more": 412, "low": 251, "high": 874, "never": 0.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "about 410 (250 to 870) more labels for +1 point of accuracy; with twice as many, 17,000, "),
        ({"high": None}, "about 410 (250 to more than 10 times as many) more labels for +1 point of accuracy; with"),
        (
            {"high": None, "never": 0.123},
            "+1 point of accuracy; in 12 % of resamples no number of them does; with twice",
        ),
        ({"never": 0.02}, "more labels for +1 point of accuracy; with"),
        (
            {"more": None, "high": None},
            "more than 10 times as many labels for +1 point of accuracy (at least 250 more)",
        ),
        ({"more": None, "low": None, "high": None}, "more than 10 times as many labels for +1 point of accuracy; with"),
        (
            {"more": None, "low": None, "high": None, "never": 0.71},
            "+1 point of accuracy is not to be had by more labels of this kind: in 71 % of resamples no number of them "
            "does, the curve levels off before; with",
        ),
        (
            {"error": 0.004},
            "what +1 point of accuracy takes cannot be told: by the law the error is 0.4 % already; with",
        ),
    ],
)
def test_a_learning_curve_says_what_a_point_costs(more, said):
    told = words.outlook({"results": [], "law": LAW, "more": {**MORE, **more}, "ahead": AHEAD}, "accuracy")
    assert said in told
    assert told.endswith("with twice as many, 17,000, 81.2 % (80.0 to 82.5)")


def test_a_learning_curve_is_a_row_for_each_number_of_shots(printed):
    size = {"images": 50, "draws": 5, "val": 0.5, "low": 0.45, "high": 0.55, "C": 0.01}
    result = {"results": [{**size, "shots": 5}, {**size, "shots": "all", "images": 8500, "draws": 1, "C": 10.0}]}
    settings = SearchSettings(cache="latest", shots=(5, "all"))
    text = printed(words.curve({**result, "law": LAW}, settings), width=100)
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    assert lines[1] == ["Shots", "Images", "Draws", "Val accuracy", "95 %", "Median C"]
    assert lines[3] == ["5", "50", "5", "50.0 %", "45.0 to 55.0", "0.01"]
    assert lines[4] == ["all", "8,500", "1", "50.0 %", "45.0 to 55.0", "10"]
    assert "law: error = 0.1 + 0.9 n^-0.35 of n images" in text and "end of the path (shots all: 10)" in text
    assert "law" not in printed(words.curve({**result, "law": None}, settings), width=100)
    alone = printed(words.curve({**result, "law": None}, SearchSettings(shots=(5, "all"), draws=1)), width=100)
    assert "one draw says nothing of others" in alone
