"""New classifiers on fixed features: solvers, baselines, metrics and the saved head. Knows arrays only.

``from pipeline.heads import ExactLinearHead, ExactLinearHeadCV, MinibatchHead``: scikit-learn estimators. They are
imported when they are asked for, so that reading the settings of a head needs neither torch nor scikit-learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.heads.estimators import ExactLinearHead, ExactLinearHeadCV, MinibatchHead

__all__ = ["ExactLinearHead", "ExactLinearHeadCV", "MinibatchHead"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.heads import estimators

    return getattr(estimators, name)
