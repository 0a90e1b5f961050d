"""The search over minibatch heads: random settings in brackets of successive halving, each bracket one batched job.

A finished bracket is written down at once, so that the same command goes on after it was stopped. Knows train and val
rows only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError, HeadError
from pipeline.base.settings import record
from pipeline.base.workspace import Workspace
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.halving import successive_halving
from pipeline.heads.minibatch.space import sample_configs
from pipeline.stages.learn.kept import Fitted, minibatch_head, observed, trace_row
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.trials import Trial, both, line_of, trial_of
from pipeline.store import Cache
from pipeline.store.rows import Rows

BRACKET = 27  # configurations that are halved together: 27 -> 9 -> 3 -> 1
ETA = 3
RUNGS = 3  # halvings within a bracket
MLP_SPACE: dict[str, Any] = {
    "kind": ["mlp"],
    "width": [256, 512, 1024],
    "depth": [1, 2],
    "dropout": {"low": 0.0, "high": 0.6},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
    "label_smoothing": [0.0, 0.1],
}


def minibatch_search(
    cache: Cache, fitted: Rows, chosen: Rows, settings: SearchSettings, desk: Workspace
) -> tuple[list[Trial], Fitted, dict[str, str]]:
    """The trials, ranked; the chosen configuration's head, trained alone on what it is to learn from; no pictures.

    With ``settings.optuna`` the configurations are Optuna's, one after the other; otherwise random ones in brackets.

    Raises:
        ConfigError: a space that is not one.
        HeadError: every head diverged, or the budget ended before the first epoch.
    """
    space = read_space(settings.space)
    base = MinibatchConfig(epochs=settings.epochs, seed=settings.seed, order_seed=settings.seed)
    state = _State(cache, settings, space, desk)
    if settings.optuna is None:
        done = _halved(cache, fitted, chosen, settings, desk, space, base, state)
    else:
        from pipeline.stages.learn.adaptive import optuna_trials

        done = optuna_trials(cache, fitted, chosen, settings, desk, space, base, state.name)
    trials = sorted(
        (trial_of(line, space) for line in done if line["epochs"] or line["note"]),
        key=lambda t: (bool(t.note), *t.rank(settings.metric)),
    )
    if not trials:
        raise HeadError("the search ended before the first epoch: give a longer --budget")
    if trials[0].note:
        raise HeadError("every head diverged: lower the learning rates of --space")
    best = final_head(cache, fitted, chosen, settings, MinibatchConfig(**trials[0].record["config"]))
    tried = len(done) if settings.optuna else sum(map(len, state.finished()))
    if tried >= settings.trials:
        state.forget()
    else:
        desk.watch.say(f"{tried} of {settings.trials} heads were tried to the end: the same command goes on from there")
    return trials, best, {}


def _halved(
    cache: Cache,
    fitted: Rows,
    chosen: Rows,
    settings: SearchSettings,
    desk: Workspace,
    space: Mapping[str, Any],
    base: MinibatchConfig,
    state: _State,
) -> list[dict[str, Any]]:
    """Random configurations in brackets of successive halving; one line for each."""
    configs = sample_configs(space, settings.trials, settings.seed, base)
    brackets = [configs[i : i + BRACKET] for i in range(0, len(configs), BRACKET)]
    done = state.finished()
    if done:
        desk.watch.say(f"resuming: {len(done)} of {len(brackets)} brackets are done")
    ends = time.monotonic() + settings.budget if settings.budget else None
    with desk.watch.track(
        "search", len(configs), unit="heads", done=sum(len(b) for b in brackets[: len(done)])
    ) as tracker:
        for bracket in brackets[len(done) :]:
            if ends is not None and time.monotonic() >= ends:
                break
            lines = _bracket(cache, fitted, chosen, settings, bracket, ends)
            if ends is None or time.monotonic() < ends:  # what the budget cut short is done again next time
                state.add(lines)
            done.append(lines)
            tracker.advance(len(bracket))
    return [line for lines in done for line in lines]


def read_space(space: str) -> dict[str, Any]:
    """The space of that name, or in that TOML file.

    Raises:
        ConfigError: it is neither.
    """
    if space == "mlp":
        return MLP_SPACE
    path = Path(space)
    if path.suffix != ".toml":
        raise ConfigError(f"--space {space!r} is not known: choose from exact, mlp, or give a .toml file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--space {space} cannot be read ({error.strerror}): give a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {space} is not TOML: {error}") from error


def _bracket(
    cache: Cache,
    fitted: Rows,
    chosen: Rows,
    settings: SearchSettings,
    configs: Sequence[MinibatchConfig],
    ends: float | None,
) -> list[dict[str, Any]]:
    """One bracket's trials as plain lines."""
    fits = successive_halving(
        fitted.X,
        fitted.y,
        chosen.X,
        chosen.y,
        n_classes=len(cache.classes),
        configs=configs,
        eta=ETA,
        min_epochs=max(1, settings.epochs // ETA**RUNGS),
        max_epochs=settings.epochs,
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
        should_stop=None if ends is None else lambda: time.monotonic() >= ends,
    )
    return [line_of(cache, fitted, chosen, fit) for fit in fits]


def final_head(cache: Cache, fitted: Rows, chosen: Rows, settings: SearchSettings, config: MinibatchConfig) -> Fitted:
    """The chosen configuration trained once more: on train + val for all its epochs, or on train with val watching."""
    rows = both(fitted, chosen) if settings.refit else fitted
    fit = fit_minibatch(
        rows.X,
        rows.y,
        n_classes=len(cache.classes),
        configs=[dataclasses.replace(config, patience=None) if settings.refit else config],
        X_val=None if settings.refit else chosen.X,
        y_val=None if settings.refit else chosen.y,
        class_weight=settings.weighting,
        class_names=cache.classes,
        device=settings.device,
    )[0]
    if fit.diverged:
        raise HeadError("the chosen head diverged on train + val: search with --no-refit, or lower learning rates")
    return minibatch_head(fit, observed([trace_row(e) for e in fit.trace], len(cache.classes)))


class _State:
    """The finished brackets of this very search, one line each.

    ``name`` is of what decides the trials: the cache's key and content, the space's values (not where its file lies,
    so that other machines join the same search) and the settings. How many trials there are decides the brackets, but
    not what Optuna tries: more of them go on with the same study.
    """

    def __init__(self, cache: Cache, settings: SearchSettings, space: Mapping[str, Any], desk: Workspace) -> None:
        beside = {"budget", "cache", "device", "evaluate", "optuna", "refit", "space"}
        if settings.optuna is not None:
            beside.add("trials")
        counted = {k: v for k, v in record(settings).items() if k not in beside}
        subject = json.dumps([cache.key, cache.content, counted, space], sort_keys=True)
        self.name = f"search-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"
        self._path = desk.runs / f".{self.name}.jsonl"

    def finished(self) -> list[list[dict[str, Any]]]:
        """Their trials; a line that a kill cut short is left out."""
        if not self._path.exists():
            return []
        whole = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write one down."""
        kept = "".join(json.dumps(bracket) + "\n" for bracket in [*self.finished(), list(lines)])
        draft = self._path.with_suffix(".draft")
        draft.write_text(kept, encoding="utf-8")
        draft.replace(self._path)

    def forget(self) -> None:
        """The search is over."""
        self._path.unlink(missing_ok=True)
