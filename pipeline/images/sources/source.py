"""What every source of images can do."""

from __future__ import annotations

from typing import Protocol

from pipeline.base.workspace import Workspace
from pipeline.images.listing import Images, Listing


class Source(Protocol):
    """A file of this folder, its functions at module level.

    ``spec`` is what the user gave as the source. A cache keeps it, and the place of its images; long after, perhaps in
    another folder, a later stage opens the images by these two.
    """

    FORM: str
    """How a spec of this source looks, for the message about one that is of no source."""

    def claims(self, spec: str) -> bool:
        """Whether the spec is this source's. By the spec's words alone, unless it is the path of a file or folder."""

    def listing(self, spec: str, desk: Workspace) -> Listing:
        """Its images, without opening any; what must be fetched or written first lies under ``desk.data``.

        Raises:
            DataError: nothing there, no images, or what cannot be understood.
        """

    def images(self, spec: str, place: str) -> Images:
        """The images that a finished cache was made from, by the spec and the place that it kept; raises nothing."""
