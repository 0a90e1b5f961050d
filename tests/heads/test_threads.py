"""Runs of rows for threads: every row once, in order, the same runs each time, errors told."""

import threading

import pytest
import torch

from pipeline.heads.threads import by_threads


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "size", "runs"), [(10, 3, [(0, 6), (6, 10)]), (3, 3, [(0, 3)]), (4, 3, [(0, 3), (3, 4)])]
)
def test_each_row_is_in_one_run_of_whole_pieces(two, n, size, runs):
    assert by_threads(n, size, lambda start, stop: (start, stop)) == runs


def test_each_run_has_a_thread_of_its_own_that_uses_one_core(two):
    meet = threading.Barrier(2, timeout=30)

    def work(start, stop):
        meet.wait()  # both are at work at once
        return threading.get_ident(), torch.get_num_threads()

    (first, cores), (second, _) = by_threads(100, 1, work)
    assert len({first, second, threading.get_ident()}) == 3 and cores == 1
    assert torch.get_num_threads() == 2


def test_with_one_thread_nothing_is_divided(two):
    torch.set_num_threads(1)
    assert by_threads(100, 1, lambda start, stop: (start, stop, threading.get_ident())) == [
        (0, 100, threading.get_ident())
    ]


def test_what_a_run_raises_is_raised_and_torchs_threads_are_as_they_were(two):
    def work(start, stop):
        if start:
            raise ValueError("the second run")

    with pytest.raises(ValueError, match="the second run"):
        by_threads(100, 1, work)
    assert torch.get_num_threads() == 2
