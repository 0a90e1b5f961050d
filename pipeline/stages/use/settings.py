"""Settings of using a run: predict, export, trace."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option

if TYPE_CHECKING:
    import numpy
    import PIL.Image
    from numpy.typing import NDArray

    Picture = PIL.Image.Image | NDArray[numpy.uint8]
else:
    Picture = Any  # not imported for help

FORMATS = ("table", "csv", "jsonl")
SUFFIXES = {"state_dict": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}


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
    format: str = st.option("onnx", "what to write", choices=tuple(SUFFIXES))
    out: Path | None = st.option(None, "the file; by default exported.* in the run's folder")

    def __post_init__(self) -> None:
        st.check(self)


@dataclass(frozen=True)
class TraceSettings:
    """Settings of the picture."""

    target: str | None = st.argument("a cache or a run whose trunk and classes are shown", default=None, made=True)
    trunk: str = st.option("resnet50", "the network to show when no target is given")
    classes: int = st.option(10, "how many classes the new head has when no target is given", minimum=2)
    image_size: int = st.option(224, "side of the image when no target is given", minimum=32)

    def __post_init__(self) -> None:
        st.check(self)
