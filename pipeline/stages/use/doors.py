"""The public functions of using a run. Imports settings and results only: the work is imported when asked for."""

from __future__ import annotations

from pipeline.base.doors import command
from pipeline.base.workspace import Workspace
from pipeline.stages.use.results import ExportResult, Predictions, RowsResult, TraceReport
from pipeline.stages.use.settings import ExportSettings, PredictSettings, RowsSettings, TraceSettings


@command(PredictSettings, "what was printed stands: the same command begins anew")
def predict(settings: PredictSettings, desk: Workspace) -> Predictions:
    """Name the classes of images, with probabilities.

    An image that cannot be used is there with its reason.

    Raises:
        DataError: a path that is not there, or not one image that can be used.
        HeadError, WeightsError: the run or its weights are not to be had.
    """
    from pipeline.stages.use.predict import predict as work

    return work(settings, desk)


@command(ExportSettings, "no half file is left: the same command begins anew")
def export(settings: ExportSettings, desk: Workspace) -> ExportResult:
    """Write a run's classifier as a file for other programs.

    Trunk and head, in eval mode.

    Raises:
        ConfigError: a file that is there already, a folder that cannot be written, or a format that cannot hold it.
        HeadError: the exported model does not give the model's logits; no file is left.
    """
    from pipeline.stages.use.export import export as work

    return work(settings, desk)


@command(RowsSettings, "no half file is left: the same command begins anew")
def rows(settings: RowsSettings, desk: Workspace) -> RowsResult:
    """Write a cache's features, or a run's probabilities, as a table.

    With ids, labels, classes and splits; a million rows are never held at once.

    Raises:
        ConfigError: neither a cache nor a run, a file that is there already or cannot be written.
        HeadError, CacheError: the run's head or cache is not to be had, or a block is damaged.
    """
    from pipeline.stages.use.rows import rows as work

    return work(settings, desk)


@command(TraceSettings)
def trace(settings: TraceSettings, desk: Workspace) -> TraceReport:
    """Show the model: load, remove head, add head, train.

    Nothing is trained.

    Raises:
        ConfigError, CacheError, HeadError: the target is neither a cache nor a run.
    """
    from pipeline.stages.use.trace import trace as work

    return work(settings, desk)
