"""Settings of stage two: one head, a search for the best one, the baselines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base import settings as st
from pipeline.base.errors import ConfigError
from pipeline.base.spelling import option
from pipeline.heads.choice import DEFAULT_C, METRIC, METRICS, PENALTIES
from pipeline.heads.kinds import KINDS
from pipeline.heads.minibatch.config import LEARNING_RATES, SCHEDULES, SOLVERS, WIDE, MinibatchConfig

EXACT = "exact"
GIB = 1 << 30
_RATES = ", ".join(f"{rate:g} with {solver}" for solver, rate in LEARNING_RATES.items())
_MINIBATCH = {f.name for f in dataclasses.fields(MinibatchConfig)}
VIEWS_HELP = "learn from so many augmented copies of each train image, too (made by `pipeline extract --views`)"


@dataclass(frozen=True)
class HeadSettings:
    """What one head and a search for the best one have in common.

    ``identity=False`` marks what decides no trial of a search, so that an interrupted one goes on when it is another.
    """

    cache: str = st.cache(identity=False)
    class_weight: str = st.option("none", "balanced weighs each class by 1 / its share", choices=("none", "balanced"))
    views: int = st.option(0, VIEWS_HELP, minimum=0)
    seed: int = st.option(MinibatchConfig.seed, "seed of all that is drawn at random", minimum=0)
    device: str = st.device("cpu", "a head is fitted", identity=False)
    memory: float | None = st.option(
        None,
        "GiB that rows may be held in; by default an eighth of the machine's memory, on a GPU a third of what is free",
        above=0,
        identity=False,
    )

    def __post_init__(self) -> None:
        st.check(self)

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes."""
        return None if self.memory is None else int(self.memory * GIB)

    @property
    def val_metric(self) -> Literal["accuracy", "log_loss"]:
        """What val chooses a minibatch head's epoch by: the solver watches these two."""
        return "accuracy"

    @property
    def weighting(self) -> Any:
        """The solvers' ``class_weight``."""
        return None if self.class_weight == "none" else self.class_weight


@dataclass(frozen=True)
class TrainSettings(HeadSettings):
    """Settings of one head."""

    solver: str = st.option(
        EXACT, "exact: the optimum of penalised logistic regression; adamw, sgd: minibatches", choices=(EXACT, *SOLVERS)
    )
    C: float = st.option(DEFAULT_C, "inverse of the penalty, as scikit-learn's", above=0, group="the exact head")
    kind: str = st.option(
        MinibatchConfig.kind, "the head", choices=KINDS, group=f"minibatch heads (--solver {' or '.join(SOLVERS)})"
    )
    lr: float | None = st.option(
        MinibatchConfig.lr,
        f"learning rate at the start; by default {_RATES}, on {WIDE:,} features (more on fewer)",
        above=0,
    )
    weight_decay: float = st.option(
        MinibatchConfig.weight_decay, "decoupled decay of weights, not of biases", minimum=0
    )
    epochs: int = st.option(MinibatchConfig.epochs, "passes over the train rows", minimum=1)
    patience: int | None = st.option(
        MinibatchConfig.patience, "epochs without a better val figure before it stops; by default none", minimum=1
    )
    batch_size: int = st.option(MinibatchConfig.batch_size, "rows in one step", minimum=1)
    schedule: str = st.option(MinibatchConfig.schedule, "how the learning rate falls", choices=SCHEDULES)
    momentum: float = st.option(MinibatchConfig.momentum, "of sgd", minimum=0, below=1)
    label_smoothing: float = st.option(
        MinibatchConfig.label_smoothing, "share of each label spread over all classes", minimum=0, below=1
    )
    mixup: float = st.option(MinibatchConfig.mixup, "alpha of mixed rows, 0 = off", minimum=0)
    width: int = st.option(
        MinibatchConfig.width, "units of a hidden layer", minimum=1, group="hidden layers (--kind mlp)"
    )
    depth: int = st.option(MinibatchConfig.depth, "hidden layers", minimum=1)
    dropout: float = st.option(MinibatchConfig.dropout, "share of hidden units dropped", minimum=0, below=1)

    def __post_init__(self) -> None:
        st.check(self)
        of_minibatch = {f.name for f in dataclasses.fields(TrainSettings)} & _MINIBATCH - {"solver", "seed"}
        mine, solvers = (of_minibatch, SOLVERS) if self.solver == EXACT else ({"C"}, (EXACT,))
        for field in dataclasses.fields(self):
            if field.name in mine and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{option(field.name)} says nothing to {option('solver', self.solver)}: leave it out, or give "
                    f"{' or '.join(option('solver', name) for name in solvers)}"
                )
        if self.solver != EXACT:
            self.config()

    def config(self) -> MinibatchConfig:
        """The minibatch head's settings.

        Raises:
            ConfigError: values that do not go together.
        """
        names = {f.name for f in dataclasses.fields(self)} & _MINIBATCH
        return MinibatchConfig(**{name: getattr(self, name) for name in names})


