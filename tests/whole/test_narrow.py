"""What the commands show fits into a terminal of 60 columns: no line is wider, no figure is cut or broken."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from pipeline import audit, baseline, compare, evaluate, finetune, inspect, predict, search, trace, train
from pipeline.base.values import Bar, Cell, Part, Steps, Table, Value
from pipeline.base.watch import Watch
from pipeline.stages.use import words as use_words

pytestmark = pytest.mark.slow  # it runs every command once: half a minute

Shown = list[tuple[str, Value]]


class Keeper(Watch):
    """Keeps the values that are shown."""

    def __init__(self, command: str, shown: Shown) -> None:
        self.command, self.shown = command, shown

    def show(self, value: Value) -> None:
        self.shown.append((self.command, value))


@pytest.fixture(scope="module")
def shown(workshop: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The values that the commands show, of one small cache."""
    found: Shown = []
    root = tmp_path_factory.mktemp("narrow")
    cache, image = workshop.cache.cache, str(next(workshop.photos.rglob("*.png")))

    def keep(command: str) -> Watch:
        return Keeper(command, found)

    train(cache, workspace=root, watch=keep("train"))
    search(cache, workspace=root, watch=keep("search"))
    search(cache, shots=(1, 5), draws=2, Cs=(0.01, 0.1), workspace=root, watch=keep("search --shots"))
    search(cache, shots=(1, 2, 3, 5, "all"), draws=2, Cs=(0.01, 0.1), workspace=root, watch=keep("search --shots all"))
    search(cache, space="mlp", trials=12, epochs=2, workspace=root, watch=keep("search --space mlp"))
    baseline(cache, names=("majority", "knn10", "ridge"), test=True, workspace=root, watch=keep("baseline"))
    evaluate("1", workspace=root, watch=keep("evaluate"))
    compare("1", "2", workspace=root, watch=keep("compare"))
    inspect(cache, full=True, workspace=root, watch=keep("inspect"))
    audit(cache, near=0.5, workspace=root, watch=keep("audit"))
    predict("1", workshop.photos, workspace=root, watch=keep("predict"))
    predict("1", image, trace=True, workspace=root, watch=keep("predict --trace"))
    trace("1", workspace=root, watch=keep("trace"))
    finetune("1", epochs=1, train="head", workspace=root, watch=keep("finetune"))
    found.append(("export", use_words.parity({"1": 1.2e-7, "16": 3.4e-7}, 1e-5, "onnx")))
    return found


def cells(value: Value) -> list[tuple[bool, Cell]]:
    """(whether it is a figure, cell) of all rows."""
    if isinstance(value, Table):
        rows, columns = list(value.rows), value.columns
    elif isinstance(value, Steps):
        rows, columns = [row for step in value.steps for row in step.rows], value.columns
    else:
        return []
    return [(column.right, cell) for row in rows for column, cell in zip(columns, row, strict=True)]


def plain(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return cell.name
    parts = cell if isinstance(cell, tuple) else (cell,)
    return "".join(part.text if isinstance(part, Part) else part for part in parts)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_line_is_wider_and_no_figure_is_cut(shown: Shown, printed: Callable[..., str], width: int) -> None:
    assert len({command for command, _ in shown}) == 14
    for command, value in shown:
        text = printed(value, width=width)
        assert [line for line in text.splitlines() if cell_len(line.rstrip()) > width] == [], command
        for figure, cell in cells(value):
            if figure and re.search("[0-9]", plain(cell)) and width >= 60:
                assert plain(cell).strip() in text, (command, plain(cell))


def test_a_table_that_has_no_room_becomes_a_list(printed: Callable[..., str]) -> None:
    from pipeline.base.values import Column, figures

    headings = ("Accuracy", "Macro-F1", "Log-loss", "Calibration")
    table = Table(
        [Column("Method", fit="name"), *figures(*headings)], [["head", "95.26 %", "94.1 %", "0.1234", "1.2 %"]]
    )
    assert printed(table, width=80).splitlines()[0].split() == ["Method", *headings]
    lines = [line.strip() for line in printed(table, width=36).splitlines()]
    assert lines == ["head", "Accuracy 95.26 %   Macro-F1 94.1 %", "Log-loss 0.1234", "Calibration 1.2 %"]


def test_headings_give_way_before_figures_do(printed: Callable[..., str]) -> None:
    from pipeline.base.values import Column, figures

    table = Table([Column("Name"), *figures("Largest difference", "What is allowed")], [["a", "1.2e-07", "1e-05"]])
    assert [line.split() for line in printed(table, width=32).splitlines()][:2] == [
        *(["Largest", "What", "is"], ["Name", "difference", "allowed"]),
    ]
