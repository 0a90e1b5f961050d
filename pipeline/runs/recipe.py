"""What a cache says: the recipe of its rows (all that decides their numbers, its provenance), and where they are from.

Written and read again here, so that what is read is what was written; the store keeps both without knowing them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from pipeline.base.errors import CacheError, WeightsError
from pipeline.base.machine import kind_of_device
from pipeline.base.records import read_record
from pipeline.base.schema import Malformed, PathText, Rule, Sha256, Size, made
from pipeline.base.spelling import option
from pipeline.base.workspace import Workspace
from pipeline.images import MAX_PIXELS, Columns, Geometry, Images, View, decode_policy, open_images
from pipeline.store import Cache
from pipeline.store.companions import calibration_path
from pipeline.trunk import identity
from pipeline.trunk.calibration import Calibration
from pipeline.trunk.identity import INTERPOLATIONS, Transform, TrunkSpec
from pipeline.trunk.lookup import find_weights

T = TypeVar("T")


class FromHere(TypedDict):
    """Ways from the folder of a cache, which hold after all of it has moved."""

    root: PathText
    weights: NotRequired[PathText]


class Agreed(TypedDict):
    """How near the features of some images were to those in float32 (``pipeline.trunk.engines.check.Agreement``)."""

    images: Size
    cosine: float
    least_cosine: float
    error: float
    largest_error: float


class Gpu(TypedDict):
    """A GPU that has computed rows (``pipeline.base.machine.gpu``); what was not told is left out."""

    name: str
    capability: str
    cuda: NotRequired[str]
    rocm: NotRequired[str]
    cudnn: NotRequired[str]
    driver: NotRequired[str]


class About(TypedDict):
    """What a cache of features says for people, and for finding its images and weights again."""

    source: PathText  # as the source's own room knows it: a path, or a word
    root: PathText
    notes: list[str]  # on its splits
    weights: PathText  # an explicit name, a file's absolute path, or random:SEED
    pretrained: bool
    columns: NotRequired[dict[str, str]]  # of a manifest, by kind: those that were named and not guessed
    readable: NotRequired[Readable]
    agreement: NotRequired[Agreed]  # of features that were not computed in float32
    from_here: NotRequired[FromHere]
    gpus: NotRequired[list[Gpu]]  # of the jobs that began to compute rows on one


class Readable(TypedDict):
    """Which images could be read. It decides which rows there are and no row's numbers, so it is not in the key."""

    max_pixels: Size
    formats: list[str]


