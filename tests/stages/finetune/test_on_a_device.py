"""Fine-tuning on a device double: no mix of devices, the CPU's numbers, few waits, going on where it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import compare, evaluate, finetune, predict, report, rows
from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import ConfigError, Interrupted
from pipeline.base.interrupt import StopRequest
from pipeline.runs import network as network_module
from pipeline.stages.finetune import scoring
from pipeline.stages.finetune.loop import Loop
from pipeline.stages.finetune.state import State
from pipeline.stages.finetune.tally import STEPS
from tests.device_double import device_double

# 42 train images in batches of 4 are 11 steps: eight to a first reading, and three to another.
QUICK = {"epochs": 1, "batch_size": 4, "lr_trunk": 1e-4, "lr_head": 1e-3, "evaluate": False}
FORMS: dict[str, dict[str, Any]] = {
    "head": {"train": "head"},
    "maps": {"train": "last", "augment": "flip"},
    "maps mixed in pieces": {"train": "last", "augment": "flip", "mixup": 0.3, "accumulate": 2},
    "last": {"train": "last", "prefix": False, "augment": "crop"},
    "all": {},
    "sgd": {"solver": "sgd", "clip": 0.5},
    "everything": {"mixup": 0.3, "ema": 0.9, "accumulate": 2, "augment": "weights", "label_smoothing": 0.1},
    "batch norm": {"bn": "train", "train": "last", "prefix": False, "precision": "tf32"},
    "bfloat16": {"precision": "bfloat16", "train": "last"},
    "random head": {"head": "random", "train": "last", "interpolate": True},
}
FEW = ("head", "maps", "all")  # the others are slow


def forms(*fast: str) -> list[Any]:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in FORMS]


Trained = tuple[dict[str, torch.Tensor], list[Any]]


@pytest.fixture
def tuned(workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """``tuned(**options)``: all tensors of the state after the last step, and the trace."""
    found: list[Trained] = []
    run = Loop.run

    def ended(self: Loop, *arguments: Any) -> None:
        run(self, *arguments)
        tensors = {name: tensor.clone().cpu() for name, tensor in self.state.tensors().items()}
        found.append((tensors, self.state.progress.rows))

    monkeypatch.setattr(Loop, "run", ended)

    def trained(**options: Any) -> Trained:
        finetune(workshop.head.run, workspace=root, **{**QUICK, **options})
        return found.pop()

    return trained


def same(one: Trained, other: Trained) -> bool:
    """To the last bit."""
    (a, first), (b, second) = one, other
    return first == second and set(a) == set(b) and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("form", [f for f in forms("head", "maps") if f.values[0] not in ("bfloat16", "batch norm")])
def test_on_the_device_it_gives_the_numbers_of_the_cpu(form: str, tuned: Any) -> None:
    plain = tuned(**FORMS[form], device="cpu")
    with device_double():
        assert same(tuned(**FORMS[form], device="cuda"), plain)


@pytest.mark.parametrize("form", ["maps", pytest.param("everything", marks=pytest.mark.slow)])
def test_a_device_that_is_late_changes_nothing(form: str, tuned: Any) -> None:
    """Whatever the program goes on to do while the device is still at a batch."""
    plain = tuned(**FORMS[form], device="cpu")
    with device_double(late=True, seed=1):
        assert same(tuned(**FORMS[form], device="cuda"), plain)


def test_what_learns_on_a_device_attends_in_one_order(workshop: SimpleNamespace, root: Path, task_of: Any) -> None:
    """The fused kernels' backward passes add by atomics."""
    seen: list[tuple[bool, bool]] = []
    for device in ("cpu", "cuda"):
        with device_double():
            task = task_of(workshop.head.run, root, device=device, **QUICK)
            loop = Loop(task, State(task.attached.network, task.attached.anatomy, task.settings))
            told = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
            task.inputs.module.register_forward_pre_hook(lambda *_, told=told: seen.append((told[0](), told[1]())))
            next(loop.steps(StopRequest()))
    assert (seen[0], seen[-1]) == ((True, True), (False, False))


@pytest.mark.parametrize("form", forms(*FEW))
def test_no_step_waits_for_the_device(form: str, workshop: SimpleNamespace, root: Path, task_of: Any) -> None:
    """The figures are read once in eight steps, and at the end of an epoch."""
    with device_double() as double:
        task = task_of(workshop.head.run, root, device="cuda", **{**QUICK, **FORMS[form]})
        state = State(task.attached.network, task.attached.anatomy, task.settings)
        loop = Loop(task, state)
        with scoring.in_mode(loop._norms, training=True), arithmetic(task.settings.precision):
            double.reset()
            readings = sum(1 for _ in loop.steps(StopRequest()))
        assert state.progress.done == task.schedule.per_epoch == 11
        assert double.synchronisations == readings == 2


