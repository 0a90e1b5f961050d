"""A page of HTML as its elements and its text, read by Python's own parser."""

from __future__ import annotations

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """The elements of a page, with their attributes, its text, and that of the cells of its tables."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(html.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data

    def all(self, attribute: str) -> list[str]:
        """The values of an attribute, of whatever elements."""
        return [value or "" for _, attrs in self.elements for name, value in attrs.items() if name == attribute]

    def tags(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of each element of that name."""
        return [attrs for tag, attrs in self.elements if tag == name]

    def require_to_stand_alone(self) -> None:
        """Nothing of it lies elsewhere, and its links lead to what is there, once."""
        for attribute in ("src", "href", "xlink:href"):
            for value in self.all(attribute):
                assert value.startswith(("data:", "#")), value
        assert not self.all("srcset") and not self.tags("iframe") and not self.tags("object")
        names = self.all("id")
        assert len(set(names)) == len(names)
        assert {link[1:] for link in self.all("href") if link.startswith("#")} <= set(names)
