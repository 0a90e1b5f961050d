"""The certificate in float32 of caches in a coarser arithmetic, emulated: it accepts them, and no wrong head."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import extract, open_cache, train
from pipeline.base import precision as precisions
from pipeline.base.errors import HeadError
from pipeline.stages.finetune import scoring
from pipeline.trunk.engines.fold import FoldedTrunk
from tests.rounding import BITS, Coarse


@pytest.fixture(params=[(name, cut) for name in BITS for cut in (False, True)], ids=lambda p: f"{p[0]}-{p[1]}")
def coarse_head(
    request: pytest.FixtureRequest, photos: Path, tmp_path: Path, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """A head on features whose products were of factors with fewer bits; the cache says its precision."""
    precision, cut = request.param
    arithmetic, forward = Coarse(BITS[precision], cut=cut), FoldedTrunk.forward

    def coarsely(self: FoldedTrunk, pixels: torch.Tensor) -> torch.Tensor:
        with arithmetic:
            return forward(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(precisions, "lacks", lambda *_: None)
        patch.setattr(FoldedTrunk, "forward", coarsely)
        patch.setattr(torch.nn.Module, "to", float32_stays(torch.nn.Module.to))
        made = extract(photos, workspace=tmp_path, precision=precision, dtype="float16", **quick)
    assert arithmetic.products
    plain = extract(photos, workspace=tmp_path / "plain", dtype="float16", **quick)
    off = np.abs(open_cache(made.cache).features[:].astype("f4") - open_cache(plain.cache).features[:].astype("f4"))
    return SimpleNamespace(root=tmp_path, head=train(made.cache, workspace=tmp_path), off=float(off.max()))


def float32_stays(to: Any) -> Any:
    """Weights are not rounded a second time, by the engine itself."""

    def kept(self: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
        args = tuple(torch.float32 if arg is torch.bfloat16 else arg for arg in args)
        found: torch.nn.Module = to(self, *args, **options)
        return found

    return kept


@pytest.mark.parametrize("part", [pytest.param("all", marks=pytest.mark.slow), "last"])
def test_a_coarser_cache_is_certified_in_float32_and_a_wrong_head_is_not(
    coarse_head: SimpleNamespace, task_of: Any, part: str
) -> None:
    assert coarse_head.off > 1e-5
    task = task_of(coarse_head.head.run, coarse_head.root, train=part)
    attached = task.attached
    logits = scoring.logits(task, attached.val, "certificate")

    def never() -> float:
        raise AssertionError("the tolerance of the precision is enough")

    maps = part == "last"
    certificate = attached.certificate(logits, maps=maps, rounding=never)
    assert 0 < certificate.difference < certificate.tolerance
    swapped = logits[:, [1, 0, *range(2, logits.shape[1])]]
    with pytest.raises(HeadError, match="does not give the cached logits"):
        attached.certificate(swapped, maps=maps, rounding=lambda: 0.0)
