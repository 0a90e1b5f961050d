"""What every part of a fine-tuning is handed: what was asked for, where it starts, what it goes by, who takes part."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.ranks import Ranks
from pipeline.base.workspace import Workspace
from pipeline.stages.finetune.feeds import Inputs, inputs_of
from pipeline.stages.finetune.schedule import Schedule
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import Attached


@dataclass(frozen=True, eq=False)
class Task:
    """One fine-tuning as it was asked for; nothing in it changes but the network's numbers."""

    settings: FinetuneSettings
    schedule: Schedule
    attached: Attached
    inputs: Inputs
    ranks: Ranks
    desk: Workspace

    @classmethod
    def of(cls, settings: FinetuneSettings, attached: Attached, ranks: Ranks, desk: Workspace) -> Task:
        """The task; what training goes by is made where it is not there yet (the maps before the last stage).

        Raises:
            ConfigError: settings that do not fit the number of images, or more maps than allowed.
            CacheError, DataError, Interrupted: see :meth:`pipeline.stages.finetune.maps.PrefixMaps.make`.
        """
        schedule = Schedule.of(settings, len(attached.train))
        return cls(settings, schedule, attached, inputs_of(settings, attached, ranks, desk), ranks, desk)
