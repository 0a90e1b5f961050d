"""The script that users write when they have no pipeline: the yardstick of the entry `extract`.

Pillow, torchvision's transform, a DataLoader, the eager network in float32, ``torch.save``. Run as ``python -m
pipeline.bench.plain_script FOLDER OUT TRUNK RESIZE CROP BATCH WORKERS``; beside OUT it leaves ``OUT.seconds``: the time
without that of importing the libraries.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms._presets import ImageClassification

from pipeline.base.arithmetic import arithmetic


def main(folder: str, out: str, trunk: str, *numbers: str) -> None:
    """Features of all images of a folder of class folders, in one file."""
    resize, crop, batch, workers = map(int, numbers)
    began = time.perf_counter()
    images = ImageFolder(folder, transform=ImageClassification(crop_size=crop, resize_size=resize))
    loader = DataLoader(images, batch_size=batch, num_workers=workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = torchvision.models.get_model(trunk, weights=None)
    model.fc = torch.nn.Identity()
    model.eval().to(device)
    features, labels = [], []
    with torch.no_grad(), arithmetic():
        for x, y in loader:
            features.append(model(x.to(device)).cpu())
            labels.append(y)
    torch.save({"features": torch.cat(features), "labels": torch.cat(labels), "classes": images.classes}, out)
    Path(f"{out}.seconds").write_text(str(time.perf_counter() - began), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
