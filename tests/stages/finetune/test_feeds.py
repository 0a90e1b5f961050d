"""What a row is to the part of the network that learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipeline import finetune, open_cache
from pipeline.stages.finetune.feeds import Maps

Quick = dict[str, Any]


def test_mirrored_maps_are_drawn_by_seed_epoch_and_row(
    workshop: SimpleNamespace, root: Path, attached_to: Any, fast: Quick
) -> None:
    finetune(workshop.head.run, train="last", workspace=root, **fast)
    (path,) = (root / "maps").glob("*.h5")
    attached, maps = attached_to(workshop.head.run, root), open_cache(path)
    shape = tuple(maps.provenance["trunk"]["shape"])
    rows = np.sort(np.concatenate([attached.train, attached.val]))
    inputs = Maps(attached.network, maps, rows, shape, "cpu", 3, 0)
    some = rows[:20].tolist()
    plain = torch.cat([x for _, x in inputs.batches([some], None)])
    together = torch.cat([x for _, x in inputs.batches([some], 1)])
    alone = torch.cat([x for _, x in inputs.batches([[r] for r in some], 1)])
    assert torch.equal(together, alone)
    kinds = [("plain" if torch.equal(a, b) else "mirrored") for a, b in zip(plain, together, strict=True)]
    assert all(torch.equal(a, b if k == "plain" else b.flip(2)) for a, b, k in zip(plain, together, kinds, strict=True))
    assert 4 < kinds.count("mirrored") < 16
