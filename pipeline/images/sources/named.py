"""What the user named -> a listing; what a cache has kept of that -> its images again.

Knows the list of the sources, and nothing of any of them. Opens no image.
"""

from __future__ import annotations

import os

from pipeline.base.errors import DataError
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.images.listing import Images, Listing, require_learnable, shown_source
from pipeline.images.sources import digits, folder, manifest, torchvision
from pipeline.images.sources.columns import Columns
from pipeline.images.sources.files import Files, path_of
from pipeline.images.sources.source import Source

# Asked in this order: what goes by a word before what takes any path.
SOURCES: tuple[Source, ...] = (torchvision, digits, manifest, folder)


def list_source(spec: str, desk: Workspace, columns: Columns | None = None, *, to_learn: bool = True) -> Listing:
    """The images of a folder, a CSV manifest, ``digits`` or ``torchvision:NAME``, without opening any of them.

    Sets that do not lie on disk yet are written under the workspace's ``data``; ``desk`` is told how far that is.
    ``columns`` are those of a manifest; ``to_learn`` says that a head is to learn from what is labelled.

    Raises:
        DataError: nothing there, no images, folders or a manifest that cannot be understood, columns of what has none;
            and to learn from, one class only, or a class that can be tested but not trained.
    """
    listing = _listed(spec, desk, columns)
    if to_learn:
        require_learnable(listing)
    return listing


def _listed(spec: str, desk: Workspace, columns: Columns | None) -> Listing:
    source = _source_of(spec)
    if source is None:
        forms = ", or ".join(source.FORM for source in reversed(SOURCES))
        what = "is neither a file nor a folder" if os.path.lexists(path_of(spec)) else "does not exist"
        raise DataError(f"source {spec!r} {what}: give {forms}")
    if source is manifest:
        return manifest.listing(spec, desk, columns or Columns())
    named = columns.named() if columns else {}
    if named:
        kind, name = next(iter(named.items()))
        raise DataError(f"{option(f'{kind}_column', name)} names a column, and {shown_source(spec)} is no CSV manifest")
    return source.listing(spec, desk)


def is_source(spec: str) -> bool:
    """Whether a source takes the spec for its own."""
    return _source_of(spec) is not None


def is_manifest(spec: str) -> bool:
    """Whether a manifest is named, be it there or not."""
    return spec.lower().endswith(manifest.ENDINGS)


def open_images(spec: str, place: str) -> Images:
    """The images that a cache was made from, by the ``source`` and ``root`` that it keeps of them.

    The path of a folder or manifest may mean nothing any more where this is called: then, and wherever no source knows
    the spec, they are the files below ``place``. A manifest lies there as well.
    """
    if is_manifest(spec):
        return manifest.images(spec, place)
    source = _source_of(spec)
    return Files(place) if source is None else source.images(spec, place)


def _source_of(spec: str) -> Source | None:
    return next((source for source in SOURCES if source.claims(spec)), None)
