"""What stage one says. Pure functions of what was found and done, to lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.spelling import option
from pipeline.base.words import many, seconds
from pipeline.runs.remarks import how_near
from pipeline.stages.extract.results import ExtractResult, Shares
from pipeline.trunk.identity import WeightsInfo


def no_labels(images: int) -> str:
    """Said before anything is done, where a source has no class folders."""
    return f"no class folders: {many(images, 'image')} without labels; heads cannot learn from them"


def some_without(unlabelled: int, images: int) -> str:
    """Said before anything is done, where some of the images have no label."""
    return f"{many(unlabelled, 'image')} of {images:,} without a label: heads leave them out"


def guessed(info: WeightsInfo) -> str:
    """Said where nothing tells how the images were made that a file's weights learned from."""
    t = info.transform
    sizes = f"short side {t.resize} ({t.interpolation}), centre {t.crop}, mean {numbers(t.mean)}, std {numbers(t.std)}"
    return (
        f"the transform of {info.path} is a guess, that of {info.preset}: {sizes}; where it learned with another give "
        f"{option('preset')}, or {', '.join(map(option, ('resize', 'crop', 'interpolation', 'mean', 'std')))}"
    )


def agreed(precision: str, found: Mapping[str, Any]) -> str:
    """The precision check in a line."""
    return f"precision check: {precision} {how_near(found)}"


def calibrated(images: int) -> str:
    """Said where bounds for int8 were found."""
    return f"int8: bounds of the network's maps found on {many(images, 'image')} that are not val's or test's, and kept"


def decoded_as_before(cache: Path) -> str:
    """Said where a file that was decoded exactly is gone on with, which a new one would not be."""
    return (
        f"decode.scaled: {cache.name} was decoded exactly, and so are new images; "
        f"{option('decode', 'scaled')} is faster for large JPEGs, and makes another file"
    )


def decoded_anew(cache: Path, other: str) -> str:
    """Said where a file of the same settings but another way to decode is there; ``other`` is its way."""
    return f"decode.scaled differs from {cache.name}: another file is made; {option('decode', other)} keeps that one"


def fewer_at_once(batch: int) -> str:
    """Said where memory ran out with a larger batch."""
    return f"out of memory: {many(batch, 'image')} at once from here on"


def served(cache: Path, engine: Mapping[str, object], own: str) -> str:
    """Said where a file that another kind of device has made holds all that is asked for; ``engine`` is its own."""
    return (
        f"engine.device: {cache.name} was computed on {engine['device']}, by {engine['name']} {engine['version']}, and "
        f"is taken as it is: nothing is to be computed; new images would need {engine['device']}; "
        f"{option('device', own)} computes all of it anew, in another file"
    )


def not_gone_on_with(cache: Path, made_on: str, own: str, lacking: int | None) -> str:
    """Said where a file of another kind of device is not finished (``lacking`` None) or lacks images."""
    why = "is not finished" if lacking is None else f"lacks {many(lacking, 'image')} of these"
    where = "" if made_on == "cpu" else ", where there is one"
    return (
        f"engine.device: {cache.name} was computed on {made_on} and {why}: another file is made on {own}; "
        f"{option('device', made_on)} goes on with that one{where}"
    )


def needs(cache: Path, engine: Mapping[str, object], own: str) -> str:
    """Why no row of a cache can be computed here: another ``engine`` (name, version and device) has made it."""
    return (
        f"{cache.name} was computed by {engine['name']} {engine['version']} on {engine['device']}, and so must be "
        f"what belongs to it: go on there, or give {option('device', own)}, which makes another file of all of it"
    )


def numbers(values: Sequence[float]) -> str:
    """Numbers in words."""
    return " ".join(f"{v:g}" for v in values)


def going_on(dead: str) -> str:
    """Said where an earlier job died; ``dead`` names it."""
    return f"an earlier job ({dead}) ended without finishing: going on from what it left"


def nothing_to_do(result: ExtractResult, failures: Path) -> str:
    """Said where the file that is there holds all that was asked for; ``failures`` lists those that gave no row."""
    listed = f" ({result.failed} failed: {failures})" if result.failed else ""
    return f"nothing to do: {result.cache} holds these {many(result.rows, 'image')} with these settings{listed}"


def done(result: ExtractResult, failures: Path) -> str:
    """Said of a new file."""
    failed = f", {result.failed} failed ({failures})" if result.failed else ""
    rows = f"{many(result.rows, 'row')}: {result.new:,} new, {result.reused:,} reused{failed}"
    return f"{rows}, in {seconds(result.seconds)} -> {result.cache}"


def trunk_is_the_bottleneck(shares: Shares) -> bool:
    """Whether images were ready when the trunk was."""
    return shares.waiting <= 0.1 * (shares.forward + shares.waiting)


def faster(precisions: Sequence[str]) -> str:
    """Said where the trunk was what took so long, in float32, and the device has ``precisions``, the fastest last."""
    first, *more = precisions
    also = "".join(f", {option('precision', precision)} even more so" for precision in more)
    return f"{option('precision', first)} would be faster here{also}: checked against float32, in another file"


@dataclass(frozen=True)
class Limits:
    """What bounds decoding: ``workers`` threads on so many ``cores``; ``exact``: nothing may be shrunk meanwhile."""

    workers: int
    cores: int
    exact: bool


def bottleneck(shares: Shares, limits: Limits) -> str:
    """For example ``read 1 %, decode 3 %, transform 2 %, forward 93 %, write 1 %: the trunk is the bottleneck``."""
    parts = dataclasses.asdict(shares)
    waiting = parts.pop("waiting")
    total = sum(parts.values()) or 1.0
    text = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts.items())
    if trunk_is_the_bottleneck(shares):
        return f"{text}: the trunk is the bottleneck"
    slow = max(("read", "decode", "transform"), key=lambda n: parts[n])
    waited = f"the trunk waited {waiting:.1f} s"
    if slow == "read":
        waited += "; a faster disk would help"
    elif slow == "decode" and limits.exact:
        waited += f"; {option('decode', 'scaled')} would help where JPEGs are large, in another file"
    elif limits.workers < limits.cores:
        waited += f"; more {option('workers')} would help"
    else:
        waited += "; only more cores would help"
    return f"{text}: {slow} is the bottleneck ({waited})"
