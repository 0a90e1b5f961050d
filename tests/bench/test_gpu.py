"""The entries of a GPU, at toy size on the CPU; and that they are skipped by name where there is no GPU."""

import dataclasses
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace
from pipeline.bench import run
from pipeline.bench.child import run_python
from pipeline.bench.doors import bench as door
from pipeline.bench.gpu_extract import bench_gpu_extract
from pipeline.bench.gpu_finetune import bench_gpu_finetune
from pipeline.bench.gpu_heads import Size, bench_gpu_heads
from pipeline.bench.gpu_trunk import bench_gpu_trunk
from pipeline.bench.images import make_photographs
from pipeline.bench.measure import Bench, Figure
from pipeline.bench.settings import ENTRIES, GPU_ENTRIES, BenchSettings
from pipeline.bench.trunk import Through, eager, in_turns, random_trunk
from pipeline.trunk.engines.check import eager_features
from pipeline.trunk.engines.open import open_engine
from pipeline.trunk.identity import TrunkSpec
from pipeline.trunk.weights import load_model
from tests.conftest import SMALL
from tests.device_double import device_double

TOY = Through(SMALL, 32, 4, "cpu")
FORMS = ["cpu", "cuda"]  # this processor, and the device double


@pytest.fixture
def bench(tmp_path):
    return Bench(2, tmp_path, Watch())


@pytest.fixture(autouse=True)
def every_precision_is_said_to_be_there(monkeypatch):
    """On the CPU tf32 is float32; bfloat16 is left out, for it is slow where it is emulated."""
    monkeypatch.setattr("pipeline.bench.trunk.lacks", lambda p, _: "a GPU" if p in ("bfloat16", "int8") else None)
    monkeypatch.setattr("pipeline.base.precision.lacks", lambda p, _: "a GPU" if p in ("bfloat16", "int8") else None)


@pytest.fixture(params=FORMS)
def toy(request):
    """What the entries measure here, on either form of device."""
    with device_double() if request.param == "cuda" else nullcontext():
        yield TOY._replace(device=request.param)


def by_name(figures):
    assert figures and all(math.isfinite(v) and v > 0 for f in figures for v in f.each)
    return {f.name: f for f in figures}


def test_the_word_gpu_means_the_four_of_them_and_all_has_them_too():
    four = ("gpu-trunk", "gpu-extract", "gpu-heads", "gpu-finetune")
    assert GPU_ENTRIES == four == BenchSettings(entries=("gpu",)).chosen
    assert BenchSettings(entries=("gpu", "read")).chosen == ("read", *four)
    assert BenchSettings(entries=("gpu-heads",)).chosen == ("gpu-heads",)
    assert set(four) < set(BenchSettings().chosen) == set(ENTRIES)


class Ear(Watch):
    def __init__(self):
        self.said, self.shown = [], []

    def say(self, text):
        self.said.append(text)

    def show(self, value):
        self.shown.append(value)


def test_without_a_gpu_each_is_skipped_by_name_and_the_record_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "MEASURES", {"read": lambda b: [Figure("read", "it", (1.0,), {})]})
    ear = Ear()
    report = door.work(BenchSettings(entries=("gpu", "read"), repeats=1), Workspace(tmp_path, ear))
    for name in GPU_ENTRIES:
        assert f"{name}: skipped, PyTorch sees no GPU here" in ear.said
    record = json.loads(report.path.read_text(encoding="utf-8"))
    assert record["skipped"] == dict.fromkeys(GPU_ENTRIES, "PyTorch sees no GPU here")
    assert [figure["entry"] for figure in record["figures"]] == ["read"]


def test_where_all_are_skipped_a_record_is_kept_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "MEASURES", {})
    report = door.work(BenchSettings(entries=("gpu",), repeats=1), Workspace(tmp_path, Ear()))
    assert report.figures == () and len(report.record["skipped"]) == 4


