"""The entries of fine-tuning at toy size."""

import math

import pytest

from pipeline.base.watch import Watch
from pipeline.bench.finetuning import bench_finetune, bench_prefix
from pipeline.bench.measure import Bench

TOY = {"trunk": "resnet18", "image_size": 32, "photographs": 6, "size": (64, 50), "batch": 4}


@pytest.fixture
def bench(tmp_path):
    return Bench(1, tmp_path, Watch())


@pytest.mark.slow
def test_prefix_divides_the_seconds_of_two_epochs_and_smaller_is_better(bench):
    (figure,) = bench_prefix(bench, **TOY)
    assert figure.each[0] == pytest.approx(figure.ways["cached maps"][0] / figure.ways["whole trunk"][0])
    assert figure.goal.sense == "most" and figure.goal.floor == 0.5
    assert "MB each" in figure.note


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_finetune_divides_images_per_second_by_the_plain_loops(bench, monkeypatch, there):
    # 4 s for a process that loads PyTorch: the slow test below starts it
    monkeypatch.setattr("pipeline.bench.finetuning.run_python", lambda arguments, threads: "0.5\n")
    monkeypatch.setattr("pipeline.bench.finetuning.lacks", lambda *_: None if there else "a better processor")
    if there:  # slow where it is emulated
        monkeypatch.setattr("pipeline.stages.finetune.start.choose_precision", lambda *_, **__: None)
    figure, *others = bench_finetune(bench, **TOY)
    assert figure.ways["plain loop"] == (12.0,)
    assert figure.value == pytest.approx(figure.ways["pipeline"][0] / 12.0) and figure.goal.floor == 1.0
    assert [(one.name, one.goal.floor) for one in others] == [("bfloat16 ÷ float32", 1.6)] * there
    assert all(one.each[0] == one.ways["bfloat16"][0] / one.ways["pipeline"][0] for one in others)


@pytest.mark.slow  # starts whole processes, and times them
@pytest.mark.slow
def test_finetune_runs_the_plain_loop(bench):
    figure, *_ = bench_finetune(bench, **TOY)
    assert all(math.isfinite(v) and v > 0 for values in figure.ways.values() for v in values)
