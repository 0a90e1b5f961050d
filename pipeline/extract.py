"""Stage one: data + trunk -> store. Runs the frozen trunk once and writes the features.

Nothing is done twice: a row is known by the digest of its image's bytes and the key of everything that decides its
numbers, so moved, renamed, relabelled or resplit images are copied from an earlier file and only new ones are computed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import settings as st
from pipeline.errors import CacheError, ConfigError, DataError
from pipeline.report.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.blocks import BlockLoop, Origin
    from pipeline.data import Listing
    from pipeline.frozen import TrunkSpec
    from pipeline.store import Cache, Contents, Writer
    from pipeline.trunk.known import WeightsInfo

BLOCK_ROWS = 128  # a kill loses at most this much work: 6 s at 20 images/s


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of stage one."""

    source: str = st.argument(
        "a folder of images (train/ val/ test/ of class folders, or class folders), a CSV manifest path,label[,split], "
        "`digits`, or `torchvision:NAME`"
    )
    out: Path | None = st.option(None, "the cache file to write; by default a telling name under features/")
    trunk: str = st.option("resnet50", "the network whose features are kept; any torchvision ResNet")
    weights: str = st.option(
        "IMAGENET1K_V2", "torchvision's name, a .pth or .safetensors state dict, or random:SEED", metavar="WEIGHTS"
    )
    image_size: int | None = st.option(
        None, "side of the square the trunk sees; by default the weights' own", minimum=32
    )
    layer: str = st.option(
        "avgpool", "which features: the pooled last stage, or the pooled stage before it", choices=("avgpool", "layer3")
    )
    dtype: str = st.option("float16", "type of the stored features", choices=("float16", "float32"))
    engine: str = st.option(
        "auto",
        "what runs the trunk; auto takes the fastest that is installed",
        choices=("auto", "torch", "onnxruntime"),
    )
    precision: str = st.option(
        "float32", "arithmetic of the trunk; bfloat16 needs a GPU", choices=("float32", "bfloat16")
    )
    device: str = st.option("auto", "where the trunk runs", choices=("auto", "cpu", "cuda"))
    batch_size: int | None = st.option(
        None, "images in one forward pass; by default 16 on a CPU, 128 on a GPU", minimum=1
    )
    workers: int | None = st.option(None, "decoding threads; by default one per core", minimum=1)
    val_fraction: float = st.option(
        0.15, "share of train set aside as val where the source has none", minimum=0, below=1
    )
    test_fraction: float = st.option(
        0.15, "share of train set aside as test where the source has none", minimum=0, below=1
    )
    split_seed: int = st.option(0, "seed of the split")
    max_failures: float = st.option(0.01, "share of images that may fail before the job ends with an error", minimum=0)
    rehash: bool = st.option(False, "read every image again instead of trusting unchanged sizes and times")
    cache_root: Path = st.option(Path("cache"), "folder for features, runs, weights and downloaded data")

    def __post_init__(self) -> None:
        st.check(self)
        if self.out is not None and self.out.suffix != ".h5":
            raise ConfigError(f"--out {self.out} must end in .h5")


@dataclass(frozen=True)
class ExtractResult:
    """What stage one did; ``cache`` is the file, ``new`` went through the trunk, ``reused`` were copied."""

    cache: Path
    key: str
    rows: int
    new: int
    reused: int
    failed: int
    seconds: float
    counts: dict[str, int]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    batch: int | None = None
    shares: dict[str, float] | None = None
    images_per_second: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "cache": str(self.cache)}


def extract(source: str | Path, *, watch: Watch | None = None, **options: Any) -> ExtractResult:
    """Write the features of ``source`` to a cache file, doing only what is not done yet; returns where it lies.

    ``options`` are the fields of :class:`ExtractSettings`.

    Raises:
        ConfigError, DataError, WeightsError, CacheError: before the first forward pass wherever it can be known.
        Interrupted: after a signal; everything finished is kept and the same call resumes.
    """
    return run_extract(st.build(ExtractSettings, {"source": source, **options}), watch or Watch())


