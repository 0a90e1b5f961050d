"""What the user named -> a listing.

Knows which forms a source can have and hands each to its module. Opens no image.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.images.listing import LEGAL_FORMS, Listing, shown_source
from pipeline.images.sources.digits import list_digits
from pipeline.images.sources.folder import list_folder
from pipeline.images.sources.manifest import list_manifest
from pipeline.images.sources.torchvision import PREFIX, Watch, list_torchvision


def list_source(spec: str, *, cache_root: Path, watch: Watch | None = None) -> Listing:
    """The images of a folder, a CSV manifest, ``digits`` or ``torchvision:NAME``, without opening any of them.

    Sets that do not lie on disk yet are written under ``cache_root/data``; ``watch`` sees how far that is.

    Raises:
        DataError: nothing there, no images, one class only, folders or a manifest that cannot be understood.
    """
    if spec == "digits":
        return list_digits(cache_root=cache_root)
    if spec.startswith(PREFIX):
        return list_torchvision(spec, cache_root=cache_root, watch=watch)
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
