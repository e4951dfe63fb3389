"""HTML: the words that a reader of the page sees, with its headings; scripts, styles and navigation are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipelines.inbox.blocks import Block, Extract, UnreadableError, blocks_of, one_line, without_unfit

_LEFT_OUT = frozenset(
    {"script", "style", "nav", "footer", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "audio"}
    | {"video", "head", "select", "button"}
)
_INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins"}
    | {"kbd", "label", "mark", "meter", "output", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike"}
    | {"strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\r\n\f]+")


def read_html(content: bytes) -> Extract:
    """Return the text of a page in the encoding that it names, or that its bytes show; the title is the page's own.

    Raises:
        UnreadableError: It is nested too deeply.
    """
    return read_markup(content)


def read_markup(markup: bytes | str) -> Extract:
    """Return the text of a page or of a piece of one; see `read_html`."""
    from bs4 import BeautifulSoup

    try:
        soup = BeautifulSoup(markup, "html.parser")
        title = one_line(soup.title.get_text()) if soup.title else ""
        blocks = blocks_of(_Walk().blocks(_main(soup)))
    except RecursionError as error:
        raise UnreadableError("is HTML that is nested too deeply") from error
    return Extract(blocks, without_unfit(title))


def _main(soup: Any) -> Any:
    """Return the element that holds the page's content, where the page says which one; else the whole page."""
    for name in ("main", "article"):
        found = soup.find_all(name)
        if len(found) == 1 and found[0].get_text(strip=True):
            return found[0]
    return soup


class _Walk:
    """Goes through a page in order, gathering words until a block ends."""

    def __init__(self) -> None:
        self._words = ""
        self._mark = ""

    def blocks(self, root: Any) -> Iterator[Block]:
        """Yield the blocks under an element."""
        yield from self._inside(root)
        yield from self._end()

    def _end(self, level: int = 0) -> Iterator[Block]:
        """Yield what was gathered, with its mark where it opens a list item."""
        if words := "\n".join(line.strip() for line in self._words.split("\n")).strip():
            yield Block(self._mark + without_unfit(words), level)
            self._mark = ""
        self._words = ""

    def _inside(self, element: Any) -> Iterator[Block]:
        from bs4.element import CData, NavigableString, Tag

        for child in element.children:
            if isinstance(child, Tag):
                yield from self._element(child)
            elif type(child) in (NavigableString, CData):  # comments and declarations are subclasses
                self._words += _SPACE.sub(" ", child)

    def _element(self, element: Any) -> Iterator[Block]:
        name = element.name
        if name in _LEFT_OUT or element.has_attr("hidden"):
            return
        if name == "br":
            self._words += "\n"
        elif name == "img":
            self._words += _SPACE.sub(" ", str(element.get("alt") or ""))
        elif name in _INLINE:
            yield from self._inside(element)
        else:
            yield from self._end()
            yield from self._block(element)

    def _block(self, element: Any) -> Iterator[Block]:
        name = element.name
        if name in _HEADINGS:
            text = one_line("".join(block.text + " " for block in _Walk().blocks_within(element)))
            yield Block(without_unfit(text), _HEADINGS[name])
        elif name == "pre":
            yield Block(without_unfit(element.get_text().strip("\n")))
        elif name == "table" and element.find("table") is None:
            yield Block("\n".join(self._rows(element)))
        else:
            if name == "li":
                self._mark = "- "
            yield from self._inside(element)
            yield from self._end()
            self._mark = ""

    def blocks_within(self, element: Any) -> list[Block]:
        """Return the blocks of an element's inside, apart from what was gathered before."""
        return list(self.blocks(element))

    @staticmethod
    def _rows(table: Any) -> Iterator[str]:
        """Yield the caption and the rows of a table, cells with a bar between them."""
        for part in table.find_all(["caption", "tr"]):
            cells = [part] if part.name == "caption" else part.find_all(["th", "td"])
            texts = [one_line(" ".join(block.text for block in _Walk().blocks_within(cell))) for cell in cells]
            if any(texts):
                yield without_unfit(" | ".join(texts))
