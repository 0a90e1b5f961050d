"""The model's steps with real shapes, also where the head is no linear layer."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.artifact import Head
from pipeline.runs.shapes import model_steps
from pipeline.show.steps import Layer
from tests.conftest import SMALL


def head(kind: str, shapes: dict[str, tuple[int, ...]], dim: int) -> Head:
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return Head(kind, tensors, ("a", "b", "c"), "0" * 64, dim)


@pytest.fixture(scope="module")
def dim() -> int:
    (width,) = model_steps(SMALL, 32, 3)[1].layers[-1].output or ()
    return width


def test_without_a_head_and_with_a_linear_one_the_new_layer_is_the_same(dim: int) -> None:
    linear = head("linear", {"weight": (3, dim), "bias": (3,)}, dim)
    assert model_steps(SMALL, 32, 3) == model_steps(SMALL, 32, 3, linear)
    assert model_steps(SMALL, 32, 3)[2].layers[-1].parameters == 3 * dim + 3


def test_hidden_layers_are_shown_with_their_own_parameters(dim: int) -> None:
    shapes = {
        "0.weight": (8, dim),
        "0.bias": (8,),
        "2.weight": (5, 8),
        "2.bias": (5,),
        "4.weight": (3, 5),
        "4.bias": (3,),
    }
    added = model_steps(SMALL, 32, 3, head("mlp", shapes, dim))[2]
    assert added.layers[1:] == [
        Layer("hidden 1", (8,), 8 * dim + 8, "trained"),
        Layer("hidden 2", (5,), 45, "trained"),
        Layer("head", (3,), 18, "trained"),
    ]
    assert "a new head of the kind mlp" in added.detail


def test_a_cosine_head_is_one_layer_with_all_that_it_keeps(dim: int) -> None:
    shapes = {"weight": (3, dim), "scale": (1,), "mean": (dim,), "inv_scale": (dim,)}
    (layer,) = model_steps(SMALL, 32, 3, head("cosine", shapes, dim))[3].layers[1:]
    assert (layer.output, layer.parameters) == ((3,), 5 * dim + 1)
