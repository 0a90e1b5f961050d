"""run -> a model that leaves the house: a state dict, ONNX or torch.export, run and compared before it is kept.

The exported model takes what the trunk's transform gives, (n, 3, S, S) float32 normalised, any n, and gives logits
(n, C); class names and the transform travel with it.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import ConfigError, HeadError, PipelineError
from pipeline.base.files import try_writing, whole, write_text, writing
from pipeline.base.spelling import option
from pipeline.base.words import percent, significant
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.runs.network import head_of, load_network, temperature_of
from pipeline.runs.recipe import Recipe
from pipeline.stages.score.figures import recorded
from pipeline.stages.use import words
from pipeline.stages.use.results import ExportResult
from pipeline.stages.use.settings import SUFFIXES, ExportSettings
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.surgery import build, freeze, load_tensors, reattach, trunk_at
from pipeline.trunk.weights import load_model

Images = NDArray[np.float32]

BATCHES = (1, 2, 7)  # that every export is run on: one image, and sizes it was not traced with
TOLERANCE = 1e-4  # of the largest logit; other kernels add in another order
CARD = "model-card.md"


def export(settings: ExportSettings, desk: Workspace) -> ExportResult:
    """Export with settings made."""
    run = runs.find_run(settings.run, desk)
    if not (run.folder / "head.json").exists() and run.stage != "finetune":
        raise HeadError(f"{run.folder.name} is a {run.stage} run: give one of train, search or finetune")
    out = settings.out or run.folder / f"exported{SUFFIXES[settings.format]}"
    if out.exists():
        raise ConfigError(f"{out} is there already: remove it, or give another {option('out')}")
    card = out.parent / CARD
    if card.exists() and not card.read_text(encoding="utf-8", errors="replace").startswith(_title(run)):
        raise ConfigError(f"{card} is the card of another model: give an {option('out')} in another folder")
    with writing(out.parent, ConfigError, f"give another {option('out')}"):
        try_writing(out.parent)
    model, recipe = whole_network(run, settings.format, desk)
    about = description(run, recipe)
    write, open_again = _FORMATS[settings.format]
    rng = np.random.default_rng(0)
    size = recipe.trunk.info.transform.crop
    images = rng.normal(size=(max(BATCHES), 3, size, size)).astype(np.float32)
    with writing(out.parent, ConfigError, f"give another {option('out')}"), whole(out) as draft:
        write(model, images, draft, about)
        parity = compare(model, open_again(draft, about), images)
        worst = max(parity.values())
        if not worst <= TOLERANCE:
            raise HeadError(
                f"the exported {settings.format} differs from the model by {worst:.1e} of its logits, "
                f"{TOLERANCE:.0e} is allowed: nothing was written; report this"
            )
        # Before the model has its name: what is there has its card, and what was stopped goes on with another one.
        write_text(card, model_card(run, about, settings.format, out.name, parity))
    desk.watch.result(words.parity(parity, TOLERANCE, settings.format))
    desk.watch.result(f"{out} and {card}")
    return ExportResult(out, card, settings.format, parity)


def whole_network(run: runs.Run, format: str, desk: Workspace) -> tuple[nn.Module, Recipe]:
    """The run's classifier, images (n, 3, S, S) -> logits (n, C), frozen and in eval mode.

    Raises:
        ConfigError: a state dict of what the plain network has no place for.
    """
    recipe = runs.recipe_of(run, desk)
    if run.stage == "finetune":
        return load_network(run, recipe.trunk.info), recipe
    head = head_of(run)
    info, layer = recipe.trunk.info, recipe.trunk.layer
    model = load_model(info)
    anatomy = anatomy_of(info.trunk, model)
    if head.layer is not None and layer == info.layer("last"):
        whole = reattach(model, anatomy, *head.layer)
    elif format == "state_dict":
        raise ConfigError(
            f"a {head.kind} head on {layer} has no place in a plain {info.trunk}: give "
            f"{option('format', 'onnx')} or {option('format', 'torch_export')}"
        )
    else:
        whole = nn.Sequential(trunk_at(model, anatomy, layer, info.transform.crop)[0], head.module())
    freeze(whole)
    return whole, recipe


def description(run: runs.Run, recipe: Recipe) -> dict[str, Any]:
    """What travels with an exported model: classes, transform, trunk, temperature, and the key of its features."""
    info, transform = recipe.trunk.info, recipe.trunk.info.transform
    return {
        "classes": list(run.config["classes"]),
        "transform": {
            "resize": transform.resize,
            "crop": transform.crop,
            "interpolation": transform.interpolation,
            "mean": list(transform.mean),
            "std": list(transform.std),
        },
        "trunk": info.trunk,
        "weights": info.name,
        "pretrained": info.pretrained,
        "temperature": temperature_of(run),
        "run": run.folder.name,
        "key": run.config["cache"]["key"],
    }


def compare(model: nn.Module, again: Callable[[Images], Images], images: Images) -> dict[str, float]:
    """Largest difference at each of BATCHES, as a share of the largest logit."""
    found = {}
    for size in BATCHES:
        with torch.inference_mode():
            expected = model(torch.from_numpy(images[:size])).numpy()
        given = again(images[:size])
        difference = float(np.abs(given - expected).max()) if given.shape == expected.shape else float("inf")
        found[str(size)] = difference / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return found


def _write_state_dict(model: nn.Module, _images: Images, path: Path, about: dict[str, Any]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file, which has errors of its own kind and leaves a file that only its owner can read.
    path.write_bytes(safetensors.torch.save(tensors, metadata={name: json.dumps(v) for name, v in about.items()}))


def _open_state_dict(path: Path, about: Mapping[str, Any]) -> Callable[[Images], Images]:
    """Into the library's own network, strictly."""
    size, classes = about["transform"]["crop"], len(about["classes"])
    plain = build(about["trunk"], num_classes=classes, image_size=size, pretrained=about["pretrained"])
    try:
        load_tensors(plain, safetensors.torch.load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"a plain {about['trunk']} has no place for this classifier ({reason}): give "
            f"{option('format', 'onnx')} or {option('format', 'torch_export')}"
        ) from error

    def again(images: Images) -> Images:
        with torch.inference_mode():
            logits: Images = plain(torch.from_numpy(images)).numpy()
        return logits

    return again


