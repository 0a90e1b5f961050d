"""The loader keeps order, keeps its bounds and loses no failure."""

from __future__ import annotations

import gc
import hashlib
import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import ConfigError
from pipeline.images import Files, Geometry, ImageFailure, Limits, Loader, decode, look_ahead, read_file, to_pixels
from pipeline.images import loader as loader_module
from pipeline.images.decode import examine
from pipeline.images.loader import AHEAD_BYTES
from pipeline.images.room import ALONE

GEOMETRY = Geometry(16, 14)
FILES = Files("")  # by their whole paths


@pytest.fixture
def images(tmp_path, noise):
    paths = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        Image.fromarray(noise(20 + i, 30, seed=i)).save(path)
        paths.append(bytes(path))
    return paths


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (4, 100)])
def test_results_come_in_the_order_of_the_jobs_and_equal_single_steps(images, workers, ahead):
    with Loader(FILES, GEOMETRY, workers=workers, ahead=ahead) as loader:
        results = list(loader.load((100 + i, path) for i, path in enumerate(images)))
    assert [r.index for r in results] == list(range(100, 112))
    for result, path in zip(results, images, strict=True):
        blob = read_file(path)
        assert np.array_equal(result.pixels, to_pixels(decode(blob), GEOMETRY))
        assert result.digest == hashlib.sha256(blob).digest()
        assert result.failure is None
        assert min(result.read_s, result.decode_s, result.transform_s) > 0


