"""Logits and gradients of many heads against torch.nn and autograd, one head at a time, in float64."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.networks import decays, make_network
from pipeline.heads.minibatch.noise import Noise
from pipeline.heads.minibatch.passes import Labelling, softmax_loss

D, C, N, K = 7, 4, 12, 3
MLP = MinibatchConfig(kind="mlp", width=5, depth=2)
BASES = [MinibatchConfig(), MLP, MinibatchConfig(kind="cosine")]


def heads(base):
    """Three heads in float64 with numbers of all sizes, linear ones too."""
    configs = [dataclasses.replace(base, seed=s, mixup=0.5 * s) for s in range(K)]
    network = make_network(configs, D, C, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    network.parameters = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in network.parameters.items()
    }
    return configs, network


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
    configs, network = heads(base)
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
    logits = network.forward(x, mix)
    lost, gradient = softmax_loss(logits.clone(), labellings, smoothing)
    found = network.backward(gradient)
    for k in range(K):
        p = {name: value[k].clone().requires_grad_() for name, value in network.parameters.items()}
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

    def total(network):
        return network.forward(x, None, Noise(configs, x.device))

    network = make_network(configs, D, C, x.device)
    network.parameters = {name: p.double() for name, p in network.parameters.items()}
    logits = total(network)
    found = network.backward(torch.ones_like(logits))
    for k, unit in itertools.product(range(2), range(5)):
        step = 1e-6
        network.parameters["0.bias"][k, unit] += step
        after = total(network)
        network.parameters["0.bias"][k, unit] -= step
        change = (after - logits)[k].sum().item() / step
        assert found["0.bias"][k, unit].item() == pytest.approx(change, abs=1e-4)


def test_dropout_keeps_the_mean_and_takes_its_share():
    configs = [dataclasses.replace(MLP, dropout=rate) for rate in (0.0, 0.25)]
    units = torch.ones(2, 100, 500)
    Noise(configs, units.device).drop_(units)
    assert (units[0] == 1).all()
    assert (units[1] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert units[1].mean().item() == pytest.approx(1, abs=0.01)


def test_mixup_draws_shares_from_its_beta():
    config = MinibatchConfig(mixup=0.2)
    noise = Noise([config, MinibatchConfig()], torch.device("cpu"))
    drawn = [noise.mix(8) for _ in range(2000)]
    shares = torch.stack([mix.share[0, 0] for mix in drawn]).numpy()
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.05)  # of Beta(a, a)
    assert all(mix.share[1] == 1 and (mix.partner[1] == torch.arange(8)).all() for mix in drawn)
    assert any((mix.partner[0] != torch.arange(8)).any() for mix in drawn)


def test_first_weights_spread_as_those_of_torch_nn_linear():
    config = MinibatchConfig(kind="mlp", width=64, seed=3)
    found = make_network([config], 400, 10, torch.device("cpu")).parameters
    layer = torch.nn.Linear(400, 64)
    weight = found["0.weight"][0]
    assert weight.shape == layer.weight.shape
    assert weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.03)
    assert weight.abs().max().item() == pytest.approx(1 / np.sqrt(400), rel=0.01)


def test_only_weights_decay():
    names = set().union(*(make_network([b], D, C, torch.device("cpu")).parameters for b in BASES))
    assert {n for n in names if decays(n)} == {"weight", "0.weight", "2.weight", "4.weight"}


def test_rows_and_weights_of_length_zero_give_finite_numbers():
    _, network = heads(MinibatchConfig(kind="cosine"))
    network.parameters["weight"][0] = 0
    x = torch.zeros(2, D, dtype=torch.float64)
    logits = network.forward(x)
    assert all(torch.isfinite(g).all() for g in network.backward(torch.ones_like(logits)).values())
    assert (logits == 0).all()
