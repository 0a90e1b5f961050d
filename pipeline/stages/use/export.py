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

from pipeline.base.arithmetic import arithmetic
from pipeline.base.errors import ConfigError, HeadError, PipelineError
from pipeline.base.files import make_folder, try_writing, whole, write_text, writing
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.runs import folder as runs
from pipeline.runs.network import head_of, load_network, temperature_of
from pipeline.runs.recipe import Recipe
from pipeline.stages.use import words
from pipeline.stages.use.card import model_card, title
from pipeline.stages.use.results import ExportResult
from pipeline.stages.use.settings import PICKLED, SUFFIXES, ExportSettings
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.surgery import build, freeze, load_tensors, reattach, trunk_at
from pipeline.trunk.weights import load_model

Images = NDArray[np.float32]

BATCHES = (1, 2, 7)  # that every export is run on: one image, and sizes it was not traced with
TOLERANCE = 1e-4  # of the largest logit; other kernels add in another order


def export(settings: ExportSettings, desk: Workspace) -> ExportResult:
    """Export with settings made."""
    run = runs.find_run(settings.run, desk)
    if not (run.folder / "head.json").exists() and run.stage != "finetune":
        raise HeadError(f"{run.folder.name} is a {run.stage} run: give one of train, search or finetune")
    format, out = settings.asked, settings.out or run.folder / f"exported{SUFFIXES[settings.asked][0]}"
    if out.exists():
        raise ConfigError(f"{out} is there already: remove it, or give another {option('out')}")
    card = out.with_name(out.name + ".md")
    if card.exists() and not card.read_text(encoding="utf-8", errors="replace").startswith(title(run)):
        raise ConfigError(f"{card} is there already, of another model: remove it, or give another {option('out')}")
    with writing(out.parent, ConfigError, f"give another {option('out')}"):
        make_folder(out.parent)
        try_writing(out.parent)
    if (which := words.precisions(run)) is not None:
        desk.watch.say(which)
    model, recipe = whole_network(run, format, desk)
    about = description(run, recipe)
    write, open_again = _FORMATS[format] if out.suffix not in PICKLED else (_write_pickled, _open_state_dict)
    rng = np.random.default_rng(0)
    size = recipe.trunk.info.transform.crop
    images = rng.normal(size=(max(BATCHES), 3, size, size)).astype(np.float32)
    with writing(out.parent, ConfigError, f"give another {option('out')}"), whole(out) as draft:
        write(model, images, draft, about)
        parity = compare(model, open_again(draft, about), images)
        worst = max(parity.values())
        if not worst <= TOLERANCE:
            raise HeadError(
                f"the exported {format} differs from the model by {worst:.1e} of its logits, "
                f"{TOLERANCE:.0e} is allowed: nothing was written; report this"
            )
        # Before the model has its name: what is there has its card, and what was stopped goes on with another one.
        write_text(card, model_card(run, about, format, out.name, parity))
    desk.watch.result(words.parity(parity, TOLERANCE, format))
    desk.watch.result(f"{out} and {card}")
    return ExportResult(out, card, format, parity)


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
        "decode": "scaled" if recipe.scaled else "exact",
        "trunk": info.trunk,
        "weights": info.name,
        "pretrained": info.pretrained,
        "temperature": temperature_of(run),
        "run": run.folder.name,
        "key": run.config["cache"]["key"],
    }


@arithmetic()
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


def _write_pickled(model: nn.Module, _images: Images, path: Path, _about: dict[str, Any]) -> None:
    """As PyTorch itself saves a state dict: tensors alone, which it reads with ``weights_only``."""
    with path.open("wb") as file:
        torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)


def _open_state_dict(path: Path, about: Mapping[str, Any]) -> Callable[[Images], Images]:
    """Into the library's own network, strictly."""
    size, classes = about["transform"]["crop"], len(about["classes"])
    plain = build(about["trunk"], num_classes=classes, image_size=size, pretrained=about["pretrained"])
    try:
        pickled = path.suffix in PICKLED
        load_tensors(plain, torch.load(path, weights_only=True) if pickled else safetensors.torch.load_file(path))
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
        raise ConfigError(f"{option('format', 'onnx')} needs {', '.join(missing)}: pip install {' '.join(missing)}")


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
