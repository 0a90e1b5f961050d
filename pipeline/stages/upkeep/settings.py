"""Settings of looking after caches: inspect, verify, audit, relabel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import CACHE_HELP, LATEST
from pipeline.base.spelling import option
from pipeline.heads.choice import PENALTIES


@dataclass(frozen=True)
class InspectSettings:
    """Settings of the view."""

    caches: tuple[str, ...] = st.argument(
        f"{CACHE_HELP}; two to see their difference", default=(LATEST,), metavar="CACHE", made=True
    )
    full: bool = st.option(False, "also all that decides a row's numbers, the split's notes, and versions")

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
    path_column: str | None = st.column("path")
    label_column: str | None = st.column("label", none=True)
    split_column: str | None = st.column("split", none=True)

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
    labels: bool = st.option(
        False,
        "also look for wrong labels: what exact heads say of train and val rows that they have not learned from",
        group="labels that look wrong (--labels)",
    )
    suspects: Path | None = st.option(
        None, "write the suspected rows with the classes proposed, as `pipeline relabel` takes them", metavar="FILE.csv"
    )
    folds: int | None = st.option(
        None, "folds of the cross-validation; by default 5, or as many as the smallest class has images", minimum=2
    )
    C: float | None = st.option(
        None,
        f"inverse penalty of the heads, as scikit-learn's; by default the folds choose it among {len(PENALTIES)}",
        above=0,
    )
    groups: str | None = st.option(
        None,
        "a column of the manifest, as the cache keeps it: images of one group are left out together",
        metavar="COLUMN",
    )
    test: bool = st.option(
        False, "judge test labels, too, by a head that never saw them, and count it as a run scored there"
    )
    seed: int = st.option(0, "seed of the folds and of the intervals", minimum=0)

    def __post_init__(self) -> None:
        st.check(self)
        st.check_out(self.out)
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in ("suspects", "folds", "C", "groups", "test", "seed"):
            if not self.labels and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"{option(name, getattr(self, name))} without {option('labels', True)}: nothing is judged"
                )
        if self.suspects is not None and self.suspects.suffix != ".csv":
            raise ConfigError(f"{option('suspects', self.suspects)} must end in .csv")
        if self.near is not None and self.near > 1:
            raise ConfigError(f"{option('near')} is {self.near}: a cosine is at most 1")
        if self.out is not None and not self.drop_leaks:
            raise ConfigError(
                f"{option('out', self.out)} without {option('drop_leaks', True)}: an audit alone writes nothing"
            )


@dataclass(frozen=True)
class RelabelSettings:
    """Settings of the new labels."""

    cache: str = st.cache(default=dataclasses.MISSING)
    source: str = st.argument(
        "a folder or CSV manifest with the same images, labelled and split as they shall be; or a table of some of "
        "them by the cache's ids, as `pipeline rows` writes it"
    )
    drop_missing: bool = st.option(False, "drop the rows whose images SOURCE does not have")
    out: Path | None = st.option(None, "the file to write; by default the cache itself")
    name: str | None = st.option(None, "the new cache's name, instead: NAME.h5 under features/")
    val_fraction: float | None = st.option(
        None,
        "divide anew where SOURCE has no splits: share of train set aside as val; by default the cache's splits stay",
        minimum=0,
        below=1,
    )
    test_fraction: float | None = st.option(None, "the same for test", minimum=0, below=1)
    split_seed: int | None = st.option(None, "the same: seed of the split")
    path_column: str | None = st.column("path")
    label_column: str | None = st.column("label", none=True)
    split_column: str | None = st.column("split", none=True)

    def __post_init__(self) -> None:
        st.check(self)
        st.check_out(self.out, self.name)

    @property
    def divides(self) -> bool:
        """Whether a division of the images is asked for."""
        return any(asked is not None for asked in (self.val_fraction, self.test_fraction, self.split_seed))


RUN_ORDERS = ("number", "stage", "data", "val", "seconds", "when", "note")
CACHE_ORDERS = ("name", "source", "trunk", "rows", "size", "when", "note")


@dataclass(frozen=True)
class CatalogSettings:
    """Settings of the list."""

    names: tuple[str, ...] | None = st.argument(
        "runs (with --caches: caches) to list, or to do something with, named as for every command; by default all",
        default=None,
        metavar="NAME",
        made=True,
    )
    caches: bool = st.option(False, "list feature caches instead of runs")
    sort: str | None = st.option(
        None,
        f"order: {', '.join(RUN_ORDERS)}; of caches {', '.join(CACHE_ORDERS)}; test is not among them, since nothing "
        "is to be chosen by it",
        metavar="COLUMN",
    )
    csv: bool = st.option(False, "print CSV, all columns in full")
    note: str | None = st.option(None, "keep these words on what is named; empty to remove them", metavar="TEXT")
    rename: str | None = st.option(None, "the new name of the one that is named; a run keeps its number and stage")
    delete: bool = st.option(False, "delete what is named, after a question")
    yes: bool = st.option(False, "delete without the question")

    def __post_init__(self) -> None:
        st.check(self)
        legal = CACHE_ORDERS if self.caches else RUN_ORDERS
        if self.sort is not None and self.sort not in legal:
            raise ConfigError(f"{option('sort', self.sort)}: choose from {', '.join(legal)}")
        changes = {"note": self.note is not None, "rename": self.rename is not None, "delete": self.delete}
        for change in (name for name, asked in changes.items() if asked):
            if not self.names:
                raise ConfigError(f"{option(change)} without a name: say which {'cache' if self.caches else 'run'}")
        if self.rename is not None:
            st.check_name(self.rename)
            if len(self.names or ()) > 1:
                raise ConfigError(f"{option('rename', self.rename)} with {len(self.names or ())} names: give one")
        if self.delete and (self.note is not None or self.rename is not None):
            raise ConfigError(f"{option('delete', True)} with a note or a new name: what is deleted has neither")
        if self.yes and not self.delete:
            raise ConfigError(f"{option('yes', True)} without {option('delete', True)}: nothing else asks")
