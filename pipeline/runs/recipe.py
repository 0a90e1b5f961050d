"""What a cache says: the recipe of its rows (all that decides their numbers, its provenance), and where they are from.

Written and read again here, so that what is read is what was written; the store keeps both without knowing them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from pipeline.base.errors import CacheError, WeightsError
from pipeline.base.schema import Malformed, PathText, Rule, Sha256, Size, made
from pipeline.base.workspace import Workspace
from pipeline.images import DECODE_POLICY, MAX_PIXELS, Columns, Geometry, View
from pipeline.store import Cache
from pipeline.trunk import identity
from pipeline.trunk.identity import INTERPOLATIONS, Transform, TrunkSpec
from pipeline.trunk.lookup import find_weights

T = TypeVar("T")


class About(TypedDict):
    """What a cache of features says for people, and for finding its images and weights again."""

    source: PathText  # as the source's own room knows it: a path, or a word
    root: PathText
    notes: list[str]  # on its splits
    weights: PathText  # an explicit name, a file's absolute path, or random:SEED
    pretrained: bool
    columns: NotRequired[dict[str, str]]  # of a manifest, by kind: those that were named and not guessed
    readable: NotRequired[Readable]


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
    device: Literal["cpu", "cuda"]


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
    dtype: Literal["float16", "float32"]
    precision: Literal["float32", "bfloat16"]
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


def provenance_of(cache: Cache) -> Provenance:
    """What a cache's rows were made by.

    Raises:
        CacheError: it is none of ours.
    """
    return _of(cache, cache.provenance, Provenance, "provenance")


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
    """All that decides a row's numbers: the trunk, the type that they are stored as, and the view of the image."""

    trunk: TrunkSpec
    dtype: str
    view: View | None = None

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
            "decode": dict(DECODE_POLICY),
            "dtype": self.dtype,
            "precision": spec.precision,
            "engine": {"name": spec.engine, "version": identity.engine_version(spec.engine), "device": spec.device},
        }

    def geometry(self) -> Geometry:
        """How an image becomes the square that the trunk sees."""
        transform = self.trunk.info.transform
        return Geometry(transform.resize, transform.crop, transform.interpolation, self.view)

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
        )

    def computed(self, **changes: Any) -> Recipe:
        """The same rows computed in another way: ``engine``, ``precision`` or ``device`` changed."""
        return replace(self, trunk=replace(self.trunk, **changes))
