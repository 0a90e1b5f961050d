"""The trace of the model's steps and the trace of one image."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from pipeline.show.steps import Layer, ModelStep, steps
from pipeline.stages.use.results import Prediction
from pipeline.stages.use.words import Passage, parity, predictions, way


@pytest.fixture
def text_of(printed):
    return printed


TRUNK = [Layer("conv1", (64, 112, 112), 9_408, "frozen"), Layer("avgpool", (2048,), 0)]
STEPS = [
    ModelStep("load", "resnet50", [*TRUNK, Layer("fc", (1000,), 2_049_000, "frozen")]),
    ModelStep("remove the head", "2048 features", TRUNK),
    ModelStep("add the new head", "10 classes", [*TRUNK, Layer("fc", (10,), 20_490, "trained")]),
    ModelStep("train", "on cached features", [Layer("fc", (10,), 20_490, "trained")]),
]


def row(text, name):
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip().startswith(name)]


def test_the_steps_are_numbered_in_order_with_their_sentence(text_of):
    titles = re.findall(r"^(\d)  (\S.*?)   (.*?) *$", text_of(steps(STEPS)), re.MULTILINE)
    assert titles == [
        ("1", "load", "resnet50"),
        ("2", "remove the head", "2048 features"),
        ("3", "add the new head", "10 classes"),
        ("4", "train", "on cached features"),
    ]


def test_a_layer_shows_shape_parameters_and_state(text_of):
    text = text_of(steps(STEPS))
    assert row(text, "conv1")[0] == ["conv1", "64 × 112 × 112", "9,408", "frozen"]
    assert row(text, "avgpool")[0] == ["avgpool", "2048", "–"]
    assert [r[1:] for r in row(text, "fc")] == [
        ["1000", "2,049,000", "frozen"],
        ["10", "20,490", "trained"],
        ["10", "20,490", "trained"],
    ]


def test_the_parameters_of_each_step_are_summed_and_what_is_trained_is_said(text_of):
    assert [r[1:] for r in row(text_of(steps(STEPS)), "parameters in all")] == [
        ["2,058,408", "all frozen"],
        ["9,408", "all frozen"],
        ["29,898", "20,490 trained"],
        ["20,490", "all trained"],
    ]


def test_the_columns_of_all_steps_are_aligned(text_of):
    text = text_of(steps(STEPS))
    ends = {line.index("parameters") for line in text.splitlines() if line.strip().startswith("layer")}
    assert len(ends) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_model_trace_fits_the_width(text_of, width):
    assert max(map(len, text_of(steps(STEPS), width).splitlines())) <= width


def passage(features, logits):
    pixels = np.zeros((3, 224, 224), np.float32)
    pixels[0, 0, 0], pixels[0, 0, 1] = -2.118, 2.64
    pixels[1:] = (0.031 * pixels.size - pixels.sum()) / pixels[1:].size
    return Passage("val/ants/1.jpg", "768 × 512", "RGB", pixels, np.float32(features), np.float32(logits))


PREDICTION = passage([0.4123, 0.0, 0.872, *[0.0] * 2045], [3.21, 3.21 - math.log(3)])  # 75 % and 25 %
CLASSES = ("ants", "bees")


def prediction_trace(image=PREDICTION, true_class=None):
    return way(image, CLASSES, 5, true_class)


def test_the_stations_stand_in_the_order_in_which_the_image_passes_them(text_of):
    text = text_of(prediction_trace())
    stations = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert stations == ["image", "input", "features", "head", "softmax", "class"]


def test_each_station_shows_its_real_shape_and_values(text_of):
    text = text_of(prediction_trace())
    stations = {r[0]: r[1:] for r in (re.split(r" {2,}", line.strip()) for line in text.splitlines())}
    assert stations["image"] == ["768 × 512", "val/ants/1.jpg", "RGB"]
    assert stations["input"] == ["3 × 224 × 224", "min -2.118", "mean 0.03100", "max 2.640"]
    assert stations["features"] == ["2048", "0.412 0.00 0.872 0.00 0.00 …", "norm 0.9646"]
    assert stations["head"] == ["2", "logits", "ants 3.210", "bees 2.111"]
    assert stations["class"] == ["ants"]


def test_the_bars_are_as_long_as_the_probabilities(text_of):
    text = text_of(prediction_trace())
    assert [line.count("█") for line in text.splitlines() if "█" in line] == [18, 6]  # of 24: 75 % and 25 %


def test_a_tiny_probability_has_no_bar_and_a_certain_one_a_whole(text_of):
    lines = text_of(prediction_trace(passage([1.0], [9.0, -12.0]))).splitlines()
    assert next(line for line in lines if "softmax" in line).count("█") == 24
    assert next(line for line in lines if line.strip().startswith("0.0 %")).strip() == "0.0 %  bees"


@pytest.mark.parametrize(("truth", "said"), [("ants", "ants  correct"), ("bees", "ants  wrong: it is bees")])
def test_a_known_truth_is_compared(text_of, truth, said):
    text = text_of(prediction_trace(true_class=truth))
    assert re.split(r" {3,}", text.splitlines()[-1].strip())[1] == said


def test_a_strange_path_is_legible(text_of):
    """Every byte of it."""
    assert "a\\n\\xff.png" in text_of(prediction_trace(dataclasses.replace(PREDICTION, path="a\n\udcff.png")))


def test_predictions_show_class_probability_and_what_else_is_likely(text_of):
    found = [
        Prediction("a.png", "ants", 0.9, (("ants", 0.9), ("bees", 0.0999), ("cats", 0.0001))),
        Prediction("b.png", None, 0.4, (("ants", 0.4), ("bees", 0.35))),
        Prediction("c.png", None, None, (), "truncated"),
    ]
    lines = [re.split(r" {2,}", line.strip()) for line in text_of(predictions(found)).splitlines()]
    assert lines[2:] == [
        ["a.png", "ants", "90.0 %", "bees 10.0 %"],
        ["b.png", "–", "40.0 %", "ants 40.0 %, bees 35.0 %"],
        ["c.png", "–", "–", "truncated"],
    ]


def test_an_exports_differences_stand_beside_what_is_allowed(text_of):
    lines = text_of(parity({"1": 2e-7, "7": 3.14e-7}, 1e-4, "onnx")).splitlines()
    assert lines[0] == "onnx against the model"
    assert [line.split() for line in lines[3:]] == [["1", "2.0e-07", "1e-04"], ["7", "3.1e-07", "1e-04"]]
