"""What the user named -> a listing.

Knows which forms a source can have and hands each to its module. Opens no image.
"""

from __future__ import annotations

import os

from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.images.listing import LEGAL_FORMS, Listing, shown_source
from pipeline.images.sources.digits import list_digits
from pipeline.images.sources.folder import list_folder
from pipeline.images.sources.manifest import list_manifest
from pipeline.images.sources.torchvision import PREFIX, list_torchvision


def list_source(spec: str, desk: Workspace) -> Listing:
    """The images of a folder, a CSV manifest, ``digits`` or ``torchvision:NAME``, without opening any of them.

    Sets that do not lie on disk yet are written under the workspace's ``data``; ``desk`` is told how far that is.

    Raises:
        DataError: nothing there, no images, one class only, folders or a manifest that cannot be understood.
    """
    if spec == "digits":
        return list_digits(desk)
    if spec.startswith(PREFIX):
        return list_torchvision(spec, desk)
    path = os.fsencode(os.path.expanduser(spec))
    name = os.path.basename(os.path.realpath(path)).decode("utf-8", "replace")
    if os.path.isdir(path):
        return list_folder(spec, path, name=name)
    if os.path.isfile(path):
        stem, ending = os.path.splitext(name)
        if ending.lower() != ".csv":
            raise DataError(f"source {shown_source(spec)} is a file but not a .csv manifest: {LEGAL_FORMS}")
        return list_manifest(spec, path, name=stem)
    raise DataError(f"source {spec!r} does not exist: {LEGAL_FORMS}, or the word digits, or torchvision:NAME")
