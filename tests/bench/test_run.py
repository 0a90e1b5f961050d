import json
import math

import pytest

from pipeline.base.errors import ConfigError
from pipeline.base.watch import Watch
from pipeline.base.workspace import Workspace
from pipeline.bench import run, settings
from pipeline.bench.doors import bench
from pipeline.bench.measure import Figure, Goal, ratio
from pipeline.bench.settings import ENTRIES, BenchSettings


class Ear(Watch):
    def __init__(self):
        self.said, self.warned, self.shown = [], [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def show(self, renderable):
        self.shown.append(renderable)


@pytest.fixture
def toys(monkeypatch):
    """Two entries that need no time: one meets its floor, one does not."""
    seen = {}

    def good(bench):
        seen["folder"] = bench.folder
        (bench.folder / "left over").write_text("x")
        each = [4.0] * bench.repeats
        return [ratio("good", "a ÷ b", (("a", each), ("b", [2.0] * bench.repeats)), "s", goal=Goal(1.5))]

    def bad(bench):
        return [Figure("bad", "taken", (math.inf,), {}, "", "s", Goal(3.0, sense="most"), "a note")]

    measures(monkeypatch, {"good": good, "bad": bad})
    return seen


def measures(monkeypatch, entries):
    monkeypatch.setattr(run, "MEASURES", entries)
    monkeypatch.setattr(settings, "ENTRIES", tuple(entries))


def test_every_entry_has_its_measure():
    assert tuple(run.MEASURES) == ENTRIES


def test_an_unknown_entry_is_refused_with_the_legal_ones():
    with pytest.raises(
        ConfigError, match="'trunks' is not known: choose from trunk, decode, extract, .*; did you mean trunk?"
    ):
        BenchSettings(entries=("trunks",))


def test_all_entries_run_when_none_is_named_and_each_runs_once():
    assert BenchSettings().chosen == tuple(ENTRIES)
    assert BenchSettings(entries=("read", "trunk", "read")).chosen == ("trunk", "read")


def test_repeats_below_one_are_refused():
    with pytest.raises(ConfigError, match="repeats"):
        BenchSettings(repeats=0)


def test_the_record_says_what_was_measured_where_and_with_what(tmp_path, toys):
    report = bench.work(BenchSettings(entries=("good",), repeats=2, threads=1), Workspace(tmp_path, Ear()))
    record = json.loads(report.path.read_text(encoding="utf-8"))
    assert report.path.parent == tmp_path / "bench"
    assert record["command"] == "pipeline bench good --repeats 2 --threads 1"
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["torch_threads"] == 1
    assert {"python", "torch", "torchvision", "numpy"} <= set(record["versions"])
    assert record["figures"][0]["ways"] == {"a": [4.0, 4.0], "b": [2.0, 2.0]}
    assert record["figures"][0]["median"] == 2.0 and record["figures"][0]["floor_met"] is True
    assert report.to_json() == {**record, "path": str(report.path)}


def test_the_large_sizes_are_handed_on_and_recorded(tmp_path, monkeypatch):
    def sized(bench):
        return [Figure("sized", "large", (float(bench.large),), {})]

    measures(monkeypatch, {"sized": sized})
    report = bench.work(BenchSettings(repeats=1, large=True), Workspace(tmp_path, Ear()))
    assert report.figures[0].value == 1
    assert report.record["command"] == "pipeline bench sized --repeats 1 --large"


def test_a_second_run_keeps_the_first_record(tmp_path, toys):
    asked = BenchSettings(entries=("good",), repeats=1, out=tmp_path / "kept")
    paths = {bench.work(asked, Workspace(tmp_path, Ear())).path for _ in range(2)}
    assert len(paths) == 2 and set((tmp_path / "kept").iterdir()) == paths


def test_a_missed_floor_is_said_and_is_no_error(tmp_path, toys):
    ear = Ear()
    bench.work(BenchSettings(repeats=1), Workspace(tmp_path, ear))
    assert "1 of 2 floors missed: bad: taken" in ear.warned
    assert "a note" in ear.said and len(ear.shown) == 1


def test_temporary_files_are_removed(tmp_path, toys):
    bench.work(BenchSettings(entries=("good",), repeats=1), Workspace(tmp_path, Ear()))
    assert toys["folder"].is_relative_to((tmp_path / "bench" / "tmp").resolve())
    assert not (tmp_path / "bench" / "tmp").exists()


def test_temporary_files_are_removed_when_an_entry_fails(tmp_path, monkeypatch):
    def broken(bench):
        (bench.folder / "left over").write_text("x")
        raise ConfigError("no")

    measures(monkeypatch, {"broken": broken})
    with pytest.raises(ConfigError, match="no"):
        bench.work(BenchSettings(repeats=1), Workspace(tmp_path, Ear()))
    assert not (tmp_path / "bench" / "tmp").exists()


def test_a_busy_machine_is_warned_of(tmp_path, toys, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    ear = Ear()
    bench.work(BenchSettings(entries=("good",), repeats=1), Workspace(tmp_path, ear))
    assert any("99.0 cores busy" in text for text in ear.warned)
