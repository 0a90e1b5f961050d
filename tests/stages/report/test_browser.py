"""The page in a real browser: Debian's chromium, driven by playwright; skipped by name where one of them is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import report, search

pytestmark = pytest.mark.browser
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1600)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright, of the extra `browser`, is not installed"
    )
    if BROWSER is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(awkward: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run and one of two."""
    out = tmp_path_factory.mktemp("pages")
    other = search(awkward.cache, Cs=(1e-3, 1e-2), refit=False, evaluate=False, workspace=awkward.root).run
    one = report(awkward.run, workspace=awkward.root, out=out / "one.html").file
    two = report([awkward.run, other], workspace=awkward.root, out=out / "two.html").file
    return {"one": one, "two": two}


class Opened:
    """A page in a window of its own, with all that it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.told: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.goto(file.resolve().as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        outside = [url for url in self.asked if not url.startswith(("file:", "data:"))]
        assert (self.told, outside, len([u for u in self.asked if u.startswith("file:")])) == ([], [], 1)


def window(width: int, scheme: str = "light", scripts: bool = True) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "java_script_enabled": scripts}


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_as_wide_as_the_window_and_asks_for_nothing(
    browser: Any, files: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    with Opened(browser, files[name], **window(width, scheme)) as page:
        for part in page.query_selector_all("details"):
            part.evaluate("part => part.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(int(part) for part in shown.removeprefix("rgb(").rstrip(")").split(",")) > 3 * 128
        assert light == (scheme == "light")


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("name", ["one", "two"])
def test_every_link_leads_to_something_that_is_seen(
    browser: Any, files: dict[str, Path], name: str, scripts: bool
) -> None:
    with Opened(browser, files[name], **window(1600)) as page:
        links = page.eval_on_selector_all("a[href^='#']", "all => all.map(a => a.getAttribute('href'))")
    assert len(links) > 5
    with Opened(browser, files[name], **window(1600, scripts=scripts)) as page:
        for link in sorted(set(links)):
            page.goto(files[name].resolve().as_uri() + link)  # in the page: nothing is asked for
            target = page.locator(f"[id='{link[1:]}']")
            assert target.bounding_box(), link
            if "pair-" in link:
                assert target.locator("li").first.is_visible(), link


def test_a_table_is_sorted_and_an_image_is_zoomed_by_keyboard_alone(browser: Any, files: dict[str, Path]) -> None:
    with Opened(browser, files["one"], **window(1600)) as page:
        head = page.locator("th button").first
        head.focus()
        page.keyboard.press("Enter")
        assert page.locator("th[aria-sort='ascending']").count() == 1
        page.keyboard.press("Enter")
        assert page.locator("th[aria-sort='descending']").count() == 1
        page.locator(".thumbs img").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog[open] img").is_visible()
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0


def test_the_first_stop_of_the_keyboard_skips_to_the_report(browser: Any, files: dict[str, Path]) -> None:
    with Opened(browser, files["one"], **window(1600)) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        box = page.locator(".skip").bounding_box()
        assert box["x"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "start"


def test_printed_all_of_it_is_there_and_the_contents_are_not(browser: Any, files: dict[str, Path]) -> None:
    with Opened(browser, files["two"], **window(1600)) as page:
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible()
        assert page.locator("#run-1-figures").bounding_box()
        assert len(page.pdf(prefer_css_page_size=True)) > 10_000
