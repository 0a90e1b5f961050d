"""A run's part of a page: sections in the order in which a reader wants them, each from what is known of the run."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base.items import GOOD, STATE_NAMES
from pipeline.base.values import Bin, Curve, Matrix, Reliability, Scatter
from pipeline.base.words import count, many, percent
from pipeline.heads.scores.calibration import expected_calibration_error
from pipeline.heads.scores.intervals import binomial_interval
from pipeline.heads.scores.metrics import calibration_bins
from pipeline.runs.shapes import model_steps
from pipeline.show.page.document import Block, Chart, Confusion, Gallery, Prose, Section, Shelf, Split, Thumb, Tiles
from pipeline.show.steps import steps
from pipeline.show.tables import before_and_after, penalty_path, per_class_table
from pipeline.stages.report import words
from pipeline.stages.report.album import Album
from pipeline.stages.report.answers import Answers
from pipeline.stages.report.features_map import FeatureMap
from pipeline.stages.report.looks import Looks
from pipeline.stages.report.mistakes import OF_A_PAIR, coverage
from pipeline.stages.report.results import Lacking
from pipeline.stages.report.story import Story
from pipeline.stages.score.figures import confusion_of
from pipeline.store import failures_path, read_failures

CLASSES_SHOWN = 30  # of a matrix on a page, and 100 in a table
ROWS_SHOWN = 100
BESIDE = 14  # classes up to which two matrices have room side by side
OPEN_PAIRS = 4  # whose images are seen without a click
FAILURES_SHOWN = 30
GROUPS = (2, 30)  # different values of a column that is a grouping
POINTS = 200  # of a curve


@dataclass(frozen=True, eq=False)
class Chapter:
    """A run with all that its part of the page is made of; ``prefix`` comes before each of its anchors."""

    story: Story
    looks: Looks
    album: Album
    map: FeatureMap | None
    lacking: tuple[Lacking, ...]
    prefix: str = ""

    def thumb(self, row: int, note: str) -> Thumb:
        """A cache row as a small image."""
        return Thumb(self.story.image(row), note, self.album.jpegs.get(row))


def sections(chapter: Chapter) -> list[Section]:
    """The parts of a run's page, in order; those about what there is not are left out."""
    parts: Sequence[tuple[str, str, str, Callable[[Chapter], Sequence[Block]]]] = (
        ("summary", "In short", "", _summary),
        ("what", "What it is, and from what", "From what", _what),
        ("figures", "Figures", "", _figures),
        ("confusion", "What is taken for what", "Confusion", _confusion),
        ("pairs", "Confused pairs", "", _pairs),
        ("mistakes", "Images that it gets wrong", "Mistakes", _mistakes),
        ("unsure", "Images that it is least sure of", "Least sure", _unsure),
        ("labels", "Labels that look wrong", "Labels", _labels),
        ("classes", "Class by class", "Classes", _classes),
        ("groups", "Group by group", "Groups", _groups),
        ("certainty", "How sure it may be", "Certainty", _certainty),
        ("map", "A map of the features", "Map", _map),
        ("model", "The model, step by step", "Model", _model),
        ("training", "Training", "", _training),
        ("finetuning", "Was fine-tuning worth it?", "Fine-tuning", _finetuning),
        ("failed", "Images that failed", "Failed images", _failed),
        ("times", "Times, settings, versions", "Times", _times),
    )
    made = [Section(chapter.prefix + anchor, title, work(chapter), label) for anchor, title, label, work in parts]
    return [section for section in made if section.blocks]


def _summary(chapter: Chapter) -> list[Block]:
    story, album = chapter.story, chapter.album
    blocks: list[Block] = [Tiles(words.tiles(story))]
    notes = [f"Left out: {one.what}. {one.why}." for one in chapter.lacking]
    if album.gone:
        notes.append(f"{album.gone:,} of {many(album.asked, 'image')} are not where they were: {album.place}")
    if notes:
        blocks.append(Prose(notes, note=True))
    return blocks


def _what(chapter: Chapter) -> list[Block]:
    return [words.from_what(chapter.story)]


def _figures(chapter: Chapter) -> list[Block]:
    story = chapter.story
    columns = [] if story.answers is None else [(story.answers.of.capitalize(), story.answers.figures)]
    columns += [] if story.test is None else [("Test", story.test.test)]
    table: list[Block] = [words.figures_table(columns)] if columns else []
    return [*table, Prose(words.about_figures(story))]


