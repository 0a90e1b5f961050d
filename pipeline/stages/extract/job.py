"""Stage one: source + trunk + store -> cache. Runs the frozen trunk once and writes the features.

Nothing is done twice: a row is known by the digest of its image's bytes and the key of everything that decides its
numbers, so moved, renamed, relabelled or resplit images are copied from an earlier file and only new ones are computed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import store
from pipeline.base.errors import CacheError, DataError
from pipeline.base.files import remove
from pipeline.base.items import GOOD
from pipeline.base.machine import cores
from pipeline.base.precision import PRECISIONS, lacks
from pipeline.base.ranks import Ranks
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.images import View, open_images
from pipeline.runs.remarks import tell_of_outdated
from pipeline.stages.extract import words
from pipeline.stages.extract.blocks import Task, do_blocks, recipe_of_begun
from pipeline.stages.extract.plan import Plan, plan_file
from pipeline.stages.extract.results import ExtractResult, Work
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.stages.extract.target import Beside
from pipeline.store.find import make_latest
from pipeline.store.rewrite import tidy
from pipeline.trunk.identity import available_engines

if TYPE_CHECKING:  # PyTorch takes seconds to import
    from pipeline.trunk.frozen import FrozenTrunk

HANDFUL = 5


def extract(settings: ExtractSettings, desk: Workspace) -> ExtractResult:
    """Stage one with settings made. Under ``torchrun`` every process calls it."""
    ranks = Ranks()
    with ranks.joined(settings.device):
        plain = _one_file(settings, desk, ranks, None)
        views = []
        for number in range(1, settings.views + 1):
            desk.watch.say(f"augmented copy {number} of {settings.views} of the train images")
            beside = Beside(store.open_cache(plain.cache), View(number, settings.view_seed))
            views.append(_one_file(settings, desk, ranks, beside))
        return dataclasses.replace(
            plain,
            new=plain.new + sum(v.new for v in views),
            seconds=plain.seconds + sum(v.seconds for v in views),
            views=tuple(str(v.cache) for v in views),
        )


def _one_file(settings: ExtractSettings, desk: Workspace, ranks: Ranks, beside: Beside | None) -> ExtractResult:
    return _lead(settings, desk, ranks, beside) if ranks.first else _follow(settings, desk, ranks)


def _lead(settings: ExtractSettings, desk: Workspace, ranks: Ranks, beside: Beside | None) -> ExtractResult:
    """The only process, or the one that plans, creates and publishes for all."""
    began = time.perf_counter()
    with ranks.leading() as announce:
        plan = plan_file(settings, desk, beside)
        if (there := plan.unchanged()) is not None:
            announce({"out": None, "made": str(plan.out)})
            return _nothing_to_do(plan, there, began)
        with store.writing_lock(plan.out) as dead:
            if dead:
                desk.watch.say(words.going_on(dead))
            plan = plan.looked_again()
            if (there := plan.refreshed()) is None:
                plan.require_computable()
                _refuse_missing(plan)
                plan, trunk = _precision_checked(plan.naming_gpus())
                plan.begin()
                about, key = plan.contents.about, store.key_of(plan.contents.provenance)
                announce({"out": str(plan.out.resolve()), "source": about["source"], "root": about["root"], "key": key})
                return _work_and_publish(plan, trunk, ranks, began)
        announce({"out": None, "made": str(plan.out)})
        return _nothing_to_do(plan, there, began)


def _follow(settings: ExtractSettings, desk: Workspace, ranks: Ranks) -> ExtractResult:
    """Another process: does its blocks of the file that the first one made, and waits for it to be published."""
    began = time.perf_counter()
    told = ranks.told()
    if told["out"] is None:
        return ExtractResult(Path(told["made"]), "", 0, 0, 0, 0, time.perf_counter() - began, {}, {}, ())
    out, quiet = Path(told["out"]), desk.silent()
    recipe = recipe_of_begun(out, quiet)
    job = Task(out, open_images(told["source"], told["root"]), recipe, settings)
    work = do_blocks(job, ranks=ranks, desk=quiet)
    ranks.total(work.forwards)
    ranks.total(0)  # published
    return ExtractResult(out, told["key"], 0, work.forwards, 0, 0, time.perf_counter() - began, {}, {}, ())


def _nothing_to_do(plan: Plan, there: store.Cache, began: float) -> ExtractResult:
    failed, failures = sum(there.failed().values()), store.failures_path(plan.out)
    _refuse_too_many_failures(plan, failed, failures)
    try:
        tidy(there)
    except CacheError as error:  # the cache is whole all the same
        plan.desk.watch.warn(str(error))
    make_latest(there.path)
    result = _result(plan, there, began, new=0, reused=len(there) - failed)
    plan.desk.watch.result(words.nothing_to_do(result, failures))
    return result


def _precision_checked(plan: Plan) -> tuple[Plan, FrozenTrunk | None]:
    if plan.recipe.trunk.precision == "float32":
        return plan, None
    from pipeline.stages.extract.agreement import checked

    return checked(plan)


def _work_and_publish(plan: Plan, trunk: FrozenTrunk | None, ranks: Ranks, began: float) -> ExtractResult:
    job = Task(plan.out, plan.listing.images, plan.recipe, plan.settings, trunk)
    work = do_blocks(job, ranks=ranks, desk=plan.desk)
    forwards = ranks.total(work.forwards)
    _publish(plan)
    ranks.total(0)  # the others leave when it is published
    cache, watch = store.open_cache(plan.out), plan.desk.watch
    result = _result(plan, cache, began, new=forwards, reused=sum(cache.counts().values()) - forwards)
    if work.forwards:
        limits = words.Limits(plan.settings.workers or cores(), cores(), exact=not plan.recipe.scaled)
        watch.say(words.bottleneck(work.shares, limits))
        plain = plan.recipe.view is None
        if plan.settings.decode == "auto" and plain and not plan.recipe.scaled:
            watch.say(words.decoded_as_before(plan.out))
        slow = plan.recipe.trunk.precision == "float32" and words.trunk_is_the_bottleneck(work.shares)
        if slow and plain and (better := _faster_ones(plan.recipe.trunk.device)):
            watch.say(words.faster(better))
        result = _with_speed(result, work)
    watch.result(words.done(result, store.failures_path(plan.out)))
    tell_of_outdated(cache, plan.desk)
    return result


def _faster_ones(device: str) -> list[str]:
    """The precisions that can be had on a device and are faster than float32, the fastest last."""
    return [p for p in PRECISIONS[1:] if lacks(p, device) is None and available_engines(device, p)]


def _publish(plan: Plan) -> None:
    """Give the finished file its name, unless too much has failed; what it was made from goes."""
    with store.Writer(plan.out) as writer:
        bad = np.flatnonzero(writer.states() != GOOD).tolist()  # an image that failed before may have been mended
        told = store.partial_failures(plan.out)
        reasons = {item: told[item] for item in (plan.contents.ids[row] for row in bad) if item in told}
        listed = store.failures_path(store.partial_path(plan.out))
        store.write_failures(listed, reasons.values())
        _refuse_too_many_failures(plan, len(bad), listed)
        store.write_failures(store.failures_path(plan.out), reasons.values())
        writer.publish()
    with store.writing_beside(plan.out):
        remove(*store.partial_failure_files(plan.out), *store.stale_partials(plan.out))


def _may_fail(plan: Plan) -> int:
    """How many images may fail: the share that was asked for, and of a small source a handful all the same."""
    rows, share = len(plan.contents.ids), plan.settings.max_failures
    return max(int(share * rows + 1e-9), min(HANDFUL, rows // 2)) if share else 0


def _refuse_missing(plan: Plan) -> None:
    """Raises DataError before the first image where the source names more that are not there than may fail."""
    gone = set(plan.listing.missing)
    missing = [item for item in plan.contents.ids if item in gone]
    if len(missing) > _may_fail(plan):
        listed = store.partial_failures_path(plan.out)
        store.append_failures(
            listed, [store.Failure(i, "vanished", "there is no such file", bytes(32)) for i in missing]
        )
        raise _too_many(plan, missing, listed, "nothing was computed")


def _refuse_too_many_failures(plan: Plan, failed: int, listed: Path) -> None:
    """Raises DataError when more failed than may (``listed`` says which); all good rows are kept."""
    if failed > _may_fail(plan):
        reasons = store.read_failures(listed)
        bad = [item for item in plan.contents.ids if item in reasons]
        raise _too_many(plan, bad, listed, "the good rows are kept", failed)


def _too_many(plan: Plan, bad: Sequence[bytes], listed: Path, kept: str, failed: int | None = None) -> DataError:
    limit, reasons = plan.settings.max_failures, store.read_failures(listed)
    example = f"; the first: {os.fsdecode(bad[0])!a}: {reasons[bad[0]].reason}" if bad else ""
    return DataError(
        f"{len(bad) if failed is None else failed:,} of {len(plan.contents.ids):,} images failed, "
        f"{option('max_failures', limit)} allows {_may_fail(plan):,}{example}; all are listed in {listed}; {kept}: "
        f"mend the files or raise {option('max_failures')}, and run again"
    )


def _result(plan: Plan, cache: store.Cache, began: float, *, new: int, reused: int) -> ExtractResult:
    return ExtractResult(
        cache=plan.out,
        key=cache.key,
        rows=len(cache),
        new=new,
        reused=reused,
        failed=sum(cache.failed().values()),
        seconds=time.perf_counter() - began,
        counts=cache.counts(),
        skipped={reason: len(paths) for reason, paths in plan.listing.skipped.items()},
        notes=plan.notes,
        warnings=plan.listing.warnings,
    )


def _with_speed(result: ExtractResult, work: Work) -> ExtractResult:
    speed = work.forwards / max(1e-9, work.shares.forward + work.shares.waiting + work.shares.write)
    parts = dataclasses.asdict(work.shares)
    return dataclasses.replace(result, batch=work.batch, shares=parts, images_per_second=speed)
