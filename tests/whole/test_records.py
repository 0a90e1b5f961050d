"""Every JSON that is read, damaged in every way: one line (an error of ours), or known as nothing; never a traceback.

Each record is written by what really writes it, and read in this process by what reads it, its fields used as there.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from pipeline.base.errors import CacheError, HeadError, PipelineError
from pipeline.base.watch import TraceRow
from pipeline.base.workspace import Workspace
from pipeline.heads.artifact import load_head
from pipeline.heads.minibatch.fit import fit_minibatch
from pipeline.runs import folder as runs
from pipeline.runs.network import head_of
from pipeline.runs.pixels import images_of
from pipeline.runs.recipe import Recipe, about_of, columns_of, provenance_of, readable_of
from pipeline.stages.finetune.checkpoint import Checkpoint
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import attach
from pipeline.stages.finetune.state import State
from pipeline.stages.learn.adaptive import _line_of
from pipeline.stages.learn.brackets import Space
from pipeline.stages.learn.settings import SearchSettings
from pipeline.stages.learn.state import SearchState
from pipeline.stages.learn.task import task_of
from pipeline.stages.learn.trials import line_of, trial_of
from pipeline.stages.score import compare, ledger
from pipeline.stages.score.evaluate import _show
from pipeline.stages.score.figures import recorded
from pipeline.stages.upkeep.inspect import inspect
from pipeline.stages.upkeep.settings import InspectSettings
from pipeline.stages.use import card, export
from pipeline.store import Failure, append_failures, open_cache, read_failures
from pipeline.store.format import canonical_json
from pipeline.store.lock import _describe, writing_lock
from pipeline.store.rewrite import kept
from pipeline.trunk import identity
from tests.conftest import SMALL

NOTHING = object()


@dataclass
class Kind:
    """A record as it was written, how to put another in its place, and how it is read.

    ``nothing`` is what reading a damaged one gives where that is no error. ``unread``: fields (and all within) that are
    for people, ``optional``: fields that may be missing, each with its own below ``unread`` or the type checked.
    """

    value: Any
    put: Callable[[bytes], None]
    read: Callable[[], Any]
    path: Path | None = None
    nothing: Any = NOTHING
    unread: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


@dataclass
class Shop:
    """What the kinds are made of."""

    root: Path
    desk: Workspace
    head: Path
    tuned: Path
    cache: Path
    kinds: dict[str, Kind] = field(default_factory=dict)


def of_file(path: Path, read: Callable[[], Any], **options: Any) -> Kind:
    return Kind(json.loads(path.read_bytes()), path.write_bytes, read, path, **options)


def of_line(path: Path, read: Callable[[], Any], nothing: Any, **options: Any) -> Kind:
    """A file of one line."""
    value = json.loads(path.read_bytes())
    return Kind(value, lambda data: path.write_bytes(data + b"\n") and None, read, path, nothing, **options)


@pytest.fixture(scope="module")
def shop(workshop: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("records")
    for name in ("runs", "features"):
        shutil.copytree(workshop.root / name, root / name)
    names = (workshop.head.run.name, workshop.tuned.run.name)
    shop = Shop(
        root, Workspace(root), *(root / "runs" / n for n in names), root / "features" / workshop.cache.cache.name
    )
    for add in (add_run, add_head, add_evaluation, add_weights, add_state, add_search, add_lines, add_cache):
        add(shop)
    return shop


def add_run(shop: Shop) -> None:
    run = runs.load_run(shop.head)
    cache = open_cache(shop.cache)
    recipe = Recipe.of(provenance_of(cache), about_of(cache)["weights"], shop.desk)

    def config() -> Any:
        found = runs.load_run(shop.head)
        compare.why_apart(found, run)
        about = export.description(found, recipe)
        return card.model_card(found, about, "onnx", "a.onnx", {"1": 0.0}), runs.cache_of(found)

    unread = {"command", "state_sha256", "seconds", "hardware", "provenance.decode", "provenance.transform.antialias"}
    unread |= {f"cache.about.{name}" for name in run.config["cache"]["about"].keys() - about_fields()}
    ours = {"settings", "given", "cache.rows", "versions"}  # objects of any names
    inside = {f"{o}.{name}" for o in ours for name in nested(json.loads((shop.head / "config.json").read_bytes()), o)}
    settings = {name for name in inside if name.startswith(("settings.", "given."))}
    shop.kinds["config.json"] = of_file(
        shop.head / "config.json",
        config,
        unread=frozenset(unread | settings),
        optional=frozenset(
            {"learned_from", "given", "cache.from_here", "cache.about.from_here", "cache.about.readable", *inside}
        ),
    )
    metrics = shop.tuned / "metrics.json"
    read = {"temperature", "model_sha256", "seconds"}
    shop.kinds["metrics.json"] = of_file(
        metrics,
        lambda: runs.load_run(shop.tuned).metrics.get("temperature", 1.0) > 0,
        unread=frozenset(json.loads(metrics.read_bytes()).keys() - read),
        optional=frozenset(read),
    )


def nested(record: Any, name: str) -> list[str]:
    for part in name.split("."):
        record = record[part]
    return list(record)


def add_head(shop: Shop) -> None:
    path = shop.head / "head.json"
    shop.kinds["head.json"] = of_file(
        path,
        lambda: load_head(shop.head),
        unread=frozenset({"meta.solver", "meta.pretrained"}),
        optional=frozenset({"temperature", *(f"versions.{v}" for v in ("torch", "numpy", "safetensors")), "versions"}),
    )


def add_evaluation(shop: Shop) -> None:
    def read() -> Any:
        found = recorded(shop.head)
        assert found is not None
        _show(found, shop.desk)
        run = SimpleNamespace(folder=shop.head, learned_in=None)
        return card._figures(run)  # type: ignore[arg-type]

    later = {"balanced_accuracy", "top5", "auroc", "ece", "ece_expected", "intervals", "calibrated"}
    inside = {"per_class[0].auroc", "calibrated.ece_expected", *(f"intervals.{n}" for n in export_intervals(shop))}
    optional = {"split", "cache", "scored_before"} | {f"test.{name}" for name in later | inside}
    shop.kinds["evaluation.json"] = of_file(shop.head / "evaluation.json", read, optional=frozenset(optional))


def export_intervals(shop: Shop) -> list[str]:
    return nested(json.loads((shop.head / "evaluation.json").read_bytes()), "test.intervals")


def add_weights(shop: Shop) -> None:
    sha256 = "0" * 64
    file = shop.root / "mine.pth"
    file.write_bytes(b"weights")
    info = identity.WeightsInfo(
        trunk="resnet18", spec=str(file), name="file", sha256=sha256, path=file, pretrained=True,
        layers=(("avgpool", 512),), preset="IMAGENET1K_V1",
        transform=identity.Transform(256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )  # fmt: skip
    desk = Workspace(shop.root / "known")
    identity.remember(info, None, desk)
    path = desk.weights / "known.json"
    (name,) = json.loads(path.read_bytes())

    def recall() -> Any:
        return identity.recall(str(file), "resnet18", None, desk)

    assert recall() == info
    same = frozenset({"info.guessed", "info.missing"})  # missing is as good as their default, which was summed
    shop.kinds["known.json"] = of_file(
        path, recall, nothing=None, optional=frozenset(f"{name}.{field}" for field in same)
    )

    def put(data: bytes) -> None:
        path.write_bytes(b"{" + json.dumps(name).encode() + b": " + data + b"}")

    shop.kinds["an entry of known.json"] = Kind(
        json.loads(path.read_bytes())[name], put, recall, nothing=None, optional=same
    )


def add_state(shop: Shop) -> None:
    settings = FinetuneSettings(run=str(shop.head), train="head", epochs=1)
    attached = attach(settings, shop.desk)
    state = State(attached.network, attached.anatomy, settings)
    state.progress.rows.append(TraceRow(0, 1.0, 0.5, 0.5, val_loss=float("nan")))
    state.progress.best = {"epoch": 1, "val": 0.5, "loss": 0.7}
    state.progress.count(1.0, 2.0, 4.0)
    state.keep_as_best()
    checkpoint = Checkpoint(shop.root / "tuning")
    checkpoint.folder.mkdir()
    state.keep(checkpoint, best=True)
    before = dataclasses.asdict(state.progress)

    def read() -> Any:
        fresh = State(attached.network, attached.anatomy, settings)
        assert fresh.resume(checkpoint)
        return [dataclasses.replace(row) for row in fresh.progress.rows]

    assert read() and str(before) == str(dataclasses.asdict(state.progress))
    given = frozenset({f"rows[0].{name}" for name in ("lr", "observation", "val_loss")})
    shop.kinds["state.json"] = of_file(checkpoint.folder / "state.json", read, optional=given)


def add_search(shop: Shop) -> None:
    settings = SearchSettings(cache=str(shop.cache), space="mlp", trials=1, epochs=1)
    task = task_of(settings, shop.desk)
    space = Space.of(settings)
    (fit,) = fit_minibatch(task.problem(task.train, val=task.val), [space.base])
    line = line_of(task, fit)
    state = SearchState(task, space.varied)
    state.add([line])
    config = frozenset(f"config.{f.name}" for f in dataclasses.fields(space.base))  # each has a default
    shop.kinds["a search's brackets"] = of_line(
        state._path,
        lambda: [trial_of(line, space.varied) for bracket in state.finished() for line in bracket],
        [],
        optional=frozenset(f"[0].{name}" for name in config),
    )
    trial = SimpleNamespace(number=1, user_attrs={"line": ""})

    def put(data: bytes) -> None:
        trial.user_attrs["line"] = data.decode("utf-8", "surrogateescape")

    shop.kinds["a trial of Optuna's"] = Kind(
        json.loads(json.dumps(line)), put, lambda: trial_of(_line_of(trial, None), space.varied), optional=config
    )


def add_lines(shop: Shop) -> None:
    cache = open_cache(shop.cache)
    ledger.count(cache, ledger.Scorer("0009-train-x", "mark"), Workspace(shop.root / "looks"))
    tested = Workspace(shop.root / "looks").tested
    optional = frozenset({"rows", "run", "when"})
    shop.kinds["tested.jsonl"] = of_line(tested, lambda: list(ledger._lines(tested)), [], optional=optional)
    failures = shop.root / "x.failures.jsonl"
    append_failures(failures, [Failure(b"a\xff", "truncated", "ends early", b"\1" * 32)])
    shop.kinds["failures.jsonl"] = of_line(failures, lambda: read_failures(failures), {})
    with writing_lock(shop.root / "x.h5"):
        text = (shop.root / ".x.h5.holder.json").read_bytes()
    holder = shop.root / "holder.json"
    holder.write_bytes(text)
    shop.kinds["holder.json"] = of_file(holder, lambda: _describe(holder), nothing="another process")


def add_cache(shop: Shop) -> None:
    made = open_cache(shop.cache)
    path = shop.cache.with_name("changed.h5")
    shutil.copyfile(shop.cache, path)

    def set_text(**texts: bytes) -> None:
        with h5py.File(path, "r+") as file:
            for attribute, text in texts.items():
                text = text or b" "  # no attribute is empty
                del file.attrs[attribute]
                file.attrs.create(attribute, text, dtype=h5py.string_dtype("utf-8", len(text)))

    def put_provenance(data: bytes) -> None:
        set_text(provenance=data, key=hashlib.sha256(data or b" ").hexdigest().encode())

    def read() -> Any:
        cache = open_cache(path)
        inspect(InspectSettings(caches=(str(path),)), shop.desk)
        kept(cache, cache.rows("train"), "a step")
        columns_of(cache), readable_of(cache)
        return images_of(cache)

    card = dict.fromkeys(("name", "capability", "cuda", "rocm", "cudnn", "driver"), "1.0")
    about = {**made.about, "history": [{"step": "relabel"}], "columns": {"path": "Bild"}, "gpus": [card]}
    shop.kinds["attribute about"] = Kind(
        about,
        lambda data: set_text(about=data),
        read,
        unread=frozenset({*(made.about.keys() - about_fields()), "history[0].step"}),
        optional=frozenset(
            {"history", "from_here", "readable", "columns", "columns.path", "gpus"}
            | {f"gpus[0].{name}" for name in card.keys() - {"name", "capability"}}
        ),
    )
    shop.kinds["attribute versions"] = Kind(
        made.versions, lambda data: set_text(versions=data), read, optional=frozenset(made.versions)
    )
    shop.kinds["attribute provenance"] = Kind(
        made.provenance,
        put_provenance,
        lambda: provenance_of(open_cache(path)),
        unread=frozenset({"decode", "transform.antialias"}),
    )
    # Between two kinds the file is whole again.
    set_text(about=canonical_json(made.about).encode(), versions=canonical_json(made.versions).encode())


def about_fields() -> set[str]:
    return {"source", "root", "notes", "weights", "pretrained", "from_here", "columns", "readable", "gpus"}


KINDS = (
    "config.json", "metrics.json", "head.json", "evaluation.json", "known.json", "an entry of known.json", "state.json",
    "a search's brackets", "a trial of Optuna's", "tested.jsonl", "failures.jsonl", "holder.json", "attribute about",
    "attribute versions", "attribute provenance",
)  # fmt: skip
EMPTY_OBJECT_IS_ONE = ("metrics.json", "attribute versions")


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture
def kind(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Kind]:
    found = shop.kinds[request.param]
    yield found
    if found.path is not None and (found.path.is_dir() or found.path.is_fifo()):
        found.path.rmdir() if found.path.is_dir() else found.path.unlink()
    found.put(text_of(found.value))


def outcome(kind: Kind) -> str:
    """``read``, ``refused`` in one line, or ``nothing``."""
    try:
        found = kind.read()
    except PipelineError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    if kind.nothing is not NOTHING and found == kind.nothing:
        return "nothing"
    return "read"


def damaged(value: Any) -> dict[str, bytes]:
    whole = text_of(value)
    doubled = b'{"format": 1, "format": 1}'
    return {
        "nested": b"[" * 100_000,
        "nested and closed": b"[" * 100_000 + b"]" * 100_000,
        "nested beside it": whole[:-1] + b', "more": ' + b"[" * 500 + b"]" * 500 + b"}",
        "list": b"[]",
        "object": b"{}",
        "null": b"null",
        "number": b"7",
        "huge number": b"1" * 5000,
        "nan": b"NaN",
        "not UTF-8": whole[:-1] + b'"\xff"' + whole[-1:],
        "UTF-16": whole.decode().encode("utf-16"),
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "a field twice": doubled,
    }


@pytest.mark.parametrize("how", list(damaged({})))
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_what_is_no_record_is_one_line_or_nothing(kind: Kind, how: str, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["kind"]
    kind.put(damaged(kind.value)[how])
    if how == "object" and name in EMPTY_OBJECT_IS_ONE:
        assert outcome(kind) == "read"
        return
    assert outcome(kind) == ("refused" if kind.nothing is NOTHING else "nothing")


@pytest.mark.parametrize("how", ["folder", "pipe"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k.endswith((".json", ".jsonl")) and " " not in k], indirect=True)
def test_a_folder_or_a_pipe_in_a_records_place_is_one_line_or_nothing(kind: Kind, how: str) -> None:
    assert kind.path is not None
    kind.path.unlink()
    kind.path.mkdir() if how == "folder" else os.mkfifo(kind.path)
    assert outcome(kind) != "read"


def fields_of(value: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field, those of objects and first items within included: its place in words, what holds it, its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{where}.{name}".lstrip("."), value, name
            yield from fields_of(inner, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list) and value:
        yield f"{where}[0]", value, 0
        yield from fields_of(value[0], f"{where}[0]")


def within(place: str, places: frozenset[str]) -> bool:
    return any(place == p or place.startswith((f"{p}.", f"{p}[")) for p in places)


def without(value: Any) -> Iterator[tuple[str, Any]]:
    """The record without each of its fields."""
    for place, _, key in fields_of(value):
        if key == 0:
            continue
        changed = copy.deepcopy(value)
        holder = next(h for p, h, _ in fields_of(changed) if p == place)
        del holder[key]
        yield place, changed


WRONG: tuple[Any, ...] = ("a\0text", 7, 1e999, -1e300, 10**400, True, None, [[None]], {"a": None})


def with_others(value: Any, unread: frozenset[str]) -> Iterator[tuple[str, Any, bool]]:
    """The record with each field of other types and values (one of what is unread); whether its type is wrong."""
    for place, _, key in fields_of(value):
        for other in WRONG[:1] if within(place, unread) else WRONG:
            changed = copy.deepcopy(value)
            holder = next(h for p, h, _ in fields_of(changed) if p == place)
            was, holder[key] = holder[key], other
            number = (int, float)
            wrong = was is not None and type(was) is not type(other) and not (
                type(was) in number and type(other) in number
            )  # fmt: skip
            yield place, changed, wrong and other is not None


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_field_that_is_missing_is_one_line_or_nothing_unless_it_may_be(kind: Kind) -> None:
    accepted = set()
    for place, changed in without(kind.value):
        kind.put(text_of(changed))
        if outcome(kind) == "read":
            accepted.add(place)
    free = {place for place, _ in without(kind.value) if within(place, kind.unread)}
    assert accepted == free | kind.optional


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_field_of_another_type_or_value_is_one_line_or_nothing(kind: Kind) -> None:
    accepted = set()
    for place, changed, wrong in with_others(kind.value, kind.unread):
        kind.put(text_of(changed))
        if outcome(kind) == "read" and wrong and not within(place, kind.unread):
            accepted.add(place)
    assert accepted == set()


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_what_is_written_is_read(kind: Kind) -> None:
    kind.put(text_of(kind.value))
    assert outcome(kind) == "read"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("transform.interpolation", "lanczos", "an interpolation of bilinear, bicubic is needed"),
        ("transform.crop", 0, "provenance.transform.crop is 0: from 1 to"),
        ("transform.resize", 1 << 40, "provenance.transform.resize is"),
        ("transform.mean", [0.5, 0.5], "a list of 3 numbers is needed"),
        ("transform.std", [0.5, 0.5, 0.0], "numbers above 0 is needed"),
        ("dtype", "float8", "'float16' or 'float32' is needed"),
        ("precision", "int4", "'float32' or 'tf32' or 'bfloat16' or 'int8' is needed"),
        ("engine.name", "abacus", "'torch' or 'onnxruntime' is needed"),
        ("engine.device", "tpu", "'cpu' or 'cuda' or 'mps' is needed"),
        ("weights.sha256", "0" * 63, "64 hex digits is needed"),
        ("view", {"number": 0, "seed": 1}, "provenance.view.number is 0"),
        ("trunk.layer", "layer9", "the features are of 'layer9', and TRUNK has LAYERS: extract"),
    ],
)
def test_a_value_that_means_nothing_is_named_with_the_legal_ones(
    shop: Shop, place: str, value: Any, words: str
) -> None:
    kind = shop.kinds["attribute provenance"]
    changed = copy.deepcopy(kind.value)
    *outer, last = place.split(".")
    holder = changed
    for name in outer:
        holder = holder[name]
    holder[last] = value
    kind.put(text_of(changed))
    cache = open_cache(shop.cache.with_name("changed.h5"))
    layers = "avgpool, layer3" if SMALL == "resnet18" else "last, previous"
    words = words.replace("TRUNK has LAYERS", f"{SMALL} has {layers}")
    with pytest.raises(PipelineError, match=re.escape(words)):
        Recipe.of(provenance_of(cache), about_of(cache)["weights"], shop.desk)
    kind.put(text_of(kind.value))


def test_a_cache_that_does_not_say_where_it_is_from_is_refused_before_a_head_is_trained(shop: Shop) -> None:
    kind = shop.kinds["attribute about"]
    kind.put(b"{}")
    with pytest.raises(CacheError, match=r"changed.h5: it has no about.source; extract again"):
        task_of(SearchSettings(cache=str(shop.cache.with_name("changed.h5"))), shop.desk)
    kind.put(text_of(kind.value))


def test_a_run_whose_head_has_other_classes_is_refused(shop: Shop) -> None:
    kind = shop.kinds["config.json"]
    kind.put(text_of({**kind.value, "classes": ["ant", "bee"]}))
    with pytest.raises(HeadError, match="a head of other classes than its config.json"):
        head_of(runs.load_run(shop.head))
    kind.put(text_of(kind.value))


def test_brackets_behind_a_damaged_one_are_searched_again(shop: Shop) -> None:
    """They are known by their place: the second may not be taken for the first."""
    kind = shop.kinds["a search's brackets"]
    whole = text_of(kind.value)
    kind.put(b"\n".join([whole, b'[{"config": 1}]', whole]))
    assert len(kind.read()) == 1
    kind.put(b"\n".join([whole, whole]))
    assert len(kind.read()) == 2
    kind.put(whole)


def test_the_state_of_another_network_is_one_line(shop: Shop) -> None:
    """Its tensors are whole, and their checksums right; they are not those of the network that is at hand."""
    kind = shop.kinds["state.json"]
    assert kind.path is not None
    other = kind.path.with_name("last-00000009.safetensors")
    data = safetensors.numpy.save({"now/fc.weight": np.zeros((2, 2), np.float32)})
    other.write_bytes(data)
    last = {"name": other.name, "sha256": hashlib.sha256(data).hexdigest()}
    kind.put(text_of({**kind.value, "files": {**kind.value["files"], "last": last}}))
    with pytest.raises(HeadError, match="state.json cannot be used .*fresh=True"):
        kind.read()
    kind.put(text_of(kind.value))
