"""The recipe of a cache's rows: all that decides their numbers, in the provenance and found again from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.base.errors import WeightsError
from pipeline.base.workspace import Workspace
from pipeline.images import DECODE_POLICY, Geometry, View
from pipeline.trunk import identity
from pipeline.trunk.identity import Transform, TrunkSpec
from pipeline.trunk.lookup import find_weights


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
    def of(cls, provenance: Mapping[str, Any], weights: str, desk: Workspace) -> Recipe:
        """The recipe that a cache or a run was made by, its weights found again through ``weights`` (as first given).

        Raises:
            WeightsError: the weights are not to be had, or are not the same bytes any more.
        """
        name = provenance["trunk"]["name"]
        info = find_weights(weights, name, desk)
        if info.sha256 != provenance["weights"]["sha256"]:
            raise WeightsError(
                f"the weights {weights} have changed: SHA-256 {info.sha256[:12]}..., the features were made with "
                f"{provenance['weights']['sha256'][:12]}...; bring back that file, or extract and train again"
            )
        engine = provenance["engine"]
        info = replace(info, transform=Transform.of(provenance["transform"]))
        seen = provenance.get("view")
        layer, precision = provenance["trunk"]["layer"], provenance["precision"]
        return cls(
            TrunkSpec(info, layer, engine["name"], precision, engine["device"]),
            dtype=provenance["dtype"],
            view=View(seen["number"], seen["seed"]) if seen else None,
        )

    def computed(self, **changes: Any) -> Recipe:
        """The same rows computed in another way: ``engine``, ``precision`` or ``device`` changed."""
        return replace(self, trunk=replace(self.trunk, **changes))