_FIRST: Readable = {"max_pixels": MAX_PIXELS, "formats": ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WebP"]}
"""Of caches that do not say it: what could be read before they said it."""


class _Trunk(TypedDict):
    name: str
    layer: str


class _Weights(TypedDict):
    name: str
    sha256: Sha256


class _Engine(TypedDict):
    name: Literal["torch", "onnxruntime"]
    version: str
    device: Literal["cpu", "cuda", "mps"]


class _Decode(TypedDict):
    scaled: NotRequired[str]


class _Calibrated(TypedDict):
    sha256: Sha256


class _View(TypedDict):
    number: Size
    seed: int


_INTERPOLATION = Rule(
    f"an interpolation of {', '.join(INTERPOLATIONS)}", lambda transform: transform.interpolation in INTERPOLATIONS
)


class Provenance(TypedDict):
    """Those fields of :meth:`Recipe.provenance` that are read again."""

    trunk: _Trunk
    weights: _Weights
    transform: Annotated[Transform, _INTERPOLATION]
    decode: NotRequired[_Decode]
    dtype: Literal["float16", "float32"]
    precision: Literal["float32", "tf32", "bfloat16", "int8"]
    calibration: NotRequired[_Calibrated]  # of int8
    engine: _Engine
    view: NotRequired[_View]


def about_of(cache: Cache) -> About:
    """What a cache of features says of where it comes from.

    Raises:
        CacheError: it does not say it as one of ours does.
    """
    return _of(cache, cache.about, About, "about")


def columns_of(cache: Cache) -> Columns:
    """The columns of the cache's manifest, if it was one, as the user named them."""
    told = about_of(cache).get("columns", {})
    return Columns(told.get("path"), told.get("label"), told.get("split"))


def readable_of(cache: Cache) -> Readable:
    """Which images could be read when a cache was made."""
    return about_of(cache).get("readable", _FIRST)


def from_here(root: str, weights: str, folder: Path) -> FromHere:
    """The ways to images and weights from the folder of a cache that is to be written."""
    ways: FromHere = {"root": way(folder, root)}
    return {**ways, "weights": way(folder, weights)} if os.path.isabs(weights) else ways


def rebased(about: Mapping[str, Any], before: Path, now: Path) -> dict[str, Any]:
    """What a cache says of itself, for one in the folder ``now`` that is made from one in the folder ``before``."""
    ways = {name: way(now, led(before, old)) for name, old in about.get("from_here", {}).items()}
    return {**about, "from_here": ways} if ways else dict(about)


def way(start: Path, end: str | Path) -> str:
    """The relative path that leads from a folder to ``end``."""
    return os.path.relpath(os.path.realpath(end), os.path.realpath(start))


def led(start: Path, way: str) -> str:
    """The absolute path that a way leads to."""
    return os.path.normpath(os.path.join(os.path.realpath(start), way))


def images_from(cache: Cache) -> Images:
    """The images that a cache was made from: where they lie from here, or else where they lay then.

    What is not there any more is asked for by :meth:`Images.there`.

    Raises:
        CacheError: the cache does not say it.
    """
    about = about_of(cache)
    if "from_here" in about:
        moved = open_images(about["source"], led(cache.path.parent, about["from_here"]["root"]))
        if moved.there():
            return moved
    return open_images(about["source"], about["root"])


def weights_from(about: About, folder: Path, desk: Workspace) -> str:
    """The weights that the features of a cache in ``folder`` were made by, as they are asked for now.

    A file is where it lies from here, or lay then; or it has been put among the weights of the workspace. That it holds
    the same bytes is for :meth:`Recipe.of` to see.
    """
    spec = about["weights"]
    if not os.path.isabs(spec):
        return spec
    ways = about.get("from_here", {})
    places = [led(folder, ways["weights"])] if "weights" in ways else []
    places += [spec, str(desk.weights / os.path.basename(spec))]
    return next((place for place in places if os.path.isfile(place)), spec)


def provenance_of(cache: Cache) -> Provenance:
    """What a cache's rows were made by.

    Raises:
        CacheError: it is none of ours.
    """
    return _of(cache, cache.provenance, Provenance, "provenance")


def calibration_of(cache: Cache) -> Calibration | None:
    """The bounds of int8 that a cache was computed between, from the file beside it; None of another precision.

    Raises:
        CacheError: they are gone, or are others.
    """
    asked, path = provenance_of(cache).get("calibration"), calibration_path(cache.path)
    if asked is None:
        return None
    cure = f"bring it back, or give {option('recalibrate', True)}, which makes another file"
    found = read_record(path, Calibration, CacheError, f"{cache.path.name} was computed by it: {cure}")
    if found.sha256 != asked["sha256"]:
        raise CacheError(f"{path} has changed since {cache.path.name} was computed by it: {cure}")
    return found


def geometry_of(made_by: Provenance) -> Geometry:
    """How an image became the square that the trunk saw; of a cache of views, the square without them."""
    return _geometry(made_by["transform"], view=None, scaled=_is_scaled(made_by))


def _is_scaled(made_by: Provenance) -> bool:
    return "scaled" in made_by.get("decode", {})


def _geometry(transform: Transform, *, view: View | None, scaled: bool) -> Geometry:
    return Geometry(transform.resize, transform.crop, transform.interpolation, view, scaled=scaled)


def require_ours(cache: Cache) -> None:
    """Find out before long work that a run can be made of a cache.

    Raises:
        CacheError: what it says of itself is not what a cache of features says.
    """
    about_of(cache), provenance_of(cache)


def _of(cache: Cache, told: Mapping[str, Any], schema: type[T], name: str) -> T:
    try:
        return made(told, schema, name)
    except Malformed as why:
        raise CacheError(f"{cache.path}: {why}; extract again, to another file") from why


@dataclass(frozen=True)
class Recipe:
    """All that decides a row's numbers: the trunk, the type that they are stored as, the view and how it is decoded."""

    trunk: TrunkSpec
    dtype: str
    view: View | None = None
    scaled: bool = False  # whether images may be shrunk while they are decoded

    def provenance(self) -> dict[str, Any]:
        """Everything that decides a row's numbers, as JSON values: the cache's key is the hash of this."""
        spec = self.trunk
        info, transform = spec.info, spec.info.transform
        view = {"view": self.view.provenance()} if self.view else {}
        return {
            **view,
            "trunk": {"name": info.trunk, "layer": spec.layer},
            "weights": {"name": info.name, "sha256": info.sha256},
            "transform": {
                "resize": transform.resize,
                "crop": transform.crop,
                "interpolation": transform.interpolation,
                "antialias": True,
                "mean": list(transform.mean),
                "std": list(transform.std),
            },
            "decode": decode_policy(scaled=self.scaled),
            "dtype": self.dtype,
            "precision": spec.precision,
            **({} if spec.calibration is None else {"calibration": {"sha256": spec.calibration.sha256}}),
            "engine": {
                "name": spec.engine,
                "version": identity.engine_version(spec.engine),
                "device": kind_of_device(spec.device),
            },
        }

    def geometry(self) -> Geometry:
        """How an image becomes the square that the trunk sees."""
        return _geometry(self.trunk.info.transform, view=self.view, scaled=self.scaled)

    @classmethod
    def of_cache(cls, cache: Cache, desk: Workspace) -> Recipe:
        """The recipe that a cache was made by.

        Raises:
            WeightsError: as of :meth:`of`.
            CacheError: the cache is none of ours, or what int8 needs to know is gone.
        """
        recipe = cls.of(provenance_of(cache), weights_from(about_of(cache), cache.path.parent, desk), desk)
        return recipe.computed(calibration=calibration_of(cache))

    @classmethod
    def of(cls, made_by: Provenance, weights: str, desk: Workspace) -> Recipe:
        """The recipe that a cache or a run was made by, its weights found again through ``weights`` (as first given).

        Raises:
            WeightsError: the weights are not to be had, are not the same bytes any more, or have no such layer.
        """
        info, then = find_weights(weights, made_by["trunk"]["name"], desk), made_by["weights"]["sha256"]
        if info.sha256 != then:
            raise WeightsError(
                f"the weights {weights} have changed: SHA-256 {info.sha256[:12]}..., the features were made with "
                f"{then[:12]}...; bring back that file, or extract and train again"
            )
        layer, engine, seen = made_by["trunk"]["layer"], made_by["engine"], made_by.get("view")
        if layer not in dict(info.layers):
            legal = ", ".join(dict(info.layers))
            raise WeightsError(f"the features are of {layer!r}, and {info.trunk} has {legal}: extract and train again")
        info = replace(info, transform=made_by["transform"])
        return cls(
            TrunkSpec(info, layer, engine["name"], made_by["precision"], engine["device"]),
            dtype=made_by["dtype"],
            view=None if seen is None else View(seen["number"], seen["seed"]),
            scaled=_is_scaled(made_by),
        )

    def computed(self, **changes: Any) -> Recipe:
        """The same rows computed in another way: ``engine``, ``precision``, ``device`` or ``calibration`` changed."""
        trunk = replace(self.trunk, **changes)
        return replace(self, trunk=trunk if trunk.precision == "int8" else replace(trunk, calibration=None))
