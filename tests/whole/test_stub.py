"""What an editor completes: ``pipeline/__init__.pyi`` is made from the settings, and is not stale.

``pytest tests/whole --write-stub`` makes it anew.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

STUB = Path(pipeline.__file__).with_suffix(".pyi")
DOORS = [name for name in pipeline.__all__ if name != "open_cache"]
HOMES = {
    "Literal": "typing",
    "PathLike": "os",
    "Sequence": "collections.abc",
    "Watch": "pipeline.base.watch",
    "Picture": "pipeline.stages.use.settings",
    "Cache": "pipeline.store",
}


def stub() -> str:
    """The text of the stub."""
    body = "\n".join(function(name) for name in pipeline.__all__)
    homes = {**HOMES, **results()}
    used = [name for name in homes if re.search(rf"\b{name}\b", body)]
    lines = "\n".join(f"from {homes[name]} import {name}" for name in used)
    names = "".join(f"    {name!r},\n" for name in pipeline.__all__)
    says = '"""Made from the settings by `pytest tests/whole --write-stub`."""'
    return formatted(f"{says}\n\n{lines}\n\n__all__ = [\n{names}]\n\n{body}\n")


def function(name: str) -> str:
    """A door as a function with its options, their types and defaults."""
    signature, parameters = inspect.signature(getattr(pipeline, name)), []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{parameter.name}: {accepted(str(parameter.annotation))}{default}")
    return f"def {name}({', '.join(parameters)},) -> {signature.return_annotation}: ..."


def accepted(declared: str) -> str:
    """What a door takes for a field of the type ``declared``: a path for text, one value for a tuple of them."""
    text = "str | PathLike[str]"
    if declared == "str | Path":
        return text
    if many := re.fullmatch(r"tuple\[(\w+)( \| \w+(?:\[.*?\])?)?, \.\.\.\](.*)", declared):
        one = (text if many[1] == "str" else many[1]) + (many[2] or "")
        return f"{one} | Sequence[{one}]{many[3]}"
    return re.sub(r"^(str|Path)(?=$| \| None$)", text, declared).replace("os.PathLike", "PathLike")


def results() -> dict[str, str]:
    """Result class -> its module, as the doors import them for their annotations."""
    found = {}
    for name in DOORS:
        home = Path(sys.modules[getattr(pipeline, name).__module__].__file__ or "")
        for node in ast.walk(ast.parse(home.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.name: node.module for alias in node.names if alias.name[0].isupper()}
    return found


def formatted(text: str) -> str:
    sort = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--quiet",
        "--fix",
        "--select",
        "I",
        "--stdin-filename",
        str(STUB),
        "-",
    ]
    form = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(STUB), "-"]
    for command in (sort, form):
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def test_the_stub_says_what_the_settings_say(request: pytest.FixtureRequest) -> None:
    made = stub()
    if request.config.getoption("--write-stub"):
        STUB.write_text(made, encoding="utf-8")
    assert STUB.read_text(encoding="utf-8") == made, "stale: pytest tests/whole --write-stub"


def test_every_option_of_every_door_is_in_the_stub() -> None:
    """Compared with the dataclasses' own fields, not with what the stub was made from."""
    import dataclasses

    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    written = {n.name: n.args for n in tree.body if isinstance(n, ast.FunctionDef)}
    for name in DOORS:
        args = written[name]
        fields = dataclasses.fields(getattr(pipeline, name).settings)
        assert [a.arg for a in args.args] == [f.name for f in fields if f.metadata["positional"]]
        by_name = [f.name for f in fields if not f.metadata["positional"]]
        assert [a.arg for a in args.kwonlyargs] == [*by_name, "workspace", "watch"]


@pytest.mark.slow
def test_a_type_checker_tells_a_caller_of_a_wrong_option(tmp_path: Path) -> None:
    caller = tmp_path / "caller.py"
    caller.write_text(
        "from pathlib import Path\n"
        "from pipeline import extract, predict, train\n"
        'made = extract(Path("photos"), image_size=64, workspace="here")\n'
        "head = train(made.cache, C=0.1)\n"
        'print(predict(head.run, ["a.jpg"])[0].class_name)\n'
        'train(made.cache, C="much")\n'
        "train(made.cache, penalty=1.0)\n"
    )
    root = Path(pipeline.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(root / "pyproject.toml"), str(caller)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    told = [
        line.split(": error: ")[1] for line in done.stdout.splitlines() if "caller.py" in line and ": error: " in line
    ]
    assert len(told) == 2, done.stdout
    assert 'Argument "C" to "train" has incompatible type "str"' in told[0]
    assert 'Unexpected keyword argument "penalty"' in told[1]