def stopped_and_resumed(tuned: Any, stop_at: int, stopper: Any, **options: Any) -> Any:
    """As Ctrl-C stops it after so many images, and the same command again."""
    with pytest.raises(Interrupted, match="the same command goes on"):
        tuned(**options, watch=stopper(stop_at))
    return tuned(**options)


@pytest.mark.parametrize("form", forms("head"))
def test_it_goes_on_where_it_was_stopped_to_the_last_bit(form: str, tuned: Any, stopper: Any, root: Path) -> None:
    """After the first step, in the middle of a reading, at its end, and after it."""
    options = {**FORMS[form], "device": "cuda", "epochs": 2}
    with device_double():
        whole = tuned(**options)
        for images in (1, 13, 32, 60) if form in ("head", "maps") else (13,):
            resumed = stopped_and_resumed(tuned, images, stopper, **options)
            assert same(resumed, whole), images


@pytest.mark.parametrize("form", forms("head"))
def test_it_goes_on_where_it_was_killed_to_the_last_bit(
    form: str, tuned: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the disk is of a reading; all that came after is done again."""
    options = {**FORMS[form], "device": "cuda", "checkpoint_seconds": 0, "epochs": 2}
    step = Loop._step
    with device_double():
        whole = tuned(**options)
        for kill_at in (3, 10, 14) if form == "head" else (10,):
            left = [kill_at]

            def killed(self: Loop, *arguments: Any, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise MemoryError("as good as a kill")
                step(self, *arguments)

            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(Loop, "_step", killed)
                tuned(**options)
            states = [json.loads(path.read_text()) for path in (root / "tuning").glob("*/state.json")]
            assert [state["step"] for state in states] == ([] if kill_at < 8 else [8 if kill_at < 11 else 11])
            assert same(tuned(**options), whole), kill_at


@pytest.mark.parametrize("solver", ["adamw", "sgd"])
def test_the_optimisers_memory_is_where_the_optimiser_wants_it(
    solver: str, workshop: SimpleNamespace, root: Path, task_of: Any
) -> None:
    """AdamW's fused step on a GPU wants its number of steps there; every other tensor lies as its parameter does."""
    from pipeline.stages.finetune.checkpoint import Checkpoint

    with device_double():
        task = task_of(workshop.head.run, root, device="cuda", **{**QUICK, "solver": solver})
        first, second = (State(task.attached.network, task.attached.anatomy, task.settings) for _ in range(2))
        first.progress.rows = [{"epoch": 0, "loss": 1.0, "accuracy": 0.5, "val_accuracy": 0.5, "val_loss": 1.0}]  # type: ignore[list-item]
        steps = Loop(task, first).steps(StopRequest())
        next(steps)
        steps.close()
        kept = Checkpoint(root / "kept")
        (root / "kept").mkdir()
        kept.write({**vars(first.progress)}, first.tensors(), None)
        second._take(kept)
        for parameter, memory in first.optimizer.state.items():
            found = second.optimizer.state[parameter]
            assert set(found) == set(memory) and memory
            for what, tensor in memory.items():
                assert found[what].device == tensor.device == torch.device("cuda:0"), what
                assert found[what].stride() == tensor.stride() and found[what].dtype == tensor.dtype
                assert torch.equal(found[what], tensor)


def test_a_loss_that_is_not_finite_counts_no_step_after_it(tuned: Any, workshop: SimpleNamespace, root: Path) -> None:
    """It is seen some steps later than on a CPU; what is told of the training is the same."""
    options = {**QUICK, "solver": "sgd", "lr_trunk": 1e30, "lr_head": 1e30, "epochs": 3, "train": "last"}
    plain = finetune(workshop.head.run, workspace=root, device="cpu", **options)
    with device_double():
        found = finetune(workshop.head.run, workspace=root, device="cuda", **options)
    assert (found.steps, found.best_epoch) == (plain.steps, 0) and 0 < found.steps < STEPS["cuda"]
    assert "did not stay finite" in found.verdict["worth_it"]


def test_too_little_memory_for_the_network_is_a_line_with_what_is_free(workshop: SimpleNamespace, root: Path) -> None:
    with device_double() as double:
        double.free, double.largest = 3 << 30, 1000
        with pytest.raises(ConfigError, match=r"device='cuda' has 3.0 GiB free.*give device='cpu'"):
            finetune(workshop.head.run, device="cuda", workspace=root, **QUICK)


def test_too_little_memory_for_what_training_keeps_is_such_a_line_too(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device_double() as double:

        def full(*arguments: Any) -> State:
            double.largest = 1000
            return State(*arguments)

        monkeypatch.setattr("pipeline.stages.finetune.job.State", full)
        with pytest.raises(ConfigError, match="out of memory: device='cuda' has .* free.*give device='cpu'"):
            finetune(workshop.head.run, device="cuda", workspace=root, **QUICK)


@pytest.mark.parametrize("moment", ["forward", "optimizer"])
def test_too_little_memory_for_a_step_is_a_line_with_the_cure(
    moment: str, workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's memory is made in its first step."""
    owner, name = (Loop, "_losses") if moment == "forward" else (torch.optim.AdamW, "step")
    work = getattr(owner, name)
    with device_double() as double:

        def full(*arguments: Any) -> Any:
            double.largest = 1000
            return work(*arguments)

        monkeypatch.setattr(owner, name, full)
        with pytest.raises(ConfigError, match="out of memory in a step of 4 images: give accumulate=2"):
            finetune(workshop.head.run, device="cuda", workspace=root, **QUICK)


@pytest.fixture
def runs(workshop: SimpleNamespace, root: Path) -> dict[str, Path]:
    """A head and a fine-tuned network whose test rows nobody has scored."""
    shutil.copytree(workshop.tuned.run, root / "runs" / workshop.tuned.run.name)
    found = {"head": root / "runs" / workshop.head.run.name, "network": root / "runs" / workshop.tuned.run.name}
    for folder in found.values():
        for path in folder.glob("evaluation*"):
            path.unlink()
    return found


@pytest.mark.parametrize("stage", ["head", "network"])
def test_a_run_says_on_the_device_what_it_says_on_the_cpu(
    stage: str, runs: dict[str, Path], workshop: SimpleNamespace, root: Path
) -> None:
    """And on the CPU, when that was asked for, though there is a device; a head alone needs none for cached rows."""
    told, logits = [], []
    for device in ("cpu", "cuda"):
        folder = root / "runs" / f"0100-{device}-{stage}"
        shutil.copytree(runs[stage], folder)
        with device_double() as double:
            told.append(predict(folder, workshop.photos / "ant" / "00.png", device=device, workspace=root).to_json())
            assert (double.launches > 0) == (device == "cuda")
            double.reset()
            evaluate(folder, device=device, workspace=root)
            assert (double.launches > 0) == (device == "cuda" and stage == "network")
        logits.append((folder / "evaluation.safetensors").read_bytes())
    assert told[0] == told[1] and logits[0] == logits[1]


@pytest.mark.parametrize("verb", ["evaluate --data", "compare", "rows", pytest.param("report", marks=pytest.mark.slow)])
def test_every_verb_that_runs_a_network_runs_it_where_it_was_told(
    verb: str, runs: dict[str, Path], workshop: SimpleNamespace, root: Path
) -> None:
    for device in ("cpu", "cuda"):
        with device_double() as double:
            if verb == "compare":
                compare(runs["head"], runs["network"], device=device, workspace=root)
                runs["network"].joinpath("evaluation.json").unlink()
            elif verb == "report":
                report(runs["network"], out=root / f"{device}.html", device=device, workspace=root)
                shutil.rmtree(root / "reports")  # with the answers that it keeps
            elif verb == "rows":
                rows(runs["network"], out=root / f"{device}.csv", device=device, workspace=root)
            else:
                evaluate(runs["network"], data=str(workshop.cache.cache), split="val", device=device, workspace=root)
            assert (double.launches > 0) == (device == "cuda"), device


def test_after_fine_tuning_test_is_scored_where_it_was_trained(
    workshop: SimpleNamespace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Val and test of one verdict come from one device, whatever `auto` would take."""
    places = []
    forward = network_module.network_forward

    def seen(net: torch.nn.Module, *rest: Any) -> Any:
        places.append(next(net.parameters()).device.type)
        return forward(net, *rest)

    monkeypatch.setattr(network_module, "network_forward", seen)
    monkeypatch.setattr("pipeline.stages.finetune.verdict.network_forward", seen)
    for device in ("cpu", "cuda"):
        places.clear()
        with device_double():
            finetune(
                workshop.head.run, workspace=root, **{**QUICK, "evaluate": True, "train": "head", "device": device}
            )
        assert places and set(places) == {device}
