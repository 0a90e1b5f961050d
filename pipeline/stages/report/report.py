"""`pipeline report`: a run, or several side by side, as one HTML file for other people.

Gathers what is known of each run, chooses which images are worth seeing, decodes these, and puts it all on a page. Of
test rows it tells what was recorded when a run was scored; it scores none, and nothing is chosen by them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.base.errors import CacheError, ConfigError, HeadError
from pipeline.base.files import make_folder, try_writing, write_bytes, writing
from pipeline.base.spelling import option
from pipeline.base.words import few, many, named, seconds, size
from pipeline.base.workspace import Workspace
from pipeline.runs.folder import is_run_name
from pipeline.show.page.document import Chart, Confusion, Folded, Page, blocks_of
from pipeline.show.page.render import NoRoom, Rendered, render
from pipeline.show.pictures import confusion_picture, svg
from pipeline.stages.report import words
from pipeline.stages.report.album import album_of
from pipeline.stages.report.features_map import map_of
from pipeline.stages.report.looks import looks_of
from pipeline.stages.report.results import Lacking, ReportResult
from pipeline.stages.report.sections import Chapter, sections
from pipeline.stages.report.settings import MEGABYTE, ReportSettings
from pipeline.stages.report.side import side_by_side
from pipeline.stages.report.story import Story, gather

LONGEST_NAME = 200  # characters; runs elsewhere may have any names


def report(settings: ReportSettings, desk: Workspace) -> ReportResult:
    """Write the page with settings made."""
    began = time.perf_counter()
    stories = [gather(spec, desk, settings.device) for spec in settings.runs]
    _require_different(stories)
    file = settings.out or desk.reports / f"{_named(stories)}.html"
    _require_places(file, settings)
    prefixes = [f"run-{place}-" if len(stories) > 1 else "" for place in range(1, len(stories) + 1)]
    chapters = [_chapter(story, prefix, settings, desk) for story, prefix in zip(stories, prefixes, strict=True)]
    page = _page(chapters)
    rendered = _rendered(page, settings)
    with writing(file.parent, ConfigError, f"give another {option('out')}"):
        write_bytes(file, rendered.html)
    pictures = () if settings.pictures is None else _write_pictures(page, settings.pictures)
    result = ReportResult(
        file=file,
        bytes=len(rendered.html),
        runs=tuple(story.run.folder for story in stories),
        seconds=time.perf_counter() - began,
        images=rendered.images,
        without_room=rendered.left_out,
        gone=sum(chapter.album.gone for chapter in chapters),
        lacking=tuple(one for chapter in chapters for one in chapter.lacking),
        pictures=pictures,
    )
    _tell(result, settings, desk)
    return result


def _named(stories: list[Story]) -> str:
    """The name of a page: that of its run; of several their numbers and stages, for names have an end."""
    if len(stories) == 1:
        return stories[0].name
    names = [story.name for story in stories]
    return "-vs-".join("-".join(n.split("-")[:2]) if is_run_name(n) else n for n in names)[:LONGEST_NAME]


def _require_different(stories: list[Story]) -> None:
    folders = [story.run.folder.resolve() for story in stories]
    if twice := [story.name for story, folder in zip(stories, folders, strict=True) if folders.count(folder) > 1]:
        raise ConfigError(f"{named(twice[:1])} is given {len(twice)} times: give each run once")


def _require_places(file: Path, settings: ReportSettings) -> None:
    """Find out before long work that the files can be written.

    Raises:
        ConfigError: they cannot.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: give the name of a file")
    for folder, name in ((file.parent, "out"), (settings.pictures, "pictures")):
        if folder is not None:
            with writing(folder, ConfigError, f"give another {option(name)}"):
                make_folder(folder)
                try_writing(folder)


def _chapter(story: Story, prefix: str, settings: ReportSettings, desk: Workspace) -> Chapter:
    """A run with its images and its map."""
    lacking = list(story.lacking)
    cache, found = story.cache, None
    if cache is not None:
        try:
            found = map_of(cache, settings.seed, desk)
        except (CacheError, HeadError) as error:
            lacking.append(Lacking("the map of features", str(error)))
    looks = looks_of(story, settings.seed)
    album = album_of(cache, looks.rows(story), desk)
    return Chapter(story, looks, album, found, tuple(lacking), prefix)


def _page(chapters: list[Chapter]) -> Page:
    first = chapters[0].story
    day = words.day(first.run.config["started"])
    if len(chapters) == 1:
        title = f"{words.trunk(first)} on {words.source(first)}"
        return Page(title, f"{first.name}, {day}", words.lead(first), sections(chapters[0]))
    stories = [chapter.story for chapter in chapters]
    sources = {words.source(story) for story in stories}
    on = f" on {sources.pop()}" if len(sources) == 1 else ""
    lead = "Their figures side by side, what tells them apart on the same images, and each by itself."
    parts = [Folded(c.prefix.rstrip("-"), c.story.name, sections(c)) for c in chapters]
    above = few([story.name for story in stories])
    return Page(f"{many(len(stories), 'run')} side by side{on}", above, lead, side_by_side(stories), parts)


def _rendered(page: Page, settings: ReportSettings) -> Rendered:
    try:
        return render(page, settings.limit)
    except NoRoom as found:
        least = math.ceil(10 * found.needed / MEGABYTE) / 10
        raise ConfigError(
            f"{option('max_mb', settings.max_mb)}: the page takes {size(found.needed)} without a single image; give "
            f"at least {least:g}"
        ) from found


def _write_pictures(page: Page, folder: Path) -> tuple[Path, ...]:
    """Each chart as SVG and each matrix as PNG, under its name on the page."""
    made: list[tuple[str, Callable[[], bytes]]] = []
    for block in blocks_of(page):
        if isinstance(block, Chart):
            made.append((f"{block.name}.svg", lambda b=block: svg(b.drawing).encode("utf-8")))  # type: ignore[misc]
        elif isinstance(block, Confusion):
            made.append((f"{block.name}.png", lambda b=block: confusion_picture(b.matrix, b.title, "png")))  # type: ignore[misc]
    with writing(folder, ConfigError, f"give another {option('pictures')}"):
        for name, data in made:
            write_bytes(folder / name, data())
    return tuple(folder / name for name, _ in made)


def _tell(result: ReportResult, settings: ReportSettings, desk: Workspace) -> None:
    for one in result.lacking:
        desk.watch.warn(f"the page does without {one.what}: {one.why}")
    if result.gone:
        desk.watch.warn(f"{many(result.gone, 'image')} are not where they were: they are named without being shown")
    if result.without_room:
        shown = f"{result.images:,} of {many(result.images + result.without_room, 'image')}"
        desk.watch.say(f"{shown} have room in {settings.max_mb:g} MB: {option('max_mb')} gives more")
    if result.pictures:
        desk.watch.result(f"{many(len(result.pictures), 'picture')} -> {settings.pictures}")
    desk.watch.result(f"report, in {seconds(result.seconds)} -> {result.file} ({size(result.bytes)})")
