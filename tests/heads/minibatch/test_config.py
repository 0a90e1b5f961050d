"""The settings of a minibatch head: what is refused, and in which words."""

import pytest

from pipeline.base.errors import ConfigError
from pipeline.heads.minibatch.config import MinibatchConfig


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0: it must be at least 0"),
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"solver": "adam"}, "solver 'adam' is not known: choose from adamw, sgd"),
        ({"schedule": "step"}, "choose from cosine, constant"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"patience": 0}, "patience is 0"),
        ({"kind": "tree"}, "kind 'tree' is not known: choose from linear, mlp, cosine"),
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"depth": 0}, "depth is 0"),
        ({"mixup": -0.1}, "mixup is -0.1: it must be at least 0"),
        ({"mixup": float("inf")}, "mixup is inf"),
        ({"scale": 0.0}, "scale is 0.0: it must be above 0"),
        ({"kind": "mlp", "dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
        ({"dropout": 0.5}, "dropout is 0.5 for kind linear: only mlp"),
        ({"order_seed": -1}, "order_seed is -1"),
    ],
)
def test_setting_that_is_not_legal_is_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        MinibatchConfig(**changes)


def test_rows_are_ordered_by_the_heads_seed_unless_another_is_given():
    assert MinibatchConfig(seed=3).order == 3
    assert MinibatchConfig(seed=3, order_seed=0).order == 0
