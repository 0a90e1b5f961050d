"""From the chosen weights to a run's files: the whole network, its test figures, the verdict.

Everything that takes time is done in a folder beside the checkpoint, so that a kill leaves no half run behind, and a
test split that has been read is not read again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
from numpy.typing import NDArray

from pipeline.base.files import move, write_bytes, write_text, writing
from pipeline.base.words import percent, points, seconds
from pipeline.runs import folder as runs
from pipeline.runs.network import MODEL_FILE
from pipeline.show.mix_picture import mix_picture
from pipeline.stages.finetune import verdict
from pipeline.stages.finetune.loop import Tuning
from pipeline.stages.finetune.mixtures import Mixture
from pipeline.stages.finetune.verdict import Verdict


class Outcome:
    """The network as it is now (the chosen one), on its way into a run's folder."""

    def __init__(self, tuning: Tuning, folder: Path) -> None:
        self.tuning, self.folder = tuning, folder
        tuning.attached.network.eval()
        state = {n: t.detach().cpu().contiguous() for n, t in tuning.attached.network.state_dict().items()}
        data = safetensors.torch.save(state, metadata={"trunk": tuning.attached.recipe.trunk.info.trunk})
        self.sha256 = hashlib.sha256(data).hexdigest()
        model = folder / MODEL_FILE
        with writing(folder):
            if not model.exists() or model.read_bytes() != data:
                # Figures that are there are of other weights.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_bytes(model, data)

    def verdict(self, val_logits: NDArray[np.float32], *, kept: int, share: float | None) -> Verdict:
        """Test is read here, once, with everything chosen; ``val_logits`` (n, C) are of the chosen network."""
        attached, settings, desk = self.tuning.attached, self.tuning.settings, self.tuning.desk
        y = attached.cache.labels[attached.val]
        before, after = (x.argmax(axis=1) == y for x in (attached.cached_logits(attached.val), val_logits))
        drift = {}
        if settings.train != "head":
            drift = verdict.drift(attached, workers=settings.threads, desk=desk)
        test = None
        if settings.evaluate:
            config = {**attached.record, "stage": "finetune"}
            own = runs.Run(self.folder, config, {})
            test = verdict.test_change(attached, own, desk)
        last = self.tuning.progress.rows[-1]
        return verdict.judge(
            verdict.change("val", before, after),
            test,
            seconds=self.tuning.progress.seconds,
            head_seconds=attached.run.metrics.get("seconds"),
            drift=drift,
            course=verdict.Course(
                settings.epochs,
                kept,
                last["accuracy"],
                share is not None,
                settings.train,
                diverged=self.tuning.progress.epoch <= settings.epochs,
            ),
        )

    def move_to(self, folder: Path) -> None:
        """Move the files into a run's folder."""
        for path in sorted(self.folder.iterdir()):
            move(path, folder / path.name)

    def write_mixtures(self, draft: runs.Draft, mixtures: Sequence[Mixture], chosen: float) -> None:
        """The scores of the weights between before and after, and their picture."""
        draft.write_lines("interpolation.jsonl", [asdict(m) for m in mixtures])
        picture = mix_picture([m.share for m in mixtures], [m.val for m in mixtures], chosen=chosen)
        write_text(draft.folder / "interpolation.svg", picture)

    def tell(self, found: Verdict, run: Path) -> None:
        """The verdict, and where the run is."""
        verdict.show(found, self.tuning.desk)
        val = found.val
        text = f"val {percent(val.before)} -> {percent(val.after)} ({points(val.difference)})"
        self.tuning.desk.watch.say(f"{text}, in {seconds(found.seconds)} -> {run}")
