"""One file that tells a run to other people: what is in it, what is not, and what it never looks at."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pipeline import baseline, evaluate, extract, open_cache, report, train
from pipeline.base.errors import ConfigError, HeadError, PipelineError
from pipeline.base.workspace import Workspace
from pipeline.cli.main import main
from pipeline.heads.scores.label_noise import label_noise
from pipeline.runs.folder import load_run
from pipeline.stages.report.album import Album
from pipeline.stages.report.answers import answers_for
from pipeline.stages.report.features_map import map_of
from pipeline.stages.report.looks import looks_of
from pipeline.stages.report.sections import Chapter, sections
from pipeline.stages.report.story import gather
from pipeline.store.reader import Cache
from tests.parsed import Parsed
from tests.stages.report.conftest import CLASSES, EVIL

Quick = dict[str, Any]


def parsed(file: Path) -> Parsed:
    found = Parsed(file.read_bytes())
    found.require_to_stand_alone()
    return found


@pytest.fixture(scope="module")
def made(searched: SimpleNamespace) -> SimpleNamespace:
    result = report(searched.run, workspace=searched.root, pictures=searched.root / "pictures")
    return SimpleNamespace(result=result, page=parsed(result.file))


def titles(page: Parsed) -> list[str]:
    (contents,) = re.findall(r"Contents\s*(.*?)\n\s*\n", page.text, re.DOTALL)
    return [line.strip() for line in contents.splitlines() if line.strip()]


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_it_has_a_section_of_each_kind_and_stands_alone(made: SimpleNamespace, searched: SimpleNamespace) -> None:
    assert made.result.file == searched.root / "reports" / f"{searched.run.name}.html"
    assert made.result.bytes == made.result.file.stat().st_size < 2_000_000
    assert titles(made.page)[:4] == ["In short", "From what", "Figures", "Confusion"]
    assert {"Least sure", "Classes", "Certainty", "Map", "Model", "Training", "Times"} <= set(titles(made.page))
    assert made.result.lacking == () and made.result.gone == 0


def test_its_figures_are_those_of_the_answers_that_the_run_kept(
    made: SimpleNamespace, searched: SimpleNamespace
) -> None:
    kept = safetensors.numpy.load_file(searched.run / "held_out.safetensors")
    right = kept["logits"].argmax(axis=1) == kept["y"]
    assert f"{100 * right.mean():.1f}\u00a0% of {len(right)} images of train and val that it" in made.page.text
    wrong = int((~right).sum())
    cells = [e for e in made.page.elements if e[0] == "td" and e[1].get("class") == "wrong"]
    assert (wrong > 0) == bool(cells)
    assert "was scored by one of 5 heads of the run's settings that had not learned from it" in made.page.text


def test_what_chose_is_told(made: SimpleNamespace) -> None:
    assert "The head is the best of 2 by val (log-loss): its figures there are optimistic." in made.page.text
    assert "best of 2: optimistic" in made.page.text


def test_each_confused_pair_is_led_to_from_its_cell(awkward: SimpleNamespace, tmp_path: Path) -> None:
    page = parsed(report(awkward.run, workspace=awkward.root, out=tmp_path / "a.html").file)
    pairs = [name for name in page.all("id") if name.startswith("pair-")]
    assert pairs and all(f"#{name}" in page.all("href") for name in pairs)


def test_markup_in_a_class_a_group_or_a_path_is_text(awkward: SimpleNamespace, tmp_path: Path) -> None:
    page = parsed(report(awkward.run, workspace=awkward.root, out=tmp_path / "a.html").file)
    assert len(page.tags("script")) == 1 and page.text.count(EVIL) > 5 and CLASSES[1] in page.text
    assert not page.tags("i") and "farm 1 <i>" in page.text and "By farm" in page.text
    assert "\\n<b>&.png" in page.text
    assert "Failed images" in titles(page) and "photos/02.png" in page.text


def test_labels_that_look_wrong_are_found_by_what_did_not_learn_from_them(
    awkward: SimpleNamespace, tmp_path: Path
) -> None:
    kept = safetensors.numpy.load_file(awkward.run / "held_out.safetensors")
    temperature = json.loads((awkward.run / "head.json").read_text())["temperature"]
    noise = label_noise(kept["logits"], kept["y"], temperature)
    page = parsed(report(awkward.run, workspace=awkward.root, out=tmp_path / "a.html").file)
    assert "Labels" in titles(page)
    assert f"at most about {100 * noise.share:.1f}\u00a0%" in page.text
    assert len([note for note in page.all("alt") if note.startswith("labelled ")]) == min(24, len(noise.order))


def test_a_fine_tuned_run_has_its_verdict_and_its_answers_are_computed_once(
    workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = report(workshop.tuned.run, workspace=tmp_path)
    page = parsed(first.file)
    assert "Fine-tuning" in titles(page) and "Worth it: " in page.text and "Head" in page.text
    kept = safetensors.numpy.load_file(next((tmp_path / "reports").glob("answers-*.safetensors")))
    assert float((kept["logits"].argmax(axis=1) == kept["y"]).mean()) == workshop.tuned.after
    monkeypatch.setattr("pipeline.stages.report.answers.by_run", lambda *_: pytest.fail("computed again"))
    again = report(workshop.tuned.run, workspace=tmp_path, out=tmp_path / "again.html")
    assert again.file.read_bytes() == first.file.read_bytes()


def test_a_minibatch_head_has_its_trace(workshop: SimpleNamespace, tmp_path: Path) -> None:
    page = parsed(report(workshop.head.run, workspace=tmp_path).file)
    assert "Loss, epoch by epoch" in page.text and "Accuracy, epoch by epoch" in page.text
    assert "Of val 9 images were scored by the head itself" in page.text


def test_pictures_are_files_of_their_own(made: SimpleNamespace, searched: SimpleNamespace) -> None:
    names = sorted(file.name for file in (searched.root / "pictures").iterdir())
    assert names == ["confusion.png", "coverage.svg", "map.svg", "path.svg", "reliability.svg"]
    assert sorted(made.result.pictures) == [searched.root / "pictures" / name for name in names]
    assert (searched.root / "pictures" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (searched.root / "pictures" / "map.svg").read_text()


# -- test rows --------------------------------------------------------------------------------------------------------


def test_no_test_row_is_looked_at(copied: SimpleNamespace, tmp_path: Path, guarded: None) -> None:
    sound = report(copied.run, workspace=copied.root, out=tmp_path / "a.html")
    cache = open_cache(copied.cache)
    poisoned = np.flatnonzero(cache.splits == 3)
    size = cache.block_rows
    with copied.cache.open("r+b") as file:
        for row in poisoned.tolist():
            file.seek(cache._structure.offset("/features") + row * cache.dim * 4)
            file.write(np.full(cache.dim, 1e30, "<f4").tobytes())
    blocks = [np.asarray(cache.features[b * size : (b + 1) * size]) for b in range(len(cache.done))]
    with copied.cache.open("r+b") as file:  # a block that holds val rows, too, is verified whole
        file.seek(cache._structure.offset("/blocks/crc32"))
        file.write(np.array([zlib.crc32(block.tobytes()) for block in blocks], "<u4").tobytes())
    for kept in (copied.root / "reports").glob("map-*"):
        kept.unlink()
    again = report(copied.run, workspace=copied.root, out=tmp_path / "b.html")
    assert sound.file.read_bytes() == again.file.read_bytes()
    assert not (copied.root / "tested.jsonl").exists()
    assert "Test: not scored." in parsed(again.file).text


def test_a_scored_run_shows_its_test_figures_and_the_look_is_not_counted_again(
    copied: SimpleNamespace, tmp_path: Path
) -> None:
    test = evaluate(copied.run, workspace=copied.root)
    ledger = (copied.root / "tested.jsonl").read_bytes()
    page = parsed(report(copied.run, workspace=copied.root, out=tmp_path / "b.html").file)
    assert "Test accuracy" in page.text and f"{100 * test.test['accuracy']:.1f}\u00a0%" in page.text
    assert "as the 1st run on these rows" in page.text
    assert (copied.root / "tested.jsonl").read_bytes() == ledger
    mistakes = test.test["n"] - sum(test.test["confusion"][i][i] for i in range(3))
    assert ("Test: most confident first" in page.text) == (mistakes > 0)


# -- what is not there ------------------------------------------------------------------------------------------------


def test_images_that_are_gone_are_named_and_it_goes_on(
    photos: Path, tmp_path: Path, quick: Quick, listener: Any
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    cache = extract(mine, workspace=tmp_path, **quick).cache
    run = train(cache, workspace=tmp_path).run
    first = report(run, workspace=tmp_path)
    val = open_cache(cache).split("val").ids
    (mine / os.fsdecode(val[0])).unlink()
    shutil.copy(mine / os.fsdecode(val[1]), mine / os.fsdecode(val[2]))  # another image under its name
    some = report(run, workspace=tmp_path, out=tmp_path / "some.html", watch=listener)
    assert some.gone == 2 and some.images < first.images
    assert "2 images are not where they were" in listener.text
    page = parsed(some.file)
    assert re.search(r"2 of \d+ images are not where they were: .*mine", page.text)
    assert os.fsdecode(val[0]) in page.text
    mine.rename(tmp_path / "elsewhere")
    none = report(run, workspace=tmp_path, out=tmp_path / "none.html")
    assert none.images == 0 and none.gone > some.gone and parsed(none.file).tags("img") == []
    assert os.fsdecode(val[3]) in parsed(none.file).text


def test_without_val_it_says_what_it_lacks(photos: Path, tmp_path: Path, quick: Quick, listener: Any) -> None:
    run = train(extract(photos, workspace=tmp_path, val_fraction=0, **quick).cache, workspace=tmp_path).run
    result = report(run, workspace=tmp_path, watch=listener)
    assert [one.what for one in result.lacking] == ["its answers on val"]
    assert "the page does without its answers on val: " in listener.text
    page = parsed(result.file)
    assert "has no labelled val rows" in page.text and "Confusion" not in titles(page) and "Map" in titles(page)


def test_without_its_cache_it_tells_what_the_run_kept(copied: SimpleNamespace, searched: SimpleNamespace) -> None:
    config = json.loads((copied.run / "config.json").read_text())
    config["cache"]["path"] = str(copied.root / "features" / "gone.h5")
    config["cache"].pop("from_here")
    (copied.run / "config.json").write_text(json.dumps(config))
    copied.cache.unlink()
    result = report(copied.run, workspace=copied.root)
    page = parsed(result.file)
    assert [one.what for one in result.lacking] == ["the images, their groups and the map of features"]
    assert "Confusion" in titles(page) and "Map" not in titles(page) and "row " in page.text


def test_answers_that_are_damaged_are_left_out_with_the_reason(copied: SimpleNamespace) -> None:
    (copied.run / "held_out.safetensors").write_bytes(b"x")
    result = report(copied.run, workspace=copied.root)
    assert "held_out.safetensors is damaged" in result.lacking[0].why


# -- the file ---------------------------------------------------------------------------------------------------------


def test_two_reports_of_a_run_have_the_same_bytes(copied: SimpleNamespace, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        shutil.rmtree(copied.root / "reports", ignore_errors=True)
        files.append(report(copied.run, workspace=copied.root, out=tmp_path / f"{name}.html").file.read_bytes())
    assert files[0] == files[1]
    other = report(copied.run, workspace=copied.root, out=tmp_path / "c.html", seed=1).file.read_bytes()
    assert other != files[0]  # its map is laid out anew


def test_no_file_is_larger_than_it_may_be(copied: SimpleNamespace, tmp_path: Path, listener: Any) -> None:
    whole = report(copied.run, workspace=copied.root, out=tmp_path / "a.html")
    limit = (whole.bytes - 20_000) / 1e6
    part = report(copied.run, workspace=copied.root, out=tmp_path / "b.html", max_mb=limit, watch=listener)
    assert part.bytes <= limit * 1e6 and part.without_room > 0
    assert part.images + part.without_room == whole.images and "have room in" in listener.text
    with pytest.raises(
        ConfigError, match=r"max_mb=0.001: the page takes .* without a single image; give at least 0\.\d"
    ):
        report(copied.run, workspace=copied.root, out=tmp_path / "c.html", max_mb=0.001)
    assert not (tmp_path / "c.html").exists()


def test_a_folder_that_cannot_be_written_is_told_in_a_line(
    copied: SimpleNamespace, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["report", str(copied.run), "--workspace", str(copied.root)]
    for more in (["--out", str(tmp_path / "file" / "r.html")], ["--pictures", str(tmp_path / "file")]):
        assert main([*words, *more]) == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one.lower()]
        assert "cannot write in" in line or "file" in line
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match=r"folder.html is a folder: give the name of a file"):
        report(copied.run, workspace=copied.root, out=tmp_path / "folder.html")


def test_what_cannot_be_kept_is_no_reason_to_stop(
    copied: SimpleNamespace, tmp_path: Path, listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.stages.report.kept.write_bytes", full)
    result = report(copied.run, workspace=copied.root, out=tmp_path / "a.html", watch=listener)
    assert "is not kept" in listener.text and "No space left on device" in listener.text and result.lacking == ()


@pytest.mark.parametrize(
    ("runs", "options", "told"),
    [
        (("1", "1"), {}, "is given 2 times: give each run once"),
        (tuple("123456789"), {}, "9 runs: give 8 at most"),
        (("1",), {"out": "a.pdf"}, "out='a.pdf' must end in .html"),
        (("1",), {"max_mb": 0}, "max_mb is 0: it must be above 0"),
        (("1",), {"max_mb": float("inf")}, "max_mb=inf: it must be a number of megabytes"),
        (("nothing",), {}, "no run 'nothing'"),
    ],
)
def test_mistakes_are_told(searched: SimpleNamespace, runs: tuple[str, ...], options: Quick, told: str) -> None:
    with pytest.raises((ConfigError, HeadError), match=told):
        report(runs, workspace=searched.root, **options)


def test_a_map_of_images_that_are_all_the_same_is_left_out_with_the_reason(searched: SimpleNamespace) -> None:
    """t-SNE of no distances at all ended the process."""
    cache = open_cache(searched.cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cache, "features_at", lambda self, rows: np.zeros((len(rows), 8), np.float32))
        with pytest.raises(HeadError, match="all images have the same features"):
            map_of(cache, 99, Workspace(searched.root))


def test_a_run_without_a_head_is_refused(searched: SimpleNamespace, tmp_path: Path) -> None:
    run = baseline(searched.cache, names=("majority",), workspace=tmp_path).run
    with pytest.raises(HeadError, match="is a baseline run and holds no head: give one of train, search or finetune"):
        report(run, workspace=tmp_path)


def test_the_last_line_names_the_file_and_its_size(copied: SimpleNamespace, capsys: Any) -> None:
    assert main(["report", str(copied.run), "--workspace", str(copied.root)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"report, in .* -> .*/reports/0001-search-.*\.html \(\d.* KiB\)", last), last
    assert main(["report", str(copied.run), "--workspace", str(copied.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["file"]).stat().st_size == told["bytes"] and told["lacking"] == []


# -- records that are not what they were ------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that is within a JSON value, and to itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, one in inner for way in leaves(one, (*path, key)))]


@pytest.mark.parametrize("which", ["searched", "tuned"])
def test_a_record_with_another_value_somewhere_is_told_or_shown_and_never_a_traceback(
    which: str, searched: SimpleNamespace, workshop: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = searched.run if which == "searched" else workshop.tuned.run
    run = Path(shutil.copytree(source, tmp_path / "runs" / source.name))
    (run / "config.json").write_text(_led_to(run / "config.json", workshop.cache.cache))
    monkeypatch.setattr("pipeline.stages.report.sections.model_steps", lambda *_: [])
    monkeypatch.setattr("pipeline.stages.report.looks.label_noise", lambda *_, **__: None)
    monkeypatch.setattr("pipeline.stages.report.story.answers_for", lambda *_: kept)
    monkeypatch.setattr("pipeline.stages.report.story.cache_of", lambda _: None)
    desk = Workspace(tmp_path)
    kept = answers_for(load_run(run), open_cache(workshop.cache.cache), desk, "cpu")
    tried = 0
    for name in ("metrics.json", "config.json", "trials.jsonl"):
        file = run / name
        if not file.exists():
            continue
        text = file.read_text()
        lines = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else [json.loads(text)]
        for way in leaves(lines[0])[1:]:
            for other in (None, -1, "x", {"a": [1]}):
                changed = json.loads(json.dumps(lines[0]))
                within = changed
                for key in way[:-1]:
                    within = within[key]
                within[way[-1]] = other
                file.write_text("\n".join(map(json.dumps, [changed, *lines[1:]])) + "\n")
                try:
                    story = gather(str(run), desk, "cpu")
                    sections(Chapter(story, looks_of(story, 0), Album({}, 0, 0, ""), None, ()))
                except PipelineError as error:
                    assert "\n" not in str(error)
                tried += 1
        file.write_text(text)
    assert tried > 300


def _led_to(config: Path, cache: Path) -> str:
    told = json.loads(config.read_text())
    told["cache"]["path"] = str(cache)
    return json.dumps(told)
