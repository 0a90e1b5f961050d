"""The order of the house: imports go strictly down, no files import each other in a circle, what is deferred is listed.

Every import is counted, wherever it stands: on top, in a function, under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"

# From the ground up; rooms on one floor do not know each other.
FLOORS = (
    ("base",),
    ("images", "trunk", "store", "heads", "show"),
    ("runs",),
    ("stages.extract", "stages.score"),
    ("stages.learn", "stages.finetune", "stages.upkeep", "stages.use", "stages.report"),
    ("bench", "__init__"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# file -> what it imports where it is needed and not on top. The reasons: help, and an extraction that finds nothing to
# do, must import no torch; optional packages are imported where they are asked for.
DEFERRED = {
    "__main__.py": {"pipeline.base.interrupt", "pipeline.cli.main"},
    "base/machine.py": {"torch"},
    "base/precision.py": {"torch"},
    "base/ranks.py": {"numpy", "numpy.typing", "torch", "torch.distributed"},
    "base/system.py": {"fcntl", "msvcrt"},
    "bench/doors.py": {"pipeline.bench.run"},
    "cli/config.py": {"pipeline.runs.folder"},
    "heads/__init__.py": {"pipeline.heads.estimators"},
    "images/decode.py": {"PIL", "pillow_heif"},
    "images/sources/digits.py": {"sklearn.datasets"},
    "images/sources/torchvision.py": {"torchvision.datasets"},
    "show/letters.py": {"matplotlib.font_manager"},
    "show/pictures.py": {
        "matplotlib",
        "matplotlib.axes",
        "matplotlib.collections",
        "matplotlib.figure",
        "matplotlib.ticker",
    },
    "stages/extract/blocks.py": {"pipeline.stages.extract.ring", "pipeline.trunk.frozen", "pipeline.trunk.weights"},
    "stages/extract/calibrate.py": {"pipeline.trunk.frozen"},
    "stages/extract/doors.py": {"pipeline.stages.extract.job"},
    "stages/extract/job.py": {"pipeline.stages.extract.agreement", "pipeline.trunk.frozen"},
    "stages/finetune/doors.py": {"pipeline.stages.finetune.job"},
    "stages/learn/adaptive.py": {"optuna", "optuna.storages", "optuna.storages.journal", "optuna.trial"},
    "stages/learn/brackets.py": {"pipeline.stages.learn.adaptive"},
    "stages/learn/doors.py": {
        "pipeline.stages.learn.baseline",
        "pipeline.stages.learn.few_shot",
        "pipeline.stages.learn.kept",
        "pipeline.stages.learn.search",
        "pipeline.stages.learn.train",
    },
    "stages/report/doors.py": {"pipeline.stages.report.report", "pipeline.stages.report.results"},
    "stages/score/doors.py": {f"pipeline.stages.score.{verb}" for verb in ("compare", "evaluate", "figures")},
    "stages/upkeep/doors.py": {
        f"pipeline.stages.upkeep.{verb}" for verb in ("audit", "catalog", "inspect", "relabel", "verify")
    },
    "stages/upkeep/verify.py": {"pipeline.stages.upkeep.afresh"},
    "stages/use/doors.py": {f"pipeline.stages.use.{verb}" for verb in ("export", "predict", "rows", "trace")},
    "stages/use/export.py": {"onnxruntime"},
    "stages/use/tables.py": {"pyarrow", "pyarrow.parquet"},
    "stages/use/settings.py": {"PIL.Image", "numpy", "numpy.typing"},
    "trunk/engines/onnx.py": {"pipeline.trunk.engines.int8"},
    "trunk/engines/open.py": {"pipeline.trunk.engines.onnx"},
    "trunk/families/light.py": {"torch._dynamo.utils"},
    "trunk/frozen.py": {"pipeline.trunk.engines.int8", "pipeline.trunk.engines.onnx"},
    "trunk/lookup.py": {"pipeline.trunk.weights"},
    "trunk/weights.py": {"pipeline.trunk.hub"},
}


# The files that import by a name from a list: the package's API, a kind of head from the list of kinds, and a family of
# networks from the list of families.
BY_NAME = {
    PACKAGE / "__init__.py",
    PACKAGE / "heads" / "kinds" / "kind.py",
    PACKAGE / "trunk" / "families" / "family.py",
}


class Import(NamedTuple):
    module: str  # as written
    target: str  # what it is a name of, where that is a file of ours
    line: int
    deferred: bool


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 100
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in files()}


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's program, read once a session."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file; ``deferred`` where it is not on the top of the file."""

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, alias.name, child.lineno, inside)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield Import(
                        str(child.module), full if full in MODULES else str(child.module), child.lineno, inside
                    )
            elif isinstance(child, ast.Call) and ast.unparse(child.func) in ("importlib.import_module", "__import__"):
                assert path in BY_NAME, f"{path}:{child.lineno}: an import that nobody can read"
            else:
                deeper = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.Try))
                yield from walk(child, inside or deeper)

    return tuple(walk(tree_of(path), inside=False))


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    return ".".join(parts[1:3]) if parts[1] == "stages" and len(parts) > 2 else parts[1]


