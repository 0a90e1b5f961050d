"""Stage three: where it starts, what it moves, what it keeps, and that it goes on from wherever it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from pipeline import extract, finetune, open_cache, predict, search, train
from pipeline.base.errors import CacheError, ConfigError, DataError, HeadError, Interrupted
from pipeline.base.watch import Tracker, Watch
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as run_folders
from pipeline.stages.finetune.groups import learnt_tensors, parameter_groups
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.stages.finetune.start import attach

Quick = dict[str, Any]
FAST = {"epochs": 2, "batch_size": 16, "lr_trunk": 1e-4, "lr_head": 1e-4, "evaluate": False}
HEAD = {**FAST, "train": "head"}  # where it is not about the trunk: by cached features, in no time


@pytest.fixture
def root(workshop: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder of one's own with the workshop's features, weights and head."""
    for name in ("features", "weights", f"runs/{workshop.head.run.name}"):
        shutil.copytree(workshop.root / name, tmp_path / "root" / name)
    return tmp_path / "root"


def start_of(workshop: SimpleNamespace) -> dict[str, torch.Tensor]:
    """The network before fine-tuning, made without the package: random:0 and the head's file."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    model.fc = torch.nn.Linear(512, 3)
    model.fc.load_state_dict(safetensors.torch.load_file(workshop.head.run / "head.safetensors"))
    return model.state_dict()


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def trace_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


@contextmanager
def last_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever val says, so that what training does can be seen in what is kept."""
    from pipeline.stages.finetune.loop import Tuning

    scores = Tuning.scores
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "scores", lambda t, rows, x: (scores(t, rows, x)[0], float(len(t.progress.rows))))
        yield


# -- step 0, certificate, what is kept --------------------------------------------------------------------------------


def test_fine_tuning_starts_where_the_head_left_off(workshop: SimpleNamespace) -> None:
    """P4, P5: step 0 is stage two's val figure; the certificate holds; the kept figure is never worse."""
    tuned = workshop.tuned
    assert tuned.before == tuned.step0 == workshop.head.val
    assert tuned.after >= tuned.before
    assert tuned.certificate_max_abs <= tuned.certificate_tolerance
    assert [row["epoch"] for row in trace_of(tuned.run)] == [0, 1]
    kept = hashlib.sha256((tuned.run / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tuned.run / "metrics.json").read_text()) == {**tuned.to_json(), "model_sha256": kept}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_the_certificate_holds_for_both_engines_and_storage_types(
    photos: Path, tmp_path: Path, quick: Quick, dtype: str, engine: str
) -> None:
    """Through the whole trunk and through the float16 maps before layer4; it is far below the logits, too."""
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    made = extract(photos, workspace=tmp_path, **{**quick, "dtype": dtype, "engine": engine})
    head = train(made.cache, workspace=tmp_path)
    for part in ("all", "layer4"):
        tuning = tuning_of(head.run, tmp_path, train=part)
        attached = tuning.attached
        found, allowed = attached.certificate(
            tuning.logits(attached.val, "certificate"), maps=part == "layer4", desk=Workspace(Path())
        )
        scale = np.abs(attached.cached_logits(attached.val)).max()
        # float32 features: two orders of summation; float16 features or maps: about 2^-11 of what is added up
        assert found < {("float32", "all"): 1e-5}.get((dtype, part), 2e-3) * scale
        assert found <= allowed < 0.05 * scale


def tuning_of(run: Path, root: Path, **options: Any) -> Any:
    from pipeline.base.ranks import Ranks
    from pipeline.stages.finetune.feeds import inputs_of
    from pipeline.stages.finetune.loop import Tuning

    settings, desk = FinetuneSettings(run=str(run), **options), Workspace(root)
    attached = attach(settings, desk)
    return Tuning(attached, inputs_of(settings, attached, Ranks(), desk), settings, Ranks(), desk)


def attached_to(run: Path, root: Path, **options: Any) -> Any:
    return attach(FinetuneSettings(run=str(run), **options), Workspace(root))


