"""Stage one: data + trunk -> store. Runs the frozen trunk once and writes the features.

Nothing is done twice: a row is known by the digest of its image's bytes and the key of everything that decides its
numbers, so moved, renamed, relabelled or resplit images are copied from an earlier file and only new ones are computed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.base import words as numbers
from pipeline.base.errors import DataError
from pipeline.base.items import GOOD
from pipeline.base.ranks import Ranks
from pipeline.base.workspace import Workspace
from pipeline.images import View
from pipeline.runs import folder as runs
from pipeline.stages.extract.plan import Plan
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.store import Cache
from pipeline.store.find import view_path

if TYPE_CHECKING:  # blocks imports torch, and a job that finds nothing to do does not
    from pipeline.stages.extract.blocks import Work


@dataclass(frozen=True)
class ExtractResult:
    """What stage one did; ``cache`` is the file, ``new`` went through the trunk, ``reused`` were copied."""

    cache: Path
    key: str
    rows: int
    new: int
    reused: int
    failed: int
    seconds: float
    counts: dict[str, int]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    batch: int | None = None
    shares: dict[str, float] | None = None
    images_per_second: float | None = None
    views: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "cache": str(self.cache)}


def extract(settings: ExtractSettings, desk: Workspace) -> ExtractResult:
    """Stage one with settings made. Under ``torchrun`` every process calls it."""
    ranks = Ranks()
    ranks.join()
    try:
        plain = _one_file(settings, desk, ranks, None)
        out, views = plain.cache, []
        for number in range(1, settings.views + 1):
            there = dataclasses.replace(settings, out=view_path(out, number))
            desk.watch.say(f"view {number} of {settings.views} of the train images")
            views.append(_one_file(there, desk, ranks, View(number, settings.view_seed)))
        return dataclasses.replace(
            plain,
            new=plain.new + sum(v.new for v in views),
            seconds=plain.seconds + sum(v.seconds for v in views),
            views=tuple(str(v.cache) for v in views),
        )
    finally:
        ranks.leave()


def _one_file(settings: ExtractSettings, desk: Workspace, ranks: Ranks, view: View | None) -> ExtractResult:
    return _first(settings, desk, ranks, view) if ranks.first else _follow(settings, desk, ranks)


def _first(settings: ExtractSettings, desk: Workspace, ranks: Ranks, view: View | None) -> ExtractResult:
    """The only process, or the one that plans, creates and publishes for all."""
    began = time.perf_counter()
    with ranks.leading() as announce:
        plan = Plan(settings, desk, view)
        if plan.unchanged():
            announce({"out": None, "made": str(plan.out)})
            return _nothing_to_do(plan, began)
        with store.writing_lock(plan.out) as dead:
            if dead:
                desk.watch.say(f"an earlier job ({dead}) ended without finishing: going on from what it left")
            if plan.refresh():
                announce({"out": None, "made": str(plan.out)})
                return _nothing_to_do(plan, began)
            plan.begin()
            announce({"out": str(plan.out.resolve()), "root": plan.images_root})
            return _work_and_publish(plan, ranks, began)


def _follow(settings: ExtractSettings, desk: Workspace, ranks: Ranks) -> ExtractResult:
    """Another process: does its blocks of the file that the first one made, and waits for it to be published."""
    from pipeline.stages.extract.blocks import do_blocks

    began = time.perf_counter()
    job = ranks.told()
    if job["out"] is None:
        return ExtractResult(Path(job["made"]), "", 0, 0, 0, 0, time.perf_counter() - began, {}, {}, ())
    out = Path(job["out"])
    key = store.open_partial(store.partial_path(out)).key
    work = do_blocks(out, job["root"], settings, ranks=ranks, desk=desk.silent())
    ranks.total(work.forwards)
    ranks.total(0)  # published
    return ExtractResult(out, key, 0, work.forwards, 0, 0, time.perf_counter() - began, {}, {}, ())


def _nothing_to_do(plan: Plan, began: float) -> ExtractResult:
    assert plan.old is not None
    failed = sum(plan.old.failed().values())
    _refuse_too_many_failures(plan, failed, store.failures_path(plan.out))
    listed = f" ({failed} failed: {store.failures_path(plan.out)})" if failed else ""
    plan.desk.watch.say(f"nothing to do: {plan.out} holds these {len(plan.old):,} images with these settings{listed}")
    return _result(plan, plan.old, began, new=0, reused=len(plan.old) - failed)


def _work_and_publish(plan: Plan, ranks: Ranks, began: float) -> ExtractResult:
    from pipeline.stages.extract.blocks import do_blocks

    work = do_blocks(plan.out, plan.images_root, plan.settings, ranks=ranks, desk=plan.desk)
    forwards = ranks.total(work.forwards)
    with store.Writer(plan.out) as writer:
        states = writer.states()
        reasons = store.partial_failures(plan.out)
        listed = store.failures_path(store.partial_path(plan.out))
        store.write_failures(listed, reasons.values())
        _refuse_too_many_failures(plan, int((states != GOOD).sum()), listed)
        kept = (reasons[i] for i in plan.contents.ids if i in reasons)
        store.write_failures(store.failures_path(plan.out), kept)
        writer.publish()
    for leftover in (*store.partial_failure_files(plan.out), *store.stale_partials(plan.out)):
        leftover.unlink(missing_ok=True)
    ranks.total(0)  # the others leave when it is published
    cache = store.open_cache(plan.out)
    result = _result(plan, cache, began, new=forwards, reused=sum(cache.counts().values()) - forwards)
    if work.forwards:
        result = _with_speed(result, work, plan.desk)
    failed = f", {result.failed} failed ({store.failures_path(plan.out)})" if result.failed else ""
    rows = f"{result.rows:,} rows: {result.new:,} new, {result.reused:,} reused{failed}"
    plan.desk.watch.say(f"{rows}, in {numbers.seconds(result.seconds)} -> {plan.out}")
    if stale := runs.learned_from_other(plan.out, cache.content, plan.desk):
        plan.desk.watch.warn(
            f"learned from what {plan.out.name} held before, and must be trained again: {', '.join(stale)}"
        )
    return result


def _with_speed(result: ExtractResult, work: Work, desk: Workspace) -> ExtractResult:
    desk.watch.say(work.shares.line())
    speed = work.forwards / max(1e-9, work.shares.forward + work.shares.waiting + work.shares.write)
    parts = dataclasses.asdict(work.shares)
    return dataclasses.replace(result, batch=work.batch, shares=parts, images_per_second=speed)


def _refuse_too_many_failures(plan: Plan, failed: int, listed: Path) -> None:
    """Raises DataError when more than the share allowed failed (``listed`` says which); all good rows are kept."""
    rows, limit = len(plan.contents.ids), plan.settings.max_failures
    if failed <= limit * rows:
        return
    reasons = store.read_failures(listed)
    first = next((reasons[i] for i in plan.contents.ids if i in reasons), None)
    example = f"; the first: {os.fsdecode(first.id)!a}: {first.reason}" if first else ""
    raise DataError(
        f"{failed} of {rows} images failed, more than --max-failures {limit:g}{example}; all are listed in {listed}; "
        "the good rows are kept: mend the files or raise --max-failures, and run again"
    )


def _result(plan: Plan, cache: Cache, began: float, *, new: int, reused: int) -> ExtractResult:
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
    )
