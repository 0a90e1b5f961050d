"""A page's values as HTML: nothing from outside runs in it, and it asks for nothing outside it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re

import pytest

from pipeline.base.values import (
    Bar,
    Bin,
    Column,
    Curve,
    Matrix,
    Part,
    Reliability,
    Scatter,
    Step,
    Steps,
    Table,
    figures,
)
from pipeline.show.page.document import (
    Chart,
    Confusion,
    Folded,
    Gallery,
    Page,
    Prose,
    Section,
    Split,
    Thumb,
    Tile,
    Tiles,
    blocks_of,
)
from pipeline.show.page.render import NoRoom, render
from tests.parsed import Parsed

EVIL = "<script>alert(1)</script>"
PATH = "a\n\udcff\"'><b>.png"
JPEG = b"\xff\xd8" + bytes(range(256)) * 8


def page(text: str = EVIL, thumbs: int = 3) -> Page:
    table = Table(
        [Column(text), *figures(text), Column(fit="fold", role="dim")],
        [[text, Part(text, "bad"), (text, Part(text))], ["a", "1", Bar(text, 0.5)], ["b", "2", "x"]],
        title=text,
        caption=f"{text}\nsecond line",
    )
    steps = Steps([Column("layer"), *figures("output")], [Step(text, text, [[text, "1"]])])
    curve = Curve({text: [0.1, 0.2], "val": [0.3, float("nan")]}, [1, 2], text, text, title=text, chosen=1.0)
    scatter = Scatter([0, 1, 2], [0, 1, 0], [0, 1, 1], [text, "b"], [False, True, False], text)
    bins = Reliability([Bin(0.5, 0.4, 0.2, 0.6, 10), Bin(0.9, 1.0, 0.9, 1.0, 90)], text)
    charts = [Chart(f"chart-{i}", drawing, text, text) for i, drawing in enumerate((curve, scatter, bins))]
    confusion = Confusion(
        "confusion", Matrix([(0, 0, 3), (0, 1, 1), (1, 1, 2)], [text, "b"]), text, text, {(0, 1): "pair"}
    )
    gallery = Gallery([Thumb(f"{i}{text}", text, JPEG) for i in range(thumbs)], text, "pair", text, folded=True)
    blocks = [Prose([text], note=True), Tiles([Tile(text, text, text)]), table, steps, Split(charts), confusion]
    own = Section("own", text, [Gallery([Thumb(text, "", None)], "no image")])
    return Page(text, text, text, [Section("first", text, [*blocks, gallery], text)], [Folded("part", text, [own])])


@pytest.fixture(scope="module")
def made() -> Parsed:
    return Parsed(render(page(), 10_000_000).html)


@pytest.mark.parametrize(
    "text", [EVIL, "{{ 7 * 7 }}", "{% raw %}", "&lt;b&gt;", PATH, "$x^2$", "</style><b>", "]]>", "--"]
)
def test_any_text_comes_out_as_text(text: str) -> None:
    found = Parsed(render(page(text), 10_000_000).html)
    plain = Parsed(render(page("plain"), 10_000_000).html)
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in plain.elements}
    assert len(found.tags("script")) == 1
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    shown = text.replace("\n", "\\n").replace("\udcff", "\\xff").replace(" %", "\u00a0%")
    assert found.text.count(shown) > 20 and shown in found.all("aria-label")


def test_it_asks_for_nothing_outside_itself(made: Parsed) -> None:
    made.require_to_stand_alone()
    html = render(page("plain"), 10_000_000).html.decode()
    assert not re.search(r"@import|url\((?!#)", html)


def test_the_browser_is_told_to_load_nothing_and_to_run_the_pages_own_script_alone(made: Parsed) -> None:
    html = render(page(), 10_000_000).html
    (policy,) = [m["content"] for m in made.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy.startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )
    script = re.search(rb"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    assert base64.b64encode(hashlib.sha256(script[1]).digest()).decode() in policy


def test_a_cell_and_a_gallery_lead_to_its_images(made: Parsed) -> None:
    assert [a["href"] for a in made.tags("a")].count("#pair") == 2


def test_headings_come_in_order(made: Parsed) -> None:
    levels = [int(tag[1]) for tag, _ in made.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_images_and_charts_say_what_they_are(made: Parsed) -> None:
    images = made.tags("img")
    assert len(images) == 3 and all(image["alt"] == f"{EVIL}: {i}{EVIL}" for i, image in enumerate(images))
    assert all(attrs.get("aria-hidden") == "true" for attrs in made.tags("svg"))
    assert len([1 for _, attrs in made.elements if attrs.get("role") == "img"]) == 3


def test_what_does_not_fit_is_named_without_its_image() -> None:
    whole, images = render(page("plain", 40), 10_000_000), 40
    assert (whole.images, whole.left_out) == (images, 0)
    tight = render(page("plain", 40), len(whole.html) - 20_000)
    assert len(tight.html) <= len(whole.html) - 20_000
    assert tight.left_out > 0 and tight.images + tight.left_out == images
    found = Parsed(tight.html)
    assert len(found.tags("img")) == tight.images and all(f"{i}plain" in found.text for i in range(40))


def test_a_page_that_has_no_room_at_all_says_how_much_it_needs() -> None:
    with pytest.raises(NoRoom) as found:
        render(page(), 1000)
    assert 1000 < found.value.needed < len(render(page(), 10_000_000).html)


def test_the_same_values_give_the_same_bytes() -> None:
    assert render(page(), 10_000_000) == render(page(), 10_000_000)


def test_all_blocks_are_found_in_their_order() -> None:
    kinds = [type(block).__name__ for block in blocks_of(page())]
    assert kinds == [
        *("Prose", "Tiles", "Table", "Steps", "Chart", "Chart", "Chart", "Confusion", "Gallery", "Gallery"),
    ]