def test_with_a_gpu_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = {"name": "a card", "capability": "9.0", "cuda": "12.8", "cudnn": "91002", "driver": "570.86"}
    monkeypatch.setattr("pipeline.bench.machine.gpu", lambda device: {**told, "name": f"{device} of two"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(run, "MEASURES", {"gpu-heads": lambda b: [Figure("gpu-heads", "it", (1.0,), {})]})
    ear = Ear()
    report = door.work(BenchSettings(entries=("gpu-heads",), repeats=1), Workspace(tmp_path, ear))
    assert report.record["skipped"] == {} and [f.entry for f in report.figures] == ["gpu-heads"]
    assert [card["driver"] for card in report.record["hardware"]["gpus"]] == ["570.86", "570.86"]
    both = (
        "cuda:0 of two (CUDA 12.8, cuDNN 91002, driver 570.86), cuda:1 of two (CUDA 12.8, cuDNN 91002, driver 570.86)"
    )
    assert both in ear.shown[0].caption


def test_trunk_compares_each_precision_with_eager_and_with_the_product_in_the_same_arithmetic(bench, toy, monkeypatch):
    held = []
    monkeypatch.setattr("pipeline.bench.trunk.arithmetic", lambda p: held.append(p) or torch.no_grad())
    found = by_name(bench_gpu_trunk(bench, toy, batches=1, product=64))
    assert list(found) == [
        "float32 ÷ eager channels-last",
        "tf32 ÷ eager channels-last",
        "float32 ÷ torch.mm",
        "tf32 ÷ torch.mm",
    ]
    assert held.count("float32") == held.count("tf32") == 2 * 3  # eager and the product, once to warm up
    assert found["tf32 ÷ torch.mm"].ways_unit == "GFLOP/s"


def test_the_eager_network_that_it_is_held_against_computes_the_trunks_features(tmp_path, monkeypatch):
    info, trunk, _ = random_trunk(TOY.trunk, TOY.image_size, tmp_path)
    monkeypatch.setattr("pipeline.bench.trunk.build", lambda *_, **__: load_model(info))
    pixels, given = TOY.pixels(), []
    expected = torch.from_numpy(eager_features(trunk, info, pixels))
    ways = [eager(info, pixels, "cpu", 1, precision=precision) for precision in ("tf32", "bfloat16")]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", lambda tensor: given.append(tensor) or tensor)
        for way in ways:
            way()
    torch.testing.assert_close(given[0], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert given[1].dtype == torch.bfloat16
    torch.testing.assert_close(given[1].float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_in_turns_a_gpu_has_two_batches_under_way_and_each_is_waited_for(tmp_path, toy):
    info, trunk, dim = random_trunk(toy.trunk, toy.image_size, tmp_path)
    pixels, told = toy.pixels(), []
    spec = TrunkSpec(info, info.layer("last"), "torch", "float32", toy.device)
    engine = open_engine(spec, trunk, dim, batch=4, work_dir=tmp_path)
    expected, start, finish = engine(pixels), engine.start, engine.finish
    engine.start = lambda slot: told.append("start") or start(slot)
    engine.finish = lambda slot: told.append("finish") or np.testing.assert_array_equal(finish(slot), expected)
    in_turns(engine, pixels, 3)()
    one, two = ["start", "finish"] * 3, ["start", "start", "finish", "start", "finish", "finish"]
    assert told == (two if toy.device == "cuda" else one)


@pytest.mark.slow
def test_extract_is_divided_by_the_slower_of_trunk_and_decoding(bench, toy):
    sizes = {"photographs": 20, "large": 10, "size": (64, 50), "large_size": (400, 300)}
    found = by_name(bench_gpu_extract(dataclasses.replace(bench, repeats=1), toy, **sizes))
    assert list(found) == [f"{p}, {size}" for size in ("0.2 MP", "12 MP") for p in ("float32", "tf32")]
    for figure in found.values():
        (under_way, slower) = figure.ways.values()
        assert figure.goal.floor == 0.85 and figure.each == tuple(a / b for a, b in zip(under_way, slower, strict=True))


def test_heads_are_timed_on_the_gpu_again_and_again_and_on_the_processor_once(bench):
    sizes = (Size("a path", 300, 16, 3, (0.01, 1.0)), Size("classes", 200, 8, 20, (0.1,)))
    found = by_name(bench_gpu_heads(bench, device="cpu", sizes=sizes))
    assert list(found) == ["a path, GPU ÷ CPU", "classes, GPU ÷ CPU"]
    figure = found["a path, GPU ÷ CPU"]
    (once,) = figure.ways["on the processor"]
    assert figure.each == tuple(t / once for t in figure.ways["on the GPU"]) and len(figure.each) == 2
    assert "2 of 2 converged on the GPU, objectives 0.0e+00 apart" in figure.note


@pytest.mark.slow
def test_finetune_is_divided_by_the_plain_loop_in_the_same_precision(bench, toy, monkeypatch):
    asked = []
    monkeypatch.setattr("pipeline.bench.gpu_finetune.run_python", lambda words, threads: asked.append(words) or "0.5\n")
    found = by_name(bench_gpu_finetune(bench, toy, photographs=6, size=(64, 50)))
    assert list(found) == ["float32 ÷ plain loop", "tf32 ÷ plain loop"]
    assert found["tf32 ÷ plain loop"].ways["tf32, plain loop"] == (12.0, 12.0)
    assert all(figure.goal.floor == 1.0 for figure in found.values())
    assert [words[4:6] for words in asked] == 2 * [["float32", toy.device], ["tf32", toy.device]]


@pytest.mark.slow  # starts a process
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_plain_loop_of_those_who_know_their_gpu_runs(tmp_path, precision):
    make_photographs(tmp_path, 6, size=(64, 50))
    words = [str(tmp_path), "resnet18", precision, "cpu", "40", "32", "4", "0"]
    assert float(run_python(["-m", "pipeline.bench.plain_amp", *words])) > 0
