"""The minibatch solver against plain torch with autograd, one head at a time, in float64."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.base.errors import ConfigError, HeadError
from pipeline.heads.artifact import Head
from pipeline.heads.minibatch import fit as minibatch
from pipeline.heads.minibatch.batches import epoch_batches
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.problem import Problem, Split

SHORT = MinibatchConfig(epochs=4, batch_size=32, lr=0.01)


def blobs(n=210, d=24, c=3, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((c, d))
    y = np.arange(n) % c
    X = (centres[y] + noise * rng.standard_normal((n, d))) * np.linspace(2, 4, d) + 3
    return X.astype(np.float32), y


def logits(result, X):
    return X.astype(np.float64) @ result.weight.T.astype(np.float64) + result.bias


def torch_loop(X, y, config, weights=None):
    """The same training in float64 by torch.nn, torch.optim and autograd: the layer and the losses of its epochs."""
    layer = torch.nn.Linear(X.shape[1], y.max() + 1, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}]
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.solver == "adamw":
        optimiser = torch.optim.AdamW(groups, **options)
    else:
        optimiser = torch.optim.SGD(groups, momentum=config.momentum, **options)
    steps = config.epochs * -(-len(X) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    weights = np.ones(y.max() + 1) if weights is None else weights
    X, y, weights = torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(weights)
    losses = []
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for index in epoch_batches(len(X), batch_size=config.batch_size, seed=config.seed, epoch=epoch):
            each = torch.nn.functional.cross_entropy(
                layer(X[index]), y[index], reduction="none", label_smoothing=config.label_smoothing
            )
            loss = (each * weights[y[index]]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if config.schedule == "cosine":
                schedule.step()
            total += loss.item() * len(index)
        losses.append(total / len(X))
    return layer, losses


@pytest.mark.parametrize(
    "config",
    [
        SHORT,
        dataclasses.replace(SHORT, solver="sgd", lr=0.05, weight_decay=0.1),
        dataclasses.replace(SHORT, schedule="constant", weight_decay=0.5),
        dataclasses.replace(SHORT, label_smoothing=0.2, seed=7),
        dataclasses.replace(SHORT, batch_size=1000),
    ],
    ids=["adamw", "sgd", "constant", "smoothing", "one-batch"],
)
def test_a_head_is_what_torch_trains_on_the_same_batches(config):
    # Not the same count in each class: in one batch of equal counts the first gradient of a bias is exactly zero, and
    # AdamW would scale the rounding noise that stands for it up to a whole step.
    X, y = blobs(n=200)
    (result,) = fit_minibatch(Problem(X, y, 3), [config])
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    layer, losses = torch_loop(Z, y, config)
    np.testing.assert_allclose(logits(result, X), layer(torch.from_numpy(Z)).detach().numpy(), rtol=0, atol=2e-4)
    np.testing.assert_allclose([epoch.loss for epoch in result.trace], losses, rtol=1e-5)


def test_balanced_weights_weigh_the_loss_of_each_row():
    """The same meaning as scikit-learn's, N / (C · rows of the class) on every row's loss."""
    X, y = blobs()
    rows = np.concatenate([np.flatnonzero(y == 0)[:10], np.flatnonzero(y == 1), np.flatnonzero(y == 2)[:30]])
    X, y = X[rows], y[rows]
    (result,) = fit_minibatch(Problem(X, y, 3, class_weight="balanced"), [SHORT])
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    layer, _ = torch_loop(Z, y, SHORT, weights=len(y) / (3 * np.bincount(y)))
    np.testing.assert_allclose(logits(result, X), layer(torch.from_numpy(Z)).detach().numpy(), rtol=0, atol=2e-4)


def test_long_training_reaches_the_optimum_of_logistic_regression():
    X, y = blobs(noise=4.0)
    config = MinibatchConfig(solver="sgd", lr=0.3, weight_decay=0.05, epochs=400, batch_size=210, momentum=0.9)
    (result,) = fit_minibatch(Problem(X, y, 3), [config])
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    model = LogisticRegression(C=1 / (0.05 * len(y)), tol=1e-10, max_iter=5000).fit(Z, y)
    centred = logits(result, X) - logits(result, X).mean(axis=1, keepdims=True)
    expected = model.decision_function(Z)
    np.testing.assert_allclose(centred, expected - expected.mean(axis=1, keepdims=True), rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", ["adamw", "sgd"])
def test_each_head_of_a_pass_equals_its_solo_run(solver):
    X, y = blobs(d=100)
    grid = [(lr, decay) for lr in (1e-4, 1e-3, 1e-2, 0.1) for decay in (0.0, 0.01, 1.0)]
    configs = [
        dataclasses.replace(SHORT, solver=solver, lr=lr, weight_decay=decay, label_smoothing=lr) for lr, decay in grid
    ]
    for config, together in zip(configs, fit_minibatch(Problem(X, y, 3), configs), strict=True):
        (alone,) = fit_minibatch(Problem(X, y, 3), [config])
        size = np.abs(alone.weight).max()
        np.testing.assert_allclose(together.weight, alone.weight, rtol=0, atol=1e-5 * size)
        assert together.trace[-1].loss == pytest.approx(alone.trace[-1].loss, rel=1e-5)


def test_diverging_head_is_dropped_alone_and_says_so():
    X, y = blobs()
    good = dataclasses.replace(SHORT, solver="sgd")
    bad = dataclasses.replace(good, lr=1e38)
    first, broken, last = fit_minibatch(Problem(X, y, 3, val=Split(X, y)), [good, bad, good])
    (alone,) = fit_minibatch(Problem(X, y, 3), [good])
    assert (first.diverged, broken.diverged, last.diverged) == (False, True, False)
    assert broken.best_epoch == 0 and broken.trace == [] and broken.val_accuracy is None
    assert np.isfinite(broken.weight).all() and np.isfinite(broken.bias).all()
    assert len(first.trace) == SHORT.epochs
    np.testing.assert_allclose(last.weight, alone.weight, rtol=0, atol=1e-5)


def test_results_keep_the_configs_order_when_they_need_several_passes():
    X, y = blobs()
    configs = [
        dataclasses.replace(SHORT, epochs=e, seed=s, lr=lr) for e in (2, 1) for s in (0, 1) for lr in (0.01, 0.1)
    ]
    heard = []
    results = fit_minibatch(Problem(X, y, 3), configs, on_epoch=lambda i, epoch: heard.append((i, epoch)))
    assert [r.config for r in results] == configs
    for i, result in enumerate(results):
        assert [epoch for j, epoch in heard if j == i] == result.trace
        (alone,) = fit_minibatch(Problem(X, y, 3), [configs[i]])
        np.testing.assert_allclose(result.weight, alone.weight, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_bits():
    X, y = blobs()
    one, two = (fit_minibatch(Problem(X, y, 3), [SHORT])[0] for _ in range(2))
    np.testing.assert_array_equal(one.weight, two.weight)
    assert one.trace == two.trace


def test_another_order_seed_gives_other_batches():
    X, y = blobs()
    configs = [SHORT, dataclasses.replace(SHORT, seed=1), dataclasses.replace(SHORT, order_seed=1)]
    one, two, three = fit_minibatch(Problem(X, y, 3), configs)
    assert not np.array_equal(one.weight, two.weight)
    # (not to the last bit: products of two heads side by side may be cut differently)
    np.testing.assert_allclose(two.weight, three.weight, rtol=1e-4, atol=1e-6)


def test_rows_read_past_the_budget_give_the_bits_of_held_rows(tmp_path):
    """A float16 memory map streamed under a budget of nothing."""
    X, y = blobs()
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    problem = Problem(mapped, y, 3, val=Split(mapped[:50], y[:50]))
    (held,) = fit_minibatch(problem, [SHORT])
    (streamed,) = fit_minibatch(dataclasses.replace(problem, memory=0), [SHORT])
    np.testing.assert_array_equal(held.weight, streamed.weight)
    assert held.trace == streamed.trace


def test_features_are_left_as_they_were():
    X, y = blobs()
    before = X.copy()
    fit_minibatch(Problem(X, y, 3, val=Split(X, y)), [SHORT])
    np.testing.assert_array_equal(X, before)


def test_the_epoch_kept_is_the_best_on_val_and_its_weights_score_that():
    X, y = blobs(n=60, noise=3.0)
    X_val, y_val = blobs(n=90, noise=3.0, seed=1)
    config = dataclasses.replace(SHORT, lr=0.05, epochs=15, schedule="constant")
    (result,) = fit_minibatch(Problem(X, y, 3, val=Split(X_val, y_val)), [config])
    ranked = sorted(result.trace, key=lambda e: (-e.val_accuracy, e.val_loss, e.epoch))
    assert result.best_epoch == ranked[0].epoch < 15
    scored = logits(result, X_val)
    assert result.val_accuracy == pytest.approx((scored.argmax(axis=1) == y_val).mean())
    log_p = torch.log_softmax(torch.from_numpy(scored), dim=1).numpy()
    assert ranked[0].val_loss == pytest.approx(-log_p[np.arange(90), y_val].mean(), rel=1e-4)
    assert result.train_accuracy == pytest.approx((logits(result, X).argmax(axis=1) == y).mean())


def test_without_val_the_last_epoch_is_kept():
    X, y = blobs()
    (result,) = fit_minibatch(Problem(X, y, 3), [SHORT])
    assert (result.best_epoch, result.val_accuracy, result.trace[-1].val_loss) == (4, None, None)


def test_impatient_head_stops_and_its_neighbour_goes_on():
    X, y = blobs(n=60, noise=3.0)
    X_val, y_val = blobs(n=90, noise=3.0, seed=1)
    going = dataclasses.replace(SHORT, lr=0.05, epochs=15, schedule="constant")
    stopping = dataclasses.replace(going, patience=2)
    short, full = fit_minibatch(Problem(X, y, 3, val=Split(X_val, y_val)), [stopping, going])
    assert len(short.trace) == short.best_epoch + 2 < len(full.trace) == 15
    assert short.n_iter == 2 * len(short.trace)
    assert not short.diverged


def test_cosine_rate_falls_from_lr_over_the_epochs():
    X, y = blobs()
    (result,) = fit_minibatch(Problem(X, y, 3), [SHORT])
    expected = [0.01 * 0.5 * (1 + np.cos(np.pi * e / 4)) for e in range(4)]
    np.testing.assert_allclose([epoch.lr for epoch in result.trace], expected)


def test_defaults_learn_wide_features_well():
    """The defaults on a set shaped like digits through a trunk: as good as logistic regression."""
    X, y = blobs(n=600, d=512, c=10, noise=4.0)
    X_test, y_test = blobs(n=600, d=512, c=10, noise=4.0, seed=1)
    (result,) = fit_minibatch(Problem(X, y, 10), [MinibatchConfig()])
    scaler = StandardScaler().fit(X)
    expected = LogisticRegression(max_iter=500).fit(scaler.transform(X), y).score(scaler.transform(X_test), y_test)
    assert (logits(result, X_test).argmax(axis=1) == y_test).mean() >= expected - 0.02


def test_no_configs_are_refused():
    X, y = blobs()
    with pytest.raises(ConfigError, match="at least one"):
        fit_minibatch(Problem(X, y, 3), [])


def test_val_rows_of_another_trunk_are_refused():
    X, y = blobs()
    with pytest.raises(HeadError, match="val rows have 23 features, train rows 24"):
        fit_minibatch(Problem(X, y, 3, val=Split(X[:, 1:], y)), [SHORT])


def test_damaged_val_rows_are_refused():
    X, y = blobs()
    broken = X.copy()
    broken[5] = np.inf
    with pytest.raises(HeadError, match="1 of 210 val rows"):
        fit_minibatch(Problem(X, y, 3, val=Split(broken, y)), [SHORT])


def test_class_absent_from_train_is_named():
    X, y = blobs()
    with pytest.raises(HeadError, match="'cat'"):
        fit_minibatch(Problem(X, y, 4, class_names=["ant", "bee", "wasp", "cat"]), [SHORT])


def test_heads_past_the_budget_take_several_passes_and_lose_nothing():
    X, y = blobs()
    configs = [dataclasses.replace(SHORT, lr=lr) for lr in (0.001, 0.01, 0.1)]
    wide = fit_minibatch(Problem(X, y, 3), configs)
    narrow = fit_minibatch(Problem(X, y, 3, memory=0), configs)
    for one, other in zip(wide, narrow, strict=True):
        assert one.config == other.config
        np.testing.assert_allclose(one.weight, other.weight, rtol=0, atol=1e-5)


SMALL_MLP = dataclasses.replace(SHORT, kind="mlp", width=16, depth=2)
KINDS = [SMALL_MLP, dataclasses.replace(SHORT, kind="cosine"), SHORT]


def worst(one, other):
    """The largest difference of two heads' tensors, of the largest entry of each."""
    assert one.tensors.keys() == other.tensors.keys()
    return max(np.abs(one.tensors[n] - other.tensors[n]).max() / np.abs(other.tensors[n]).max() for n in one.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("base", KINDS, ids=lambda c: c.kind)
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_heads_of_many_seeds_share_a_pass_and_equal_their_solo_runs(base, mixup, monkeypatch):
    """First weights, dropout and mixup come from each head's own streams."""
    X, y = blobs()
    drop = 0.3 if base.kind == "mlp" else 0.0
    configs = [
        dataclasses.replace(base, seed=seed, order_seed=0, lr=lr, mixup=mixup * seed, dropout=drop * (lr > 0.002))
        for seed in range(4)
        for lr in (0.001, 0.01)
    ]
    made = []

    class Counted(minibatch.Pass):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(minibatch, "Pass", Counted)
    together = fit_minibatch(Problem(X, y, 3), configs)
    assert len(made) == 1
    for config, result in zip(configs, together, strict=True):
        assert worst(result, fit_minibatch(Problem(X, y, 3), [config])[0]) < 1e-5
    # a seed changes what is drawn; a linear head without mixup draws nothing
    if base.kind != "linear" or mixup:
        assert worst(together[0], together[2]) > 1e-3


@pytest.mark.parametrize("base", KINDS, ids=lambda c: c.kind)
def test_training_goes_on_alone_when_a_neighbour_diverges(base):
    """The streams of those that stay are not shifted by one that leaves."""
    X, y = blobs()
    good = dataclasses.replace(base, solver="sgd", mixup=0.3, seed=3, order_seed=0)
    bad = dataclasses.replace(good, lr=1e38, seed=2)
    broken, stayed = fit_minibatch(Problem(X, y, 3), [bad, good])
    (alone,) = fit_minibatch(Problem(X, y, 3), [good])
    assert broken.diverged and not stayed.diverged
    assert worst(stayed, alone) < 1e-5


@pytest.mark.parametrize("base", KINDS, ids=lambda c: c.kind)
@pytest.mark.parametrize("standardize", [True, False])
def test_tensors_given_score_what_is_reported_on_raw_rows(base, standardize):
    X, y = blobs()
    (result,) = fit_minibatch(Problem(X, y, 3, standardize=standardize, val=Split(X, y)), [base])
    scored = Head(base.kind, result.tensors, ("ant", "bee", "cat"), "ab" * 32, X.shape[1]).logits(X)
    assert (scored.argmax(axis=1) == y).mean() == pytest.approx(result.val_accuracy)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(scored), torch.from_numpy(y)).item()
    best = next(epoch for epoch in result.trace if epoch.epoch == result.best_epoch)
    assert best.val_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("base", KINDS[:2], ids=lambda c: c.kind)