def _confusion(chapter: Chapter) -> list[Block]:
    story, blocks = chapter.story, []
    if story.answers is not None:
        matrix, kept = narrowed(story.answers.figures)
        links = {}
        for pair in chapter.looks.pairs:
            if pair.true in kept and pair.taken in kept:
                links[kept[pair.true], kept[pair.taken]] = _pair_anchor(chapter, pair.true, pair.taken)
        caption = "a row is a class, a column what its images were taken for"
        caption += "; a cell leads to its images" if links else ""
        left = len(story.classes) - len(matrix.classes)
        if left:
            caption += f"\n{many(left, 'class')} that no image is of, or that are confused less often, are left out"
        title = f"{story.answers.of.capitalize()}, {many(len(story.answers), 'image')}"
        blocks.append(Confusion(f"{chapter.prefix}confusion", matrix, title, caption, links))
    if story.test is not None:
        matrix, _ = narrowed(story.test.test)
        title = f"Test, {many(story.test.test['n'], 'image')}"
        blocks.append(Confusion(f"{chapter.prefix}confusion-test", matrix, title))
    return [Split(blocks)] if blocks and len(story.classes) <= BESIDE else [*blocks]


def narrowed(test: Mapping[str, Any], most: int = CLASSES_SHOWN) -> tuple[Matrix, dict[int, int]]:
    """The matrix of the classes that are confused most often, of those that occur, and class number -> place there."""
    found = confusion_of(test)
    seen = np.union1d(found.true, found.predicted).tolist()
    astray = dict.fromkeys(seen, 0)
    cells = list(zip(found.true.tolist(), found.predicted.tolist(), found.count.tolist(), strict=True))
    for true, taken, images in cells:
        if true != taken:
            astray[true] += images
            astray[taken] += images
    chosen = sorted(sorted(seen, key=lambda c: (-astray[c], c))[:most])
    place = {c: p for p, c in enumerate(chosen)}
    shown = [(place[t], place[k], n) for t, k, n in cells if t in place and k in place]
    return Matrix(shown, [test["per_class"][c]["name"] for c in chosen]), place


def _pair_anchor(chapter: Chapter, true: int, taken: int) -> str:
    return f"{chapter.prefix}pair-{true}-{taken}"


def _pairs(chapter: Chapter) -> list[Block]:
    story, answers = chapter.story, chapter.story.answers
    if answers is None or not chapter.looks.pairs:
        return []
    blocks: list[Block] = []
    shelf: list[Gallery] = []
    for rank, pair in enumerate(chapter.looks.pairs):
        shown = pair.at[:OF_A_PAIR].tolist()
        thumbs = [chapter.thumb(int(answers.rows[at]), percent(float(answers.told.confidence[at]))) for at in shown]
        title = f"{story.classes[pair.true]} taken for {story.classes[pair.taken]}: {many(len(pair.at), 'image')}"
        more = f"the {len(shown)} most confident" if len(shown) < len(pair.at) else ""
        anchor = _pair_anchor(chapter, pair.true, pair.taken)
        folded = rank >= OPEN_PAIRS
        (shelf if folded else blocks).append(Gallery(thumbs, title, anchor, more, folded))
    return [*blocks, *([Shelf("Less often", shelf)] if shelf else [])]


def _mistakes(chapter: Chapter) -> list[Block]:
    story, looks, blocks = chapter.story, chapter.looks, []
    if story.answers is not None and len(looks.confident):
        wrong = int((~story.answers.right).sum())
        title = f"{story.answers.of.capitalize()}: most confident first"
        caption = f"{len(looks.confident)} of {many(wrong, 'wrong answer')} on {many(len(story.answers), 'image')}"
        blocks.append(Gallery(_thumbs(chapter, story.answers, looks.confident.tolist()), title, caption=caption))
    if story.test_rows is not None and looks.test_told is not None and len(looks.of_test):
        told, y = looks.test_told, story.test_rows.y
        thumbs = []
        for at in looks.of_test.tolist():
            is_, taken = story.classes[int(y[at])], story.classes[int(told.predicted[at])]
            note = f"{is_}, taken for {taken}, {percent(float(told.confidence[at]))}"
            thumbs.append(chapter.thumb(int(story.test_rows.rows[at]), note))
        wrong = int((told.predicted != y).sum())
        caption = (
            f"{len(thumbs)} of {many(wrong, 'wrong answer')} on {many(len(y), 'test image')}, as recorded when the run "
            "was scored; what is mended by looking at them makes the next figure on them optimistic"
        )
        blocks.append(Gallery(thumbs, "Test: most confident first", caption=caption))
    return [*blocks]


