"""The public function of the bench. Imports no more than its settings: the work is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.doors import command
from pipeline.base.workspace import Workspace
from pipeline.bench.settings import BenchSettings

if TYPE_CHECKING:
    from pipeline.bench.run import BenchReport


@command(BenchSettings, "no record was written: the same command begins anew")
def bench(settings: BenchSettings, desk: Workspace) -> BenchReport:
    """Measure, each entry as a ratio of two ways.

    One entry after the other; a missed floor is shown, and is no error.

    Raises:
        ConfigError: the folder for the record cannot be written.
        PipelineError: a measured process failed.
    """
    from pipeline.bench.run import bench as work

    return work(settings, desk)
