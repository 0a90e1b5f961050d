"""Fine-tuning of networks that are no ResNets."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pipeline import export, extract, finetune, open_cache, predict, train
from pipeline.base.errors import ConfigError, HeadError
from pipeline.stages.finetune import feeds
from pipeline.stages.finetune.feeds import Maps
from pipeline.stages.finetune.groups import batch_norms, parameter_groups, stages
from pipeline.stages.finetune.settings import FinetuneSettings
from pipeline.trunk.families.family import anatomy_of
from pipeline.trunk.surgery import build

Quick = dict[str, Any]
TRUNKS = [
    pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
    pytest.param(
        "timm:vit_tiny_patch16_224",
        marks=pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed"),
    ),
]


@pytest.fixture(scope="module", params=TRUNKS)
def made(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A workspace with the features of a trunk and a head."""
    root, trunk = tmp_path_factory.mktemp("networks"), request.param
    options: Quick = {"weights": "random:0", "image_size": 32, "engine": "torch", "dtype": "float32"}
    cache = extract(photos, trunk=trunk, workspace=root, **options)
    head = train(cache.cache, solver="adamw", epochs=5, workspace=root)
    return SimpleNamespace(root=root, trunk=trunk, cache=cache.cache, head=head)


@pytest.mark.slow
def test_training_by_maps_is_training_through_the_trunk(made: SimpleNamespace, trace_of: Any, fast: Quick) -> None:
    """The certificate holds on both ways, and the losses agree to the rounding of the maps."""
    found = [finetune(made.head.run, train="last", prefix=p, workspace=made.root, **fast) for p in (False, True)]
    for tuned in found:
        assert tuned.step0 == made.head.val
        assert tuned.certificate_max_abs <= tuned.certificate_tolerance
    for a, b in zip(*(trace_of(tuned.run) for tuned in found), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-3, abs=1e-4)
    (path,) = (made.root / "maps").glob("*.h5")
    told = open_cache(path, verify=True).provenance
    assert told["trunk"]["shape"] == ([96, 2, 2] if made.trunk == "shufflenet_v2_x0_5" else [5, 192])
    assert told["engine"]["name"] == ("timm" if made.trunk.startswith("timm:") else "torchvision")


@pytest.mark.slow
def test_exactly_the_last_stage_and_the_head_move(
    made: SimpleNamespace, state_of: Any, last_epoch_is_kept: Any, fast: Quick
) -> None:
    with last_epoch_is_kept():
        tuned = finetune(made.head.run, train="last", workspace=made.root, **{**fast, "epochs": 1})
    plain = build(made.trunk, num_classes=1000, image_size=32).state_dict()
    anatomy = anatomy_of(made.trunk, build(made.trunk, num_classes=3, image_size=32))
    late = {*anatomy.stages[-1].parameters, f"{anatomy.classifier}.weight", f"{anatomy.classifier}.bias"}
    found = state_of(tuned.run)
    moved = {n for n, t in found.items() if t.shape != plain[n].shape or not torch.equal(t, plain[n])}
    assert moved == late


@pytest.mark.slow
def test_a_fine_tuned_network_predicts_and_goes_out_as_the_librarys_own(
    made: SimpleNamespace, photos: Path, fast: Quick, tmp_path: Path, state_of: Any
) -> None:
    tuned = finetune(made.head.run, workspace=made.root, **{**fast, "epochs": 1})
    model = build(made.trunk, num_classes=3, image_size=32)
    model.load_state_dict(state_of(tuned.run), strict=True)
    images = sorted(photos.rglob("*.png"))[:3]
    ours = predict(tuned.run, images, workspace=made.root)
    t = open_cache(made.cache).provenance["transform"]
    mode = torchvision.transforms.InterpolationMode(t["interpolation"])
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(t["resize"], interpolation=mode),
            torchvision.transforms.CenterCrop(t["crop"]),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(t["mean"], t["std"]),
        ]
    )
    with torch.inference_mode():
        logits = model(torch.stack([transform(Image.open(p)) for p in images]))
    expected = (logits / tuned.temperature).softmax(1).max(1).values
    assert [p.probability for p in ours] == pytest.approx(expected.tolist(), abs=1e-4)
    out = export(tuned.run, format="state_dict", out=tmp_path / "m.safetensors", workspace=made.root)
    assert max(out.parity.values()) <= 1e-4


