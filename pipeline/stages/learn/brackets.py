"""The search over minibatch heads: random settings in brackets of successive halving, each bracket one batched job.

A finished bracket is written down at once, so that the same command goes on after it was stopped. Knows train and val
rows only.
"""

from __future__ import annotations

import dataclasses
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.spelling import option
from pipeline.heads.kinds import KINDS
from pipeline.heads.kinds.kind import kind_of
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.halving import Halving, successive_halving
from pipeline.heads.minibatch.space import sample_configs
from pipeline.heads.problem import check_device
from pipeline.heads.rows import StandardRows
from pipeline.runs.held_out import HeldOut
from pipeline.stages.learn.held_out import of_folds, refit_folds
from pipeline.stages.learn.kept import Fit, make_head, minibatch_fit, observed, trace_row
from pipeline.stages.learn.settings import EXACT, SearchSettings
from pipeline.stages.learn.state import SearchState
from pipeline.stages.learn.task import Task
from pipeline.stages.learn.trials import Line, Ranking, line_of, trial_of
from pipeline.store.rows import Rows

BRACKET = 27  # configurations that are halved together: 27 -> 9 -> 3 -> 1
ETA = 3
RUNGS = 3  # halvings within a bracket


@dataclass(frozen=True)
class Space:
    """What is tried: the settings that vary, each with its choices or range, and what the others are (``base``)."""

    varied: Mapping[str, Any]
    base: MinibatchConfig

    @classmethod
    def of(cls, settings: SearchSettings) -> Space:
        """The space that the settings name.

        Raises:
            ConfigError: it is none.
        """
        seed = settings.seed
        return cls(read_space(settings.space), MinibatchConfig(epochs=settings.epochs, seed=seed, order_seed=seed))


def minibatch_search(task: Task[SearchSettings]) -> Ranking:
    """The trials, ranked; the chosen configuration's head, trained alone on what it is to learn from; no pictures.

    With ``settings.optuna`` the configurations are Optuna's, one after the other; otherwise random ones in brackets.

    Raises:
        ConfigError: a space that is not one.
        HeadError: every head diverged, or the budget ended before the first epoch.
    """
    settings, space = task.settings, Space.of(task.settings)
    state = SearchState(task, space.varied)
    task.say_if_not_held(StandardRows.held_bytes(task.train.X, check_device(task.device)))
    if settings.optuna is None:
        done = _halved(task, space, state)
    else:
        from pipeline.stages.learn.adaptive import optuna_trials

        done = optuna_trials(task, space.varied, space.base, state.name)
    trials = sorted(
        (trial_of(line, space.varied) for line in done if line["epochs"] or line["note"]),
        key=lambda t: (bool(t.note), *t.order(settings.metric)),
    )
    if not trials:
        raise HeadError(f"the search ended before the first epoch: give a longer {option('budget')}")
    if trials[0].note:
        raise HeadError(f"every head diverged: lower the learning rates of {option('space')}")
    config = MinibatchConfig(**trials[0].record["config"])
    learned = task.both if settings.refit else task.train
    fit, held_out = _final_fit(task, learned, config), _held_out(task, config) if settings.refit else None
    tried = len(done) if settings.optuna else sum(map(len, state.finished()))
    if tried < settings.trials:
        task.desk.watch.say(
            f"{tried} of {settings.trials} heads were tried to the end: the same command goes on from there"
        )
    return Ranking(trials, fit, learned, held_out=held_out)


def state_of(task: Task[SearchSettings]) -> SearchState | None:
    """Where the search stands on the disk; None for one that keeps nothing there, or leaves that to Optuna.

    Raises:
        ConfigError: a space that is not one.
    """
    if task.settings.space == EXACT or task.settings.optuna is not None:
        return None
    return SearchState(task, Space.of(task.settings).varied)


def _halved(task: Task[SearchSettings], space: Space, state: SearchState) -> list[Line]:
    """Random configurations in brackets of successive halving; one line for each."""
    settings, watch = task.settings, task.desk.watch
    configs = sample_configs(space.varied, settings.trials, settings.seed, space.base)
    brackets = [configs[i : i + BRACKET] for i in range(0, len(configs), BRACKET)]
    done = state.finished()
    if done:
        watch.say(f"resuming: {len(done)} of {len(brackets)} brackets are done")
    ends = time.monotonic() + settings.budget if settings.budget else None
    with watch.track("search", len(configs), unit="heads", done=sum(len(b) for b in brackets[: len(done)])) as tracker:
        for bracket in brackets[len(done) :]:
            if ends is not None and time.monotonic() >= ends:
                break
            lines = _bracket(task, bracket, ends)
            if ends is None or time.monotonic() < ends:  # what the budget cut short is done again next time
                state.add(lines)
            done.append(lines)
            tracker.advance(len(bracket))
    return [line for lines in done for line in lines]


def read_space(space: str) -> Mapping[str, Any]:
    """The space of the kind of that name, or in that TOML file.

    Raises:
        ConfigError: it is neither.
    """
    spaces = {name: own for name in KINDS if (own := kind_of(name).SPACE) is not None}
    if space in spaces:
        return spaces[space]
    path = Path(space)
    if path.suffix != ".toml":
        raise ConfigError(
            f"{option('space', space)} is not known: choose from exact, {', '.join(spaces)}, or give a .toml file"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{option('space', space)} cannot be read ({error.strerror}): give a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option('space', space)} is not TOML: {error}") from error


def _bracket(task: Task[SearchSettings], configs: Sequence[MinibatchConfig], ends: float | None) -> list[Line]:
    """One bracket's trials as plain lines."""
    epochs = task.settings.epochs
    fits = successive_halving(
        task.problem(task.train, val=task.val),
        configs,
        Halving(max(1, epochs // ETA**RUNGS), epochs, ETA),
        should_stop=None if ends is None else lambda: time.monotonic() >= ends,
    )
    return [line_of(task, fit) for fit in fits]


def _final_fit(task: Task[SearchSettings], learned: Rows, config: MinibatchConfig) -> Fit:
    """The chosen configuration trained once more: on train + val for all its epochs, or on train with val watching."""
    refit = task.settings.refit
    problem = task.problem(learned, val=None if refit else task.val)
    found = fit_minibatch(problem, [dataclasses.replace(config, patience=None) if refit else config])[0]
    if found.diverged:
        raise HeadError(
            f"the chosen head diverged on train + val: search with {option('refit', False)}, or lower learning rates"
        )
    return minibatch_fit(found, observed([trace_row(e) for e in found.trace], len(task.cache.classes)))


def _held_out(task: Task[SearchSettings], config: MinibatchConfig) -> HeldOut | None:
    """What heads of the chosen configuration say of each row of train + val that they did not learn from."""
    folds, rows = refit_folds(task), task.both
    if folds is None:
        return None
    logits = np.empty((len(rows), len(task.cache.classes)), np.float32)
    with task.desk.watch.track("held-out logits", int(folds.max()) + 1, unit="heads") as tracker:
        for number in range(int(folds.max()) + 1):
            out = folds == number
            fit = _final_fit(task, Rows(rows.X[~out], rows.y[~out]), config)
            logits[out] = make_head(task.cache, fit).logits(rows.X[out])
            tracker.advance()
    return of_folds(task, logits, folds)
