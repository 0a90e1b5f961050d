"""The kinds of heads: logits and gradients of many against torch.nn and autograd, one head at a time, in float64.

``BASES`` has a config of each kind in the list; a kind that is added is tested by adding its own, and its logits in
``plain``.
"""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.base.errors import ConfigError
from pipeline.heads.artifact import Head
from pipeline.heads.kinds import KINDS, readers
from pipeline.heads.kinds.batched import decays
from pipeline.heads.kinds.kind import Kind, kind_of
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.noise import Noise
from pipeline.heads.minibatch.passes import Labelling, softmax_loss
from pipeline.heads.problem import Problem
from pipeline.heads.standardize import Standardization

D, C, N, K = 7, 4, 12, 3
MLP = MinibatchConfig(kind="mlp", width=5, depth=2)
BASES = [MinibatchConfig(), MLP, MinibatchConfig(kind="cosine")]


CPU = torch.device("cpu")


def begin(configs, dim=D, n_classes=C):
    return kind_of(configs[0].kind).heads(configs, dim, n_classes, CPU)


def heads(base):
    """Three heads in float64 with numbers of all sizes, linear ones too."""
    configs = [dataclasses.replace(base, seed=s, mixup=0.5 * s) for s in range(K)]
    group = begin(configs)
    generator = torch.Generator().manual_seed(1)
    group.parameters = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in group.parameters.items()
    }
    return configs, group


def rows():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, (N,), generator=generator)


def plain(kind, p, x):
    """One head's logits (n, C) by torch.nn.functional."""
    if kind == "cosine":
        return p["scale"] * functional.linear(functional.normalize(x, dim=1), functional.normalize(p["weight"], dim=1))
    if kind == "linear":
        return functional.linear(x, p["weight"], p["bias"])
    for layer in range(0, len(p), 2):
        x = functional.linear(functional.relu(x) if layer else x, p[f"{layer}.weight"], p[f"{layer}.bias"])
    return x


@pytest.mark.parametrize("base", BASES, ids=lambda c: c.kind)
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_those_of_autograd(base, mixed):
    configs, group = heads(base)
    x, y = rows()
    weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    smoothing = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    mix = Noise(configs, x.device).mix(N) if mixed else None
    labellings = [Labelling(y, weight)]
    if mix is not None:
        labellings = [
            Labelling(y, weight, mix.share.double()),
            Labelling(y[mix.partner], weight[mix.partner], 1 - mix.share.double()),
        ]
    logits = group.forward(x, mix)
    lost, gradient = softmax_loss(logits.clone(), labellings, smoothing, smooth=True)
    found = group.backward(gradient)
    for k in range(K):
        p = {name: value[k].clone().requires_grad_() for name, value in group.parameters.items()}
        options = {"reduction": "none", "label_smoothing": smoothing[k].item()}
        if mix is None:
            each = weight * functional.cross_entropy(plain(base.kind, p, x), y, **options)
        else:
            share, other = mix.share[k].double(), mix.partner[k]
            out = plain(base.kind, p, share * x + (1 - share) * x[other])
            each = share * weight * functional.cross_entropy(out, y, **options)
            each = each + (1 - share) * weight[other] * functional.cross_entropy(out, y[other], **options)
        each.mean().backward()
        assert lost[k].item() == pytest.approx(each.sum().item(), rel=1e-6)
        for name, value in p.items():
            torch.testing.assert_close(found[name][k], value.grad, rtol=1e-5, atol=1e-7)


def test_gradient_passes_the_units_that_dropout_kept():
    """Finite differences along each first-layer bias, with the same draws each time."""
    configs = [dataclasses.replace(MLP, dropout=0.5, seed=s) for s in range(2)]
    x, _ = rows()

    def total(group):
        return group.forward(x, None, Noise(configs, x.device))

    group = begin(configs)
    group.parameters = {name: p.double() for name, p in group.parameters.items()}
    logits = total(group)
    found = group.backward(torch.ones_like(logits))
    for k, unit in itertools.product(range(2), range(5)):
        step = 1e-6
        group.parameters["0.bias"][k, unit] += step
        after = total(group)
        group.parameters["0.bias"][k, unit] -= step
        change = (after - logits)[k].sum().item() / step
        assert found["0.bias"][k, unit].item() == pytest.approx(change, abs=1e-4)


def test_first_weights_spread_as_those_of_torch_nn_linear():
    config = MinibatchConfig(kind="mlp", width=64, seed=3)
    found = begin([config], 400, 10).parameters
    layer = torch.nn.Linear(400, 64)
    weight = found["0.weight"][0]
    assert weight.shape == layer.weight.shape
    assert weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.03)
    assert weight.abs().max().item() == pytest.approx(1 / np.sqrt(400), rel=0.01)