@pytest.mark.parametrize("part", ["layer4", "layer3+"])
def test_a_resnets_words_are_refused_with_the_stages_that_there_are(
    made: SimpleNamespace, part: str, fast: Quick
) -> None:
    last = "stage4" if made.trunk == "shufflenet_v2_x0_5" else "blocks.11"
    with pytest.raises(ConfigError, match=rf"train='{part.replace('+', '.')}' is a ResNet's word.*head, {last},.*stem"):
        finetune(made.head.run, train=part, workspace=made.root, **fast)


@pytest.mark.slow
def test_tokens_cannot_be_mirrored(made: SimpleNamespace, fast: Quick) -> None:
    options = {**fast, "epochs": 1, "train": "last", "augment": "flip"}
    if made.trunk == "shufflenet_v2_x0_5":
        assert finetune(made.head.run, workspace=made.root, **options).steps
        return
    with pytest.raises(ConfigError, match=r"augment='flip' needs maps that are laid out.*\(5, 192\).*prefix=False"):
        finetune(made.head.run, workspace=made.root, **options)
    assert finetune(made.head.run, workspace=made.root, prefix=False, **options).steps


@pytest.mark.slow
def test_a_network_that_cannot_be_cut_goes_through_the_whole_trunk(
    made: SimpleNamespace, fast: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("a Net cannot be cut before its last stage: it cannot be traced")

    monkeypatch.setattr(feeds, "halves", refuse)
    with pytest.raises(ConfigError, match="a Net cannot be cut .*: give prefix=False"):
        finetune(made.head.run, train="last", workspace=made.root, **fast)
    assert finetune(made.head.run, train="last", prefix=False, workspace=made.root, **{**fast, "epochs": 1}).steps


def test_every_parameter_is_in_one_group_and_only_weights_decay(made: SimpleNamespace, attached_to: Any) -> None:
    attached = attached_to(made.head.run, made.root)
    groups = parameter_groups(attached.network, attached.anatomy, FinetuneSettings(layer_decay=0.5, lr_head=1e-2))
    named = dict(attached.network.named_parameters())
    assert sorted(n for g in groups for n in g.names) == sorted(named)
    for g in groups:
        for n in g.names:
            decays = named[n].ndim > 1 and n not in ("pos_embed", "cls_token")
            assert (g.weight_decay > 0) == decays, n
    depth = {stage: number for number, stage in enumerate(stages(attached.anatomy))}
    for g in groups:
        assert g.lr == pytest.approx(1e-2 * 0.5 ** depth[g.name.split()[0]])
    others = "BatchNorm" if made.trunk == "shufflenet_v2_x0_5" else "norms"
    assert {g.name.split(" biases and ")[1] for g in groups if " biases and " in g.name} == {others}
    norms = {name for name, _ in batch_norms(attached.network, attached.anatomy, "last")}
    assert all(name.startswith(("stage4.", "conv5.")) for name in norms)
    assert bool(norms) == (others == "BatchNorm")


def test_only_the_last_stages_features_are_fine_tuned(photos: Path, tmp_path: Path, quick: Quick, fast: Quick) -> None:
    cache = extract(photos, workspace=tmp_path, layer="previous", **quick)
    head = train(cache.cache, solver="adamw", epochs=1, workspace=tmp_path)
    with pytest.raises(HeadError, match="the features are of previous: only the last stage's"):
        finetune(head.run, workspace=tmp_path, **fast)


@pytest.mark.slow
def test_the_last_stage_of_a_resnet_is_its_layer4(
    resnet_workshop: SimpleNamespace, tmp_path: Path, fast: Quick
) -> None:
    root = Path(shutil.copytree(resnet_workshop.root, tmp_path / "root"))
    head, options = root / "runs" / resnet_workshop.head.run.name, {**fast, "epochs": 1}
    found = [finetune(head, train=part, workspace=root, **options) for part in ("layer4", "last")]
    networks = [(tuned.run / "model.safetensors").read_bytes() for tuned in found]
    assert networks[0] == networks[1]
    assert len(list((root / "maps").glob("*.h5"))) == 1


def test_maps_whose_channels_come_last_are_mirrored_along_their_width(
    workshop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.arange(2 * 3 * 3 * 4, dtype=np.float16).reshape(2, -1)
    cache: Any = SimpleNamespace(features=numbers, path="maps.h5")
    inputs = Maps(torch.nn.Identity(), cache, np.array([4, 9]), (3, 3, 4), "cpu", 2, 0)
    monkeypatch.setattr(feeds, "draw", lambda *_: SimpleNamespace(random=lambda: 0.0))
    ((rows, found),) = inputs.batches([[9, 4]], 1)
    assert rows == [9, 4]
    np.testing.assert_array_equal(found.numpy(), numbers.reshape(2, 3, 3, 4)[::-1, :, ::-1].astype(np.float32))
