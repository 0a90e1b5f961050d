"""What goes to a device goes there without anybody waiting."""

from __future__ import annotations

import pytest
import torch

from pipeline.base.transfer import uploaded
from tests.device_double import device_double


def test_on_the_cpu_it_is_the_tensor_itself() -> None:
    x = torch.arange(3.0)
    assert uploaded(x, "cpu") is x and uploaded(x, torch.device("cpu")) is x


@pytest.mark.parametrize("place", ["cuda", "cuda:0", torch.device("cuda")])
def test_nobody_waits_for_a_gpu_which_gets_the_numbers_that_were_there(place: str | torch.device) -> None:
    """Also where the tensor is written again at once: what is copied is a copy."""
    with device_double(late=True) as double:
        x = torch.arange(3.0)
        there = uploaded(x, place)
        x.zero_()
        assert double.synchronisations == 0 and there.device == torch.device("cuda:0")
        assert there.tolist() == [0.0, 1.0, 2.0]
