"""The trace of the model's steps and the trace of one image."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from pipeline.show.pipeline_trace import Layer, PredictionTrace, Step, TopClass, model_trace, prediction_trace


def text_of(renderable, width=80):
    out = Console(file=io.StringIO(), width=width)
    out.print(renderable)
    return out.file.getvalue()


TRUNK = [Layer("conv1", (64, 112, 112), 9_408, "frozen"), Layer("avgpool", (2048,), 0)]
STEPS = [
    Step("load", "resnet50", [*TRUNK, Layer("fc", (1000,), 2_049_000, "frozen")]),
    Step("remove the head", "2048 features", TRUNK),
    Step("add the new head", "10 classes", [*TRUNK, Layer("fc", (10,), 20_490, "trained")]),
    Step("train", "on cached features", [Layer("fc", (10,), 20_490, "trained")]),
]


def row(text, name):
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip().startswith(name)]


def test_the_steps_are_numbered_in_order_with_their_sentence():
    titles = re.findall(r"^(\d)  (\S.*?)   (.*?) *$", text_of(model_trace(STEPS)), re.MULTILINE)
    assert titles == [
        ("1", "load", "resnet50"),
        ("2", "remove the head", "2048 features"),
        ("3", "add the new head", "10 classes"),
        ("4", "train", "on cached features"),
    ]


def test_a_layer_shows_shape_parameters_and_state():
    text = text_of(model_trace(STEPS))
    assert row(text, "conv1")[0] == ["conv1", "64 × 112 × 112", "9,408", "frozen"]
    assert row(text, "avgpool")[0] == ["avgpool", "2048", "–"]
    assert [r[1:] for r in row(text, "fc")] == [
        ["1000", "2,049,000", "frozen"],
        ["10", "20,490", "trained"],
        ["10", "20,490", "trained"],
    ]


def test_the_parameters_of_each_step_are_summed_and_what_is_trained_is_said():
    assert [r[1:] for r in row(text_of(model_trace(STEPS)), "parameters in all")] == [
        ["2,058,408", "all frozen"],
        ["9,408", "all frozen"],
        ["29,898", "20,490 trained"],
        ["20,490", "all trained"],
    ]


def test_the_columns_of_all_steps_are_aligned():
    text = text_of(model_trace(STEPS))
    ends = {line.index("parameters") for line in text.splitlines() if line.strip().startswith("layer")}
    assert len(ends) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_model_trace_fits_the_width(width):
    assert max(map(len, text_of(model_trace(STEPS), width).splitlines())) <= width


PREDICTION = PredictionTrace(
    path="val/ants/1.jpg",
    width=768,
    height=512,
    mode="RGB",
    input_shape=(3, 224, 224),
    input_min=-2.118,
    input_mean=0.031,
    input_max=2.64,
    features_shape=(2048,),
    features_first=[0.4123, 0.0, 0.872],
    features_norm=31.2,
    logits_shape=(2,),
    top=[TopClass("ants", 3.21, 0.75), TopClass("bees", -0.377, 0.25)],
)


def test_the_stations_stand_in_the_order_in_which_the_image_passes_them():
    text = text_of(prediction_trace(PREDICTION))
    stations = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert stations == ["image", "input", "features", "head", "softmax", "class"]


def test_each_station_shows_its_real_shape_and_values():
    text = text_of(prediction_trace(PREDICTION))
    stations = {r[0]: r[1:] for r in (re.split(r" {2,}", line.strip()) for line in text.splitlines())}
    assert stations["image"] == ["768 × 512", "val/ants/1.jpg", "RGB"]
    assert stations["input"] == ["3 × 224 × 224", "min -2.118", "mean 0.03100", "max 2.640"]
    assert stations["features"] == ["2048", "0.412 0.00 0.872 …", "norm 31.20"]
    assert stations["head"] == ["2", "logits", "ants 3.210", "bees -0.3770"]
    assert stations["class"] == ["ants"]


def test_the_bars_are_as_long_as_the_probabilities():
    text = text_of(prediction_trace(PREDICTION))
    assert [line.count("█") for line in text.splitlines() if "█" in line] == [18, 6]  # of 24: 75 % and 25 %


def test_a_tiny_probability_has_no_bar_and_a_certain_one_a_whole():
    top = [TopClass("ants", 9.0, 1.0), TopClass("bees", -9.0, 1e-9)]
    lines = text_of(prediction_trace(dataclasses.replace(PREDICTION, top=top))).splitlines()
    assert next(line for line in lines if "softmax" in line).count("█") == 24
    assert next(line for line in lines if line.strip().startswith("0.0 %")).strip() == "0.0 %  bees"


@pytest.mark.parametrize(("truth", "said"), [("ants", "ants  correct"), ("bees", "ants  wrong: it is bees")])
def test_a_known_truth_is_compared(truth, said):
    text = text_of(prediction_trace(dataclasses.replace(PREDICTION, true_class=truth)))
    assert re.split(r" {3,}", text.splitlines()[-1].strip())[1] == said


def test_a_strange_path_is_legible():
    """I6."""
    assert "a\\n\\xff.png" in text_of(prediction_trace(dataclasses.replace(PREDICTION, path=b"a\n\xff.png")))
