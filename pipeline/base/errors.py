"""The errors that a user can meet, and nothing else.

::

    PipelineError            anything this package refuses or could not do
    ├── DataError            a source of images: missing, empty, mislabelled, too many bad files
    ├── WeightsError         a weights file, a trunk or an engine that does not fit
    │   └── EngineError      an engine that did not compute its trunk: what it gave is not to be trusted
    ├── CacheError           a feature cache: unfinished, damaged, hostile, another key, in use
    ├── HeadError            a head, a run, or the rows it was asked to learn from
    ├── ConfigError          a setting with a value that is not legal
    └── Interrupted          the user (or the system) asked a long job to stop; what was done is kept

A message is one line and says the wrong value, the legal ones and the cure. The command line prints it and exits 2
(an interrupted job exits with 128 + the signal's number).
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error that this package raises on purpose."""


class DataError(PipelineError):
    """A source of images is missing, empty, mislabelled, or has too many bad files."""


class WeightsError(PipelineError):
    """A weights file, trunk or engine cannot be had or does not fit."""


class EngineError(WeightsError):
    """An engine did not compute its trunk: no feature that it gave is to be trusted."""


class CacheError(PipelineError):
    """A feature cache is unfinished, damaged, hostile, of another key, or in use by another job."""


class HeadError(PipelineError):
    """A head or a run does not fit, or cannot be learned from the rows given."""


class ConfigError(PipelineError):
    """A setting has a value that is not legal."""


class Interrupted(PipelineError):
    """A long job was asked to stop and did so at a safe point; ``signal`` is the signal's number."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
