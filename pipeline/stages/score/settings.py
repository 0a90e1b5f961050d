"""Settings of scoring: of a run's test, and of the comparison of two."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import CACHE_HELP


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of the test."""

    run: str = st.run()
    data: str | None = st.option(
        None, f"evaluate on {CACHE_HELP}; of the run's key, classes matched by name", metavar="CACHE"
    )
    split: str | None = st.option(
        None,
        "which rows of --data; by default test, or all of a cache that is not split",
        choices=("test", "val", "train", "all"),
    )
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
        if self.split is not None and self.data is None:
            raise ConfigError(f"--split {self.split} is for --data CACHE: a run's own evaluation is on its test split")


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison."""

    first: str = st.run(metavar="RUN", default=dataclasses.MISSING)
    second: str = st.argument("the run to compare it with", metavar="RUN")
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