def test_only_weights_decay():
    names = set().union(*(begin([b]).parameters for b in BASES))
    assert {n for n in names if decays(n)} == {"weight", "0.weight", "2.weight", "4.weight"}


def test_rows_and_weights_of_length_zero_give_finite_numbers():
    _, group = heads(MinibatchConfig(kind="cosine"))
    group.parameters["weight"][0] = 0
    x = torch.zeros(2, D, dtype=torch.float64)
    logits = group.forward(x)
    assert all(torch.isfinite(g).all() for g in group.backward(torch.ones_like(logits)).values())
    assert (logits == 0).all()


def raw(base):
    """One head of random numbers on standardised rows, what it is on raw ones, and the standardisation."""
    _, group = heads(base)
    parameters = {name: p[1].float().numpy() for name, p in group.parameters.items()}
    rng = np.random.default_rng(4)
    s = Standardization(mean=rng.normal(size=D), scale=rng.uniform(0.5, 3, D))
    return parameters, kind_of(base.kind).folded(parameters, s), s


def test_each_kind_of_the_list_is_tested_and_has_a_file_that_can_do_all_that_a_kind_can():
    assert [base.kind for base in BASES] == list(KINDS)
    names = [name for name in vars(Kind) if not name.startswith("_")]
    assert len(names) == 7
    for kind in KINDS:
        assert all(callable(getattr(kind_of(kind), name)) for name in names)


def test_a_new_kind_is_one_file_and_one_entry_in_the_list(monkeypatch):
    """Another name for linear.py, as if its file were ``affine.py``: it trains, is saved and is scored."""
    monkeypatch.setitem(sys.modules, "pipeline.heads.kinds.affine", kind_of("linear"))
    with pytest.raises(ConfigError, match="kind 'affine' is not known: choose from linear, mlp, cosine"):
        MinibatchConfig(kind="affine")
    monkeypatch.setitem(KINDS, "affine", ())
    x, _ = rows()
    problem = Problem(x.float().numpy(), np.arange(N) % C, C)
    mine, linear = fit_minibatch(problem, [MinibatchConfig(kind=kind, epochs=2) for kind in ("affine", "linear")])
    head = Head(mine.config.kind, mine.tensors, tuple("abcd"), key="", dim=D)
    np.testing.assert_array_equal(head.logits(problem.X), problem.X @ linear.weight.T + linear.bias)


def test_settings_of_some_kinds_are_settings_and_others_are_of_every_kind():
    fields = {f.name for f in dataclasses.fields(MinibatchConfig)}
    assert all(set(own) <= fields for own in KINDS.values())
    assert readers("dropout") == ("mlp",) and readers("scale") == ("cosine",) and readers("lr") == ()


@pytest.mark.parametrize("base", BASES, ids=lambda c: c.kind)
def test_tensors_for_raw_rows_give_the_logits_of_standardised_ones_in_numpy_and_torch(base):
    parameters, tensors, s = raw(base)
    x = np.random.default_rng(5).normal(size=(N, D)).astype(np.float32)
    exact = {name: torch.from_numpy(value).double() for name, value in parameters.items()}
    expected = plain(base.kind, exact, torch.from_numpy((x - s.mean) / s.scale)).numpy()
    head = Head(base.kind, tensors, tuple("abcd"), key="", dim=D)
    np.testing.assert_allclose(head.logits(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.module()(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", BASES, ids=lambda c: c.kind)
def test_only_a_head_that_is_one_layer_gives_one(base):
    tensors = raw(base)[1]
    layer = Head(base.kind, tensors, tuple("abcd"), key="", dim=D).layer
    assert (layer is not None) == (base.kind == "linear")
    if layer is not None:
        x = np.random.default_rng(5).normal(size=(N, D)).astype(np.float32)
        np.testing.assert_array_equal(x @ layer[0].T + layer[1], kind_of("linear").logits(tensors, x))


@pytest.mark.parametrize("base", BASES, ids=lambda c: c.kind)
def test_heads_that_agree_in_hidden_units_lie_in_the_same_arrays(base):
    units = kind_of(base.kind).hidden(base)
    assert units == ((5, 5) if base.kind == "mlp" else ())
    sizes = [D, *units, C]
    biases = base.kind != "cosine"
    wanted = sum((i + biases) * o for i, o in itertools.pairwise(sizes)) + (not biases)
    assert sum(p[0].numel() for p in begin([base]).parameters.values()) == wanted
