"""The import rule: stages import rooms, rooms import no other room, only the store imports h5py."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
ROOMS = ("images", "trunk", "store", "heads", "show")
BELOW = ("pipeline.base",)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_itself_and_what_is_below(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert len(files) > 1
    for path in files:
        ours = {n for n in imported(path) if n.startswith("pipeline.")}
        wrong = {n for n in ours if not n.startswith((f"pipeline.{room}", *BELOW))}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_only_the_store_imports_h5py() -> None:
    users = {p for p in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "h5py" for n in imported(p))}
    assert users
    assert all(p.parent == PACKAGE / "store" for p in users), users


def test_nothing_unpickles() -> None:
    """E7: no pickle, joblib, or torch.load without weights_only=True."""
    for path in PACKAGE.rglob("*.py"):
        assert not {n.split(".")[0] for n in imported(path)} & {"pickle", "joblib", "dill", "cloudpickle"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert safe.get("weights_only") == "True" or safe.get("allow_pickle") == "False", (
                    f"{path}:{node.lineno}"
                )


def test_no_module_below_the_command_line_imports_it() -> None:
    users = {p.name for p in PACKAGE.rglob("*.py") if any(n.startswith("pipeline.cli.main") for n in imported(p))}
    assert users == {"__main__.py"}
