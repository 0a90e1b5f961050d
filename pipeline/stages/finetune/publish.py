"""From the chosen weights to a run's files: the whole network, its trace, the scores of what lies between.

The network goes to a folder beside the checkpoint first, where its test figures are kept as soon as they are taken:
a kill leaves no half run behind, and a test split that has been read is not read again.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path

import safetensors.torch

from pipeline.base.files import link, make_folder, write_bytes, write_text, writing
from pipeline.runs import folder as runs
from pipeline.runs.network import MODEL_FILE
from pipeline.show.pictures import svg
from pipeline.stages.finetune import words
from pipeline.stages.finetune.mixtures import Choice
from pipeline.stages.finetune.start import Attached


def write_network(attached: Attached, folder: Path) -> str:
    """Write the network as it is now into ``folder``, and give its SHA-256; what is there of other weights goes.

    Raises:
        HeadError: it cannot be written.
    """
    state = {n: t.detach().cpu().contiguous() for n, t in attached.network.state_dict().items()}
    data = safetensors.torch.save(state, metadata={"trunk": attached.recipe.trunk.info.trunk})
    model = folder / MODEL_FILE
    with writing(folder):
        if not model.exists() or model.read_bytes() != data:
            shutil.rmtree(folder, ignore_errors=True)  # figures that are there are of other weights
            make_folder(folder)
            write_bytes(model, data)
    return hashlib.sha256(data).hexdigest()


def put_into(draft: runs.Draft, folder: Path) -> None:
    """Have the files of ``folder`` in a run's as well: should this job die, nothing of them is lost."""
    for path in sorted(folder.iterdir()):
        link(path, draft.folder / path.name)


def write_mixtures(draft: runs.Draft, choice: Choice) -> None:
    """The scores of the weights between before and after, and their picture."""
    draft.write_lines("interpolation.jsonl", [asdict(m) for m in choice.mixtures])
    write_text(draft.folder / "interpolation.svg", svg(words.mixtures(choice)))
