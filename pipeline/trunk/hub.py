"""Weights files of the Hugging Face Hub: found where they lie already, or downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from pipeline.base.errors import WeightsError
from pipeline.base.workspace import Workspace
from pipeline.trunk.families.family import WeightsFile

_NAMED_BY_THE_USER = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def hub_file(file: WeightsFile, what: str, desk: Workspace, *, timeout: float, other_ways: str) -> Path:
    """The file, from the Hub's own cache or the workspace, downloaded if it is in neither.

    ``timeout`` is in seconds without an answer; ``other_ways`` ends the error.

    A download goes to the Hub's cache where the user has named it (HF_HOME), otherwise to the workspace.

    Raises:
        WeightsError: it cannot be had.
    """
    ours = desk.weights / "hub"
    for folder in (None, ours):
        for filename in file.filenames:
            found = huggingface_hub.try_to_load_from_cache(
                file.repository, filename, cache_dir=folder, revision=file.revision
            )
            if isinstance(found, str):
                return Path(found).absolute()
    place = None if any(os.environ.get(name) for name in _NAMED_BY_THE_USER) else ours
    reason = ""
    for filename in file.filenames:
        try:
            # One question first: the download itself would try a network that is not there for half a minute.
            url = huggingface_hub.hf_hub_url(file.repository, filename, revision=file.revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=timeout)
            got = huggingface_hub.hf_hub_download(file.repository, filename, cache_dir=place, revision=file.revision)
            return Path(got).absolute()
        except EntryNotFoundError as error:
            reason = reason or _first_line(error)
        except Exception as error:  # what its HTTP library raises without a network shares no base class with the rest
            reason = _first_line(error)
            break  # another file's name would not help
    raise WeightsError(
        f"weights {what} cannot be had ({reason}): {file.filenames[0]} of {file.repository} is neither in the Hugging "
        f"Face cache nor in {ours}; download it where there is a network (hf download {file.repository}), {other_ways}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
