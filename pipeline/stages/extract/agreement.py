"""The precision check: before a job computes in another precision than float32, is what comes out still the features?

A sample of the images is computed in both; how near they are is printed and kept in the file. Nothing is begun where
they are too far apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.base.errors import EngineError
from pipeline.base.machine import cores
from pipeline.base.spelling import option
from pipeline.images import MAX_PIXELS, Limits, Loader
from pipeline.runs.recipe import about_of
from pipeline.stages.extract import words
from pipeline.stages.extract.blocks import open_trunk
from pipeline.stages.extract.plan import Plan
from pipeline.trunk.engines.check import Agreement, agreement, eager_features
from pipeline.trunk.frozen import FrozenTrunk

SAMPLE = 64  # images: eager float32 takes 5 s for them, with resnet50 on two cores
LEAST = 16  # and a tenth of a small source, but so many


def checked(plan: Plan) -> tuple[Plan, FrozenTrunk | None]:
    """The plan of a file that will say how near its features are to those in float32; and the trunk, if it was opened.

    What an earlier check found is kept, of the file that is there or was begun; new images have one of their own, and
    then the file says both as one.

    Raises:
        EngineError: they are too far apart; nothing was begun.
    """
    earlier, fresh = _earlier(plan)
    if not len(fresh) or plan.target.needs is not None:  # nothing is computed here
        return (plan if earlier is None else _with(plan, earlier)), None
    trunk = open_trunk(plan.recipe, plan.settings, plan.contents.block_rows, plan.desk)
    found = _sampled(plan, trunk, fresh)
    if found is None:  # none of them is an image; the job will say so
        return plan, trunk
    precision = plan.recipe.trunk.precision
    if why := found.refusal(precision):
        raise EngineError(f"{why}: give {option('precision', 'float32')}; nothing was begun")
    plan.desk.watch.say(words.agreed(precision, dataclasses.asdict(found)))
    return _with(plan, found if earlier is None else earlier.joined(found)), trunk


def _earlier(plan: Plan) -> tuple[Agreement | None, NDArray[np.int64]]:
    """What a check of the file that is there, or was begun, has found; and the rows (n,) that it knows nothing of."""
    partial = store.partial_path(plan.out)
    begun = store.open_partial(partial) if partial.exists() else plan.old
    if begun is None or (told := about_of(begun).get("agreement")) is None:
        return None, np.arange(len(plan.contents.ids))
    known = {digest.tobytes() for digest in begun.digests}
    ids = set(begun.ids)
    new = [
        row
        for row, (item, digest) in enumerate(zip(plan.contents.ids, plan.contents.digests, strict=True))
        if digest.tobytes() not in known and (digest.any() or item not in ids)
    ]
    return Agreement(**told), np.array(new, np.int64)


def _sampled(plan: Plan, trunk: FrozenTrunk, rows: NDArray[np.int64]) -> Agreement | None:
    """How near the features of a sample of the rows, spread over them, are to those in float32."""
    rows = sample_of(rows)
    ids, geometry = plan.contents.ids, plan.recipe.geometry()
    limits, workers = Limits(plan.settings.max_pixels or MAX_PIXELS), plan.settings.workers or cores()
    pixels: list[NDArray[np.uint8]] = []
    found, reference = [], []
    with (
        Loader(plan.listing.images, geometry, workers=workers, ahead=2 * trunk.engine.batch, limits=limits) as loader,
        plan.desk.watch.track("precision check", len(rows)) as bar,
    ):
        for number, loaded in enumerate(loader.load((row, ids[row]) for row in rows.tolist()), start=1):
            pixels += [] if loaded.pixels is None else [loaded.pixels]
            if pixels and (len(pixels) == trunk.engine.batch or number == len(rows)):
                batch = np.stack(pixels)
                found.append(trunk.features(batch, check=False))
                reference.append(eager_features(trunk.trunk, plan.recipe.trunk.info, batch))
                pixels = []
            bar.advance()
    return agreement(np.concatenate(found), np.concatenate(reference)) if found else None


def sample_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows (n,) that are checked, spread over them."""
    some = min(len(rows), max(LEAST, min(SAMPLE, len(rows) // 10)))
    return np.unique(rows[np.linspace(0, len(rows) - 1, some).round().astype(int)])


def _with(plan: Plan, found: Agreement) -> Plan:
    about = {**plan.contents.about, "agreement": dataclasses.asdict(found)}
    return dataclasses.replace(plan, contents=dataclasses.replace(plan.contents, about=about))
