"""What the room's README shows is what there is: its code runs, its tests and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "pipeline" / "heads"
README = (ROOM / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow  # tests/whole/test_readme.py runs the same lines; here is what they print
def test_the_example_finds_scikit_learns_optimum():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    converged, difference = done.stdout.split()
    assert converged == "True" and float(difference) < 1e-4


def test_tests_and_files_that_are_named_exist():
    tests = re.findall(r"tests/[\w/.]+\w", README)
    assert len(tests) >= 5
    assert [t for t in tests if not (ROOM.parents[1] / t).exists()] == []
    files = re.findall(r"^(\w+\.py|\w+/)", README, re.MULTILINE) + re.findall(r"`(kinds/\w+\.py)`", README)
    assert len(files) >= 8
    assert [f for f in files if not (ROOM / f).exists()] == ["kinds/NAME.py"]
