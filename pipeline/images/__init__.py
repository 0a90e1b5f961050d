"""Images on disk -> ordered, labelled, split items, and their pixels.

Knows files and pixels, nothing of networks, nothing of the feature cache.
"""

from pipeline.images.augment import Augmentation
from pipeline.images.decode import DECODE_POLICY, FAILURE_KINDS, MAX_PIXELS, ImageFailure, decode, read_file
from pipeline.images.digests import digest_file, digest_many
from pipeline.images.listing import Listing, skip_summary
from pipeline.images.loader import Loaded, Loader
from pipeline.images.resize import Geometry, to_pixels
from pipeline.images.sources.named import list_source
from pipeline.images.sources.walk import IMAGE_EXTENSIONS
from pipeline.images.splits import SplitPlan, assign_splits, needs_carving
from pipeline.images.views import View

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
