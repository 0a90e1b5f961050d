"""Every entry at toy size: it runs, cleans nothing it should not, and gives finite figures."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.watch import Watch
from pipeline.bench.child import measured, observed, run_python
from pipeline.bench.decoding import bench_decode
from pipeline.bench.extraction import bench_extract
from pipeline.bench.images import make_photographs, make_small
from pipeline.bench.measure import Bench
from pipeline.bench.memory import bench_memory
from pipeline.bench.reading import bench_read, make_cache
from pipeline.bench.rerun import bench_rerun
from pipeline.bench.trunk import bench_trunk, gflop_per_image, random_trunk
from pipeline.store import open_cache


@pytest.fixture
def bench(tmp_path):
    return Bench(1, tmp_path, Watch())


def finite(figures):
    assert figures and all(math.isfinite(v) and v >= 0 for f in figures for v in f.each)
    return {f.name: f for f in figures}


def lacks_bfloat16(precision, device):
    return None if precision == "float32" else "a better processor"


def lacks_tf32(precision, device):
    return "a GPU" if precision == "tf32" else None


TOY_TRUNK = {"trunk": "resnet18", "image_size": 32, "batch": 2, "batches": 1, "product": 64}


def test_trunk_measures_an_engine_against_eager_and_the_product(bench, monkeypatch):
    monkeypatch.setattr("pipeline.bench.trunk.available_engines", lambda device, precision: ["torch"])
    monkeypatch.setattr("pipeline.bench.trunk.lacks", lacks_bfloat16)
    found = finite(bench_trunk(bench, **TOY_TRUNK))
    assert "plain eager and torch.mm in float32" in next(iter(found.values())).note
    assert next(iter(found)) == "torch ÷ plain eager" and sum("÷ torch.mm" in name for name in found) == 2


@pytest.mark.slow
@pytest.mark.parametrize("others", [False, True])
def test_trunk_measures_every_installed_engine_and_holds_some_to_a_floor(bench, monkeypatch, others):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("pipeline.bench.trunk.lacks", lacks_tf32 if others else lacks_bfloat16)
    found = finite(bench_trunk(bench, **TOY_TRUNK))
    held = ["onnxruntime", *(["torch bfloat16", "onnxruntime int8"] if others else [])]
    assert {name for name, f in found.items() if f.goal} == {f"{name} ÷ plain eager" for name in held}
    assert sum("÷ torch.mm" in name for name in found) == 3 + 2 * others


@pytest.mark.slow
def test_a_resnet50_takes_the_published_work(tmp_path):
    # 4.09 G multiply-adds, https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html
    assert gflop_per_image(random_trunk("resnet50", 224, tmp_path)[1], 224) == pytest.approx(2 * 4.09, rel=0.01)


@pytest.mark.slow  # starts whole processes, and times them
@pytest.mark.parametrize("large", [False, True])
def test_extract_measures_against_the_forward_and_the_plain_script(bench, monkeypatch, large):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("pipeline.bench.extraction.PHONE", (400, 300))
    monkeypatch.setattr("pipeline.bench.extraction.lacks", lacks_bfloat16)
    monkeypatch.setattr("pipeline.bench.extraction.MANY", 2)
    if large:
        monkeypatch.setattr("pipeline.bench.extraction.lacks", lambda p, d: "it" if p in ("tf32", "bfloat16") else None)
    found = finite(
        bench_extract(
            dataclasses.replace(bench, large=large), trunk="resnet18", image_size=32, photographs=30, large=17, batch=4
        )
    )
    fastest = "int8" if large else "float32"
    assert set(found) == {
        "under way ÷ pure forward",
        *(
            f"{precision}, {what}"
            for precision in dict.fromkeys(["float32", fastest])
            for what in ("under way ÷ forward and decoding", "whole job ÷ plain script")
        ),
        f"{fastest}, 12 MP, whole job ÷ plain script",
        *([f"{fastest}, cold, whole job ÷ plain script"] if large else []),
    }


@pytest.mark.slow
def test_rerun_opens_no_image_and_forwards_only_what_is_new(bench):
    found = finite(bench_rerun(bench, files=60, changed=3))
    assert found["images opened, no change"].value == 0
    assert found["forwards after the changes"].value == 3


def test_read_measures_batches_opening_and_epochs(bench):
    assert len(finite(bench_read(bench, rows=600, dim=64, batch=128, picked=32))) == 3


def test_memory_measures_reading_and_divides_the_peaks_of_extracting(bench, monkeypatch):
    # 2 s for each process that loads PyTorch: the slow test below starts them
    monkeypatch.setattr(
        "pipeline.bench.memory._extracting", lambda b, source, size: {"few": 100.0, "many": 110.0}[source.name]
    )
    found = finite(bench_memory(bench, images=2, image_size=32, rows=400, dim=64))
    assert found["extraction, 10·N ÷ N images"].each == (1.1,)
    assert 10 < found["400 rows, one split"].value < 300


@pytest.mark.slow  # starts whole processes, and times them
@pytest.mark.slow
def test_memory_measures_growth_and_reading(bench):
    found = finite(bench_memory(bench, images=3, image_size=32, rows=400, dim=64))
    # a Python with PyTorch in it, and one without
    assert all(peak > 100 for peaks in found["extraction, 10·N ÷ N images"].ways.values() for peak in peaks)
    assert 10 < found["400 rows, one split"].value < 300


def test_the_made_cache_is_sound(tmp_path):
    make_cache(tmp_path / "made.h5", rows=100, dim=32, block_rows=32)
    cache = open_cache(tmp_path / "made.h5", verify=True)
    assert cache.counts() == {"none": 0, "train": 70, "val": 15, "test": 15}


def test_photographs_have_the_size_of_photographs(tmp_path):
    make_photographs(tmp_path, 2)
    for path in tmp_path.rglob("*.jpg"):
        assert 30_000 < path.stat().st_size < 60_000
        with Image.open(path) as image:
            assert math.prod(image.size) == pytest.approx(200_000, rel=0.05)


def test_after_many_photographs_earlier_ones_come_again_in_files_that_are_others(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.bench.images.DRAWN", 0)  # so that FEWEST are drawn
    make_photographs(tmp_path, 40, size=(64, 50))
    files = {int(path.stem): path for path in tmp_path.rglob("*.jpg")}
    pixels = {}
    for number, path in files.items():
        with Image.open(path) as image:
            pixels[number] = image.tobytes()
    assert len({path.read_bytes() for path in files.values()}) == 40
    assert pixels[16] == pixels[32] == pixels[0] and len(set(pixels.values())) == 16


def test_no_two_small_images_are_the_same(tmp_path):
    make_small(tmp_path, 30)
    make_small(tmp_path, 5, first=30, classes=1)
    make_small(tmp_path, 2, first=35, labels=np.array([7, 7]))
    told = sorted(int(path.stem) for path in (tmp_path / "class07").iterdir())
    assert told == [7, 17, 27, 35, 36]
    paths = list(tmp_path.rglob("*.png"))
    assert len(paths) == 37 == len({p.read_bytes() for p in paths})


def test_a_child_process_is_observed_from_within(tmp_path):
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "seen.py").write_text("bytes(200_000_000)\nopen(__file__).close()\n")
    (tmp_path / "run_me.py").write_text(
        f"import sys\nx = bytearray(200_000_000)\nopen({str(watched / 'seen.py')!r}).close()\nsys.exit(0)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from pipeline.bench.child import _main\n"
    code += f"_main({str(tmp_path / 'r.json')!r}, {str(watched)!r}, 'run_me')"
    run_python(["-c", code])
    import json

    record = json.loads((tmp_path / "r.json").read_text())
    assert record["opened"] == 1 and 200e6 < record["peak_bytes"] < 300e6


def test_a_failed_child_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(PipelineError, match="exit 3"):
        observed(tmp_path / "r.json", "no_such_module_exit 3", [], watched=tmp_path)
    with pytest.raises(PipelineError, match="exit 4"):
        measured(["-m", "no_such_module_exit 4"])


@pytest.mark.slow  # starts whole processes, and times them
def test_decode_measures_threads_against_processes_and_shrinking_against_not(bench):
    found = finite(bench_decode(bench, photographs=6, size=(64, 50), large=2, large_size=(1000, 800)))
    assert list(found) == ["threads ÷ processes", "scaled ÷ exact, 12 MP", "scaled ÷ exact, 0.2 MP"]
