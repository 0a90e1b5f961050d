"""Settings of scoring: of a run's test, and of the comparison of two."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import CACHE_HELP
from pipeline.base.spelling import option


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of the test."""

    run: str = st.run()
    data: str | None = st.option(
        None, f"evaluate on {CACHE_HELP}; of the run's settings fingerprint, classes matched by name", metavar="CACHE"
    )
    images: str | None = st.option(
        None,
        "evaluate on new labelled images: whatever extract takes as a source; they go through the run's network once",
        metavar="SOURCE",
    )
    split: str | None = st.option(
        None,
        "which rows; by default test, or val for --errors and --confusion, all of --images and of a cache that is not "
        "split",
        choices=("test", "val", "train", "all"),
    )
    errors: Path | None = st.option(
        None, "write the wrongly classified images here, most confident first: FILE.csv or FILE.jsonl", metavar="FILE"
    )
    confusion: Path | None = st.option(
        None, "write the confusion matrix here as a picture: FILE.png or FILE.svg", metavar="FILE"
    )
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
        if self.data is not None and self.images is not None:
            both = f"{option('data')} is a cache and {option('images')} are images that have none"
            raise ConfigError(f"{both}: give one of them")
        _require_ending("errors", self.errors, (".csv", ".jsonl"))
        _require_ending("confusion", self.confusion, (".png", ".svg"))

    @property
    def own_split(self) -> str:
        """Which rows of the run's own cache are meant: its test rows are not spent on looking for wrong images."""
        return self.split or ("test" if self.errors is None and self.confusion is None else "val")


def _require_ending(name: str, file: Path | None, endings: tuple[str, ...]) -> None:
    if file is not None and file.suffix not in endings:
        raise ConfigError(f"{option(name, file)} must end in {' or '.join(endings)}")


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison."""

    first: str = st.run(metavar="RUN", default=dataclasses.MISSING)
    second: str = st.argument("the run to compare it with", metavar="RUN", made=True)
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
