"""What a search is known by: the names are in the hash of searches that were interrupted before."""

from __future__ import annotations

import hashlib
import json

from pipeline.base.settings import identity
from pipeline.stages.learn.settings import SearchSettings


def test_a_search_goes_on_under_the_very_names_that_it_began_under() -> None:
    """Made with the code that listed the names apart from the fields."""
    other = SearchSettings(cache="x", space="mlp", metric="accuracy", budget=3.0, refit=False, evaluate=False)
    for settings in (SearchSettings(space="mlp", metric="accuracy"), other):
        found = identity(settings)
        assert sorted(found) == sorted(
            ["Cs", "class_weight", "cv", "draws", "epochs", "metric", "seed", "shots", "trials", "views"]
        )
        subject = json.dumps(["k" * 64, "c" * 64, found, {"kind": ["mlp"]}], sort_keys=True)
        assert hashlib.sha256(subject.encode()).hexdigest().startswith("bd9e4498f4138701")
    assert identity(SearchSettings(space="mlp", seed=1)) != identity(SearchSettings(space="mlp"))
