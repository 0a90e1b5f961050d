"""What scoring hands back: a run's figures, as they are kept beside it, and the logits that they are made of.

Knows figures and their files; reads no rows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import HeadError
from pipeline.base.files import write_json, writing
from pipeline.base.records import read_record
from pipeline.base.schema import Count, NotNegative, Positive, Rule, Share, Size
from pipeline.heads.scores.confusion import Cells, Confusion, confusion_from
from pipeline.heads.scores.paired import PairedDifference

EVALUATION = "evaluation.json"
SHARES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "top5": "top-5"}


class ClassFigures(TypedDict):
    """Figures of one class."""

    name: str
    precision: Share
    recall: Share
    f1: Share
    support: Count
    auroc: NotRequired[float | None]


class CalibratedFigures(TypedDict):
    """What the run's temperature makes of the figures."""

    temperature: Positive
    log_loss: float
    ece: float
    ece_expected: NotRequired[float]


_KNOWN = Rule(f"an object of {', '.join(SHARES)}", lambda intervals: intervals.keys() <= SHARES.keys())
_Interval = Annotated[list[float], Rule("a list of 2 numbers", lambda ends: len(ends) == 2)]
_Intervals = Annotated[dict[str, _Interval | None], _KNOWN]


class Figures(TypedDict):
    """A split's figures; those that came later are not in files from before.

    ``confusion`` holds rows by true class and predicted class, of more than 100 classes only the cells that are not 0
    (:func:`confusion_of` reads both).
    """

    n: Size
    accuracy: Share
    balanced_accuracy: NotRequired[float | None]
    macro_f1: Share
    log_loss: NotNegative
    top5: NotRequired[float | None]
    auroc: NotRequired[float | None]
    ece: NotRequired[float | None]
    ece_expected: NotRequired[float | None]
    per_class: list[ClassFigures]
    confusion: list[list[int]] | Cells
    intervals: NotRequired[_Intervals | None]
    calibrated: NotRequired[CalibratedFigures | None]


def confusion_of(test: Mapping[str, Any]) -> Confusion:
    """Which class was taken for which, from figures as they are recorded; the one reader of that field."""
    found = confusion_from(test["confusion"], len(test["per_class"]))
    assert found is not None  # it was written here, or has been checked
    return found


def _fits(test: Figures) -> bool:
    return confusion_from(test["confusion"], len(test["per_class"])) is not None


@dataclass(frozen=True)
class InFloat32:
    """What a head that learned from features of another precision does on the network in float32, on the same rows.

    ``difference`` is its accuracy less that on the features.
    """

    accuracy: Share
    log_loss: NotNegative
    difference: PairedDifference


class Evaluation(TypedDict):
    """What stands in ``evaluation.json``: an :class:`EvaluateResult` but for its run."""

    test: Annotated[Figures, Rule("a confusion of as many classes as per_class has", _fits)]
    seconds: NotNegative
    scored: str
    split: NotRequired[str]
    cache: NotRequired[str | None]
    scored_before: NotRequired[Count | None]
    float32: NotRequired[InFloat32]


@dataclass(frozen=True)
class WrongImage:
    """An image whose likeliest class is another than its own; ``probability`` is that of the predicted one."""

    path: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class EvaluateResult:
    """A run's figures; ``test`` has at least accuracy, macro_f1 and n, and is of ``split``, whatever its name.

    ``cache`` is another one's name, if it was, and ``images`` that of a new source. ``scored_before``: how many other
    runs of the workspace had been scored on these test rows then; None where no test rows were scored, or where that
    was before they were counted. ``shared`` is how many of another cache's or source's images the run was fitted or
    chosen on; None where nobody looked. ``folds``: rows that the head has learned from were scored by so many heads of
    its settings that had not; None where there are no such rows, or no such heads. ``float32``: of a head on features
    of another precision, what it does on the network in float32. ``wrong``, in ``errors`` as a file, and
    ``confusion``, a picture, are there where they were asked for.
    """

    run: Path
    test: Figures
    seconds: float
    scored: str
    split: str = "test"
    cache: str | None = None
    scored_before: int | None = None
    images: str | None = None
    shared: int | None = None
    folds: int | None = None
    float32: InFloat32 | None = None
    errors: Path | None = None
    wrong: tuple[WrongImage, ...] | None = None
    confusion: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        paths = {name: getattr(self, name) for name in ("run", "errors", "confusion")}
        plain = {name: None if path is None else str(path) for name, path in paths.items()}
        return {**dataclasses.asdict(self), **plain}

    @property
    def elsewhere(self) -> str | None:
        """The name of what was scored, where it is not the run's own cache."""
        return self.cache or self.images

    @property
    def file(self) -> Path:
        """Where the figures are kept."""
        name = self.elsewhere or (None if self.split == "test" else self.split)
        return self.run / (EVALUATION if name is None else f"evaluation-{name}.json")

    def recorded(self) -> EvaluateResult:
        """The same, with the figures written to their file.

        Raises:
            HeadError: it cannot be written.
        """
        kept = ("test", "seconds", "scored", "split", "cache", "scored_before", "images", "shared", "folds")
        told = {name: getattr(self, name) for name in kept}
        told["float32"] = None if self.float32 is None else dataclasses.asdict(self.float32)
        with writing(self.run):
            write_json(self.file, {n: v for n, v in told.items() if v is not None or n in ("cache", "scored_before")})
        return self


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """A run's ``logits`` (n, C) float32 of cache ``rows`` (n,) int64 with labels ``y`` (n,) int64, the head's."""

    logits: NDArray[np.float32]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]

    def fits(self) -> bool:
        """Whether these are tensors of such types and shapes; what is read from a file need not be."""
        flat = all(a.dtype == np.int64 and a.shape == self.logits.shape[:1] for a in (self.rows, self.y))
        return flat and self.logits.dtype == np.float32 and self.logits.ndim == 2


def recorded(folder: Path) -> EvaluateResult | None:
    """The test figures that are kept in a run's folder, if it has been scored.

    Raises:
        HeadError: they are damaged.
    """
    path = folder / EVALUATION
    if not path.exists():
        return None
    kept = read_record(path, Evaluation, HeadError, "bring it back from a copy, or train again")
    how = kept.get("split", "test"), kept.get("cache"), kept.get("scored_before")
    return EvaluateResult(folder, kept["test"], kept["seconds"], kept["scored"], *how, float32=kept.get("float32"))


def now() -> str:
    """The time, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
