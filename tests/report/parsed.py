"""A page as a reader's program sees it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br"}


class Parsed(HTMLParser):
    """The tags, scripts and style of a page; fails on unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        """(tag, attribute, value)."""
        self.scripts: list[str] = []
        self.style = self.prose = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        match self.open[-1:]:
            case ["script"]:
                self.scripts[-1] += data
            case ["style"]:
                self.style += data
            case _:
                self.prose += data

    def get(self, tag: str, attribute: str) -> list[str | None]:
        return [value for *where, value in self.attributes if where == [tag, attribute]]
