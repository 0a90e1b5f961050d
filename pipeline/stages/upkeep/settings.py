"""Settings of looking after caches: inspect, verify, audit, relabel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import CACHE_HELP, LATEST
from pipeline.stages.extract.settings import ExtractSettings
from pipeline.store.rewrite import check_out


@dataclass(frozen=True)
class InspectSettings:
    """Settings of the view."""

    caches: tuple[str, ...] = st.argument(
        f"{CACHE_HELP}; two to see their difference", default=(LATEST,), metavar="CACHE", made=True
    )

    def __post_init__(self) -> None:
        st.check(self)
        if len(self.caches) > 2:
            raise ConfigError(f"{len(self.caches)} caches: give one to look into, or two to compare")


@dataclass(frozen=True)
class VerifySettings:
    """Settings of the check."""

    cache: str = st.cache()
    source: str | None = st.argument("the images it was made from, to compare it with as well", default=None)
    sample: int = st.option(32, "rows that are extracted afresh from SOURCE, spread evenly; 0 for none", minimum=0)
    seed: int = st.option(0, "seed of the sample", minimum=0)
    allow_changes: bool = st.option(
        False, "list what has changed in SOURCE, but do not call it wrong: only damage and different rows are"
    )

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class AuditSettings:
    """Settings of the audit."""

    cache: str = st.cache()
    near: float | None = st.option(
        None, "also look for near duplicates: pairs whose features have at least this cosine", above=0
    )
    tiny: int = st.option(5, "a class with fewer images than this in a split is called tiny", minimum=1)
    drop_leaks: bool = st.option(
        False, "write the cache anew without the train rows whose very image is also in val or test"
    )
    out: Path | None = st.option(None, "with --drop-leaks: the file to write; by default the cache itself")
    strict: bool = st.option(False, "exit 2 when anything is found")

    def __post_init__(self) -> None:
        st.check(self)
        check_out(self.out)
        if self.near is not None and self.near > 1:
            raise ConfigError(f"--near is {self.near}: a cosine is at most 1")
        if self.out is not None and not self.drop_leaks:
            raise ConfigError(f"--out {self.out} without --drop-leaks: an audit alone writes nothing")


@dataclass(frozen=True)
class RelabelSettings:
    """Settings of the new labels."""

    cache: str = st.cache(default=dataclasses.MISSING)
    source: str = st.argument("a folder or CSV manifest with the same images, labelled and split as they shall be")
    drop_missing: bool = st.option(False, "drop the rows whose images SOURCE does not have")
    out: Path | None = st.option(None, "the file to write; by default the cache itself")
    val_fraction: float = st.option(
        ExtractSettings.val_fraction, "share of train set aside as val where the source has none", minimum=0, below=1
    )
    test_fraction: float = st.option(
        ExtractSettings.test_fraction, "share of train set aside as test where the source has none", minimum=0, below=1
    )
    split_seed: int = st.option(ExtractSettings.split_seed, "seed of the split")

    def __post_init__(self) -> None:
        st.check(self)
        check_out(self.out)
