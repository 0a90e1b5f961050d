"""A named source of images -> ordered, labelled, split items, and their pixels.

Knows where images come from and pixels, nothing of networks, nothing of the feature cache.
"""

from pipeline.images.augment import Augmentation
from pipeline.images.decode import FAILURE_KINDS, HEADROOM, MAX_PIXELS, ImageFailure, decode, decode_policy
from pipeline.images.digests import digest_many
from pipeline.images.formats import IMAGE_EXTENSIONS, passed_over, readable
from pipeline.images.listing import Images, Item, Listing, assemble, shown, skip_summary
from pipeline.images.loader import Limits, Loaded, Loader, look_ahead
from pipeline.images.resize import Geometry, to_pixels
from pipeline.images.sources.by_id import NamedRows, read_by_id
from pipeline.images.sources.columns import Columns
from pipeline.images.sources.files import Files, read_file
from pipeline.images.sources.manifest import Manifest
from pipeline.images.sources.manifest import read as read_manifest
from pipeline.images.sources.named import is_manifest, is_source, list_source, open_images
from pipeline.images.sources.walk import walk
from pipeline.images.splits import SplitPlan, assign_splits, needs_carving
from pipeline.images.views import View

__all__ = [
    "FAILURE_KINDS",
    "HEADROOM",
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "Augmentation",
    "Columns",
    "Files",
    "Geometry",
    "ImageFailure",
    "Images",
    "Item",
    "Limits",
    "Listing",
    "Loaded",
    "Loader",
    "Manifest",
    "NamedRows",
    "SplitPlan",
    "View",
    "assemble",
    "assign_splits",
    "decode",
    "decode_policy",
    "digest_many",
    "is_manifest",
    "is_source",
    "list_source",
    "look_ahead",
    "needs_carving",
    "open_images",
    "passed_over",
    "read_by_id",
    "read_file",
    "read_manifest",
    "readable",
    "shown",
    "skip_summary",
    "to_pixels",
    "walk",
]