def test_a_damaged_head_fails_the_certificate(workshop: SimpleNamespace) -> None:
    """P5: the certificate can fail."""
    attached = attached_to(workshop.head.run, workshop.root)
    logits = attached.cached_logits(attached.val)
    attached.certificate(logits, maps=False, desk=Workspace(Path()))
    logits[3, 1] += 2 * attached.tolerance(maps=True)
    for maps in (False, True):
        with pytest.raises(HeadError, match="does not give the cached logits"):
            attached.certificate(logits, maps=maps, desk=Workspace(Path()))


def test_a_fine_tune_that_does_not_help_says_so_and_keeps_the_head(
    workshop: SimpleNamespace, root: Path, listener: Any
) -> None:
    tuned = finetune(
        workshop.head.run, epochs=1, lr_trunk=10.0, solver="sgd", lr_head=10.0, workspace=root, watch=listener
    )
    assert tuned.best_epoch == 0 and tuned.after == tuned.step0
    assert "worth it: no: no epoch was better" in listener.text
    start = start_of(workshop)
    assert all(torch.equal(value, start[name]) for name, value in state_of(tuned.run).items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_head(
    workshop: SimpleNamespace, root: Path, listener: Any
) -> None:
    tuned = finetune(
        workshop.head.run, solver="sgd", epochs=3, lr_trunk=1e30, lr_head=1e30, workspace=root, watch=listener
    )
    assert tuned.best_epoch == 0 and len(trace_of(tuned.run)) == 1
    assert "the loss is not finite: stopped" in listener.text


def test_the_fine_tuned_network_loads_into_plain_torchvision(workshop: SimpleNamespace) -> None:
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(state_of(workshop.tuned.run), strict=True)
    images = sorted(workshop.photos.rglob("*.png"))[:4]
    ours = predict(workshop.tuned.run, images, workspace=workshop.root)
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=37)
    model.eval()
    with torch.inference_mode():
        expected = model(torch.stack([transform(Image.open(p)) for p in images])).softmax(1).max(1).values
    assert [p.probability for p in ours] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_random_head_starts_at_chance_and_is_measured_against_the_trained_one(
    workshop: SimpleNamespace, root: Path
) -> None:
    tuned = finetune(workshop.head.run, head="random", workspace=root, **HEAD)
    assert tuned.before == workshop.head.val and tuned.step0 < tuned.before
    torch.manual_seed(0)
    drawn = torch.nn.Linear(512, 3).weight
    with pytest.MonkeyPatch.context() as patch, last_epoch_is_kept(patch):
        kept = finetune(workshop.head.run, head="random", workspace=root, **{**HEAD, "lr_head": 1e-9})
    assert torch.allclose(state_of(kept.run)["fc.weight"], drawn, atol=1e-6)


# -- what learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "layer4", "layer3+", "all"])
def test_every_trainable_parameter_is_in_exactly_one_group(workshop: SimpleNamespace, part: str) -> None:
    """P1"""
    attached = attached_to(workshop.head.run, workshop.root)
    groups = parameter_groups(attached.network, FinetuneSettings(train=part, layer_decay=0.5, lr_head=1e-2))
    named = dict(attached.network.named_parameters())
    grouped = [p for g in groups for p in g.parameters]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in named.values() if p.requires_grad}
    assert [id(named[n]) for g in groups for n in g.names] == [id(p) for p in grouped]
    prefixes = {"head": ("fc.",), "layer4": ("fc.", "layer4."), "layer3+": ("fc.", "layer4.", "layer3."), "all": ("",)}
    assert {n for n, p in named.items() if p.requires_grad} == {n for n in named if n.startswith(prefixes[part])}
    for g in groups:
        assert {p.ndim > 1 for p in g.parameters} == {g.weight_decay > 0}
    rates = list(dict.fromkeys(g.lr for g in groups))
    assert rates == pytest.approx([1e-2 * 0.5**k for k in range(len(rates))])


