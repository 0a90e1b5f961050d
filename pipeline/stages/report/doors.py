"""The public function of reporting. Imports no more than its settings: the work is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.doors import command
from pipeline.base.workspace import Workspace
from pipeline.stages.report.settings import ReportSettings

if TYPE_CHECKING:
    from pipeline.stages.report.results import ReportResult


@command(ReportSettings)
def report(settings: ReportSettings, desk: Workspace) -> ReportResult:
    """Write a run, or several side by side, as one HTML file that needs nothing else.

    What it is of, its figures with intervals, what it takes for what, the images that it gets wrong, how sure it is, a
    map of the features, how it came about. From train and val rows; of test only what has been recorded when the run
    was scored: no test row is looked at for it. Images that are gone are named, and those that have no room in
    ``max_mb``.

    Raises:
        HeadError: there is no such run, it holds no head, or its files are damaged.
        ConfigError: a file that cannot be written, or a ``max_mb`` that the page without images is larger than.
    """
    from pipeline.stages.report.report import report as work

    return work(settings, desk)
