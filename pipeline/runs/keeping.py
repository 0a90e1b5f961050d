"""Runs under another name, or gone, and the user's words on what was made.

Scores stay counted whatever becomes of a run: the ledger knows it by its weights.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import HeadError
from pipeline.base.files import draft_in, locked, move, remove, write_text, writing
from pipeline.base.records import read_file
from pipeline.runs.folder import HIGHEST, NUMBERS_LOCK, PATIENCE, RUN_NAME, highest, is_run_name, number_of

NOTE = "note.txt"
_LONGEST = 1 << 16  # bytes of a note


def read_note(path: Path) -> str:
    """The note in a file; empty where there is none."""
    try:
        return read_file(path, _LONGEST).decode("utf-8", "backslashreplace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"({path.name}: {error.strerror})"


def write_note(path: Path, text: str) -> None:
    """Keep a note, or none where the text is empty.

    Raises:
        HeadError: the folder cannot be written.
    """
    with writing(path.parent):
        if text.strip():
            write_text(path, text.strip() + "\n")
        else:
            remove(path)


def rename_run(folder: Path, name: str) -> Path:
    """Give a run another name; its number and stage stay. The new folder.

    Raises:
        HeadError: it is not one of a workspace's runs, or cannot be renamed.
    """
    found = RUN_NAME.fullmatch(folder.name)
    if found is None:
        raise HeadError(f"{folder} is not named NUMBER-STAGE-NAME, as a workspace's runs are: rename it by hand")
    target = folder.with_name(f"{found['number']}-{found['stage']}-{name}")
    if target == folder:
        return folder
    with writing(folder.parent), locked(folder.parent / NUMBERS_LOCK, patience=PATIENCE):
        if target.exists():
            raise HeadError(f"{target} is there already: give another name")
        move(folder, target)
    return target


def delete_run(folder: Path) -> None:
    """Remove a run.

    Raises:
        HeadError: it cannot be removed.
    """
    runs = folder.parent
    with writing(runs), locked(runs / NUMBERS_LOCK, patience=PATIENCE), draft_in(runs) as draft:
        if is_run_name(folder.name):
            write_text(runs / HIGHEST, f"{max(highest(runs), number_of(folder.name))}\n")
        folder.replace(draft / folder.name)