CV_HELP = "choose by cross-validation over train + val with so many folds; 0 chooses on val"
SPACE_HELP = "exact: the penalties --Cs; mlp: minibatch heads with a hidden layer; or a TOML file of settings"

SHOTS_HELP = (
    "few-shot: learn from so many images of each class instead, drawn --draws times; test is scored at the end. With "
    "`all` (every train image) among them a learning curve: how many more labels would bring what, from val alone, "
    "test is not read"
)
ALL: Literal["all"] = "all"  # the word of ``shots``


@dataclass(frozen=True)
class SearchSettings(HeadSettings):
    """Settings of a search."""

    space: str = st.option(EXACT, SPACE_HELP, metavar="SPACE", identity=False)
    metric: str = st.option(
        METRIC, "what is chosen by; of equals the lower log-loss, then the stronger penalty", choices=METRICS
    )
    refit: bool = st.option(True, "learn from train + val once the choice is made", identity=False)
    evaluate: bool = st.option(True, "score the chosen head on test, once", identity=False)
    Cs: tuple[float, ...] | None = st.option(
        None,
        f"inverse penalties to try; by default {len(PENALTIES)} from {PENALTIES[0]:g} to {PENALTIES[-1]:g}",
        above=0,
        group=f"exact heads (--space {EXACT})",
    )
    cv: int = st.option(0, CV_HELP, minimum=0)
    shots: tuple[int | Literal["all"], ...] | None = st.option(None, SHOTS_HELP, minimum=1)
    draws: int = st.option(5, "with --shots: how often each number of images is drawn", minimum=1)
    trials: int = st.option(
        54,
        "configurations to try, with --optuna by all processes together",
        minimum=1,
        group="minibatch heads (--space mlp or a TOML file)",
    )
    epochs: int = st.option(MinibatchConfig.epochs, "epochs that the best ones get", minimum=1)
    budget: float | None = st.option(None, "seconds after which no more are tried", above=0, identity=False)
    optuna: Path | None = st.option(
        None,
        "adaptive search by Optuna, its journal in FILE, which several processes or machines may share",
        metavar="FILE",
        identity=False,
    )

    def __post_init__(self) -> None:
        st.check(self)
        if self.cv == 1:
            raise ConfigError(f"{option('cv')} is 1: it must be 0 (choose on val) or at least 2 folds")
        if self.space != EXACT:
            for name, value in (("cv", self.cv), ("Cs", self.Cs), ("shots", self.shots)):
                if value:
                    raise ConfigError(
                        f"{option(name)} is for the exact heads: leave it out, or give {option('space', EXACT)}"
                    )
        else:
            fields = {f.name: f.default for f in dataclasses.fields(self)}
            for name in ("optuna", "budget", "trials", "epochs"):
                if getattr(self, name) != fields[name]:
                    raise ConfigError(
                        f"{option(name)} is for minibatch heads: give {option('space', 'mlp')} or a .toml file with it"
                    )
        if self.shots and (self.cv or self.views):
            raise ConfigError(
                f"{option('shots')} draws from the train images: leave out {option('cv')} and {option('views')}"
            )
        if self.cv and self.views:
            raise ConfigError(
                f"{option('cv')} would learn from augmented copies of the images that it holds out: leave out "
                f"{option('cv')} or {option('views')}"
            )

    @property
    def val_metric(self) -> Literal["accuracy", "log_loss"]:
        """What is chosen by, as far as the solver watches it."""
        return "log_loss" if self.metric == "log_loss" else "accuracy"

    @property
    def penalties(self) -> tuple[float, ...]:
        """The values of C to try, ascending, each once."""
        return tuple(sorted(set(self.Cs))) if self.Cs else PENALTIES


# heads.baselines.BASELINES, which the command line cannot read without importing torch; a test holds them together.
NAMES = ("majority", "centroid", "cosine-centroid", "knn10", "knn20", "knn100", "knn200", "ridge", "logreg")


@dataclass(frozen=True)
class BaselineSettings:
    """Settings of the baselines."""

    cache: str = st.cache()
    names: tuple[str, ...] = st.option(NAMES, "which baselines", choices=NAMES)
    test: bool = st.option(False, "score on test, too, and count it as a run scored there; by default on val alone")
    floors: bool = st.option(
        False, "also what chance gives (shuffled labels) and what 22 plain numbers of each image give"
    )
    max_iter: int = st.option(1000, "iterations that the logistic regression may take", minimum=1)

    def __post_init__(self) -> None:
        st.check(self)
