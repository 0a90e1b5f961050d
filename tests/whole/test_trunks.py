"""A network of every kind through every stage, with random weights and small images: what works, and what is refused.

BatchNorm's statistics are those of some images: with means of 0 and variances of 1 a deep network of random numbers
gives zeros or infinities. Slow: some of these networks are large, and each is exported in three ways.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline import export, extract, finetune, open_cache, predict, train
from pipeline.base.errors import PipelineError
from pipeline.trunk.surgery import build

pytestmark = pytest.mark.slow

# trunk -> side of the images, and the exports that its library's code does not allow
TORCHVISION: dict[str, tuple[int, set[str]]] = {
    "alexnet": (64, set()),
    "convnext_tiny": (64, set()),
    "densenet121": (64, set()),
    "efficientnet_b0": (64, set()),
    "efficientnet_v2_s": (64, set()),
    "googlenet": (64, set()),
    "inception_v3": (96, set()),
    "maxvit_t": (224, {"state_dict"}),  # its own classifier has no bias
    "mnasnet0_5": (64, set()),
    "mobilenet_v2": (64, set()),
    "mobilenet_v3_small": (64, set()),
    "regnet_y_400mf": (64, set()),
    "resnet18": (64, set()),
    "resnext50_32x4d": (64, set()),
    "shufflenet_v2_x0_5": (64, set()),
    "swin_t": (64, set()),
    "swin_v2_t": (64, set()),
    "vgg11_bn": (64, set()),
    "vit_b_32": (64, set()),
    "wide_resnet50_2": (64, set()),
}
TIMM: dict[str, tuple[int, set[str]]] = {
    "timm:resnet18": (64, set()),
    "timm:convnext_atto": (64, set()),
    "timm:vit_tiny_patch16_224": (64, set()),
    "timm:vit_small_patch14_reg4_dinov2": (56, set()),
    "timm:swin_tiny_patch4_window7_224": (224, set()),
    "timm:tf_efficientnet_lite0.in1k": (64, set()),
    "timm:regnetx_002": (64, set()),
    "timm:mobilenetv3_small_050": (64, set()),
    "timm:coatnet_nano_rw_224": (224, set()),
}
ALIKE = {"maxvit_t", "efficientnet_v2_s"}  # slow to export; their kin, coatnet and efficientnet_b0, are exported
REFUSED = {
    "squeezenet1_0": "no linear classifier",
    "timm:deit_tiny_distilled_patch16_224": "no linear classifier",
}


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four train and two val images of each class."""
    root = tmp_path_factory.mktemp("few")
    for path in photos.glob("*/0[0-5].png"):
        split = "train" if path.stem < "04" else "val"
        place = root / split / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    return root


def weights_of(trunk: str, size: int, path: Path) -> Path:
    """A file of weights whose features are numbers."""
    network = build(trunk, num_classes=1000, image_size=size, seed=1, pretrained=True).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all that has been seen
    with torch.inference_mode():
        network(torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * 4 - 2)
    safetensors.torch.save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("trunk", [*TORCHVISION, *TIMM])
def test_a_network_goes_through_every_stage(trunk: str, few: Path, tmp_path: Path) -> None:
    if trunk.startswith("timm:"):
        pytest.importorskip("timm")
    size, not_exported = {**TORCHVISION, **TIMM}[trunk]
    weights = weights_of(trunk, size, tmp_path / "weights.safetensors")
    extracted = extract(
        few, trunk=trunk, weights=weights, image_size=size, test_fraction=0, batch_size=2, workspace=tmp_path
    )
    head = train(extracted.cache, C=1, workspace=tmp_path)
    tuned = []
    for part in ("last", "all"):
        tuned.append(finetune(head.run, train=part, epochs=1, batch_size=6, lr_trunk=1e-4, workspace=tmp_path))
        assert tuned[-1].certificate_max_abs <= tuned[-1].certificate_tolerance
    assert len(predict(tuned[-1].run, few / "val", workspace=tmp_path)) == 6
    for format, run in (
        ("state_dict", head.run),
        ("state_dict", tuned[-1].run),
        ("onnx", head.run),
        ("torch_export", head.run),
    ):
        if format == "onnx" and trunk in ALIKE:
            continue
        if format in not_exported:
            with pytest.raises(PipelineError, match=f"{trunk} (cannot be exported|has no place for)"):
                export(run, format=format, workspace=tmp_path)
        else:
            assert max(export(run, format=format, workspace=tmp_path).parity.values()) <= 1e-4
    assert np.isfinite(open_cache(extracted.cache).features).all()


@pytest.mark.parametrize("trunk", REFUSED)
def test_a_network_that_has_no_place_for_a_head_is_refused_by_name(trunk: str, few: Path, tmp_path: Path) -> None:
    if trunk.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(PipelineError, match=f"{trunk}.*{REFUSED[trunk]}"):
        extract(few, trunk=trunk, weights="random:1", workspace=tmp_path)