def test_failures_come_in_their_place_with_kind_reason_and_digest(images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    jobs = [images[0], bytes(tmp_path / "gone.png"), bytes(tmp_path / "text.jpg"), images[1]]
    with Loader(FILES, GEOMETRY, workers=2, ahead=4) as loader:
        good, gone, text, last = loader.load(enumerate(jobs))
    assert good.failure is None and last.failure is None
    assert (gone.failure.kind, gone.pixels, gone.digest) == ("vanished", None, bytes(32))
    assert (text.failure.kind, text.pixels) == ("unreadable", None)
    assert text.digest == hashlib.sha256(b"no image").digest()
    assert text.transform_s == 0


def test_a_failure_does_not_hold_on_to_the_images_bytes(tmp_path):
    """Thousands of bad images must not fill the memory."""
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with Loader(FILES, GEOMETRY, workers=1, ahead=1) as loader:
        (result,) = loader.load([(0, bytes(tmp_path / "bad.png"))])
    assert isinstance(result.failure, ImageFailure)
    assert (result.failure.__traceback__, result.failure.__cause__, result.failure.__context__) == (None, None, None)


def test_an_endless_stream_is_read_only_as_far_as_the_look_ahead(images):
    """For training streams that never end."""
    taken = itertools.count()
    most = 0

    def endless():
        nonlocal most
        for i in itertools.count():
            most = next(taken)
            yield i, images[i % len(images)]

    with Loader(FILES, GEOMETRY, workers=2, ahead=5) as loader:
        stream = loader.load(endless())
        for wanted in range(40):
            assert next(stream).index == wanted
            assert most <= wanted + 4
        stream.close()


def test_closing_a_stream_cancels_what_has_not_started(images):
    permits, started = threading.Semaphore(1), []

    class Gated(Files):
        def read(self, item):
            started.append(item)
            assert permits.acquire(timeout=10)
            return super().read(item)

    with Loader(Gated(""), GEOMETRY, workers=1, ahead=8) as loader:
        stream = loader.load(enumerate(images))
        assert next(stream).index == 0  # the one worker now waits in the second image, if it has begun it
        stream.close()
        permits.release(100)
        assert [r.index for r in loader.load([(99, images[9])])] == [99]
    assert started in ([images[0], images[9]], [images[0], images[1], images[9]])


def test_an_error_of_the_jobs_or_of_the_program_is_not_taken_for_a_bad_image(images, monkeypatch):
    def broken():
        yield 0, images[0]
        raise KeyError("jobs")

    with Loader(FILES, GEOMETRY, workers=1, ahead=2) as loader, pytest.raises(KeyError, match="jobs"):
        list(loader.load(broken()))

    def bug(_image, _geometry, _digest, _cover, _place):
        raise ZeroDivisionError

    monkeypatch.setattr(loader_module, "to_pixels", bug)
    with Loader(FILES, GEOMETRY, workers=1, ahead=2) as loader, pytest.raises(ZeroDivisionError):
        list(loader.load([(0, images[0])]))


def test_results_are_let_go_once_they_are_handed_over(images):
    """Memory flat in the number of images."""
    with Loader(FILES, GEOMETRY, workers=2, ahead=3) as loader:
        for _ in loader.load((i, images[i % 12]) for i in range(200)):
            pass
        gc.collect()
        alive = sum(type(o) is loader_module.Loaded for o in gc.get_objects())
    assert alive <= 4


@pytest.mark.parametrize(("workers", "ahead"), [(0, 1), (1, 0)])
def test_a_loader_without_workers_or_look_ahead_is_refused(workers, ahead):
    with pytest.raises(ConfigError, match="at least 1"):
        Loader(FILES, GEOMETRY, workers=workers, ahead=ahead)


def test_a_decoder_that_runs_out_of_memory_is_tried_once_more_alone_and_then_a_failure(images, monkeypatch):
    """Without a digest, so that a larger machine, or an emptier one, tries it again."""
    calls = []

    def short(blob, sized, max_pixels, side):
        calls.append(ALONE._is_owned())
        if len(calls) <= lacking:
            raise MemoryError
        return examine(blob, sized, max_pixels, side)

    monkeypatch.setattr(loader_module, "examine", short)
    lacking = 2
    failed = loader_module.load_one(0, images[0], FILES, GEOMETRY)
    assert calls == [False, True]
    assert (failed.failure.kind, failed.digest) == ("too_large", bytes(32)) and "memory" in failed.failure.reason
    calls.clear()
    lacking = 1
    loaded = loader_module.load_one(0, images[0], FILES, GEOMETRY)
    assert loaded.failure is None and np.array_equal(loaded.pixels, to_pixels(decode(read_file(images[0])), GEOMETRY))


@pytest.mark.parametrize("limit", ["BIG_PIXELS", "BIG_BYTES"])
def test_big_images_are_at_work_one_at_a_time(images, monkeypatch, limit):
    monkeypatch.setattr(loader_module, limit, 0)
    at_work, most = [], []

    def counted(image, geometry, digest, cover, place):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.002)
        at_work.pop()
        return to_pixels(image, geometry, digest, cover, place)

    monkeypatch.setattr(loader_module, "to_pixels", counted)
    with Loader(FILES, GEOMETRY, workers=4, ahead=8) as loader:
        assert all(r.failure is None for r in loader.load(enumerate(images)))
    assert max(most) == 1


def test_an_image_above_the_limit_fails_unless_the_same_bytes_were_let_in_before(images):
    """Rows of a cache are loaded again whatever limit their extraction had; another image in their place is not."""
    limit = 25 * 30
    jobs = list(enumerate(images))
    with Loader(FILES, GEOMETRY, workers=2, ahead=4, limits=Limits(limit)) as loader:
        kinds = [loaded.failure and loaded.failure.kind for loaded in loader.load(jobs)]
    assert kinds == [None] * 6 + ["too_large"] * 6
    known = np.stack([np.frombuffer(hashlib.sha256(read_file(path)).digest(), np.uint8) for path in images])
    known[11] = 0
    with Loader(FILES, GEOMETRY, workers=2, ahead=4, limits=Limits(limit, known)) as loader:
        assert [loaded.failure is None for loaded in loader.load(jobs)] == [True] * 11 + [False]


@pytest.mark.parametrize(
    ("crop", "batch", "expected"), [(224, 16, 445), (32, 128, 1024), (518, 128, 256), (4096, 1, 2)]
)
def test_the_look_ahead_is_bounded_by_bytes_and_at_least_two_batches(crop, batch, expected):
    assert look_ahead(Geometry(crop, crop), batch) == expected
    assert expected == 2 * batch or expected * 3 * crop**2 <= AHEAD_BYTES
