"""The wrong answers by name: a list of images for people and programs, and the confusion matrix as a picture.

Knows a result's logits and names; reads no rows and chooses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.base.files import make_folder, try_writing, write_bytes, writing
from pipeline.base.spelling import option
from pipeline.base.words import csv_text, many
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import answers_of
from pipeline.show.pictures import confusion_picture
from pipeline.stages.score import words
from pipeline.stages.score.elsewhere import Scored
from pipeline.stages.score.figures import EvaluateResult, WrongImage

COLUMNS = ("path", "true", "predicted", "probability")


def require_places(*files: Path | None) -> None:
    """Have the folders of files that are to be written, and find out before long work that they can be written to.

    Raises:
        ConfigError: they cannot.
    """
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise ConfigError(f"{file} is a folder: give the name of a file")
        with writing(file.parent, ConfigError, "give another file"):
            make_folder(file.parent)
            try_writing(file.parent)


def wrong_images(scored: Scored, classes: Sequence[str], temperature: float) -> tuple[WrongImage, ...]:
    """The images that are given another class than theirs, the most confident first; equals in the rows' order."""
    y = scored.rows.y
    told = answers_of(scored.rows.logits, y, temperature)
    wrong = np.flatnonzero(told.predicted != y)
    probability = told.confidence[wrong]
    return tuple(
        WrongImage(
            scored.name(int(scored.rows.rows[wrong[i]])),
            classes[y[wrong[i]]],
            classes[told.predicted[wrong[i]]],
            float(probability[i]),
        )
        for i in np.argsort(-probability, kind="stable").tolist()
    )


def write_errors(found: Sequence[WrongImage], n: int, rows: str, file: Path, desk: Workspace) -> None:
    """Write the wrong ones of ``n`` images, and show the first of them; ``rows`` says which images they are.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = _csv(found) if file.suffix == ".csv" else "".join(json.dumps(vars(one)) + "\n" for one in found)
    with writing(file.parent, ConfigError, f"give another {option('errors')}"):
        write_bytes(file, text.encode("utf-8", "surrogateescape"))  # a path's bytes come out as they were
    if found:
        desk.watch.result(words.wrong(found, rows))
    desk.watch.result(f"{len(found):,} of {many(n, 'image')} {'is' if len(found) == 1 else 'are'} wrong -> {file}")


def _csv(found: Sequence[WrongImage]) -> str:
    return csv_text([COLUMNS, *((one.path, one.true, one.predicted, f"{one.probability:.6f}") for one in found)])


def write_confusion(result: EvaluateResult, rows: str, file: Path, desk: Workspace) -> None:
    """Write the confusion matrix of a result as a picture.

    Raises:
        ConfigError: the file cannot be written.
    """
    matrix = words.matrix_of(result.test)
    title = f"{result.run.name}, {rows}: {many(result.test['n'], 'image')}"
    with writing(file.parent, ConfigError, f"give another {option('confusion')}"):
        write_bytes(file, confusion_picture(matrix, title, file.suffix.lower().removeprefix(".")))
    desk.watch.result(f"confusion matrix -> {file}")
