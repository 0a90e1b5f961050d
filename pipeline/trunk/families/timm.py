"""timm's networks: ``timm:NAME`` or ``timm:NAME.TAG``, where the tag names weights.

Stages are those of the network's own ``group_matcher``, transforms those of its ``pretrained_cfg`` as timm resolves
them for testing. Files are read by our own reader, which unpickles nothing; tensors that have other names or shapes
than the network's go through the filter that timm keeps for it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import takewhile
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg, group_parameters
from torch import nn

from pipeline.base.errors import ConfigError
from pipeline.trunk.families.family import CLASSES, Anatomy, Entry, Stage, WeightsFile, require_linear
from pipeline.trunk.families.tree import is_weight, stages_of
from pipeline.trunk.identity import INTERPOLATIONS, Transform

PREFIX = "timm:"
_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm names them on the Hub


@cache
def names() -> Sequence[str]:
    """The architectures, without tags."""
    return tuple(timm.list_models())


def known(name: str) -> bool:
    """Whether timm has the architecture, with the tag where there is one."""
    if not timm.is_model(name):
        return False
    tag = _tag(name)
    return not tag or tag in entries(name)


def entries(name: str) -> Sequence[str]:
    """The tags of the architecture's weights, timm's default first."""
    architecture = _architecture(name)
    found = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    default = _config(architecture).tag or ""
    return tuple(sorted(found, key=lambda tag: tag != default))


def entry(name: str, weights: str | None) -> Entry:
    """The weights of a tag; by default those of the name's own, or timm's default."""
    architecture, tag = _architecture(name), weights or _tag(name)
    if tag and tag not in entries(name):
        raise KeyError(tag)
    config = _config(f"{architecture}.{tag}" if tag else architecture)
    transform, missing = _transform(config)
    return Entry(config.tag or architecture, transform, _file(config), missing)


def build(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """``timm.create_model`` for images of that size, where the network is made for one size.

    Raises:
        ConfigError: a size that the network cannot take.
    """
    return _created(name, num_classes, image_size)


def code(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> tuple[str, str]:
    """By ``create_model``."""
    told = [repr(name), "pretrained=False", f"num_classes={num_classes}"]
    told += [f"{option}={value!r}" for option, value in _sized(name, image_size).items()]
    return "timm", f"timm.create_model({', '.join(told)})"


def load(
    name: str, state: Mapping[str, torch.Tensor], *, image_size: int
) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    """Whatever form timm can read for this network; position embeddings are resampled by timm."""
    classifier = _config(name).classifier
    weight = state.get(f"{classifier}.weight")
    classes = len(weight) if weight is not None and weight.ndim == 2 else CLASSES
    model = _created(name, classes, image_size)
    wanted = model.state_dict()
    as_it_is = all(k in wanted and wanted[k].shape == v.shape for k, v in state.items())
    architecture = sys.modules[timm.models.model_entrypoint(_architecture(name)).__module__]
    refine = getattr(architecture, "checkpoint_filter_fn", None)
    if as_it_is or refine is None:
        return model, state
    try:
        return model, refine(dict(state), model)
    except Exception:  # what it raises for tensors of another network cannot be listed; they are refused as they are
        return model, state


def anatomy(name: str, model: nn.Module) -> Anatomy:
    """By timm's ``get_classifier``, ``group_matcher`` and ``no_weight_decay``."""
    model_: Any = model
    head = model_.get_classifier()
    where = next((n for n, m in model.named_modules() if m is head), "several" if _several(head) else "none")
    linear = require_linear(PREFIX + name, head, where)
    kept = set(model_.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    stages = _stages(model_, where)
    inside = [(n, p) for n, p in model.named_parameters() if n.rpartition(".")[0] != where]
    no_decay = {n for n, p in inside if p.ndim > 1 and (n in kept or not is_weight(n, p))}
    return Anatomy(where, linear.in_features, stages, frozenset(no_decay))


def _several(head: object) -> bool:
    return isinstance(head, (tuple, list))


def _architecture(name: str) -> str:
    return name.partition(".")[0]


def _tag(name: str) -> str:
    return name.partition(".")[2]


def _config(name: str) -> PretrainedCfg:
    """What timm knows of the weights of ``NAME.TAG``, or of the default ones."""
    found = timm.get_pretrained_cfg(name)
    return PretrainedCfg() if found is None else found


def _transform(config: PretrainedCfg) -> tuple[Transform, str]:
    """The transform for testing, and what it asks for that we do not have."""
    found: dict[str, Any] = resolve_data_config(pretrained_cfg=asdict(config), use_test_size=True)  # type: ignore[no-untyped-call]
    _, height, width = found["input_size"]
    missing = []
    if found["crop_mode"] != "center":
        missing.append(f"crop mode {found['crop_mode']}")
    if height != width:
        missing.append(f"images of {height} x {width}")
    if found["interpolation"] not in INTERPOLATIONS:
        missing.append(f"interpolation {found['interpolation']}")
    transform = Transform(
        resize=math.floor(width / found["crop_pct"]),
        crop=width,
        interpolation=found["interpolation"],
        mean=tuple(float(v) for v in found["mean"]),
        std=tuple(float(v) for v in found["std"]),
    )
    return transform, " and ".join(missing)


def _file(config: PretrainedCfg) -> WeightsFile | None:
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = _FILES if config.hf_hub_filename is None else _safe_first(config.hf_hub_filename)
        return WeightsFile(names, repository=repository, revision=revision or None)
    if isinstance(config.url, str) and config.url:
        return WeightsFile((config.url.rsplit("/", 1)[1],), url=config.url)
    return None


def _safe_first(filename: str) -> tuple[str, ...]:
    """Beside the pickles of the Hub lie the same tensors as safetensors."""
    if not filename.endswith(".bin"):
        return (filename,)
    return (filename.removesuffix(".bin").replace("pytorch_model", "model") + ".safetensors", filename)


def _created(name: str, num_classes: int, image_size: int) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, **_sized(name, image_size)
        )
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{PREFIX}{name} cannot be made for images of {image_size} px: {reason}") from error
    return model


def _sized(name: str, image_size: int) -> dict[str, Any]:
    return {"img_size": image_size} if _config(name).fixed_input_size else {}


def _stages(model: Any, classifier: str) -> tuple[Stage, ...]:
    """By the network's own matcher; what comes with the classifier belongs to the last stage."""
    if not hasattr(model, "group_matcher"):
        return stages_of(model, classifier)
    group_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    names = [n for n, _ in model.named_parameters()]
    heads = {group_of[n] for n in names if n.rpartition(".")[0] == classifier}
    groups = sorted(set(group_of.values()) - heads)
    if not groups:
        return stages_of(model, classifier)
    members: dict[int, list[str]] = {g: [] for g in groups}
    for name in names:
        if name.rpartition(".")[0] != classifier:
            members[group_of[name] if group_of[name] in members else groups[-1]].append(name)
    titles = ["stem" if number == 0 else _common(members[g]) for number, g in enumerate(groups)]
    return tuple(Stage(title, tuple(members[g])) for title, g in zip(titles, groups, strict=True))


def _common(parameters: Sequence[str]) -> str:
    """The module that most of these parameters lie in."""
    tops = Counter(p.split(".")[0] for p in parameters)
    inside = [p.split(".")[:-1] for p in parameters if p.split(".")[0] == tops.most_common(1)[0][0]]
    shared = [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*inside, strict=False))]
    return ".".join(shared or inside[0])
