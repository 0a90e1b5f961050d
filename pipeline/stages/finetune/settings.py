"""Settings of stage three."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.machine import cores
from pipeline.base.precision import LEARNING
from pipeline.base.spelling import option

# --train: how many stages learn, the head among them; None: all. A ResNet's words count as many as they always did.
PARTS: dict[str, int | None] = {"head": 1, "last": 2, "layer4": 2, "layer3+": 3, "all": None}
LAST = ("last", "layer4")  # the last stage and the head: what can go by cached maps
# solver -> highest learning rates (trunk, head) where none is given
LEARNING_RATES = {"adamw": (3e-5, 3e-5), "sgd": (1e-3, 1e-3)}
AUGMENT = ("none", "flip", "crop", "weights")
MAP_AUGMENT = ("none", "flip")  # what can be done to maps
SOLVERS = tuple(LEARNING_RATES)
_RATES = ", ".join(f"{{}} with {solver}" for solver in SOLVERS)
_TRUNK_RATES = _RATES.format(*(f"{trunk:g}" for trunk, _ in LEARNING_RATES.values()))
_HEAD_RATES = _RATES.format(*(f"{head:g}" for _, head in LEARNING_RATES.values()))


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning. Learning rates are used as given: nothing scales them.

    ``identity=False`` marks what changes neither the weights that training gives nor where its state lies.
    """

    run: str = st.run(identity=False)
    train: str = st.option(
        "all",
        "which part of the trunk learns besides the head: all of it, its last stage, or none; layer4 and layer3+ are a "
        "ResNet's stages",
        choices=tuple(reversed(PARTS)),
        group="what learns",
    )
    head: str = st.option(
        "trained", "where the head starts; random is there for comparisons", choices=("trained", "random")
    )
    bn: str = st.option(
        "frozen",
        "BatchNorm's running means and variances: kept, or learnt in the stages that learn",
        choices=("frozen", "train"),
    )
    prefix: bool = st.option(
        True, "with --train last keep the maps before that stage on disk, so that only it runs in each epoch"
    )
    yes: bool = st.option(False, "keep the maps even where they take more than 10 GB", identity=False)
    epochs: int = st.option(3, "passes over the train images", minimum=1, group="steps and learning rates")
    solver: str = st.option("adamw", "how a step is made of a gradient; sgd has momentum", choices=SOLVERS)
    lr_trunk: float | None = st.option(None, f"highest learning rate of the trunk; by default {_TRUNK_RATES}", above=0)
    lr_head: float | None = st.option(None, f"highest learning rate of the head; by default {_HEAD_RATES}", above=0)
    layer_decay: float | None = st.option(
        None, "instead of --lr-trunk: each stage below the head has so many times the rate of the one above", above=0
    )
    weight_decay: float = st.option(
        1e-2, "decay of weights, decoupled with adamw; biases, norms and embeddings have none", minimum=0
    )
    momentum: float = st.option(0.9, "of sgd", minimum=0, below=1)
    warmup: float = st.option(
        0.1, "rise of the learning rate, then a cosine to 0: a share of all steps, or steps from 1 on", minimum=0
    )
    batch_size: int = st.option(32, "images in one step, over all processes", minimum=1)
    accumulate: int = st.option(
        1,
        "pieces that a step is computed in: less memory, the same figures (but with --bn train, which sees pieces)",
        minimum=1,
    )
    clip: float | None = st.option(None, "largest norm of a step's gradient; by default any", above=0)
    augment: str = st.option(
        "none",
        "what each epoch does to a train image: flip, crop (random resized crop), or weights (both, as torchvision's "
        "weights were trained). None by default: a mirrored digit, letter or road sign is another one",
        choices=AUGMENT,
        group="the train images",
    )
    randaugment: bool = st.option(False, "two of RandAugment's operations on each train image besides")
    mixup: float = st.option(0.0, "alpha of mixed train images, 0 = off", minimum=0)
    label_smoothing: float = st.option(0.0, "share of each label spread over all classes", minimum=0, below=1)
    ema: float | None = st.option(
        None,
        "keep an average of the weights with this decay for each step, and score it",
        above=0,
        below=1,
        group="what is kept and scored",
    )
    interpolate: bool = st.option(
        False,
        "score weights between before and after on val, 0, 0.1 ... 1, and keep the best (WiSE-FT)",
        identity=False,
    )
    evaluate: bool = st.option(
        True, "score before and after on the test split, once, when all is chosen", identity=False
    )
    checkpoint_seconds: float = st.option(
        300, "a checkpoint after each epoch, and when so many seconds have passed", minimum=0, identity=False
    )
    fresh: bool = st.option(False, "forget an interrupted training with these settings and start over", identity=False)
    seed: int = st.option(
        0, "seed of the order of the images and of all that is drawn", minimum=0, group="how it is computed"
    )
    precision: str = st.precision("training; bfloat16 by autocast, weights stay float32", *LEARNING)
    force_precision: bool = st.force_precision()
    device: str = st.device()
    workers: int | None = st.option(
        None,
        "decoding threads; by default one per core, which the processes of a machine share",
        minimum=1,
        identity=False,
    )

    def __post_init__(self) -> None:
        st.check(self)
        if self.layer_decay is not None and self.lr_trunk is not None:
            raise ConfigError(
                f"{option('layer_decay', self.layer_decay)} says what {option('lr_trunk')} says: give one of them"
            )
        if self.layer_decay is not None and self.layer_decay > 1:
            raise ConfigError(f"{option('layer_decay')} is {self.layer_decay:g}: it must be at most 1")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"{option('accumulate')} is {self.accumulate}: it must be at most {option('batch_size')}, "
                f"{self.batch_size}"
            )
        if self.bn == "train" and self.train == "head":
            raise ConfigError(
                f"{option('bn', 'train')} says nothing to {option('train', 'head')}, which has no BatchNorm: "
                "leave it out"
            )
        if self.solver != "sgd" and self.momentum != 0.9:
            raise ConfigError(
                f"{option('momentum')} says nothing to {option('solver', self.solver)}: leave it out, or give "
                f"{option('solver', 'sgd')}"
            )
        of_maps = dict.fromkeys(LAST, MAP_AUGMENT)
        legal = {**of_maps, "head": ("none",)}.get(self.train, AUGMENT) if self.prefix else AUGMENT
        if self.augment not in legal or (self.randaugment and legal != AUGMENT):
            asked = option("randaugment", True) if self.augment in legal else option("augment", self.augment)
            kept = "the maps before the last stage" if self.train in LAST else "cached features"
            raise ConfigError(
                f"{asked} needs the images, and {option('train', self.train)} goes by {kept} (which take "
                f"{' or '.join(option('augment', a) for a in legal)} alone): give {option('prefix', False)} to "
                "go through the whole trunk in each epoch"
            )

    @property
    def by_maps(self) -> bool:
        """Whether training goes by the cached maps before the last stage."""
        return self.train in LAST and self.prefix

    @property
    def threads(self) -> int:
        """Decoding threads."""
        return self.workers or cores()
