"""Images on disk -> ordered, labelled, split items, and their pixels.

Knows files and pixels, nothing of networks, nothing of the feature cache.
"""

from pipeline.data.augment import Augmentation
from pipeline.data.decode import DECODE_POLICY, FAILURE_KINDS, MAX_PIXELS, ImageFailure, decode, read_file
from pipeline.data.digests import digest_file, digest_many
from pipeline.data.geometry import Geometry, to_pixels
from pipeline.data.listing import Listing, skip_summary
from pipeline.data.loader import Loaded, Loader
from pipeline.data.sources import list_source
from pipeline.data.splits import SplitPlan, assign_splits, needs_carving
from pipeline.data.views import View
from pipeline.data.walk import IMAGE_EXTENSIONS

__all__ = [
    "DECODE_POLICY",
    "FAILURE_KINDS",
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "Augmentation",
    "Geometry",
    "ImageFailure",
    "Listing",
    "Loaded",
    "Loader",
    "SplitPlan",
    "View",
    "assign_splits",
    "decode",
    "digest_file",
    "digest_many",
    "list_source",
    "needs_carving",
    "read_file",
    "skip_summary",
    "to_pixels",
]