def run_extract(settings: ExtractSettings, watch: Watch) -> ExtractResult:
    """Stage one with settings made; see :func:`extract`."""
    from pipeline import store

    began = time.perf_counter()
    job = _Job(settings, watch)
    done = job.unchanged()
    if done is not None:
        return done.result(began)
    with store.writing_lock(job.out) as dead:
        if dead:
            watch.say(f"an earlier job ({dead}) ended without finishing: going on from what it left")
        return job.work(began)


@dataclass(frozen=True)
class _Done:
    job: _Job
    cache: Cache

    def result(self, began: float) -> ExtractResult:
        failed = sum(self.cache.failed().values())
        self.job.watch.say(f"nothing to do: {self.job.out} holds these {len(self.cache):,} images with these settings")
        return self.job.result(self.cache, began, new=0, reused=len(self.cache) - failed, failed=failed)


class _Job:
    """One call of stage one: what is asked for, what is there already, and the difference."""

    def __init__(self, settings: ExtractSettings, watch: Watch) -> None:
        from pipeline import data
        from pipeline.trunk import known

        self.settings, self.watch = settings, watch
        self.root = settings.cache_root
        self.listing: Listing = data.list_source(settings.source, cache_root=self.root, watch=watch)
        for reason, paths in self.listing.skipped.items():
            shown = ", ".join(ascii(os.fsdecode(p))[1:-1] for p in paths[:3])
            watch.say(f"skipped {len(paths):,} ({reason}): {shown}{', ...' if len(paths) > 3 else ''}")
        self.device = known.resolve_device(settings.device)
        self.spec, self.out = self._identity()
        self.provenance = self.spec.provenance()

    # -- identity -------------------------------------------------------------------------------------------------

    def _identity(self) -> tuple[TrunkSpec, Path]:
        from pipeline import store
        from pipeline.frozen import TrunkSpec, find_weights
        from pipeline.trunk import known

        s = self.settings
        info = find_weights(s.weights, trunk=s.trunk, cache_root=self.root, watch=self.watch)
        if s.image_size is not None:
            info = known.with_image_size(info, s.image_size)
        preferred = known.choose_engine(
            s.engine, device=self.device, n_images=len(self.listing.ids), image_size=info.crop
        )
        # With --engine auto, a file that another installed engine has already begun or made is gone on with.
        names = [preferred, *(e for e in known.available_engines(self.device) if s.engine == "auto" and e != preferred)]
        specs = [TrunkSpec(info, s.layer, s.dtype, name, s.precision, self.device) for name in names]
        keyed = [(spec, store.key_of(spec.provenance())) for spec in specs]
        found = [(spec, s.out or self._default_path(info, key), key) for spec, key in keyed]
        return next(((spec, path) for spec, path, key in found if _key_at(path) == key), found[0][:2])

    def _default_path(self, info: WeightsInfo, key: str) -> Path:
        """A telling name, with a number when a folder of the same name that still exists elsewhere has taken it."""
        from pipeline import store

        folder = self.root / "features"
        weights = re.sub(r"[^A-Za-z0-9]+", "", info.path.stem if info.name == "file" and info.path else info.name)[:24]
        stem = f"{self.listing.name}-{info.trunk}-{weights}-{info.crop}px-{key[:8]}".lower()
        for number in range(1, 1000):
            path = folder / (f"{stem}.h5" if number == 1 else f"{stem}-{number}.h5")
            there = path if path.exists() else store.partial_path(path)
            if not there.exists():
                return path
            home = os.fsencode(store.open_partial(there).about.get("root", ""))
            if home == os.path.realpath(self.listing.root) or not os.path.exists(home):
                return path
        raise CacheError(f"{folder} has 999 caches named {stem}: name one with --out")

    # -- what is there --------------------------------------------------------------------------------------------

    def unchanged(self) -> _Done | None:
        """The cache as it is, when it already holds exactly what is asked for; reads no image and loads no trunk."""
        self.old = self._existing()
        self.contents = self._contents()
        old, new = self.old, self.contents
        if old is None or self.settings.rehash or not _same(old, new):
            return None
        if not bool(new.digests.any(axis=1).all()):
            return None
        sizes, times = old.stats
        if (sizes != new.sizes).any() or (times != new.mtimes_ns).any():
            return None
        return _Done(self, old)

    def _existing(self) -> Cache | None:
        from pipeline import store

        if not self.out.exists():
            return None
        cache = store.open_cache(self.out)
        if cache.key != store.key_of(self.provenance):
            fields = "; ".join(
                f"{name}: {theirs!r} there, {mine!r} asked for"
                for name, theirs, mine in store.difference(cache.provenance, self.provenance)
            )
            raise CacheError(
                f"{self.out} was made with other settings ({fields}): give another --out, or these settings"
            )
        return cache

    def _contents(self) -> Contents:
        """What the finished file must hold, rows in order (split, id)."""
        import numpy as np

        from pipeline import data, store

        listing, s = self.listing, self.settings
        digests = _known_digests(listing, None if s.rehash else self.old)
        carve = data.needs_carving(listing)
        unknown = np.flatnonzero(~digests.any(axis=1))
        if len(unknown) and (carve or self.old is not None or self._donor_files()):
            # Content decides the split and what can be reused, so the bytes are read before anything is planned.
            with self.watch.track("hash", len(unknown)) as tracker:
                paths = [listing.path(int(i)) for i in unknown]
                digests[unknown] = data.digest_many(paths, workers=_workers(s.workers), progress=tracker.advance)
        plan = data.assign_splits(
            listing, digests, val_fraction=s.val_fraction, test_fraction=s.test_fraction, seed=s.split_seed
        )
        self.notes = (*listing.notes, *plan.notes)
        order = np.lexsort((np.arange(len(listing.ids)), plan.splits))
        from pipeline.trunk import known

        return store.Contents(
            ids=[listing.ids[i] for i in order.tolist()],
            digests=digests[order],
            sizes=listing.sizes[order],
            mtimes_ns=listing.mtimes_ns[order],
            labels=listing.labels[order],
            splits=plan.splits[order],
            classes=listing.classes,
            dim=known.feature_dim(s.trunk, s.layer),
            dtype=s.dtype,
            block_rows=BLOCK_ROWS,
            provenance=self.provenance,
            about={
                "source": listing.source,
                "root": os.fsdecode(os.path.realpath(listing.root)),
                "notes": list(self.notes),
                "weights": _lasting_spec(s.weights),
                "pretrained": self.spec.info.pretrained,
            },
        )

    def _donor_files(self) -> list[Path]:
        """Files beside ours whose name or key says that they may hold rows of ours."""
        from pipeline import store

        key = store.key_of(self.provenance)
        stale = store.stale_partials(self.out)
        others = [p for p in sorted(self.out.parent.glob("*.h5")) if p != self.out and _key_at(p) == key]
        return [*stale, *others]

    # -- work -----------------------------------------------------------------------------------------------------

    def work(self, began: float) -> ExtractResult:
        """Make the file, under the lock."""
        import numpy as np

        from pipeline import store

        self.old = self._existing()  # another job may have published it while we planned
        if self.old is not None and _same(self.old, self.contents) and self._only_stats_differ(self.old):
            return _Done(self, self.old).result(began)
        partial = store.partial_path(self.out)
        self._leave_stale_partial_aside(partial)
        origin = self._origin()
        if not partial.exists():
            for note in self.notes:
                self.watch.say(note)
            store.create_partial(self.out, self.contents)
        with store.Writer(self.out) as writer:
            todo = np.flatnonzero(~writer.done).tolist()
            if len(todo) < len(writer.done):
                self.watch.say(f"resuming: {len(writer.done) - len(todo)} of {len(writer.done)} blocks are done")
            loop = self._run_blocks(writer, todo, origin) if todo else None
            states = writer.states()
            failed = int((states != store.ITEM_STATES["good"]).sum())
            self._refuse_too_many_failures(failed, len(states))
            reasons = store.read_failures(store.failures_path(partial))
            store.write_failures(store.failures_path(self.out), (reasons[i] for i in self.contents.ids if i in reasons))
            writer.publish()
        for leftover in (store.failures_path(partial), *store.stale_partials(self.out)):
            leftover.unlink(missing_ok=True)
        cache = store.open_cache(self.out)
        new = loop.forwards if loop else 0
        result = self.result(cache, began, new=new, reused=len(cache) - failed - new, failed=failed)
        if loop and loop.forwards:
            speed = loop.forwards / max(1e-9, loop.shares.forward + loop.shares.waiting)
            self.watch.say(loop.shares.line())
            parts = dataclasses.asdict(loop.shares)
            batch = loop.trunk.engine.batch if loop.trunk else None
            result = dataclasses.replace(result, batch=batch, shares=parts, images_per_second=speed)
        return result

    def _only_stats_differ(self, old: Cache) -> bool:
        """Same images, labels, splits and bytes: refresh the sizes and times and be done."""
        from pipeline import store

        if (old.digests != self.contents.digests).any() or not bool(self.contents.digests.any(axis=1).all()):
            return False
        store.update_stats(self.out, self.contents.sizes, self.contents.mtimes_ns)
        return True

    def _leave_stale_partial_aside(self, partial: Path) -> None:
        """An unfinished file is resumed if it is of this listing; else it only gives its finished rows."""
        from pipeline import store

        if not partial.exists():
            return
        begun = store.open_partial(partial)
        if begun.key != store.key_of(self.provenance):
            raise CacheError(
                f"{partial} was begun with other settings: finish it with those, remove it, or give another --out"
            )
        if not _same(begun, self.contents) or begun.block_rows != BLOCK_ROWS:
            self.watch.say("the source has changed since the job was interrupted: finished rows are reused")
            store.retire_partial(self.out)

    def _origin(self) -> Origin:
        """For each row: the file to copy it from, or the trunk."""
        import numpy as np

        from pipeline import store
        from pipeline.blocks import Origin

        donors = [self.old] if self.old is not None else []
        donors += [store.open_partial(p) for p in self._donor_files()]
        donors = [d for d in donors if d.dim == self.contents.dim]
        places: dict[bytes, tuple[int, int]] = {}
        for number, donor in enumerate(donors):
            digests, sound = donor.digests, np.repeat(donor.done, donor.block_rows)[: len(donor)]
            for row in np.flatnonzero(sound & digests.any(axis=1)).tolist():
                good = donor.states[row] == store.ITEM_STATES["good"]
                # A failure is kept only from our own file; another source's failure is tried again here.
                if good or donor is self.old:
                    places.setdefault(digests[row].tobytes(), (number, row))
        none = (-1, -1)
        found = [places.get(d.tobytes(), none) if d.any() else none for d in self.contents.digests]
        pairs = np.array(found, np.int64).reshape(-1, 2)
        reasons = [store.read_failures(store.failures_path(d.path)) for d in donors]
        return Origin(donors, pairs[:, 0], pairs[:, 1], reasons)

    def _run_blocks(self, writer: Writer, todo: Sequence[int], origin: Origin) -> BlockLoop:
        from pipeline import data, store
        from pipeline.blocks import BlockLoop
        from pipeline.frozen import FrozenTrunk
        from pipeline.interrupt import stop_requests

        s = self.settings
        rows = [r for b in todo for r in range(*writer.span(b))]
        fresh = bool((origin.donor[rows] < 0).any())
        trunk = FrozenTrunk(self.spec, batch=s.batch_size, work_dir=self.root / "engines") if fresh else None
        at = {item: i for i, item in enumerate(self.listing.ids)}
        workers = _workers(s.workers)
        loader = data.Loader(
            self.spec.geometry(), workers=workers, ahead=4 * workers + (trunk.engine.batch if trunk else 0)
        )
        done = writer.rows - len(rows)
        with stop_requests() as stop, loader, self.watch.track("extract", writer.rows, done=done) as bar:
            loop = BlockLoop(
                writer=writer,
                paths=lambda row: self.listing.path(at[self.contents.ids[row]]),
                ids=self.contents.ids,
                digests=self.contents.digests,
                origin=origin,
                loader=loader,
                trunk=trunk,
                failures_file=store.failures_path(store.partial_path(self.out)),
                tracker=bar,
                stop=stop,
                stop_message=f"stopped; {self.out.name} is kept as far as it got: the same command goes on from there",
            )
            loop.run(todo)
        if trunk:
            trunk.assert_untouched()
        return loop

    def _refuse_too_many_failures(self, failed: int, rows: int) -> None:
        from pipeline import store

        if failed <= self.settings.max_failures * rows:
            return
        listed = store.failures_path(store.partial_path(self.out))
        reasons = store.read_failures(listed)
        first = next((reasons[i] for i in self.contents.ids if i in reasons), None)
        example = f"; the first: {os.fsdecode(first.id)!a}: {first.reason}" if first else ""
        raise DataError(
            f"{failed} of {rows} images failed, more than --max-failures {self.settings.max_failures:g}{example}; all "
            f"are listed in {listed}; the good rows are kept: mend the files or raise --max-failures, and run again"
        )

    def result(self, cache: Cache, began: float, *, new: int, reused: int, failed: int) -> ExtractResult:
        """The result record."""
        return ExtractResult(
            cache=self.out,
            key=cache.key,
            rows=len(cache),
            new=new,
            reused=reused,
            failed=failed,
            seconds=time.perf_counter() - began,
            counts=cache.counts(),
            skipped={reason: len(paths) for reason, paths in self.listing.skipped.items()},
            notes=self.notes,
        )


