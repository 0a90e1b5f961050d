"""The public functions of upkeep. Imports settings and results only: the work is imported when asked for."""

from __future__ import annotations

from pipeline.base.doors import command
from pipeline.base.workspace import Workspace
from pipeline.stages.upkeep.results import AuditReport, CatalogReport, InspectReport, RelabelResult, VerifyReport
from pipeline.stages.upkeep.settings import (
    AuditSettings,
    CatalogSettings,
    InspectSettings,
    RelabelSettings,
    VerifySettings,
)

AS_IT_WAS = "the cache is whole, as it was or as it was to be: the same command finds out which"


@command(InspectSettings)
def inspect(settings: InspectSettings, desk: Workspace) -> InspectReport:
    """Show what a cache holds, or how two caches differ.

    Raises:
        CacheError: a cache is missing or damaged.
    """
    from pipeline.stages.upkeep.inspect import inspect as work

    return work(settings, desk)


@command(VerifySettings)
def verify(settings: VerifySettings, desk: Workspace) -> VerifyReport:
    """Check a cache: structure, checksums, rows against fresh ones.

    Also against its ``source``, if one is given; returns what was checked.

    Raises:
        CacheError: anything is wrong; the message counts what.
        DataError, WeightsError: the source or the weights are not to be had.
    """
    from pipeline.stages.upkeep.verify import verify as work

    return work(settings, desk)


@command(AuditSettings, AS_IT_WAS)
def audit(settings: AuditSettings, desk: Workspace) -> AuditReport:
    """Look for copies across splits, wrong labels, small classes, failed images.

    Raises:
        CacheError: the cache is damaged, or cannot be written anew.
        HeadError: with ``labels`` there is nothing to judge, or too few images of a class.
        DataError: with ``strict`` something was found; with ``drop_leaks`` nothing of train would be left.
    """
    from pipeline.stages.upkeep.audit import audit as work

    return work(settings, desk)


@command(RelabelSettings, AS_IT_WAS)
def relabel(settings: RelabelSettings, desk: Workspace) -> RelabelResult:
    """Give a cache new labels or splits, without the trunk.

    Labels, splits, class names and paths become those of ``source``.

    Raises:
        CacheError: the source has images that the cache has not, or the other way round (unless ``drop_missing``).
        DataError: the source cannot be understood.
    """
    from pipeline.stages.upkeep.relabel import relabel as work

    return work(settings, desk)


@command(CatalogSettings, name="list")
def catalog(settings: CatalogSettings, desk: Workspace) -> CatalogReport:
    """List the runs, or the caches; keep a note on one, rename or delete it.

    Raises:
        HeadError, CacheError: nothing of such a name, or it cannot be changed.
    """
    from pipeline.stages.upkeep.catalog import catalog as work

    return work(settings, desk)
