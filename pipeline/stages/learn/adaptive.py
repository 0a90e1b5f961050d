"""The adaptive search over minibatch heads: Optuna proposes, heads are trained one by one, poor ones are pruned.

The journal file is the only thing that processes share: each asks it what to try next and tells it what came out, so
that the same command, started several times or on several machines, does one search together; stopped, it goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.records import parse
from pipeline.base.schema import Malformed, made
from pipeline.base.spelling import option
from pipeline.heads.minibatch.config import MinibatchConfig
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.heads.minibatch.passes import Epoch, FitResult
from pipeline.heads.minibatch.space import WHOLE, sample_configs
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.task import Task
from pipeline.stages.learn.trials import Line, line_of

LINE = "line"  # the attribute of a trial that holds its line of trials.jsonl


def optuna_trials(task: Task[SearchSettings], space: Mapping[str, Any], base: MinibatchConfig, name: str) -> list[Line]:
    """Try until the study ``name`` has ``settings.trials`` finished trials of all processes; a line for each of them.

    A trial's draws depend on the seed, its number and the trials before it: alone and not stopped, the same command
    tries the same, and no two processes draw from the same stream. A trial that the budget cuts short is in this
    answer, but is not finished: when the search goes on, another takes its place.

    Raises:
        ConfigError: Optuna is not installed, the file is no journal that can be written, or the space is not one.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"{option('optuna')} needs Optuna: pip install optuna") from error
    settings, watch = task.settings, task.desk.watch
    sample_configs(space, settings.trials, settings.seed, base)  # names what is wrong with the space
    study = _study(settings, name)
    states = optuna.trial.TrialState

    def finished() -> list[Line]:
        over = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        return [_line_of(trial, settings.optuna) for trial in over]

    ends = time.monotonic() + settings.budget if settings.budget else float("inf")
    lines = finished()
    if lines:
        watch.say(f"the journal holds {len(lines)} finished trials of this search")
    with watch.track("search", settings.trials, unit="heads", done=min(len(lines), settings.trials)) as tracker:
        while len(lines) < settings.trials and time.monotonic() < ends:
            trial = study.ask()
            # Seeded by the trial's number, which no two processes share.
            study.sampler = optuna.samplers.TPESampler(seed=(settings.seed * 1_000_003 + trial.number) % 2**32)
            try:
                fit, state = _fit(task, _suggest(trial, space, base), trial, ends)
            except BaseException:
                study.tell(trial, state=states.FAIL)  # or it would look as if it were still running somewhere
                raise
            line = line_of(task, fit)
            trial.set_user_attr(LINE, json.dumps(line))
            study.tell(trial, line["val"][settings.metric] if state == states.COMPLETE else None, state=state)
            if state == states.FAIL:
                return [*finished(), line]
            before, lines = len(lines), finished()
            tracker.advance(min(len(lines), settings.trials) - before)  # those of other processes count, too
    return lines


def _line_of(trial: Any, file: Path | None) -> Line:
    """The line that a finished trial holds.

    Raises:
        ConfigError: it holds none.
    """
    try:
        return parse(made(trial.user_attrs.get(LINE), str), Line)
    except Malformed as why:
        raise ConfigError(
            f"{option('optuna', file)}: trial {trial.number} is none of ours ({why}): give a new file"
        ) from why


def _study(settings: SearchSettings, name: str) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    assert settings.optuna is not None
    file = settings.optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise ConfigError(f"{option('optuna', file)} cannot be written (it is no file): give a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{option('optuna', file)} cannot be written ({error.strerror}): give a file") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            storage = JournalStorage(JournalFileBackend(str(file)))
        # What Optuna raises at a line that it did not write.
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{option('optuna', file)} is no journal of Optuna, or a damaged one: give a new file"
            ) from error
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="minimize" if settings.metric == "log_loss" else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, settings.epochs // 9)),
            load_if_exists=True,
        )


def _suggest(trial: Any, space: Mapping[str, Any], base: MinibatchConfig) -> MinibatchConfig:
    """A configuration of the space: choices, and ranges as in ``pipeline.heads.minibatch.space``."""
    drawn: dict[str, Any] = {}
    for name, choice in space.items():
        if isinstance(choice, list):
            drawn[name] = trial.suggest_categorical(name, choice)
        else:
            suggest = trial.suggest_int if name in WHOLE else trial.suggest_float
            drawn[name] = suggest(name, choice["low"], choice["high"], log=bool(choice.get("log", False)))
    return dataclasses.replace(base, **drawn)


def _fit(task: Task[SearchSettings], config: MinibatchConfig, trial: Any, ends: float) -> tuple[FitResult, Any]:
    """One head, and how its trial ends: PRUNED where others were better at the same epoch or it diverged, FAIL where
    the budget cut it short.
    """
    from optuna.trial import TrialState

    pruned = cut = False

    def tell(_: int, epoch: Epoch) -> None:
        nonlocal pruned
        trial.report(epoch.val_loss if task.settings.val_metric == "log_loss" else epoch.val_accuracy, epoch.epoch)
        pruned = epoch.epoch < config.epochs and trial.should_prune()

    def stop() -> bool:  # asked before each epoch that is still to come
        nonlocal cut
        cut = not pruned and time.monotonic() >= ends
        return pruned or cut

    fit = fit_minibatch(task.problem(task.train, val=task.val), [config], on_epoch=tell, should_stop=stop)[0]
    if cut:
        return fit, TrialState.FAIL
    return fit, TrialState.PRUNED if pruned or fit.diverged else TrialState.COMPLETE
