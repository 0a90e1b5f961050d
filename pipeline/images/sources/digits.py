"""scikit-learn's handwritten digits as PNG files.

Knows that one set: 1,797 real 8x8 grey digits of ten writers' classes 0 to 9 (UCI optical recognition of handwritten
digits, test part), which comes with scikit-learn and needs no download.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.workspace import Workspace
from pipeline.images.listing import Images, Listing
from pipeline.images.sources.files import Files
from pipeline.images.sources.folder import list_folder
from pipeline.images.sources.written_once import written_once

NAME = "digits"
FORM = f"the word {NAME}"
_WHITE = 16  # the set's grey levels run from 0 to 16


def images(spec: str, place: str) -> Images:
    """The files below the place."""
    return Files(place)


def claims(spec: str) -> bool:
    """The one word."""
    return spec == NAME


def listing(spec: str, desk: Workspace) -> Listing:
    """The digits as ``CLASS/INDEX.png`` under the workspace's ``data/digits``, written on the first call."""
    folder = written_once(desk.data / NAME, _write)
    return list_folder(spec, bytes(folder), name=NAME)


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits  # here: it takes a second to import, and other sources do not need it

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / _WHITE)).astype(np.uint8)
    for label in np.unique(digits.target):
        (folder / str(label)).mkdir()
    for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        Image.fromarray(image).save(folder / str(label) / f"{index:04d}.png")
