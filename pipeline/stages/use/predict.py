"""Image -> ranked classes, with the prediction trace: image -> features -> head -> softmax -> class."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.base.errors import DataError
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.base.watch import Tracker
from pipeline.base.words import csv_text, many
from pipeline.base.workspace import Workspace
from pipeline.images import Loaded
from pipeline.images.memory import load_picture
from pipeline.runs import folder as runs
from pipeline.runs import remarks
from pipeline.runs.network import Answer, Classifier, classified, load_classifier, normalised
from pipeline.stages.use import words
from pipeline.stages.use.asked import Asked, Unusable, find_images
from pipeline.stages.use.results import Prediction, Predictions, class_columns
from pipeline.stages.use.settings import PredictSettings
from pipeline.stages.use.words import Passage

NAMED = 3  # of the images that cannot be used
SHOWN = 50  # predictions of a table; a file or --format has all


def predict(settings: PredictSettings, desk: Workspace) -> Predictions:
    """Predict with settings made."""
    aside = desk if settings.format == "table" else desk.silent()  # else standard output is another program's
    run = runs.find_run(settings.run, aside)
    asked = find_images(settings.images, aside)
    classifier = load_classifier(run, desk, images=len(asked), device=settings.device)
    found = Predictions()
    found.unusable = sum(isinstance(one.images, Unusable) for one in asked)
    if run.stage != "finetune":  # its trunk has learned
        remarks.random_features(run.config["cache"]["about"], desk.watch)
    if (which := words.precisions(run)) is not None:
        aside.watch.say(which)
    columns = csv_columns(classifier.classes, settings)
    if settings.format == "csv":
        desk.watch.write(csv_text([columns]))
    follow = desk.watch.track("predict", len(asked)) if len(asked) > classifier.batch else nullcontext(Tracker())
    with follow as tracker, closing(_loaded(asked, classifier)) as loaded:
        for batch, used, answer in classified(classifier, loaded):
            names = [asked[item.index].name for item in batch]
            for prediction in _of_batch(batch, names, used, answer, classifier, settings, desk):
                found.append(prediction)
                _tell(prediction, settings, len(columns), desk)
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
        named = "; ".join(f"{one.path!a}: {one.error}" for one in bad[:NAMED])
        more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        desk.watch.warn(f"{len(bad):,} of {many(len(found), 'image')} cannot be used: {named}{more}")
    return found


def _loaded(asked: Sequence[Asked], classifier: Classifier) -> Generator[Loaded, None, None]:
    """The images in order, ``index`` their place in ``asked``; one loader for those that lie in one place."""
    for source, group in itertools.groupby(enumerate(asked), key=lambda entry: entry[1].images):
        if source is None:
            for index, one in group:
                assert one.picture is not None
                yield load_picture(index, one.picture, classifier.geometry)
            continue
        with images.Loader(source, classifier.geometry, workers=cores(), ahead=2 * classifier.batch) as loader:
            yield from loader.load((index, one.item) for index, one in group)


def _of_batch(  # noqa: PLR0913
    batch: Sequence[Loaded],
    names: Sequence[str],
    used: Sequence[int],
    answer: Answer | None,
    classifier: Classifier,
    settings: PredictSettings,
    desk: Workspace,
) -> Iterator[Prediction]:
    """A prediction for each image of a batch, in order; ``answer`` is of those at the places ``used``."""
    rows = {place: row for row, place in enumerate(used)}
    for place, (item, name) in enumerate(zip(batch, names, strict=True)):
        if item.failure is not None:
            yield Prediction(name, None, None, (), item.failure.reason)
            continue
        assert answer is not None
        yield _ranked(name, answer.probabilities[rows[place]], classifier.classes, settings)
        if settings.trace:
            passage = _passage(name, item, answer, rows[place], classifier)
            desk.watch.result(words.way(passage, classifier.classes, settings.top))


def csv_columns(classes: Sequence[str], settings: PredictSettings) -> list[str]:
    """The columns of --format csv: ``class`` is the decision, empty below the threshold; then the likeliest ones.

    With --all instead the likeliest's probability, and that of each class under its name.
    """
    if settings.all:
        fixed = ["path", "class", "probability"]
        return [*fixed, *class_columns(classes, [*fixed, "error"]), "error"]
    top = min(settings.top, len(classes))
    ranked = [f"{name}{rank}" for rank in range(1, top + 1) for name in ("class", "probability")]
    return ["path", "class", *ranked, "error"]


def _tell(p: Prediction, settings: PredictSettings, columns: int, desk: Workspace) -> None:
    """One line of csv, of so many columns, or of jsonl."""
    if settings.format == "jsonl":
        desk.watch.write(json.dumps(p.to_json()) + "\n")
    elif settings.format == "csv":
        cells = [cell for name, q in p.top for cell in (name, f"{q:.6f}")]
        if settings.all:
            each = [p.probability, *(p.probabilities or {}).values()]
            cells = [f"{q:.6f}" for q in each if q is not None]
        cells = [p.path, p.class_name or "", *cells]
        desk.watch.write(csv_text([[*cells, *[""] * (columns - 1 - len(cells)), p.error or ""]]))


def _ranked(
    name: str, probabilities: NDArray[np.float64], classes: tuple[str, ...], settings: PredictSettings
) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[: settings.top]
    ranked = tuple((classes[c], float(probabilities[c])) for c in order.tolist())
    likeliest, probability = ranked[0]
    named = likeliest if probability >= settings.threshold else None
    every = dict(zip(classes, probabilities.tolist(), strict=True)) if settings.all else None
    return Prediction(name, named, probability, ranked, probabilities=every)


def _passage(name: str, item: Loaded, answer: Answer, at: int, classifier: Classifier) -> Passage:
    assert item.pixels is not None and item.found is not None
    (width, height), mode = item.found.size, item.found.mode
    seen = normalised(item.pixels[None], classifier.recipe.trunk.info, "cpu").numpy()[0]
    return Passage(
        name, f"{width} × {height}", mode, seen, answer.features[at], answer.logits[at], classifier.temperature
    )