def test_nonlinear_heads_learn(base):
    X, y = blobs(noise=0.5)
    config = dataclasses.replace(base, epochs=30, dropout=0.2 if base.kind == "mlp" else 0.0, mixup=0.2)
    (result,) = fit_minibatch(Problem(X, y, 3), [config])
    assert result.train_accuracy > 0.99


def test_mlp_separates_what_no_linear_head_can():
    X = np.random.default_rng(0).standard_normal((400, 2)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
    config = MinibatchConfig(kind="mlp", width=64, epochs=40, batch_size=32, lr=0.01)
    mlp, linear = fit_minibatch(Problem(X, y, 2), [config, dataclasses.replace(config, kind="linear")])
    assert mlp.train_accuracy > 0.95 > 0.7 > linear.train_accuracy


def test_sample_weights_of_whole_numbers_are_repeated_rows():
    """In one batch; in several they would be other batches."""
    X, y = blobs(n=60)
    times = np.random.default_rng(0).integers(0, 4, 60) + (np.arange(60) < 3)
    config = dataclasses.replace(SHORT, solver="sgd", batch_size=1000, lr=0.01, weight_decay=0.0)
    (weighted,) = fit_minibatch(Problem(X, y, 3, sample_weight=times), [config])
    (repeated,) = fit_minibatch(Problem(np.repeat(X, times, axis=0), np.repeat(y, times), 3), [config])
    np.testing.assert_allclose(weighted.weight, repeated.weight, rtol=0, atol=1e-5 * np.abs(weighted.weight).max())


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.ones(3), "(210,) is needed"),
        (np.full(210, -1.0), "sample weight -1.0 (210 of 210)"),
        (np.full(210, np.nan), "sample weight nan"),
        (np.zeros(210), "every sample weight is 0"),
    ],
)
def test_sample_weights_that_make_no_sense_are_refused(weight, words):
    X, y = blobs()
    with pytest.raises(HeadError, match=re.escape(words)):
        fit_minibatch(Problem(X, y, 3, sample_weight=weight), [SHORT])


def test_stop_ends_training_after_the_epoch_in_work_with_what_there_is():
    X, y = blobs()
    heard = []
    configs = [SHORT, dataclasses.replace(SHORT, batch_size=64)]
    stopped, untouched = fit_minibatch(
        Problem(X, y, 3),
        configs,
        on_epoch=lambda i, epoch: heard.append(epoch.epoch),
        should_stop=lambda: len(heard) >= 2,
    )
    assert (len(stopped.trace), stopped.best_epoch, heard) == (2, 2, [1, 2])
    assert (untouched.trace, untouched.best_epoch, untouched.diverged) == ([], 0, False)


def test_head_of_another_kind_has_no_single_weight():
    X, y = blobs()
    (result,) = fit_minibatch(Problem(X, y, 3), [SMALL_MLP])
    with pytest.raises(HeadError, match="kind mlp has no single weight and bias"):
        result.bias