@contextmanager
def _exporting(about: Mapping[str, Any], format: str, others: Sequence[str]) -> Iterator[None]:
    """What PyTorch's exporters cannot follow is refused by name; their remarks are of no use to a reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (PipelineError, OSError):
            raise
        except Exception as error:  # what they raise cannot be listed
            reason = " ".join(str(error).split())[:200]
            raise HeadError(
                f"{about['trunk']} cannot be exported as {format} ({type(error).__name__}: {reason}): give "
                f"{' or '.join(option('format', other) for other in others)}"
            ) from error


def _write_onnx(model: nn.Module, images: Images, path: Path, about: dict[str, Any]) -> None:
    """With the batch left open, class names and transform in the metadata."""
    _need_onnx()
    with _exporting(about, "onnx", ("state_dict", "torch_export")):
        program = torch.onnx.export(
            model,
            (torch.from_numpy(images[:2]),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    program.save(path, external_data=False)


def _open_onnx(path: Path, _about: Mapping[str, Any]) -> Callable[[Images], Images]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def again(images: Images) -> Images:
        logits: Images = session.run(None, {"images": images})[0]
        return logits

    return again


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{option('format', 'onnx')} needs {', '.join(missing)}: pip install 'probe-pipeline[onnx]'")


def _write_torch_export(model: nn.Module, images: Images, path: Path, about: dict[str, Any]) -> None:
    with _exporting(about, "torch_export", ("state_dict", "onnx")):
        program = torch.export.export(
            model, (torch.from_numpy(images[:2]),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})


def _open_torch_export(path: Path, _about: Mapping[str, Any]) -> Callable[[Images], Images]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with path.open("rb") as file:
            module = torch.export.load(file).module()

    def again(images: Images) -> Images:
        with torch.inference_mode():
            logits: Images = module(torch.from_numpy(images)).numpy()
        return logits

    return again


_FORMATS: dict[str, tuple[Callable[..., None], Callable[..., Callable[[Images], Images]]]] = {
    "state_dict": (_write_state_dict, _open_state_dict),
    "onnx": (_write_onnx, _open_onnx),
    "torch_export": (_write_torch_export, _open_torch_export),
}


def _title(run: runs.Run) -> str:
    return f"# {run.folder.name}\n"


def model_card(run: runs.Run, about: dict[str, Any], format: str, file: str, parity: dict[str, float]) -> str:
    """The card as Markdown: what the model is, what it learned from, how well it does, and where it ends."""
    cache, transform = run.config["cache"], about["transform"]
    weights = about["weights"] if about["pretrained"] else f"{about['weights']} (NOT known to be pretrained)"
    counts = ", ".join(f"{n:,} {split}" for split, n in cache["rows"].items() if n)
    lines = [
        _title(run),
        f"An image classifier of {len(about['classes'])} classes: the network {about['trunk']} and a head from "
        f"`pipeline {run.stage}`.\n",
        "## Use\n",
        f"`{file}` ({format}) takes float32 images (n, 3, {transform['crop']}, {transform['crop']}), RGB, short side "
        f"resized to {transform['resize']} ({transform['interpolation']}), centre {transform['crop']} cropped, divided "
        f"by 255, less the mean {transform['mean']}, divided by {transform['std']}; it gives logits "
        f"(n, {len(about['classes'])}); probabilities are softmax(logits / {significant(about['temperature'])}), the "
        "temperature that rows which it had not learned from have given (1: none).\n",
        "Checked against the model after it was written: largest difference as a share of the largest logit, "
        + ", ".join(f"batch {size}: {value:.0e}" for size, value in parity.items())
        + ".\n",
        "## Classes\n",
        *(f"{i}. {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(about["classes"])),
        "\n## Data\n",
        f"{json.dumps(cache['about']['source'])}: {counts} images; learned from "
        f"{' + '.join(run.config.get('learned_from', ['train']))}.\n",
        "## Figures\n",
        _figures(run),
        "\n## Provenance\n",
        f"- trunk weights: {weights}",
        f"- settings fingerprint of the features (their key): `{about['key']}`",
        f"- made {run.config['started']} with " + ", ".join(f"{k} {v}" for k, v in run.config["versions"].items()),
        "\n## Limits\n",
        "- It knows these classes only, and names one of them for any image.",
        "- Its figures hold for images like those above; other cameras, places or times need a test of their own.",
        "- Probabilities are calibrated for images like those above, only as far as the figures say.",
    ]
    if not about["pretrained"]:
        lines.append("- Its trunk's weights are random or of unknown origin: good for trying things, not for results.")
    return "\n".join(lines) + "\n"


def _figures(run: runs.Run) -> str:
    known = recorded(run.folder)
    if known is None:
        return f"Not tested yet (`pipeline evaluate {run.folder.name}`)."
    test = known.test
    return (
        f"Test split, {test['n']:,} images: accuracy {percent(test['accuracy'])}, "
        f"macro-F1 {percent(test['macro_f1'])}, log-loss {significant(test['log_loss'])}."
    )
