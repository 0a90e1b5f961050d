"""A source in one file and one entry: images out of a dictionary in memory, through every stage from cache to export.

No stage can open a file of this source, for there is none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from pipeline import evaluate, export, extract, finetune, open_cache, predict, relabel, search, train, verify
from pipeline.base.errors import CacheError, DataError
from pipeline.base.items import TEST, TRAIN, VAL
from pipeline.base.workspace import Workspace
from pipeline.images import ImageFailure, Listing
from pipeline.images.listing import Item, assemble
from pipeline.images.sources import named

PREFIX = "memory:"
SETS: dict[str, dict[bytes, tuple[int, bytes]]] = {}
"""Name of a set -> id of an image -> its time of last change and its bytes."""


class MemoryImages:
    """The images of one set."""

    def __init__(self, place: str) -> None:
        self.place = place

    @property
    def _set(self) -> dict[bytes, tuple[int, bytes]]:
        return SETS[self.place.removeprefix(PREFIX)]

    def there(self) -> bool:
        return self.place.removeprefix(PREFIX) in SETS

    def read(self, item: bytes) -> bytes:
        return self._entry(item)[1]

    def stat(self, item: bytes) -> tuple[int, int]:
        time, blob = self._entry(item)
        return len(blob), time

    def name(self, item: bytes) -> str:
        return f"{self.place}/{item.decode()}"

    def _entry(self, item: bytes) -> tuple[int, bytes]:
        try:
            return self._set[item]
        except KeyError as error:
            raise ImageFailure("vanished", "it has been forgotten") from error


class Memory:
    """What would be the file of the source: here a class, so that it needs no file."""

    FORM = f"{PREFIX}NAME"

    @staticmethod
    def claims(spec: str) -> bool:
        return spec.startswith(PREFIX)

    @staticmethod
    def listing(spec: str, desk: Workspace) -> Listing:
        images = MemoryImages(spec)
        if not images.there():
            raise DataError(f"{spec}: there is no set of that name")
        items = []
        for item in SETS[spec.removeprefix(PREFIX)]:
            split, label, _ = item.decode().split("/")
            items.append(Item(item, label, {"train": TRAIN, "val": VAL, "test": TEST}[split], *images.stat(item)))
        return assemble(items, source=spec, name=spec.removeprefix(PREFIX), images=images, skipped={})

    @staticmethod
    def images(spec: str, place: str) -> MemoryImages:
        return MemoryImages(place)


def picture(colour: int, seed: int) -> bytes:
    """A PNG of a class: its own colour over noise of its own seed."""
    pixels = np.random.default_rng(seed).integers(0, 90, (32, 32, 3), dtype=np.uint8)
    pixels[..., colour] += 120
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def toys() -> Iterator[str]:
    """The source's name as a user gives it; the source is in the list meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named, "SOURCES", (Memory, *named.SOURCES))  # the one entry
        counts = {"train": 4, "val": 2, "test": 2}
        SETS["toys"] = {
            f"{split}/{label}/{i}.png".encode(): (i, picture(c, 100 * c + 10 * len(split) + i))
            for split, n in counts.items()
            for c, label in enumerate(("ant", "bee", "cat"))
            for i in range(n)
        }
        yield f"{PREFIX}toys"
    del SETS["toys"]


@pytest.fixture(scope="module")
def made(toys: str, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A cache, a head and a fine-tuned run of it."""
    root = tmp_path_factory.mktemp("workspace")
    cache = extract(toys, workspace=root, **quick)
    head = train(cache.cache, workspace=root)
    tuned = finetune(head.run, epochs=1, batch_size=4, workspace=root)
    return SimpleNamespace(root=root, cache=cache, head=head, tuned=tuned)


def test_a_cache_keeps_where_its_images_are_found_again(
    toys: str, made: SimpleNamespace, quick: dict[str, Any]
) -> None:
    cache = open_cache(made.cache.cache, verify=True)
    assert (cache.about["source"], cache.about["root"]) == (toys, toys)
    assert (made.cache.rows, made.cache.new, made.cache.failed) == (24, 24, 0)
    assert made.cache.cache.name.startswith("toys-")
    again = extract(toys, workspace=made.root, **quick)
    assert (again.new, again.reused, again.cache) == (0, 24, made.cache.cache)
    report = verify(made.cache.cache, source=toys, workspace=made.root)
    assert report.sample is not None and not any(kind["count"] for kind in report.changes.values())
    assert not relabel(made.cache.cache, toys, workspace=made.root).written


def test_heads_are_chosen_scored_and_fine_tuned(made: SimpleNamespace) -> None:
    found = search(made.cache.cache, workspace=made.root)
    for run in (found.run, made.tuned.run):
        assert evaluate(run, workspace=made.root).test["n"] == 6


def test_a_run_predicts_the_sources_images_and_is_exported(toys: str, made: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(SETS["toys"][b"test/bee/0.png"][1])
    found = predict(made.head.run, [tmp_path / "one.png", toys], workspace=made.root)
    assert [p.error for p in found] == [None] * 25
    by_name = {p.path: p.probability for p in found}
    assert by_name[str(tmp_path / "one.png")] == pytest.approx(by_name[f"{toys}/test/bee/0.png"], abs=1e-6)
    assert predict(made.tuned.run, toys, workspace=made.root)[0].path == f"{toys}/test/ant/0.png"
    out = export(made.tuned.run, format="state_dict", workspace=made.root).file
    assert safetensors.torch.load_file(out)["fc.weight"].shape == (3, open_cache(made.cache.cache).features.shape[1])


def test_what_has_changed_is_noticed(
    toys: str, quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETS, "toys", dict(SETS["toys"]))
    first = extract(toys, workspace=tmp_path, **quick)
    head = train(first.cache, workspace=tmp_path)
    SETS["toys"][b"train/ant/1.png"] = (99, picture(1, 999))
    with pytest.raises(CacheError, match="1 changed"):
        verify(first.cache, source=toys, workspace=tmp_path)
    with pytest.raises(DataError, match="memory:toys/'train/ant/1.png' has changed since its features were made"):
        finetune(head.run, epochs=1, workspace=tmp_path)
    again = extract(toys, workspace=tmp_path, **quick)
    assert (again.new, again.reused, again.cache) == (1, 23, first.cache)
    head = train(again.cache, workspace=tmp_path)
    del SETS["toys"][b"val/bee/0.png"]
    with pytest.raises(DataError, match="memory:toys/'val/bee/0.png': it has been forgotten"):
        finetune(head.run, epochs=1, workspace=tmp_path)
    monkeypatch.delitem(SETS, "toys")
    with pytest.raises(DataError, match="not at memory:toys any more"):
        finetune(head.run, epochs=1, workspace=tmp_path)


def test_a_spec_that_no_source_claims_is_told_of_this_one_too(toys: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="or memory:NAME"):
        extract("nowhere", workspace=tmp_path)
    with pytest.raises(DataError, match="no set of that name"):
        extract("memory:other", workspace=tmp_path)