def _unsure(chapter: Chapter) -> list[Block]:
    answers = chapter.story.answers
    if answers is None:
        return []
    places = chapter.looks.unsure.tolist()
    caption = "right or wrong, the likeliest class has the lowest probability: more images like these teach the most"
    return [Gallery(_thumbs(chapter, answers, places), caption=caption)]


def _labels(chapter: Chapter) -> list[Block]:
    story, answers, noise = chapter.story, chapter.story.answers, chapter.looks.noise
    if answers is None or noise is None:
        return []
    thumbs = []
    for at in chapter.looks.suspects.tolist():
        label, seems = story.classes[int(answers.y[at])], story.classes[int(noise.predicted[at])]
        note = f"labelled {label} ({percent(float(noise.self_confidence[at]))}), seems {seems}"
        thumbs.append(chapter.thumb(int(answers.rows[at]), note))
    blocks: list[Block] = [Prose(words.about_labels(story, answers, noise))]
    if thumbs:
        caption = f"the first {len(thumbs)} of {many(len(noise.order), 'suspected label')}, the most suspect first"
        blocks.append(Gallery(thumbs, caption=caption))
    return blocks


def _thumbs(chapter: Chapter, answers: Answers, places: Sequence[int]) -> list[Thumb]:
    classes = chapter.story.classes
    return [chapter.thumb(int(answers.rows[at]), words.note_of(answers, at, classes)) for at in places]


def _classes(chapter: Chapter) -> list[Block]:
    story, blocks = chapter.story, []
    if story.answers is not None:
        title = f"{story.answers.of.capitalize()}, {many(len(story.answers), 'image')}"
        blocks.append(per_class_table(story.answers.figures["per_class"], title, ROWS_SHOWN))
    if story.test is not None:
        title = f"Test, {many(story.test.test['n'], 'image')}"
        blocks.append(per_class_table(story.test.test["per_class"], title, ROWS_SHOWN))
    return [Split(blocks)] if blocks else []


def _groups(chapter: Chapter) -> list[Block]:
    answers, cache = chapter.story.answers, chapter.story.cache
    if answers is None or cache is None:
        return []
    blocks: list[Block] = []
    for name, cells in cache.columns.items():
        values = np.array([cells[row] for row in answers.rows.tolist()], dtype=object)
        different = sorted(set(values.tolist()))
        if not GROUPS[0] <= len(different) <= GROUPS[1]:
            continue
        rows = []
        for value in different:
            hits = answers.right[values == value]
            right = int(hits.sum())
            rows.append((value or "(none)", len(hits), right / len(hits), binomial_interval(right, len(hits))))
        blocks.append(words.groups_table(name, rows))
    return blocks


def _certainty(chapter: Chapter) -> list[Block]:
    answers = chapter.story.answers
    if answers is None:
        return []
    told, right = answers.told, answers.right
    place = calibration_bins(told.confidence)
    bins = []
    for number in np.unique(place).tolist():
        here = place == number
        n, hits = int(here.sum()), int(right[here].sum())
        bins.append(Bin(float(told.confidence[here].mean()), hits / n, *binomial_interval(hits, n), n))
    scaled = answers.figures.get("calibrated")
    error, by_chance = answers.figures.get("ece") or 0.0, expected_calibration_error(told.confidence)
    if scaled:
        error = scaled["ece"]
    says = (
        f"Calibration error {percent(error)}, where a perfectly calibrated head would show {percent(by_chance)} on "
        f"{many(len(answers), 'image')}"
    )
    caption = f"{says}. A point is of answers that claim about the same, with its 95 % interval."
    shares, accuracy = coverage(told, right)
    kept = np.unique(np.linspace(0, len(shares) - 1, POINTS).round().astype(int))
    curve = Curve(
        {"accuracy": accuracy[kept].tolist()},
        x=(100 * shares[kept]).tolist(),
        x_label="images answered, the surest first (%)",
        y_label="accuracy",
        title="Accuracy against coverage",
        shares=True,
    )
    told_at = []
    for share in (0.5, 0.8, 0.9, 1.0):
        at = max(1, math.ceil(share * len(shares))) - 1
        told_at.append(f"{100 * share:.0f} % answered: {percent(float(accuracy[at]))} right")
    reliability = Chart(f"{chapter.prefix}reliability", Reliability(bins, "Reliability"), says, caption)
    covered = Chart(f"{chapter.prefix}coverage", curve, "; ".join(told_at), "; ".join(told_at) + ".")
    return [Split([reliability, covered])]


