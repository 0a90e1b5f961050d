"""What is drawn at random for a head: dropout and mixup."""

import dataclasses

import pytest
import torch

from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.noise import Noise

MLP = MinibatchConfig(kind="mlp", width=5, depth=2)


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
