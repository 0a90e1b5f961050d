"""One thread: the networks here are small, and threads that wait for each other on a busy machine take far longer."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.trunk import surgery, weights


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def drawn_afresh() -> Iterator[None]:
    """Here weights are drawn by the room's own builder each time, also where other rooms' tests have come before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "build", surgery.build)
        yield