@pytest.mark.parametrize("room", sorted({room_of(m) for m in MODULES} - {"stages"}))
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    assert room in FLOOR, f"{room} has no floor: give it one"
    for module, path in MODULES.items():
        if room_of(module) != room:
            continue
        for found in imports(path):
            there = room_of(found.target)
            if found.target.split(".")[0] != "pipeline" or there == room:
                continue
            assert FLOOR[there] < FLOOR[room], f"{path.relative_to(PACKAGE)}:{found.line} imports {found.target}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: {i.target for i in imports(path) if i.target in MODULES} for module, path in MODULES.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as circle:
        raise AssertionError(" -> ".join(circle.args[1])) from None


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_stand_on_top_but_for_those_on_the_list(path: Path) -> None:
    listed = DEFERRED.get(str(path.relative_to(PACKAGE)), set())
    deferred = {i.target for i in imports(path) if i.deferred}
    assert deferred == listed


def test_the_list_of_deferred_imports_names_files_that_are_there() -> None:
    assert [name for name in DEFERRED if not (PACKAGE / name).is_file()] == []


@pytest.mark.parametrize(
    ("library", "room"),
    [
        ("h5py", "store"),
        ("argparse", "cli"),
        ("rich", "show"),
        ("jinja2", "show"),
        ("matplotlib", "show"),
        ("optuna", "stages.learn"),
        ("timm", "trunk"),
        ("huggingface_hub", "trunk"),
    ],
)
def test_a_library_is_known_to_one_room(library: str, room: str) -> None:
    users = {room_of(m) for m, path in MODULES.items() if any(i.module.split(".")[0] == library for i in imports(path))}
    assert users == {room}


def test_within_show_rich_is_known_to_the_terminal_alone() -> None:
    users = {m for m, path in MODULES.items() if any(i.module.split(".")[0] == "rich" for i in imports(path))}
    assert users
    assert all(m.startswith("pipeline.show.terminal.") for m in users), users


def test_nothing_unpickles() -> None:
    """No pickle, joblib, or torch.load without weights_only=True."""
    for path in files():
        assert not {i.module.split(".")[0] for i in imports(path)} & {"pickle", "joblib", "dill", "cloudpickle"}, path
        for node in ast.walk(tree_of(path)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"
            if called and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert safe.get("weights_only") == "True" or safe.get("allow_pickle") == "False", (
                    f"{path}:{node.lineno}"
                )


def test_the_package_has_few_rooms_and_files_at_its_top() -> None:
    inside = [p for p in PACKAGE.iterdir() if p.name != "__pycache__"]
    assert len([p for p in inside if p.is_dir()]) <= 11
    assert len([p for p in inside if p.is_file()]) <= 5


# -- the sealed test split --------------------------------------------------------------------------------------------

# What gives a split's rows, or what is made of them; ``labelled`` gives their places in the cache alone.
READERS = {"load_rows", "rows", "split", "logits_of_split", "network_logits", "pixel_batches", "pixels_of"}
# Score reads test rows, and counts each look. The others take splits for data: they carve, write and measure them.
READ_TEST = {"stages.score", "bench", "images", "store", "base"}


def names_test(node: ast.AST) -> bool:
    """Whether an expression says the test split: by its name, its number, or as one of all."""
    return any(
        (isinstance(n, ast.Constant) and n.value == "test") or (isinstance(n, ast.Name) and n.id in ("TEST", "SPLITS"))
        for n in ast.walk(node)
    )


def looks_at_test(program: ast.Module) -> list[int]:
    """Lines of a program that ask for test rows: by name, or in a loop over splits of which test is one."""
    found = []
    for node in ast.walk(program):
        asked = [node] if isinstance(node, ast.Call) else []
        by_name, loops = READERS | {"labelled"}, False
        if isinstance(node, (ast.For, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            iters = [node.iter] if isinstance(node, ast.For) else [g.iter for g in node.generators]
            if any(names_test(i) for i in iters):
                asked, by_name, loops = [n for n in ast.walk(node) if isinstance(n, ast.Call)], READERS, True
        for call in asked:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            values = [*call.args, *(k.value for k in call.keywords)]
            if name in by_name and (loops or any(names_test(v) for v in values)):
                found.append(call.lineno)
    return sorted(set(found))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_test_rows_are_asked_for_by_the_stage_that_scores_alone(path: Path) -> None:
    if room_of(module_of(path)) not in READ_TEST:
        assert looks_at_test(tree_of(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        'load_rows(cache, "test")',
        'rows = cache.rows("test")',
        'open_cache(path).split(split="test").X',
        'labelled(cache, "test")',
        "cache.rows(SPLITS[TEST])",
        "found = {name: load_rows(cache, name) for name in SPLITS[1:]}",
        'for split in ("val", "test"):\n    X = cache.split(split).X',
        "for i, split in enumerate(SPLITS):\n    part = attached.rows(split)",
    ],
)
def test_a_look_at_test_rows_is_found(line: str) -> None:
    assert looks_at_test(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        'load_rows(cache, "train")',
        'for split in ("train", "val"):\n    X = cache.split(split).X',
        'scores["test"]["accuracy"]',
        'counts = {split: n for split, n in zip(SPLITS, numbers)}',
        'text.split(",")',
    ],
)  # fmt: skip
def test_what_is_no_look_at_test_rows_is_let_be(line: str) -> None:
    assert looks_at_test(ast.parse(line)) == []
