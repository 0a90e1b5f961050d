"""Image -> ranked classes, with the prediction trace: image -> features -> head -> softmax -> class."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import DataError
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.watch import Tracker
from pipeline.base.workspace import Workspace
from pipeline.images import IMAGE_EXTENSIONS, Files, Geometry, Images, Loaded
from pipeline.runs import folder as runs
from pipeline.runs.network import PREDICT_BATCH, Answer, Classifier, load_classifier, normalised
from pipeline.stages.use import words
from pipeline.stages.use.results import Prediction, Predictions
from pipeline.stages.use.settings import PredictSettings
from pipeline.stages.use.words import Passage

STANDARD_INPUT = "-"
SHOWN = 50  # predictions of a table; a file or --format has all
FILES = Files("")  # by their paths as they were given


class Asked(NamedTuple):
    """One image that a prediction is asked for: ``item`` is its id among ``images``."""

    images: Images
    item: bytes

    @property
    def name(self) -> str:
        """What it is called in what is told of it: its path."""
        return self.images.name(self.item)


def predict(settings: PredictSettings, desk: Workspace) -> Predictions:
    """Predict with settings made."""
    run = runs.find_run(settings.run, desk)
    asked = find_images(settings.images, desk, tell=settings.format == "table")
    classifier = load_classifier(run, desk, device=settings.device)
    found, top = Predictions(), min(settings.top, len(classifier.classes))
    if settings.format == "csv":
        desk.watch.write(_csv_line(csv_columns(top)))
    follow = desk.watch.track("predict", len(asked)) if len(asked) > PREDICT_BATCH else nullcontext(Tracker())
    with follow as tracker, closing(_loaded(asked, classifier.geometry)) as loaded:
        for batch in _batches(loaded, PREDICT_BATCH):
            names = [asked[item.index].name for item in batch]
            for prediction in _predict_batch(batch, names, classifier, settings, desk):
                found.append(prediction)
                _tell(prediction, settings.format, top, desk)
            tracker.advance(len(batch))
    bad = [p for p in found if p.error is not None]
    if len(bad) == len(found):
        more = f" ({len(bad)} images; this is the first)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].path!a} cannot be used: {bad[0].error}{more}")
    if settings.format == "table" and not settings.trace:
        desk.watch.result(words.predictions(found[:SHOWN]))
        if len(found) > SHOWN:
            desk.watch.result(
                f"the first {SHOWN} of {len(found):,}; {option('format', 'csv')} or "
                f"{option('format', 'jsonl')} gives all"
            )
    if bad:
        desk.watch.warn(f"{len(bad)} of {len(found)} images cannot be used")
    return found


def find_images(asked: Sequence[str], desk: Workspace, *, tell: bool = True) -> list[Asked]:
    """The images meant: files as they are, those below folders in the order of their names, standard input's, sources'.

    What a folder holds besides is told, unless ``tell`` is False: standard output is then another program's.

    Raises:
        DataError: a path on the command line that is not there, or a folder or source without images.
    """
    found: list[Asked] = []
    for name in asked:
        if name == STANDARD_INPUT:
            # A list goes stale while it is made: what is gone becomes a row with its reason, as a corrupt image does.
            lines = [line for line in sys.stdin.buffer.read().splitlines() if line.strip()]
            for line in lines:
                found += (
                    find_images([os.fsdecode(line)], desk, tell=tell) if os.path.isdir(line) else [Asked(FILES, line)]
                )
            continue
        path = os.fsencode(name)
        if os.path.isdir(path):
            below = images.walk(path)
            if tell and (skipped := images.skip_summary(below.skipped)):
                desk.watch.say(f"{images.shown(path)}: {skipped}")
            for warning in images.passed_over(below.skipped):
                desk.watch.warn(f"{images.shown(path)}: {warning}")
            if not below.files:
                raise DataError(f"{name!a} holds no images: give a folder with {', '.join(sorted(IMAGE_EXTENSIONS))}")
            found += [Asked(FILES, os.path.join(path, file)) for file in sorted(f.path for f in below.files)]
        elif os.path.isfile(path):
            found.append(Asked(FILES, path))
        elif images.is_source(name):
            listing = images.list_source(name, desk)
            found += [Asked(listing.images, item) for item in listing.ids]
        else:
            what = "is neither a file nor a folder" if os.path.lexists(path) else "is not there"
            raise DataError(f"{name!a} {what}: give image files or folders")
    if not found:
        raise DataError("no images: standard input named none")
    return found


def _loaded(asked: Sequence[Asked], geometry: Geometry) -> Generator[Loaded, None, None]:
    """The images in order, ``index`` their place in ``asked``; one loader for those that lie in one place."""
    for source, group in itertools.groupby(enumerate(asked), key=lambda entry: entry[1].images):
        with images.Loader(source, geometry, workers=cores(), ahead=2 * PREDICT_BATCH) as loader:
            yield from loader.load((index, one.item) for index, one in group)


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
    names: Sequence[str],
    classifier: Classifier,
    settings: PredictSettings,
    desk: Workspace,
) -> list[Prediction]:
    """A prediction for each image of a batch, in order."""
    good = [i for i, item in enumerate(batch) if item.pixels is not None]
    predictions = [
        Prediction(name, None, None, (), None if item.failure is None else item.failure.reason)
        for item, name in zip(batch, names, strict=True)
    ]
    if not good:
        return predictions
    pixels = np.stack([p for item in batch if (p := item.pixels) is not None])
    answer = classifier(pixels)
    for at, i in enumerate(good):
        predictions[i] = _ranked(names[i], answer.probabilities[at], classifier.classes, settings)
        if settings.trace:
            passage = _passage(names[i], batch[i], answer, at, classifier)
            desk.watch.result(words.way(passage, classifier.classes, settings.top))
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
    name: str, probabilities: NDArray[np.float64], classes: tuple[str, ...], settings: PredictSettings
) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[: settings.top]
    ranked = tuple((classes[c], float(probabilities[c])) for c in order.tolist())
    likeliest, probability = ranked[0]
    return Prediction(name, likeliest if probability >= settings.threshold else None, probability, ranked)


def _passage(name: str, item: Loaded, answer: Answer, at: int, classifier: Classifier) -> Passage:
    assert item.pixels is not None and item.found is not None
    (width, height), mode = item.found.size, item.found.mode
    seen = normalised(item.pixels[None], classifier.recipe.trunk.info, "cpu").numpy()[0]
    return Passage(
        name, f"{width} × {height}", mode, seen, answer.features[at], answer.logits[at], classifier.temperature
    )
