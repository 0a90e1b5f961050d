"""Where an image that was shrunk while it was decoded shows the whole one: to a fraction of a pixel.

A decoder that halves 501 pixels gives 251, of which the last shows half of what the others show. Taken for 251 whole
ones, an image would come out a thousandth too small, and its centre be cut out a pixel beside where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom

# What turns an image upright, by its orientation (EXIF 2.32, table 4): mirrored first, then rows become columns.
_LEFT_AND_RIGHT, _TOP_AND_BOTTOM, _ROWS_AND_COLUMNS = {2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}


@dataclass(frozen=True)
class Cover:
    """``box`` of a shrunk image, in its pixels, shows the whole one, which had ``size`` (width, height)."""

    size: tuple[int, int]
    box: Box

    def within(self, part: Box) -> Box:
        """Where the shrunk image shows a ``part`` of the whole one, which is given in the whole one's pixels."""
        (width, height), (left, top, right, bottom) = self.size, self.box
        x, y = (right - left) / width, (bottom - top) / height
        # A product may be a hair above what it is, and outside the image.
        return left + x * part[0], top + y * part[1], min(right, left + x * part[2]), min(bottom, top + y * part[3])

    def upright(self, shrunk: tuple[int, int], orientation: int) -> Cover:
        """The same once the image, ``shrunk`` to this width and height, is turned upright."""
        (width, height), (left, top, right, bottom) = shrunk, self.box
        if orientation in _LEFT_AND_RIGHT:
            left, right = width - right, width - left
        if orientation in _TOP_AND_BOTTOM:
            top, bottom = height - bottom, height - top
        if orientation in _ROWS_AND_COLUMNS:
            return Cover((self.size[1], self.size[0]), (top, left, bottom, right))
        return Cover(self.size, (left, top, right, bottom))
