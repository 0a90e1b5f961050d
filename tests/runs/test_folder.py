"""Runs' folders: their numbers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs


def test_runs_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    together = Barrier(6)

    def one(_: int) -> str:
        together.wait()
        with runs.new_run(Workspace(tmp_path), stage="train", name="digits", settings={}, about={}) as (draft, folder):
            together.wait()  # all are at work before the first one ends
            draft.write_json("metrics.json", {})
        return folder.name

    with ThreadPoolExecutor(6) as pool:
        names = sorted(pool.map(one, range(6)))
    assert names == [f"{n:04d}-train-digits" for n in range(1, 7)]
    assert sorted(p.name for p in (tmp_path / "runs").glob("[0-9]*")) == names
    assert all(runs.load_run(tmp_path / "runs" / name).stage == "train" for name in names)


def test_a_run_that_fails_leaves_nothing_but_its_number(tmp_path: Path) -> None:
    try:
        with runs.new_run(Workspace(tmp_path), stage="train", name="digits", settings={}, about={}):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == []
