"""Successive halving: who goes on, and that going on is not starting again."""

import dataclasses

import numpy as np
import pytest

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.halving import Halving, successive_halving
from pipeline.heads.problem import Problem, Split

BASE = MinibatchConfig(batch_size=32, order_seed=0, width=16)


def blobs(n, seed, noise=3.0, d=24):
    centres = np.random.default_rng(99).standard_normal((3, d))
    y = np.arange(n) % 3
    return (centres[y] + noise * np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32), y


NINE = Halving(min_epochs=1, max_epochs=9)
PROBLEM = Problem(*blobs(120, 0), 3, val=Split(*blobs(90, 1)))


def space():
    rates = np.geomspace(1e-5, 0.3, 6)
    linear = [dataclasses.replace(BASE, lr=lr) for lr in rates]
    return linear + [dataclasses.replace(BASE, lr=lr, kind="mlp", seed=i, dropout=0.1) for i, lr in enumerate(rates)]


def halve(configs, schedule=NINE, **options):
    return successive_halving(PROBLEM, configs, schedule, **options)


def best_so_far(result, epochs):
    return max((e.val_accuracy, -e.val_loss) for e in result.trace[:epochs])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_best_third_goes_on_and_continues_as_if_alone(schedule):
    configs = [dataclasses.replace(c, schedule=schedule) for c in space()]
    results = halve(configs)
    full = fit_minibatch(PROBLEM, [dataclasses.replace(c, epochs=9) for c in configs])
    # Worked out from full runs of all: 12, of which 4 go on, of which 1.
    after_one = sorted(range(12), key=lambda i: best_so_far(full[i], 1), reverse=True)[:4]
    after_three = max(after_one, key=lambda i: best_so_far(full[i], 3))
    expected = [9 if i == after_three else 3 if i in after_one else 1 for i in range(12)]
    assert [len(r.trace) for r in results] == expected
    winner, alone = results[after_three], full[after_three]
    assert winner.config == alone.config and winner.best_epoch == alone.best_epoch
    for name, tensor in alone.tensors.items():
        np.testing.assert_allclose(winner.tensors[name], tensor, rtol=0, atol=1e-5 * np.abs(tensor).max())


def test_heads_left_behind_keep_their_best_epoch():
    for result in halve(space()):
        assert 1 <= result.best_epoch <= len(result.trace)
        assert result.val_accuracy == result.trace[result.best_epoch - 1].val_accuracy


def test_a_diverged_head_takes_nobodys_place():
    configs = [dataclasses.replace(BASE, solver="sgd", lr=lr) for lr in (1e38, 1e-3, 1e-2, 1e38)]
    results = halve(configs, Halving(min_epochs=1, max_epochs=2, eta=2))
    assert [r.diverged for r in results] == [True, False, False, True]
    assert sorted(len(r.trace) for r in results) == [0, 0, 1, 2]


def test_stop_gives_what_there_is():
    heard = []
    results = halve(space(), on_epoch=lambda i, e: heard.append((i, e.epoch)), should_stop=lambda: len(heard) >= 14)
    assert max(len(r.trace) for r in results) == 2
    assert sorted(heard) == sorted((i, e.epoch) for i, r in enumerate(results) for e in r.trace)


def test_the_same_seeds_give_the_same_bits():
    for one, two in zip(halve(space()), halve(space()), strict=True):
        assert one.trace == two.trace
        for name in one.tensors:
            np.testing.assert_array_equal(one.tensors[name], two.tensors[name])


def test_rungs_grow_by_eta_up_to_the_end():
    assert Halving(min_epochs=2, max_epochs=30, eta=3).rungs() == [2, 6, 18, 30]
    assert Halving(min_epochs=4, max_epochs=4, eta=2).rungs() == [4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eta": 1}, "eta is 1: it must be at least 2"),
        ({"min_epochs": 0}, "min_epochs is 0: it must be at least 1"),
        ({"min_epochs": 10}, "at most max_epochs, 9"),
    ],
)
def test_what_cannot_be_halved_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        Halving(**{"min_epochs": 1, "max_epochs": 9, **changes})


def test_no_configs_are_refused():
    with pytest.raises(ConfigError, match="at least one is needed"):
        halve([])


def test_a_problem_without_val_rows_is_refused():
    with pytest.raises(HeadError, match="no val rows"):
        successive_halving(dataclasses.replace(PROBLEM, val=None), [BASE], NINE)
