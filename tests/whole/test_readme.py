"""What the README and the rooms' pages show is what the program has: commands, options, targets, files, code, links."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.cli.commands import COMMANDS
from pipeline.cli.parser import parse, settings_of
from pipeline.heads.artifact import Head, save_head
from pipeline.store.format import DATASETS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pipeline"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(PACKAGE.rglob("README.md")))
}


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, text) of each fenced block of a kind."""
    return [(p, text) for p, page in PAGES.items() for text in re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)]


def shown() -> list[tuple[str, list[str]]]:
    """(page, words) of each command line shown: what stands before a comment, a pipe or a redirection, after $ or |."""
    found = []
    for page, text in blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                words = shlex.split(line[2:], comments=True)
                cuts = [i for i, word in enumerate(words) if word in ("|", ">")]
                parts = zip([0, *(i + 1 for i in cuts)], [*cuts, len(words)], strict=True)
                found += [(page, words[a:b]) for a, b in parts]
    return found


def ours() -> list[tuple[str, list[str]]]:
    """Of those the words after `pipeline`, also where torchrun starts it."""
    found = [(page, words[words.index("pipeline") + 1 :]) for page, words in shown() if "pipeline" in words]
    return list({" ".join(words): (page, words) for page, words in found}.values())


@pytest.mark.parametrize(("page", "words"), ours(), ids=[" ".join(words) for _, words in ours()])
def test_every_command_shown_is_a_command_with_those_options(page: str, words: list[str]) -> None:
    settings_of(parse(words, COMMANDS), COMMANDS)


def test_every_command_is_shown_or_named() -> None:
    assert [c for c in COMMANDS if f"pipeline {c}" not in README and f"make {c}" not in README] == []


def test_every_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, page in PAGES.items():
        for target in re.findall(r"(?:`|\$ )make ([a-z]+)", page):
            assert re.search(rf"^{target}: ", makefile, re.MULTILINE), f"{name}: {target}"


def test_every_path_of_tests_shown_exists() -> None:
    for page, words in shown():
        for word in words[1:] if words[:1] == ["pytest"] else []:
            assert word.startswith("-") or (ROOT / word).exists(), f"{page}: {word}"


def test_the_format_table_has_every_dataset() -> None:
    (page,) = [page for page in PAGES.values() if "| `/features` |" in page]
    for name in DATASETS:
        assert f"`{name}`" in page, name


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= 230


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_are_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, left = set(), ["README.md"]
    while left:
        page = left.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#]+README\.md)\)", PAGES[page]):
            path = (ROOT / page).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
            left += [path] if path not in reached else []
    assert reached == set(PAGES)


def test_the_map_has_every_room_and_no_file_that_is_not_there() -> None:
    (tree,) = [text for _, text in blocks("text") if text.startswith("base/")]
    rooms = {room: named.split() for room, named in (line.split(None, 1) for line in tree.splitlines())}
    assert set(rooms) == {f"{p.parent.relative_to(PACKAGE)}/" for p in PACKAGE.rglob("*/__init__.py")}
    for room, named in rooms.items():
        if room not in ("stages/", "bench/"):  # these have a sentence
            assert set(named) <= {p.stem for p in (PACKAGE / room).glob("*.py")}, room


CODE = blocks("python")


@pytest.fixture(scope="module")
def folder(workshop: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache and the run that the pages' code names."""
    root = tmp_path_factory.mktemp("pages")
    run = root / "cache" / "runs" / "0001-train-NAME"
    run.mkdir(parents=True)
    (root / "cache" / "features").mkdir()
    shutil.copy(workshop.cache.cache, root / "cache" / "features" / "NAME.h5")
    tensors = {"weight": np.ones((10, 2048), np.float32), "bias": np.zeros(10, np.float32)}
    save_head(run, Head("linear", tensors, tuple("0123456789"), "0" * 64, 2048))
    return root


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize(("page", "code"), CODE[1:], ids=[f"{p}-{c.splitlines()[0]}" for p, c in CODE[1:]])
@pytest.mark.filterwarnings("ignore:C = .* is the highest of Cs")  # of so few
def test_the_code_shown_runs(page: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, on a part of the digits."""
    X, y = load_digits(return_X_y=True)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y: (X[:200], y[:200]))
    run(code, folder, monkeypatch)


def test_the_first_example_is_short_and_names_the_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At most eight lines, and they run as they stand."""
    page, example = CODE[0]
    assert page == "README.md"
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    run(example, tmp_path, monkeypatch)
    assert "(1259, 512) 7" in capsys.readouterr().out


def test_the_head_loads_without_the_package_as_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three lines of plain torch."""
    (example,) = [code for _, code in CODE if "torch.nn.Linear" in code]
    assert re.findall(r"^(?:import|from) (.+)", example, re.MULTILINE) == ["torch, safetensors.torch"]
    head = run(example, folder, monkeypatch)["head"]
    assert head.weight.shape == (10, 2048) and bool((head.weight == 1).all())  # type: ignore[attr-defined]
