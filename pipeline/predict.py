"""Image -> ranked classes, with the prediction trace: image -> features -> head -> softmax -> class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import runs
from pipeline import settings as st
from pipeline.cached import ROOT_HELP
from pipeline.errors import DataError
from pipeline.evaluate import RUN_HELP
from pipeline.report.watch import Watch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.classifier import Answer, Classifier


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction."""

    run: str = st.argument(RUN_HELP)
    images: tuple[str, ...] = st.argument("image files, after the run", metavar="IMAGE")
    top: int = st.option(5, "how many classes to show for each image", minimum=1)
    trace: bool = st.option(False, "show each image's way: input, features, head, softmax, class")
    device: str = st.option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    cache_root: Path = st.option(Path("cache"), ROOT_HELP)

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class Prediction:
    """One image: the likeliest class, its probability, and the ``top`` classes as (name, probability)."""

    path: str
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: ``path class probability top``."""
        top = [{"class": name, "probability": p} for name, p in self.top]
        return {"path": self.path, "class": self.class_name, "probability": self.probability, "top": top}


class Predictions(list[Prediction]):
    """Predictions in the order of the images."""

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [p.to_json() for p in self]


def predict(
    run: str | Path, images: str | Path | Sequence[str | Path], *, watch: Watch | None = None, **options: Any
) -> Predictions:
    """The ``top`` classes of each image, with probabilities.

    ``options`` are the fields of :class:`PredictSettings`.

    Raises:
        DataError: an image cannot be read; it is named, with the reason.
        HeadError, WeightsError: the run or its weights are not to be had.
    """
    return run_predict(st.build(PredictSettings, {"run": run, "images": images, **options}), watch or Watch())


def run_predict(settings: PredictSettings, watch: Watch) -> Predictions:
    """Predict with settings made; see :func:`predict`."""
    from pipeline import data
    from pipeline.classifier import PREDICT_BATCH, load_classifier
    from pipeline.heads.metrics import softmax
    from pipeline.report.tables import predictions_table

    run = runs.find_run(settings.run, cache_root=settings.cache_root)
    paths = [os.fsencode(p) for p in settings.images]
    for path in paths:
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "is not there"
            raise DataError(f"{os.fsdecode(path)!a} {what}: give image files")
    classifier = load_classifier(run, cache_root=settings.cache_root, device=settings.device, watch=watch)
    found, bad = Predictions(), list[str]()
    with data.Loader(classifier.geometry, workers=len(os.sched_getaffinity(0)), ahead=2 * PREDICT_BATCH) as loader:
        for start in range(0, len(paths), PREDICT_BATCH):
            part = paths[start : start + PREDICT_BATCH]
            loaded = list(loader.load(enumerate(part)))
            for item in loaded:
                if item.failure is not None:
                    bad.append(f"{os.fsdecode(part[item.index])!a} cannot be used: {item.failure.reason}")
                    watch.warn(bad[-1])
            part = [part[item.index] for item in loaded if item.pixels is not None]
            if not part:
                continue
            pixels = np.stack([item.pixels for item in loaded if item.pixels is not None])
            answer = classifier(pixels)
            probabilities = softmax(answer.logits)
            for i, path in enumerate(part):
                found.append(_ranked(path, probabilities[i], classifier.classes, settings.top))
                if settings.trace:
                    _show_trace(path, pixels[i], i, answer, probabilities[i], classifier, settings.top, watch)
    if found and not settings.trace:
        watch.show(predictions_table([(p.path, p.top) for p in found]))
    if bad:
        raise DataError(
            bad[0] if len(bad) == 1 else f"{len(bad)} of {len(paths)} images cannot be used; the first: {bad[0]}"
        )
    return found


def _ranked(path: bytes, probabilities: NDArray[np.float64], classes: tuple[str, ...], top: int) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")[:top]
    ranked = tuple((classes[c], float(probabilities[c])) for c in order.tolist())
    return Prediction(os.fsdecode(path), ranked[0][0], ranked[0][1], ranked)


def _show_trace(
    path: bytes,
    pixels: NDArray[np.uint8],
    at: int,
    answer: Answer,
    probabilities: NDArray[np.float64],
    classifier: Classifier,
    top: int,
    watch: Watch,
) -> None:
    from PIL import Image

    from pipeline.classifier import normalised
    from pipeline.report.pipeline_trace import PredictionTrace, TopClass, prediction_trace

    with Image.open(os.fsdecode(path)) as image:
        width, height, mode = image.width, image.height, image.mode
    seen = normalised(pixels[None], classifier.spec.info, "cpu").numpy()[0]
    features, logits = answer.features[at], answer.logits[at]
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    watch.show(
        prediction_trace(
            PredictionTrace(
                path=path,
                width=width,
                height=height,
                mode=mode,
                input_shape=seen.shape,
                input_min=float(seen.min()),
                input_mean=float(seen.mean()),
                input_max=float(seen.max()),
                features_shape=features.shape,
                features_first=features[:5].tolist(),
                features_norm=float(np.linalg.norm(features)),
                logits_shape=logits.shape,
                top=[TopClass(classifier.classes[c], float(logits[c]), float(probabilities[c])) for c in order],
            )
        )
    )
