"""Steps, known before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.errors import ConfigError
from pipeline.stages.finetune.schedule import check_pieces

Quick = dict[str, Any]


@pytest.mark.parametrize(
    ("images", "batch", "accumulate", "cure"),
    [(33, 16, 1, "batch_size=17"), (32, 16, 8, None), (10, 3, 2, "batch_size=4"), (5, 2, 3, "accumulate=1")],
)
def test_batchnorm_never_learns_from_a_piece_of_one(images: int, batch: int, accumulate: int, cure: str | None) -> None:
    if cure is None:
        check_pieces(images, batch, accumulate)
        return
    with pytest.raises(ConfigError, match=f"piece of one, which has no variance; give {cure},"):
        check_pieces(images, batch, accumulate)