def _map(chapter: Chapter) -> list[Block]:
    story, found = chapter.story, chapter.map
    if found is None or story.cache is None:
        return []
    wrong: set[int] = set()
    if story.answers is not None:
        wrong = set(story.answers.rows[~story.answers.right].tolist())
    drawing = Scatter(
        found.x.tolist(),
        found.y.tolist(),
        story.cache.labels[found.rows].tolist(),
        story.classes,
        [row in wrong for row in found.rows.tolist()],
        "Features of train and val",
    )
    caption = (
        f"{many(len(found.rows), 'image')} by PCA and t-SNE: like images lie near each other, distances and sizes "
        "of groups mean nothing. A cross is an image that the run gets wrong."
    )
    coloured = min(len(story.classes), 10)
    if coloured < len(story.classes):
        caption += f" The {coloured} classes with most images have a colour, the others are grey."
    says = f"A map of {many(len(found.rows), 'image')} of {many(len(story.classes), 'class')}"
    return [Chart(f"{chapter.prefix}map", drawing, says, caption)]


def _model(chapter: Chapter) -> list[Block]:
    story = chapter.story
    size = story.run.made_by["transform"].crop
    return [steps(model_steps(words.trunk(story), size, len(story.classes), story.head))]


def _training(chapter: Chapter) -> list[Block]:
    story = chapter.story
    blocks: list[Block] = []
    metric = str(story.run.config["settings"].get("metric", "accuracy"))
    exact = sorted((t for t in story.trials if "C" in t), key=lambda t: t["C"])
    if len(exact) > 1 and all(metric in t[split] for t in exact for split in ("val", "train")):
        chose = "left out" if words.by_folds(story) else "val"
        series = {"train": [t["train"][metric] for t in exact], chose: [t["val"][metric] for t in exact]}
        curve = penalty_path([t["C"] for t in exact], series, metric, story.trials[0]["C"])
        says = words.capital(curve.title)
        curve = dataclasses.replace(curve, title=says)
        rows = "what folds left out" if words.by_folds(story) else "val"
        caption = f"The weaker the penalty, the better train is fitted; {rows} says how weak it may be, and chose."
        blocks.append(Chart(f"{chapter.prefix}path", curve, says, caption))
    if len(story.trials) > 1:
        blocks.append(words.ranking(story, metric))
    if len(story.trace) > 1:
        blocks += [Split(_traced(chapter)), words.trace_table(story)]
    return blocks


def _traced(chapter: Chapter) -> list[Block]:
    story, step = chapter.story, words.trace_step(chapter.story)
    x = [float(row.epoch) for row in story.trace]
    losses = {"train": [row.loss for row in story.trace]}
    shares = {"train": [row.accuracy for row in story.trace]}
    if any(row.val_loss is not None for row in story.trace):
        losses["val"] = [math.nan if row.val_loss is None else row.val_loss for row in story.trace]
    if any(row.val_accuracy is not None for row in story.trace):
        shares["val"] = [math.nan if row.val_accuracy is None else row.val_accuracy for row in story.trace]
    found: list[Block] = []
    for name, series, share in (("loss", losses, False), ("accuracy", shares, True)):
        curve = Curve(
            series, x, step.lower(), name, title=f"{name.capitalize()}, {step.lower()} by {step.lower()}", shares=share
        )
        if any(sum(map(math.isfinite, values)) == 0 for values in series.values()):
            continue
        last = ", ".join(f"{of} {percent(v[-1]) if share else f'{v[-1]:.4g}'}" for of, v in series.items())
        found.append(
            Chart(f"{chapter.prefix}trace-{name}", curve, f"{name} at the end: {last}", f"At the end: {last}.")
        )
    return found


def _finetuning(chapter: Chapter) -> list[Block]:
    verdict = chapter.story.metrics.get("verdict")
    if verdict is None:
        return []
    told = [f"Worth it: {verdict['worth_it']}.", *(f"Next: {advice}." for advice in verdict["next"])]
    return [dataclasses.replace(before_and_after(verdict), title=""), Prose(told)]


def _failed(chapter: Chapter) -> list[Block]:
    cache = chapter.story.cache
    if cache is None or not cache.failed():
        return []
    told = read_failures(failures_path(cache.path))
    bad = np.flatnonzero(cache.states != GOOD)
    rows = []
    for row in bad[:FAILURES_SHOWN].tolist():
        item = cache.ids[row]
        reason = told[item].reason if item in told else ""
        rows.append((os.fsdecode(item), STATE_NAMES[int(cache.states[row])].replace("_", " "), reason))
    return [
        Prose([f"{count(len(bad))} of {many(len(cache), 'image')} gave no features."]),
        words.failures_table(rows, len(bad)),
    ]


def _times(chapter: Chapter) -> list[Block]:
    return [words.times(chapter.story)]