def _lasting_spec(weights: str) -> str:
    """The weights as given, a file's path made absolute, so that a later stage finds them from anywhere."""
    return str(Path(weights).resolve()) if Path(weights).is_file() else weights


def _workers(asked: int | None) -> int:
    return asked or len(os.sched_getaffinity(0))


def _key_at(path: Path) -> str | None:
    """Key of the finished or unfinished cache at ``path``; None where there is none that can be read."""
    from pipeline import store

    there = path if path.exists() else store.partial_path(path)
    try:
        return store.open_partial(there).key
    except CacheError:
        return None


def _same(cache: Cache, contents: Contents) -> bool:
    """Whether a file holds the same items with the same labels and splits, in the same order."""
    return (
        len(cache) == len(contents.ids)
        and cache.classes == contents.classes
        and bool((cache.labels == contents.labels).all())
        and bool((cache.splits == contents.splits).all())
        and cache.ids == list(contents.ids)
        and _digests_agree(cache, contents)
    )


def _digests_agree(cache: Cache, contents: Contents) -> bool:
    """No item whose bytes are known on both sides has changed."""
    theirs, ours = cache.digests, contents.digests
    both = theirs.any(axis=1) & ours.any(axis=1)
    return bool((theirs[both] == ours[both]).all())


def _known_digests(listing: Listing, old: Cache | None) -> NDArray[np.uint8]:
    """(N, 32) digests of the items whose path, size and time are those of ``old``; zeros for the others."""
    import numpy as np

    known = np.zeros((len(listing.ids), 32), np.uint8)
    if old is None:
        return known
    sizes, times = old.stats
    at = {item: row for row, item in enumerate(old.ids)}
    rows = np.array([at.get(item, -1) for item in listing.ids], np.int64)
    same = rows >= 0
    same[same] = (sizes[rows[same]] == listing.sizes[same]) & (times[rows[same]] == listing.mtimes_ns[same])
    known[same] = old.digests[rows[same]]
    return known
