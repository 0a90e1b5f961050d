"""Settings of using a run: predict, export, trace."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.settings import LATEST
from pipeline.base.spelling import option

if TYPE_CHECKING:
    import numpy
    import PIL.Image
    from numpy.typing import NDArray

    Picture = PIL.Image.Image | NDArray[numpy.uint8]
else:
    Picture = Any  # not imported for help

FORMATS = ("table", "csv", "jsonl")
TABLES = (".npz", ".csv", ".parquet")
PICKLED = (".pth", ".pt")
SUFFIXES = {"state_dict": (".safetensors", *PICKLED), "onnx": (".onnx",), "torch_export": (".pt2",)}


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction."""

    run: str = st.run(default=dataclasses.MISSING)
    images: tuple[str | Picture, ...] = st.argument(
        "images, folders (with all below them), patterns ('photos/**/*.jpg'), CSV manifests, `digits` or another "
        "source by its word, or - for paths on standard input, one a line; from Python PIL images and arrays, too",
        metavar="IMAGE",
    )
    top: int = st.option(5, "how many classes to show for each image", minimum=1)
    all: bool = st.option(False, "every class's probability, in a column of its name")
    threshold: float = st.option(0.0, "name no class where the likeliest is less probable", minimum=0, below=1)
    format: str = st.option("table", "how to print; csv and jsonl as the images come", choices=FORMATS)
    trace: bool = st.option(False, "show each image's way: input, features, head, softmax, class")
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
        if self.trace and self.format != "table":
            raise ConfigError(
                f"{option('trace', True)} is for people: leave it out with {option('format', self.format)}"
            )


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export."""

    run: str = st.run()
    format: str | None = st.option(
        None, "what to write; by default what the file's ending says, or onnx", choices=tuple(SUFFIXES)
    )
    out: Path | None = st.option(
        None,
        "the file: .safetensors, .pth or .pt (state_dict), .onnx, .pt2 (torch_export); by default exported.* in the "
        "run's folder",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        st.check(self)
        if self.out is None:
            return
        said = next((format for format, endings in SUFFIXES.items() if self.out.suffix in endings), None)
        if said is None:
            legal = ", ".join(f"{' '.join(endings)} ({format})" for format, endings in SUFFIXES.items())
            raise ConfigError(f"{option('out', self.out)}: the ending says what is written: give {legal}")
        if self.format not in (None, said):
            raise ConfigError(
                f"{option('out', self.out)} is a {said} by its ending, and {option('format', self.format)} is another: "
                "leave one of them out"
            )

    @property
    def asked(self) -> str:
        """The format that is meant."""
        if self.out is None:
            return self.format or "onnx"
        return next(format for format, endings in SUFFIXES.items() if self.out.suffix in endings)


@dataclass(frozen=True)
class RowsSettings:
    """Settings of a table of rows."""

    target: str = st.argument(
        "a cache, for its features, or a run, for its probabilities on its cache's rows; `latest` is the cache",
        metavar="CACHE|RUN",
        default=LATEST,
        made=True,
    )
    out: Path | None = st.option(None, "the file to write: FILE.npz, FILE.csv or FILE.parquet", metavar="FILE")
    split: tuple[str, ...] | None = st.option(
        None,
        "which rows; by default all, but of a run not those of test, since its answers there are a look at the test "
        "split",
        choices=("train", "val", "test", "none", "all"),
        metavar="SPLIT",
    )
    device: str = st.device()

    def __post_init__(self) -> None:
        st.check(self)
        if self.out is None or self.out.suffix not in TABLES:
            given = option("out") if self.out is None else option("out", self.out)
            what = "is missing" if self.out is None else "has another ending"
            raise ConfigError(f"{given} {what}: give a file that ends in {', '.join(TABLES)}")


@dataclass(frozen=True)
class TraceSettings:
    """Settings of the picture."""

    target: str | None = st.argument("a cache or a run whose trunk and classes are shown", default=None, made=True)
    trunk: str = st.option("resnet50", "the network to show when no target is given")
    classes: int = st.option(10, "how many classes the new head has when no target is given", minimum=2)
    image_size: int = st.option(224, "side of the image when no target is given", minimum=32)

    def __post_init__(self) -> None:
        st.check(self)
