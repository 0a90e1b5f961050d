"""The loop that users write when they have no pipeline: the yardstick of the entry `finetune`.

ImageFolder, torchvision's transform, a DataLoader, the eager network in eval mode in float32, AdamW. Run as ``python -m
pipeline.bench.plain_finetune FOLDER TRUNK RESIZE CROP BATCH WORKERS`` it prints the seconds of the second epoch.
"""

from __future__ import annotations

import sys
import time

import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms._presets import ImageClassification

from pipeline.base.arithmetic import arithmetic


def main(folder: str, trunk: str, resize: str, crop: str, batch: str, workers: str) -> None:
    """Two epochs over a folder of class folders."""
    images = ImageFolder(folder, transform=ImageClassification(crop_size=int(crop), resize_size=int(resize)))
    loader = DataLoader(
        images, batch_size=int(batch), shuffle=True, num_workers=int(workers), persistent_workers=int(workers) > 0
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = torchvision.models.get_model(trunk, weights=None, num_classes=len(images.classes)).eval().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    with arithmetic():
        for _ in range(2):
            began = time.perf_counter()
            for x, y in loader:
                loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - began
    print(taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