def test_exactly_what_is_named_moves(workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P1, F1: frozen parameters and BatchNorm's statistics stay to the last bit; with --bn train those that learn."""
    start = start_of(workshop)
    parameters = {n for n, _ in torchvision.models.resnet18(num_classes=3).named_parameters()}
    statistics = {n for n in start if n not in parameters}
    late = {n for n in start if n.startswith(("fc.", "layer4."))}
    for options, expected in (
        ({"train": "all"}, parameters),
        ({"train": "layer4", "bn": "train"}, late),
        ({"train": "layer4", "bn": "train", "prefix": False}, late),
        ({"train": "head"}, {"fc.weight", "fc.bias"}),
    ):
        with last_epoch_is_kept(monkeypatch):
            tuned = finetune(workshop.head.run, workspace=root, **{**FAST, "epochs": 1}, **options)
        moved = {name for name, value in state_of(tuned.run).items() if not torch.equal(value, start[name])}
        assert moved == expected, options
    assert late & statistics


def test_the_table_shows_each_group_before_the_start(workshop: SimpleNamespace, root: Path, listener: Any) -> None:
    """P1, P2"""
    finetune(workshop.head.run, train="layer4", augment="flip", workspace=root, watch=listener, **FAST)
    lines = listener.text.splitlines()
    (weights,) = [line for line in lines if line.startswith("layer4 weights")]
    assert weights.split() == ["layer4", "weights", "8,388,608", "0.0001", "0.01", "trained"]
    (frozen,) = [line for line in lines if line.startswith("layer2")]
    assert frozen.split()[1] == "525,568" and frozen.split()[-1] == "frozen"
    assert "maps are mirrored: nearly, not exactly" in " ".join(listener.text.split())
    assert "cached maps before layer4" in listener.text


def test_a_step_is_that_of_plain_torch(workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of one batch: the gradient of plain torchvision's network, one step of plain AdamW."""
    with last_epoch_is_kept(monkeypatch):
        tuned = finetune(
            workshop.head.run,
            epochs=1,
            batch_size=60,
            warmup=0,
            lr_trunk=1e-3,
            lr_head=1e-2,
            label_smoothing=0.1,
            clip=0.5,
            evaluate=False,
            workspace=root,
        )
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(start_of(workshop))
    model.eval()
    cache = open_cache(workshop.cache.cache)
    rows = cache.rows("train")
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms(crop_size=32, resize_size=37)
    x = torch.stack([transform(Image.open(workshop.photos / os.fsdecode(cache.ids[r]))) for r in rows])
    y = torch.from_numpy(cache.labels[rows])
    torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for rate, head in ((1e-3, False), (1e-2, True)):
        chosen = [(n, p) for n, p in model.named_parameters() if n.startswith("fc.") == head]
        for decay, wide in ((0.01, True), (0.0, False)):
            parameters = [p for _, p in chosen if (p.ndim > 1) == wide]
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay).step()
    found = state_of(tuned.run)
    # AdamW's first step is lr · g / (|g| + eps): where g is nearly 0 rounding decides, so the middle is compared
    for name, expected in model.named_parameters():
        assert float((found[name] - expected.detach()).abs().median()) < 1e-6, name


@pytest.mark.parametrize("options", [{"accumulate": 5}, {"accumulate": 5, "mixup": 0.4, "augment": "weights"}])
def test_pieces_give_the_figures_of_the_whole_batch(workshop: SimpleNamespace, root: Path, options: Quick) -> None:
    """Mixing goes by neighbours, so that it is the same in pieces."""
    whole, pieces = (
        finetune(workshop.head.run, workspace=root, **{**FAST, **options, "accumulate": n, "epochs": 1})
        for n in (1, options["accumulate"])
    )
    for a, b in zip(trace_of(whole.run), trace_of(pieces.run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-3)


def test_the_average_is_scored_and_kept(workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with last_epoch_is_kept(monkeypatch):
        plain = finetune(workshop.head.run, workspace=root, **HEAD)
        slow = finetune(workshop.head.run, workspace=root, ema=0.999, **HEAD)
    start, name = start_of(workshop), "fc.weight"
    moved = [float((state_of(t.run)[name] - start[name]).norm()) for t in (plain, slow)]
    assert 0 < moved[1] < 0.02 * moved[0]  # 6 steps at 0.001 each


# -- cached maps ------------------------------------------------------------------------------------------------------


def test_training_by_maps_is_training_through_the_trunk(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps are computed once, rounded to float16, and give what the whole trunk gives to their tolerance."""
    from pipeline.stages.finetune.maps import PrefixMaps

    through = finetune(workshop.head.run, train="layer4", prefix=False, workspace=root, **FAST)
    by_maps = finetune(workshop.head.run, train="layer4", workspace=root, **FAST)
    for a, b in zip(trace_of(through.run), trace_of(by_maps.run), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-3, abs=1e-4)
    monkeypatch.setattr(PrefixMaps, "_fill", lambda *a, **k: pytest.fail("the maps were there"))
    again = finetune(workshop.head.run, train="layer4", workspace=root, **FAST)
    assert (again.run / "model.safetensors").read_bytes() == (by_maps.run / "model.safetensors").read_bytes()
    (path,) = (root / "maps").glob("*.h5")
    maps = open_cache(path, verify=True)
    assert len(maps) == len(open_cache(workshop.cache.cache).rows("train")) + by_maps.verdict["val"]["n"]
    assert maps.provenance["trunk"] == {"name": "resnet18", "layer": "layer3", "pooling": "none", "shape": [256, 2, 2]}


def test_damaged_maps_are_refused(workshop: SimpleNamespace, root: Path) -> None:
    """H2"""
    finetune(workshop.head.run, train="layer4", workspace=root, **FAST)
    (path,) = (root / "maps").glob("*.h5")
    with path.open("r+b") as file:
        file.seek(open_cache(path)._structure.offset("/features") + 999)
        file.write(b"\x55")
    with pytest.raises(CacheError, match="is damaged"):
        finetune(workshop.head.run, train="layer4", workspace=root, **FAST)


def test_maps_of_more_than_ten_gigabytes_need_a_yes(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.finetune.maps.CONFIRMED_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"take 102.0 KiB in .*maps: give --yes.*or --no-prefix"):
        finetune(workshop.head.run, train="layer4", workspace=root, **FAST)
    assert not list(root.glob("maps/*.h5*"))
    finetune(workshop.head.run, train="layer4", yes=True, workspace=root, **FAST)
    assert list(root.glob("maps/*.h5"))


def test_mirrored_maps_are_drawn_by_seed_epoch_and_row(workshop: SimpleNamespace, root: Path) -> None:
    from pipeline.stages.finetune.feeds import Maps

    finetune(workshop.head.run, train="layer4", workspace=root, **FAST)
    (path,) = (root / "maps").glob("*.h5")
    attached, maps = attached_to(workshop.head.run, root), open_cache(path)
    rows = np.sort(np.concatenate([attached.train, attached.val]))
    inputs = Maps(attached.network, maps, rows, (256, 2, 2), "cpu", True, 0)
    some = rows[:20].tolist()
    plain = torch.cat([x for _, x in inputs.batches([some], None)])
    together = torch.cat([x for _, x in inputs.batches([some], 1)])
    alone = torch.cat([x for _, x in inputs.batches([[r] for r in some], 1)])
    assert torch.equal(together, alone)
    kinds = [("plain" if torch.equal(a, b) else "mirrored") for a, b in zip(plain, together, strict=True)]
    assert all(torch.equal(a, b if k == "plain" else b.flip(2)) for a, b, k in zip(plain, together, kinds, strict=True))
    assert 4 < kinds.count("mirrored") < 16


def test_too_little_memory_is_a_clear_error_with_the_cure(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: pieces give the same figures, so that nothing is lost by taking them."""
    from pipeline.stages.finetune.loop import Tuning

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Tuning, "_losses", full)
    with pytest.raises(ConfigError, match="out of memory in a step of 16 images: give --accumulate 2 .*same figures"):
        finetune(workshop.head.run, workspace=root, **HEAD)


# -- between before and after, verdict --------------------------------------------------------------------------------


def test_interpolation_scores_eleven_and_keeps_the_best(workshop: SimpleNamespace, root: Path) -> None:
    tuned = finetune(workshop.head.run, interpolate=True, workspace=root, **{**FAST, "lr_trunk": 3e-4})
    found = [json.loads(line) for line in (tuned.run / "interpolation.jsonl").read_text().splitlines()]
    assert [m["share"] for m in found] == pytest.approx([i / 10 for i in range(11)])
    best = max(found, key=lambda m: (m["val"], -m["loss"]))
    assert (tuned.share, tuned.after) == (best["share"], best["val"])
    assert found[0]["val"] == tuned.step0
    assert (tuned.run / "interpolation.svg").read_text().startswith("<svg")


def test_weights_between_are_the_weighted_mean() -> None:
    from pipeline.stages.finetune.mixtures import between

    before, after = {"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}
    assert between(before, after, 0.25)["w"].tolist() == [0.25, 3.0]
    assert between(before, after, 0.0)["w"] is before["w"] and between(before, after, 1.0)["w"] is after["w"]


def test_the_verdict_is_of_the_test_images_and_read_once(workshop: SimpleNamespace, root: Path) -> None:
    """S6: test is scored after the choice, kept with the run, and agrees with a count made by hand."""
    from pipeline import evaluate

    tuned = finetune(workshop.head.run, workspace=root, **{**FAST, "evaluate": True})
    verdict = tuned.verdict
    assert verdict["test"]["n"] == 9
    images = [workshop.photos / os.fsdecode(i) for i in open_cache(workshop.cache.cache).split("test").ids]
    for run, figure in ((workshop.head.run, "before"), (tuned.run, "after")):
        right = [p.class_name == Path(p.path).parent.name for p in predict(run, images, workspace=root)]
        assert verdict["test"][figure] == np.mean(right)
    scored = evaluate(tuned.run, workspace=root)
    assert scored.test["accuracy"] == verdict["test"]["after"]
    assert 0.5 < verdict["drift"]["test"] <= 1 + 1e-6 and set(verdict["drift"]) == {"train", "val", "test"}
    assert verdict["factor"] == pytest.approx(tuned.seconds / workshop.head.seconds)


def test_selection_never_sees_a_test_row(workshop: SimpleNamespace, root: Path) -> None:
    """S6: training, scoring and choosing are handed train and val rows; without the verdict no test row is scored."""
    from pipeline.stages.finetune.loop import Tuning

    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        logits, losses = Tuning.logits, Tuning._losses
        patch.setattr(Tuning, "logits", lambda t, rows, *a: seen.extend(rows.tolist()) or logits(t, rows, *a))
        patch.setattr(Tuning, "_losses", lambda t, rows, x: seen.extend(rows) or losses(t, rows, x))
        tuned = finetune(workshop.head.run, workspace=root, interpolate=True, **HEAD)
    cache = open_cache(workshop.cache.cache)
    assert set(seen) == {*cache.rows("train").tolist(), *cache.rows("val").tolist()}
    assert tuned.verdict["test"] is None
    assert not (tuned.run / "evaluation.json").exists()


def make_change(split: str, low: float, high: float) -> Any:
    from pipeline.stages.finetune.verdict import Change

    middle = (low + high) / 2
    return Change(split, 1000, 0.8, 0.8 + middle, middle, low, high)


@pytest.mark.parametrize(
    ("kept", "test", "words", "then"),
    [
        (3, (0.01, 0.03), "yes: test is better by 2.0 points", "the last epoch was the best"),
        (2, (0.01, 0.03), "yes: test is better by 2.0 points", "`pipeline predict` and `pipeline export`"),
        (2, (-0.01, 0.03), "not proven: the difference on test, +1.0 points, may be chance", "more test images"),
        (2, (-0.03, -0.01), "no: test is worse by 2.0 points", "keep the head"),
        (2, (0.0, 0.0), "no difference: the same test images are right as before (1,000)", "more test images"),
        (0, (0.0, 0.0), "no: no epoch was better on val", "--train layer4 moves less"),
    ],
)
def test_the_verdict_says_what_the_figures_say(kept: int, test: tuple[float, float], words: str, then: str) -> None:
    from pipeline.stages.finetune.verdict import Course, judge

    course = Course(epochs=3, kept=kept, accuracy=0.9, interpolated=False, train="all")
    found = judge(
        make_change("val", 0.0, 0.02),
        make_change("test", *test),
        seconds=10.0,
        head_seconds=2.0,
        drift={"val": 0.99},
        course=course,
    )
    assert words in found.worth_it and any(then in line for line in found.next)
    assert found.factor == 5.0


def test_the_verdict_on_a_training_that_diverged_says_so() -> None:
    from pipeline.stages.finetune.verdict import Course, judge

    course = Course(epochs=3, kept=0, accuracy=0.9, interpolated=False, train="all", diverged=True)
    same = make_change("val", 0.0, 0.0)
    found = judge(same, None, seconds=10.0, head_seconds=2.0, drift={}, course=course)
    assert found.worth_it.endswith("and the loss did not stay finite")
    assert found.next == ("lower --lr-trunk and --lr-head: the loss did not stay finite",)


@pytest.mark.parametrize(
    ("images", "batch", "accumulate", "cure"),
    [(33, 16, 1, "--batch-size 17"), (32, 16, 8, None), (10, 3, 2, "--batch-size 4"), (5, 2, 3, "--accumulate 1")],
)
def test_batchnorm_never_learns_from_a_piece_of_one(images: int, batch: int, accumulate: int, cure: str | None) -> None:
    from pipeline.stages.finetune.loop import check_pieces

    if cure is None:
        check_pieces(images, batch, accumulate)
        return
    with pytest.raises(ConfigError, match=f"piece of one, which has no variance; give {cure},"):
        check_pieces(images, batch, accumulate)


# -- resuming ---------------------------------------------------------------------------------------------------------


class Stopper(Watch):
    """Asks for a stop, as Ctrl-C does, after so many images of training."""

    def __init__(self, images: int) -> None:
        self.left, self.text = images, ""

    def say(self, text: str) -> None:
        self.text += text + "\n"

    @contextmanager
    def track(self, what: str, total: int, unit: str = "images", done: int = 0) -> Iterator[Tracker]:
        yield self if what.startswith("epoch") else Tracker()  # type: ignore[misc]

    def advance(self, n: int = 1) -> None:
        before, self.left = self.left, self.left - n
        if self.left <= 0 < before:
            os.kill(os.getpid(), 2)


@pytest.mark.parametrize(
    "options",
    [
        {"train": "layer4", "ema": 0.9, "mixup": 0.3, "bn": "train", "augment": "flip"},
        {"solver": "sgd", "augment": "weights"},
    ],
)
def test_stopped_and_resumed_is_uninterrupted_to_the_last_bit(
    workshop: SimpleNamespace, root: Path, options: Quick
) -> None:
    """P1, E1: within an epoch and between two."""
    whole = finetune(workshop.head.run, workspace=root, **FAST, **options)
    for images in (20, 64):
        stopper = Stopper(images)
        with pytest.raises(Interrupted, match="the same command goes on") as stopped:
            finetune(workshop.head.run, workspace=root, watch=stopper, **FAST, **options)
        assert stopped.value.signal == 2
        ear = Stopper(10**9)
        resumed = finetune(workshop.head.run, workspace=root, watch=ear, **FAST, **options)
        assert "going on from an interrupted training" in ear.text
        assert (resumed.run / "model.safetensors").read_bytes() == (whole.run / "model.safetensors").read_bytes()
        losses = [[(r["epoch"], r["loss"], r["val_loss"]) for r in trace_of(t.run)] for t in (whole, resumed)]
        assert losses[0] == losses[1]
    assert not list((root / "tuning").iterdir())


def test_other_settings_do_not_go_on_from_an_interrupted_training(workshop: SimpleNamespace, root: Path) -> None:
    with pytest.raises(Interrupted):
        finetune(workshop.head.run, workspace=root, watch=Stopper(20), **HEAD)
    for changed in ({"lr_head": 2e-4}, {"fresh": True}):
        ear = Stopper(10**9)
        finetune(workshop.head.run, workspace=root, watch=ear, **{**HEAD, **changed})
        assert "going on" not in ear.text


def test_a_damaged_state_is_refused_with_the_cure(workshop: SimpleNamespace, root: Path) -> None:
    with pytest.raises(Interrupted):
        finetune(workshop.head.run, workspace=root, watch=Stopper(20), **HEAD)
    (last,) = (root / "tuning").glob("*/last-*.safetensors")
    blob = bytearray(last.read_bytes())
    blob[-5] ^= 1
    last.write_bytes(bytes(blob))
    with pytest.raises(HeadError, match="cannot be used.*--fresh"):
        finetune(workshop.head.run, workspace=root, **HEAD)
    finetune(workshop.head.run, workspace=root, fresh=True, **HEAD)


def test_two_processes_are_not_at_the_same_training(workshop: SimpleNamespace, root: Path) -> None:
    from pipeline.stages.finetune.checkpoint import Checkpoint, state_folder
    from pipeline.stages.finetune.job import _identity

    settings, desk = FinetuneSettings(run=str(workshop.head.run), **HEAD), Workspace(root)
    folder = state_folder(desk, _identity(settings, attach(settings, desk)))
    with Checkpoint(folder).held(), pytest.raises(HeadError, match="another process is at this very fine-tuning"):
        finetune(workshop.head.run, workspace=root, **HEAD)


def test_a_state_is_whole_whenever_the_writer_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file operation of a write, one after the other, is the last: the state before or the new one is there."""
    from pipeline.stages.finetune.checkpoint import Checkpoint

    def write(checkpoint: Checkpoint, step: int) -> None:
        checkpoint.write({"step": step}, {"w": torch.full((3,), float(step))}, {"b": torch.full((2,), float(step))})

    checkpoint = Checkpoint(tmp_path / "state")
    checkpoint.folder.mkdir()
    write(checkpoint, 1)
    seen = set()
    lives = 0

    def dying(real: Any) -> Any:
        def call(*a: Any, **k: Any) -> Any:
            nonlocal lives
            lives -= 1
            if lives < 0:
                raise KeyboardInterrupt
            return real(*a, **k)

        return call

    for fatal in range(30):
        lives = fatal
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with suppress(KeyboardInterrupt):
                write(checkpoint, fatal + 2)
        state = checkpoint.read()
        assert state is not None
        seen.add(fatal + 2 - state["step"])
        assert checkpoint.tensors("last")["w"].tolist() == [state["step"]] * 3
        assert checkpoint.tensors("best")["b"].tolist() == [state["step"]] * 2
    assert 0 in seen and len(seen) > 1


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "--epochs is 0: it must be at least 1"),
        ({"train": "layer9"}, "--train 'layer9' is not known: choose from all, layer3.*, layer4, head"),
        ({"train": "layer4", "augment": "weights"}, "--augment weights needs the images.*--no-prefix"),
        ({"train": "head", "augment": "flip"}, "--augment flip needs the images.*--no-prefix"),
        ({"train": "layer4", "randaugment": True}, "--randaugment needs the images.*--no-prefix"),
        ({"layer_decay": 0.5, "lr_trunk": 1e-4}, "--layer-decay 0.5 says what --lr-trunk says"),
        ({"momentum": 0.5}, "--momentum says nothing to --solver adamw"),
        ({"layer_decay": 1.5}, "--layer-decay is 1.5: it must be at most 1"),
        ({"accumulate": 64}, "--accumulate is 64: it must be at most --batch-size, 32"),
        ({"bn": "train", "train": "head"}, "--bn train says nothing to --train head"),
        ({"bn": "train", "batch_size": 1}, "piece of one"),
        ({"warmup": 500, "epochs": 1}, "--warmup 500 is not below the 2 steps"),
        ({"precision": "bfloat16", "device": "cpu"}, "--precision bfloat16 needs a GPU"),
        ({"ema": 1.0}, "--ema is 1.0: it must be below 1"),
    ],
)
def test_wrong_settings_name_the_legal_ones(workshop: SimpleNamespace, root: Path, options: Quick, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        finetune(workshop.head.run, workspace=root, **options)
    assert not list(root.glob("tuning/*"))


def test_a_run_that_is_not_there_or_not_a_head_is_refused(workshop: SimpleNamespace) -> None:
    with pytest.raises(HeadError, match="no run 'nothing': give a run's folder"):
        finetune("nothing", workspace=workshop.root)
    with pytest.raises(HeadError, match="is a finetune run: give a run of `pipeline train`"):
        finetune(workshop.tuned.run, workspace=workshop.root)


def test_a_run_of_another_key_is_refused(workshop: SimpleNamespace, root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(workshop.head.run, tmp_path / "runs" / "0001-train-x"))
    record = json.loads((folder / "head.json").read_text())
    record["key"] = "0" * 64
    (folder / "head.json").write_text(json.dumps(record))
    with pytest.raises(HeadError, match="000000"):
        finetune(folder, workspace=root)


def test_an_image_that_has_changed_or_gone_or_become_text_is_found_before_training(
    photos: Path, tmp_path: Path, quick: Quick
) -> None:
    mine = Path(shutil.copytree(photos, tmp_path / "mine"))
    made = extract(mine, workspace=tmp_path, **quick)
    head = train(made.cache, workspace=tmp_path)
    victim = mine / os.fsdecode(open_cache(made.cache).split("test").ids[0])
    blob = victim.read_bytes()
    victim.write_bytes(blob + b"\0")
    with pytest.raises(DataError, match="has changed since"):
        finetune(head.run, workspace=tmp_path)
    victim.write_bytes(b"no image at all\n")
    with pytest.raises(DataError, match="the file holds text, not an image"):
        finetune(head.run, workspace=tmp_path)
    victim.unlink()
    with pytest.raises(DataError, match="no longer there"):
        finetune(head.run, workspace=tmp_path)
    victim.write_bytes(blob)  # another time, the same bytes: all is well
    assert finetune(head.run, epochs=1, workspace=tmp_path).steps
    shutil.rmtree(mine)
    with pytest.raises(DataError, match="not at"):
        finetune(head.run, workspace=tmp_path)


def test_a_folder_that_cannot_be_written_is_found_before_training(workshop: SimpleNamespace, root: Path) -> None:
    shutil.rmtree(root / "tuning", ignore_errors=True)
    (root / "tuning").write_text("in the way")
    with pytest.raises(HeadError, match="cannot write in .*tuning"):
        finetune(workshop.head.run, workspace=root, **HEAD)


def test_a_head_that_learned_from_val_is_warned_of(workshop: SimpleNamespace, root: Path, listener: Any) -> None:
    found = search(workshop.cache.cache, evaluate=False, workspace=root)
    finetune(found.run, workspace=root, watch=listener, **HEAD)
    assert "has learned from val, too" in listener.text


def test_a_checkpoint_holds_what_a_step_may_change_and_nothing_more(workshop: SimpleNamespace) -> None:
    attached = attached_to(workshop.head.run, workshop.root)
    settings = FinetuneSettings(train="layer4", bn="train")
    parameter_groups(attached.network, settings)
    names = set(learnt_tensors(attached.network, settings))
    assert "layer4.0.bn1.running_mean" in names and "layer4.0.bn1.num_batches_tracked" in names
    assert not [n for n in names if not n.startswith(("layer4.", "fc."))]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(workshop: SimpleNamespace, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, last_epoch_is_kept(patch):
        found = [
            digest(finetune(workshop.head.run, seed=s, workspace=root, **HEAD).run / "model.safetensors")
            for s in (0, 0, 1)
        ]
    assert found[0] == found[1] != found[2]


def test_latest_is_the_fine_tuned_run(workshop: SimpleNamespace) -> None:
    assert run_folders.find_run("latest", Workspace(workshop.root)).folder == workshop.tuned.run


def test_a_run_has_learned_from_what_its_head_has(workshop: SimpleNamespace, root: Path) -> None:
    """So that no temperature is fitted on val where the head has seen it."""
    found = search(workshop.cache.cache, evaluate=False, workspace=root)
    for start, expected in ((found.run, ["train", "val"]), (workshop.head.run, ["train"])):
        tuned = finetune(start, workspace=root, **HEAD)
        assert json.loads((tuned.run / "config.json").read_text())["learned_from"] == expected
