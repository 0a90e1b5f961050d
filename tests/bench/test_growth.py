"""The entry `growth` at toy size: its world is one that the commands take, and its figures are what the runs took."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.watch import Watch
from pipeline.bench.child import Spent, measured
from pipeline.bench.growth import bench_growth, commands, exponent, make_world
from pipeline.bench.measure import Bench
from pipeline.cli.main import main
from pipeline.store import open_cache


def test_the_exponent_is_that_of_what_comes_on_top_of_the_start():
    taken = {f"{n} rows": (2.5 + 1e-4 * n**1.3,) for n in (3000, 30_000, 300_000)}
    assert exponent((100, 3000, 30_000, 300_000), {"100 rows": (2.5,), **taken}) == pytest.approx(1.3, abs=1e-3)


def test_what_cannot_be_told_from_the_start_does_not_grow():
    assert exponent((100, 3000, 30_000), {"few": (2.5,), "more": (2.45,), "most": (2.6,)}) == 0


def test_the_median_of_several_runs_counts():
    assert exponent((1, 10, 100), {"a": (1.0,), "b": (2.0, 99.0, 2.0), "c": (11.0,)}) == pytest.approx(1)


@pytest.mark.parametrize("large", [False, True])
def test_growth_measures_each_command_on_each_size_that_it_is_for(tmp_path, monkeypatch, large):
    seen = []

    def took(arguments, *, threads):
        rows = int(Path(arguments[arguments.index("--workspace") + 1]).name)
        seen.append((rows, arguments[2]))
        return Spent(2 + 1e-3 * rows, 1 + 1e-6 * rows**2, 10**8 + 10**4 * rows, '{"new": 0}')

    def no_world(place, rows, trunk, classes):
        place.mkdir()
        return 64

    monkeypatch.setattr("pipeline.bench.growth.measured", took)
    monkeypatch.setattr("pipeline.bench.growth.make_world", no_world)
    figures = bench_growth(Bench(5, tmp_path, Watch(), large=large), few=0)
    names = [command.name for command in commands(tmp_path, "resnet18")]
    assert [f.name for f in figures] == [n for name in names for n in (name, f"{name}: on the CPU", f"{name}: memory")]
    found = {f.name: f for f in figures}
    assert found["train"].value == 1 and found["train"].aim_met
    assert found["train: on the CPU"].value == 2 and found["train: on the CPU"].goal is None
    assert found["train: memory"].value == pytest.approx(3100 / 130 if large else 400 / 130)
    large_too = ["300,000 rows"] if large else []
    assert list(found["train"].ways) == ["0 rows", "3,000 rows", "30,000 rows", *large_too]
    assert list(found["search, 5 folds"].ways) == ["0 rows", "3,000 rows", "30,000 rows"]
    assert [len(each) for each in found["train"].ways.values()][:3] == [2, 2, 1]
    assert not any(tmp_path.iterdir())


def test_extraction_copies_every_row_of_the_made_world(tmp_path, capsys, drawn_once):
    trunk, place = "resnet18", tmp_path / "60"
    assert make_world(place, 60, trunk, 3) == 512
    copying, again = commands(place, trunk)[:2]
    for command in (copying, again):
        assert main([*command.words, "--workspace", str(place), "--json"]) == 0
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (told["new"], told["reused"]) == (0, 60)
    earlier, copied = (open_cache(place / "features" / f"{name}.h5", verify=True) for name in ("earlier", "copied"))
    at = {bytes(digest): row for row, digest in enumerate(earlier.digests)}
    origin = [at[bytes(digest)] for digest in copied.digests]
    assert origin != sorted(origin) and sorted(origin) == list(range(60))
    np.testing.assert_array_equal(copied.features, earlier.features[origin])
    assert copied.counts() == {"none": 0, "train": 42, "val": 9, "test": 9}
    relabelling = commands(place, trunk)[5]
    assert main([*relabelling.words, "--workspace", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["relabelled"] > 0


@pytest.mark.slow  # 42 commands, here in one process, since each would load PyTorch in its own
def test_growth_runs_every_command(tmp_path, monkeypatch, capsys, drawn_once):
    def here(arguments, *, threads):
        assert arguments[:2] == ["-m", "pipeline"]
        assert main(arguments[2:]) == 0
        return Spent(1.0, 1.0, 1, capsys.readouterr().out)

    monkeypatch.setattr("pipeline.bench.growth.measured", here)
    figures = bench_growth(Bench(1, tmp_path, Watch()), sizes=(120, 240), few=60, trunk="resnet18", classes=3)
    assert len(figures) == 3 * len(commands(tmp_path, "resnet18"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say it")
def test_a_process_is_measured_without_the_pages_of_a_file(tmp_path):
    mapped = tmp_path / "mapped"
    mapped.write_bytes(bytes(100_000_000))
    code = f"import mmap, time; x = bytearray(b'x' * 50_000_000); f = open({str(mapped)!r}, 'rb'); "
    code += "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); "
    code += "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint('done')"
    spent = measured(["-c", code])
    assert spent.said == "done\n"
    assert 50e6 < spent.anonymous_bytes < 140e6  # for a moment there are two arrays
    assert spent.cpu_seconds > 0.2
