"""Configurations drawn from a space: legal, spread as asked, the same from the same seed."""

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.space import sample_configs

SPACE = {
    "kind": ["mlp"],
    "lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
    "width": {"low": 16, "high": 1024, "log": True},
    "depth": [1, 2],
    "seed": {"low": 0, "high": 3},
}


def test_draws_lie_in_the_space_and_spread_over_it():
    found = sample_configs(SPACE, 2000, seed=0, base=MinibatchConfig(epochs=7))
    assert len(set(found)) == 2000 and {c.epochs for c in found} == {7} and {c.kind for c in found} == {"mlp"}
    assert {c.depth for c in found} == {1, 2} and {c.seed for c in found} == {0, 1, 2, 3}
    assert all(1e-4 <= c.lr <= 1e-1 and 0 <= c.dropout <= 0.5 and 16 <= c.width <= 1024 for c in found)
    # The middle of a logarithmic range is the geometric mean of its ends, that of a plain one the arithmetic mean.
    assert np.median([c.lr for c in found]) == pytest.approx(10**-2.5, rel=0.2)
    assert np.median([c.width for c in found]) == pytest.approx(128, rel=0.15)
    assert np.median([c.dropout for c in found]) == pytest.approx(0.25, rel=0.1)
    assert all(type(c.width) is int and type(c.lr) is float for c in found)


def test_the_same_seed_draws_the_same():
    assert sample_configs(SPACE, 20, seed=1) == sample_configs(SPACE, 20, seed=1) != sample_configs(SPACE, 20, seed=2)


def test_a_small_space_is_drawn_once():
    found = sample_configs({"lr": [0.1, 0.2], "mixup": [0.0, 0.5]}, 10, seed=0)
    assert sorted((c.lr, c.mixup) for c in found) == [(0.1, 0.0), (0.1, 0.5), (0.2, 0.0), (0.2, 0.5)]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rate": [0.1]}, "'learning_rate', which is no setting: choose from kind, lr, "),
        ({"lr": []}, r"lr is \[\]: give a list"),
        ({"lr": 0.1}, "lr is 0.1: give a list of choices, or low and high"),
        ({"lr": {"low": 0.1}}, "give a list of choices, or low and high"),
        ({"lr": {"low": 0.1, "high": 1.0, "step": 2}}, "or low and high"),
        ({"lr": {"low": 1.0, "high": 0.1}}, "low must be below high"),
        ({"mixup": {"low": 0.0, "high": 0.1, "log": True}}, "true above 0 only"),
        ({"lr": {"low": 0.1, "high": 1.0, "log": "yes"}}, "log is true or false"),
        ({"lr": ["fast"]}, "lr has 'fast': a finite number is needed"),
        ({"lr": [-1.0]}, "space: lr is -1.0: it must be above 0"),
        ({"width": [1.5]}, "width has 1.5: a whole number is needed"),
        ({"depth": [True]}, "depth has True"),
        ({"width": {"low": 1, "high": 9.5}}, "width has 9.5: a whole number"),
        ({"kind": ["tree"]}, "space: kind 'tree' is not known"),
        ({"kind": [3]}, "kind has 3: a word is needed"),
        ({"solver": {"low": 0, "high": 1}}, "the setting is no number"),
        ({"dropout": [0.5]}, "only mlp has hidden units"),
    ],
)
def test_space_that_cannot_be_drawn_from_is_refused_on_one_line(space, words):
    with pytest.raises(ConfigError, match=words) as caught:
        sample_configs(space, 3, seed=0)
    assert "\n" not in str(caught.value)


def test_no_draws_are_refused():
    with pytest.raises(ConfigError, match="n is 0"):
        sample_configs(SPACE, 0, seed=0)
