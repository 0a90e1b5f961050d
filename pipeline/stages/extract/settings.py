"""Settings of stage one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.trunk.identity import INTERPOLATIONS, Changes

DECODINGS = ("scaled", "exact")


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of stage one."""

    source: str = st.argument(
        "a folder (train/ val/ test/ of class folders, class folders, or images without labels), a CSV manifest "
        "path,label[,split], `digits`, or `torchvision:NAME`"
    )
    out: Path | None = st.option(None, "the cache file to write; by default a telling name under features/")
    name: str | None = st.option(None, "the cache's name, instead: NAME.h5 under features/")
    trunk: str = st.option(
        "resnet50",
        "the network whose features are kept: a classification network of torchvision's, or timm:NAME or timm:NAME.TAG",
        group="the trunk",
    )
    weights: str = st.option(
        "DEFAULT",
        "the name of weights (DEFAULT: torchvision's best, or timm's tag), a .pth or .safetensors state dict, or "
        "random:SEED",
        metavar="WEIGHTS",
    )
    preset: str | None = st.option(
        None,
        "take the transform of these weights instead: a name such as IMAGENET1K_V1, or timm:NAME.TAG; a file does not "
        "say which is its own",
    )
    image_size: int | None = st.option(
        None,
        "side of the square the trunk sees, the resize in proportion; by default the weights' own",
        minimum=32,
        group="the transform",
    )
    resize: int | None = st.option(None, "the image's short side before it is cropped", minimum=32)
    crop: int | None = st.option(None, "side of the square cut out of its centre", minimum=32)
    interpolation: str | None = st.option(None, "how it is resized", choices=INTERPOLATIONS)
    mean: tuple[float, ...] | None = st.option(
        None, "what is taken from red, green and blue in [0, 1] (or one for all)"
    )
    std: tuple[float, ...] | None = st.option(None, "what they are divided by then", above=0)
    layer: str = st.option(
        "last",
        "which features: what goes into the classifier (a ResNet's avgpool), or the mean of the stage before the last "
        "(previous; a ResNet's layer3)",
        group="the features, and how they are computed",
    )
    decode: str = st.option(
        "auto",
        "scaled: a JPEG that is much larger than the trunk wants is shrunk while it is decoded, which is several times "
        "as fast; exact: the trunk sees torchvision's pixels, bit for bit; auto: as in the file that is there, else "
        f"{DECODINGS[0]}",
        choices=("auto", *DECODINGS),
    )
    dtype: str = st.option("float16", "type of the stored features", choices=("float16", "float32"))
    engine: str = st.option(
        "auto",
        "what runs the trunk; auto takes the fastest that is installed",
        choices=("auto", "torch", "onnxruntime"),
    )
    precision: str = st.precision(
        "the trunk; int8 is the fastest on a CPU, bfloat16 nearer to float32, tf32 (NVIDIA's GPUs alone) nearer still; "
        "auto: bfloat16 where the device has it in hardware, else float32"
    )
    force_precision: bool = st.force_precision()
    calibration: str | None = st.option(
        None,
        "int8: between the bounds of this cache instead of new ones, so that features of two sources are of one kind",
        metavar="CACHE",
    )
    recalibrate: bool = st.option(
        False, "int8: find new bounds although the source's cache has some; makes another file"
    )
    device: str = st.device()
    batch_size: int | None = st.option(
        None,
        "images in one forward pass; by default 16 on a CPU, 128 on a GPU (64 on mps), more if they are small",
        minimum=1,
    )
    workers: int | None = st.option(
        None, "decoding threads; by default one per core, which the processes of a machine share", minimum=1
    )
    block_rows: int | None = st.option(
        None, "rows written and checksummed together; by default 128 on a CPU, 1024 on a GPU (512 on mps)", minimum=1
    )
    val_fraction: float = st.option(
        0.15, "share of train set aside as val where the source has none", minimum=0, below=1, group="splits"
    )
    test_fraction: float = st.option(
        0.15, "share of train set aside as test where the source has none", minimum=0, below=1
    )
    split_seed: int = st.option(0, "seed of the split")
    views: int = st.option(
        0, "augmented copies of each train image to store beside (crop and flip)", minimum=0, group="augmented copies"
    )
    view_seed: int = st.option(0, "seed of the copies", minimum=0)
    path_column: str | None = st.column("path", group="the columns of a manifest")
    label_column: str | None = st.column("label", none=True)
    split_column: str | None = st.column("split", none=True)
    max_failures: float = st.option(
        0.01,
        "share of images that may fail before the job ends with an error; unless it is 0, five may, or half of fewer "
        "than ten",
        minimum=0,
        group="images that fail or change",
    )
    max_pixels: int | None = st.option(
        None, "an image of more pixels counts as failed; by default Pillow's limit, 89 million", minimum=1
    )
    rehash: bool = st.option(False, "read every image again instead of trusting unchanged sizes and times")

    def __post_init__(self) -> None:
        st.check(self)
        st.check_out(self.out, self.name)
        for name in ("calibration", "recalibrate"):
            if getattr(self, name) and self.precision != "int8":
                given = option(name, getattr(self, name))
                raise ConfigError(f"{given} is for {option('precision', 'int8')}: give both or neither")
        if self.calibration is not None and self.recalibrate:
            both = option("calibration", self.calibration), option("recalibrate", True)
            raise ConfigError(f"{' and '.join(both)}: give one of them")

    def changes(self) -> Changes:
        """What the weights' own transform is to be changed in."""
        return Changes(self.image_size, self.resize, self.crop, self.interpolation, self.mean, self.std)
