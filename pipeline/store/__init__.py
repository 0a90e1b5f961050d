"""The feature cache: one HDF5 file of features for one set of images and one trunk.

The only room that imports h5py. Knows arrays, item ids and provenance; nothing of images or networks.
"""

from pipeline.store.failures import (
    Failure,
    append_failures,
    failures_path,
    partial_failure_files,
    partial_failures,
    partial_failures_path,
    read_failures,
    write_failures,
)
from pipeline.store.format import FORMAT_VERSION, Contents, difference, key_of, partial_path
from pipeline.store.glance import digests_at
from pipeline.store.lock import writing_beside, writing_lock
from pipeline.store.reader import Cache, Features, open_cache, open_partial
from pipeline.store.writer import Writer, create_partial, retire_partial, stale_partials, update_stats

__all__ = [
    "FORMAT_VERSION",
    "Cache",
    "Contents",
    "Failure",
    "Features",
    "Writer",
    "append_failures",
    "create_partial",
    "difference",
    "digests_at",
    "failures_path",
    "key_of",
    "open_cache",
    "open_partial",
    "partial_failure_files",
    "partial_failures",
    "partial_failures_path",
    "partial_path",
    "read_failures",
    "retire_partial",
    "stale_partials",
    "update_stats",
    "write_failures",
    "writing_beside",
    "writing_lock",
]
