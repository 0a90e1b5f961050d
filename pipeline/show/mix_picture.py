"""The picture of the way from the weights before training to those after it: accuracy on val at each share."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.values import Curve
from pipeline.base.words import percent
from pipeline.show.pictures import svg


def mix_picture(shares: Sequence[float], accuracies: Sequence[float], *, chosen: float) -> str:
    """The picture as SVG text; ``shares`` from 0 (before) to 1 (after) with an accuracy each, ``chosen`` marked."""
    best = accuracies[list(shares).index(chosen)]
    return svg(
        Curve(
            {"val": accuracies},
            x=shares,
            x_label="share of the way from before (0) to after (1)",
            y_label="val accuracy",
            title=f"val accuracy between before and after: chosen {chosen:.1f}, {percent(best)}",
            chosen=chosen,
            shares=True,
        )
    )
