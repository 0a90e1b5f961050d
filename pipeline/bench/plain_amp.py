"""The loop of those who know their GPU, and have no pipeline: the yardstick of the entry `gpu-finetune`.

ImageFolder, torchvision's transform, a pinned DataLoader whose workers stay, the network in eval mode, channels-last,
autocast in bfloat16, fused AdamW. Run as ``python -m pipeline.bench.plain_amp FOLDER TRUNK PRECISION DEVICE RESIZE CROP
BATCH WORKERS`` it prints the seconds of the second epoch.
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
from pipeline.base.machine import kind_of_device


def main(folder: str, trunk: str, precision: str, device: str, *numbers: str) -> None:
    """Two epochs over a folder of class folders."""
    resize, crop, batch, workers = map(int, numbers)
    kind, layout = kind_of_device(device), torch.channels_last
    images = ImageFolder(folder, transform=ImageClassification(crop_size=crop, resize_size=resize))
    loader = DataLoader(
        images,
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=kind == "cuda",
    )
    torch.manual_seed(0)
    model = torchvision.models.get_model(trunk, weights=None, num_classes=len(images.classes)).eval()
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    half = torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16")
    with arithmetic(precision):
        for _ in range(2):
            began = time.perf_counter()
            for x, y in loader:
                x = x.to(device, non_blocking=True, memory_format=layout)
                with half:
                    loss = torch.nn.functional.cross_entropy(model(x), y.to(device, non_blocking=True))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if kind == "cuda":
                torch.cuda.synchronize(device)
            taken = time.perf_counter() - began
    print(taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
