"""Updates of many heads against torch's own optimisers, one head at a time, in float64."""

import pytest
import torch

from pipeline.heads.minibatch.updates import AdamW, Sgd

LR, DECAY, MOMENTUM = [0.1, 0.003, 0.5], [0.0, 0.7, 0.02], [0.0, 0.9, 0.5]


def gradients(steps=12):
    return torch.randn(steps, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def torch_adamw(p, k):
    return torch.optim.AdamW([p], lr=LR[k], weight_decay=DECAY[k])


def torch_sgd(p, k):
    return torch.optim.SGD([p], lr=LR[k], weight_decay=DECAY[k], momentum=MOMENTUM[k])


def our_adamw(p):
    return AdamW(p)


def our_sgd(p):
    return Sgd(p, torch.tensor(MOMENTUM, dtype=torch.float64))


@pytest.mark.parametrize(("ours", "theirs"), [(our_adamw, torch_adamw), (our_sgd, torch_sgd)])
def test_each_head_moves_as_torchs_optimiser_moves_it(ours, theirs):
    parameter = torch.ones(3, 4, 5, dtype=torch.float64)
    update = ours(parameter)
    for g in gradients():
        update.step(parameter, g.clone(), torch.tensor(LR).double(), torch.tensor(DECAY).double())
    for k in range(3):
        alone = torch.nn.Parameter(torch.ones(4, 5, dtype=torch.float64))
        optimiser = theirs(alone, k)
        for g in gradients():
            alone.grad = g[k].clone()
            optimiser.step()
        torch.testing.assert_close(parameter[k], alone.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ours", [our_adamw, our_sgd])
def test_dropping_a_head_leaves_the_others_state_alone(ours):
    whole, cut = torch.ones(3, 4, 5, dtype=torch.float64), torch.ones(3, 4, 5, dtype=torch.float64)
    update, cut_update = ours(whole), ours(cut)
    lr, decay, stay = torch.tensor(LR).double(), torch.tensor(DECAY).double(), torch.tensor([0, 2])
    for i, g in enumerate(gradients()):
        update.step(whole, g.clone(), lr, decay)
        if i == 5:
            cut_update.keep(stay)
            cut, lr_cut, decay_cut = cut[stay], lr[stay], decay[stay]
        if i < 5:
            cut_update.step(cut, g.clone(), lr, decay)
        else:
            cut_update.step(cut, g[stay], lr_cut, decay_cut)
    torch.testing.assert_close(cut, whole[stay], rtol=0, atol=0)
