"""Image -> ranked classes, with the prediction trace: image -> features -> head -> softmax -> class."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import DataError
from pipeline.base.machine import cores
from pipeline.base.watch import Tracker
from pipeline.base.workspace import Workspace
from pipeline.heads.scores.metrics import softmax
from pipeline.images import IMAGE_EXTENSIONS, Loaded
from pipeline.runs import folder as runs
from pipeline.runs.network import PREDICT_BATCH, Answer, Classifier, load_classifier, normalised
from pipeline.stages.use import words
from pipeline.stages.use.results import Prediction, Predictions
from pipeline.stages.use.settings import PredictSettings
from pipeline.stages.use.words import Passage

STANDARD_INPUT = "-"
SHOWN = 50  # predictions of a table; a file or --format has all


def predict(settings: PredictSettings, desk: Workspace) -> Predictions:
    """Predict with settings made."""
    run = runs.find_run(settings.run, desk)
    paths = find_images(settings.images)
    classifier = load_classifier(run, desk, device=settings.device)
    found, top = Predictions(), min(settings.top, len(classifier.classes))
    if settings.format == "csv":
        desk.watch.write(_csv_line(csv_columns(top)))
    loader = images.Loader(classifier.geometry, workers=cores(), ahead=2 * PREDICT_BATCH)
    follow = desk.watch.track("predict", len(paths)) if len(paths) > PREDICT_BATCH else nullcontext(Tracker())
    with loader, follow as tracker:
        for batch in _batches(loader.load(enumerate(paths)), PREDICT_BATCH):
            part = [paths[item.index] for item in batch]
            for prediction in _predict_batch(batch, part, classifier, settings, desk):
                found.append(prediction)
                _tell(prediction, settings.format, top, desk)
            tracker.advance(len(batch))
    bad = [p for p in found if p.error is not None]
    if len(bad) == len(found):
        more = f" ({len(bad)} images; this is the first)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].path!a} cannot be used: {bad[0].error}{more}")
    if settings.format == "table" and not settings.trace:
        desk.watch.show(words.predictions(found[:SHOWN]))
        if len(found) > SHOWN:
            desk.watch.say(f"the first {SHOWN} of {len(found):,}; --format csv, jsonl or --json give all")
    if bad:
        desk.watch.warn(f"{len(bad)} of {len(found)} images cannot be used")
    return found


def find_images(asked: Sequence[str]) -> list[bytes]:
    """The image files meant: files as they are, those below folders in the order of their names, standard input's.

    Raises:
        DataError: a path on the command line that is not there, or a folder without images.
    """
    found: list[bytes] = []
    for name in asked:
        if name == STANDARD_INPUT:
            # A list goes stale while it is made: what is gone becomes a row with its reason, as a corrupt image does.
            lines = [line for line in sys.stdin.buffer.read().splitlines() if line.strip()]
            for line in lines:
                found += find_images([os.fsdecode(line)]) if os.path.isdir(line) else [line]
            continue
        path = os.fsencode(name)
        if os.path.isdir(path):
            below = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(path)
                for file in files
                if os.path.splitext(os.fsdecode(file))[1].lower() in IMAGE_EXTENSIONS
            )
            if not below:
                raise DataError(f"{name!a} holds no images: give a folder with {', '.join(sorted(IMAGE_EXTENSIONS))}")
            found += below
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise DataError(f"{name!a} is not there: give image files or folders")
    if not found:
        raise DataError("no images: standard input named none")
    return found


def _batches(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    batch: list[Loaded] = []
    for item in loaded:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict_batch(
    batch: Sequence[Loaded],
    paths: Sequence[bytes],
    classifier: Classifier,
    settings: PredictSettings,
    desk: Workspace,
) -> list[Prediction]:
    """A prediction for each image of a batch, in order."""
    good = [i for i, item in enumerate(batch) if item.pixels is not None]
    predictions = [
        Prediction(os.fsdecode(path), None, None, (), None if item.failure is None else item.failure.reason)
        for item, path in zip(batch, paths, strict=True)
    ]
    if not good:
        return predictions
    pixels = np.stack([p for item in batch if (p := item.pixels) is not None])
    answer = classifier(pixels)
    probabilities = softmax(answer.logits)
    for at, i in enumerate(good):
        predictions[i] = _ranked(paths[i], probabilities[at], classifier.classes, settings)
        if settings.trace:
            passage = _passage(paths[i], batch[i], answer, at, classifier)
            desk.watch.show(words.way(passage, classifier.classes, settings.top))
    return predictions


def csv_columns(top: int) -> list[str]:
    """The columns of --format csv: ``class`` is the decision, empty below the threshold; then the likeliest ones."""
    ranked = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]
    return ["path", "class", *ranked, "error"]


def _tell(p: Prediction, format: str, top: int, desk: Workspace) -> None:
    """One line of csv or jsonl."""
    if format == "jsonl":
        desk.watch.write(json.dumps(p.to_json()) + "\n")
    elif format == "csv":
        ranked = [cell for name, q in p.top for cell in (name, f"{q:.6f}")]
        wanted = len(csv_columns(top)) - 3
        cells = [p.path, p.class_name or "", *ranked, *[""] * (wanted - len(ranked)), p.error or ""]
        desk.watch.write(_csv_line(cells))


def _csv_line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _ranked(
    path: bytes, probabilities: NDArray[np.float64], classes: tuple[str, ...], settings: PredictSettings
) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[: settings.top]
    ranked = tuple((classes[c], float(probabilities[c])) for c in order.tolist())
    name, probability = ranked[0]
    return Prediction(os.fsdecode(path), name if probability >= settings.threshold else None, probability, ranked)


def _passage(path: bytes, item: Loaded, answer: Answer, at: int, classifier: Classifier) -> Passage:
    assert item.pixels is not None and item.found is not None
    (width, height), mode = item.found.size, item.found.mode
    seen = normalised(item.pixels[None], classifier.recipe.trunk.info, "cpu").numpy()[0]
    return Passage(os.fsdecode(path), f"{width} × {height}", mode, seen, answer.features[at], answer.logits[at])
