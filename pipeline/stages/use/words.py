"""What is said of a run in use: predictions, one image's way to its class, an export's differences.

Pure functions of real figures, to tables; computes nothing of a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.base.values import Bar, Cell, Column, Part, Table, figures
from pipeline.base.words import ABSENT, percent, shape, significant
from pipeline.heads.scores.metrics import softmax
from pipeline.runs.folder import Run
from pipeline.stages.score.figures import recorded
from pipeline.stages.use.results import Prediction

WORTH_SHOWING = 0.001  # a probability below this is 0.0 % to a reader
FEATURES_SHOWN = 5
CLASSES_ABREAST = 5  # as columns of a table


def predictions(found: Sequence[Prediction]) -> Table:
    """For each image its class, its probability and what else is likely, or why it could not be used.

    Where all classes' probabilities were asked for, a few classes have columns; many are a list.
    """
    every = next((p.probabilities for p in found if p.probabilities is not None), None)
    if every is not None and len(every) <= CLASSES_ABREAST:
        return _abreast(found, list(every))
    rows: list[list[Cell]] = []
    for p in found:
        if p.error is not None:
            rows.append([p.path, ABSENT, ABSENT, p.error])
            continue
        following = p.top if p.class_name is None else p.top[1:]
        likely = [(name, q) for name, q in following if q >= WORTH_SHOWING]
        every_one = sorted((p.probabilities or {}).items(), key=lambda entry: -entry[1])
        others = likely if p.probabilities is None else every_one
        rows.append(
            [p.path, _decision(p), percent(p.top[0][1]), ", ".join(f"{name} {percent(q)}" for name, q in others)]
        )
    columns = [Column("Image", fit="fold"), Column("Class", fit="wrap"), *figures("Probability")]
    return Table([*columns, Column("Next" if every is None else "All", fit="fold", role="dim")], rows)


def precisions(run: Run) -> str | None:
    """Which of two networks a run is in use: said of a head that learned from features of another precision."""
    precision = run.learned_in
    if precision is None:
        return None
    known = recorded(run.folder)
    if known is None or known.float32 is None:
        scored = f"not scored so yet (`pipeline evaluate {run.folder.name}`)"
    else:
        on_features, here = percent(known.test["accuracy"]), percent(known.float32.accuracy)
        scored = f"on test {here} of accuracy, on features in {precision} {on_features}"
    return f"the head learned from features in {precision}, the network runs in float32 here: {scored}"


def _decision(p: Prediction) -> Cell:
    return ABSENT if p.class_name is None else Part(p.class_name, "best")


def _abreast(found: Sequence[Prediction], classes: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for p in found:
        each = [ABSENT] * len(classes) if p.probabilities is None else map(percent, p.probabilities.values())
        rows.append([p.path, _decision(p), *each, p.error or ""])
    shares = [Column(name, right=True, fit="name") for name in classes]
    columns = [Column("Image", fit="fold"), Column("Class", fit="wrap"), *shares, Column(fit="fold", role="dim")]
    if any(p.error is not None for p in found):
        return Table(columns, rows)
    return Table(columns[:-1], [row[:-1] for row in rows])


@dataclass(frozen=True, eq=False)
class Passage:
    """One image on its way: its file, ``input`` (3, S, S), ``features`` (D,) and ``logits`` (C,), all float32.

    Logits are divided by ``temperature`` before the softmax.
    """

    path: str
    size: str
    mode: str
    input: NDArray[np.float32]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    temperature: float = 1.0


def way(passage: Passage, classes: Sequence[str], top: int, true_class: str | None = None) -> Table:
    """The image's way from file to class, a line or a few for each station; of the classes the likeliest."""
    p, seen, features = passage, passage.input, passage.features
    probabilities = softmax(p.logits[None] / p.temperature)[0]
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    lowest, mean, highest = (significant(float(v)) for v in (seen.min(), seen.mean(), seen.max()))
    first = " ".join(significant(v, 3) for v in features[:FEATURES_SHOWN].tolist())
    norm = significant(float(np.linalg.norm(features)))
    logits = "   ".join(f"{classes[c]} {significant(float(p.logits[c]))}" for c in order)
    likely: list[list[Cell]] = [
        ["" if i else "softmax", percent(float(probabilities[c])), Bar(classes[c], float(probabilities[c]))]
        for i, c in enumerate(order)
    ]
    divided: list[list[Cell]] = []
    if p.temperature != 1:
        divided = [["", "", _named(("divided by the temperature  ", significant(p.temperature)))]]
    verdict = [Part(classes[order[0]], "best")]
    if true_class is not None:
        right = true_class == classes[order[0]]
        verdict.append(Part("  correct", "good") if right else Part(f"  wrong: it is {true_class}", "bad"))
    rows: list[list[Cell]] = [
        ["image", p.size, (p.path, Part(f"  {p.mode}", "dim"))],
        ["input", shape(seen.shape), _named(("min ", lowest), ("   mean ", mean), ("   max ", highest))],
        ["features", shape(features.shape), (f"{first} …  ", *_named(("norm ", norm)))],
        ["head", shape(p.logits.shape), _named(("logits  ", logits))],
        *divided,
        *likely,
        ["class", "", tuple(verdict)],
    ]
    return Table([Column(role="head"), Column(right=True), Column(fit="fold")], rows)


def _named(*pairs: tuple[str, str]) -> tuple[str | Part, ...]:
    return tuple(part for name, value in pairs for part in (Part(name, "dim"), value))


def parity(differences: Mapping[str, float], allowed: float, format: str) -> Table:
    """Largest difference at each batch size, as a share of the largest logit, and what is allowed."""
    rows = [[batch, f"{difference:.1e}", f"{allowed:.0e}"] for batch, difference in differences.items()]
    return Table(figures("Batch", "Difference", "Allowed"), rows, f"{format} against the model")
