"""HTML and Markdown (CommonMark with tables) as plain text with headings.

Of a page what its reader sees, without scripts, styles and navigation; of a Markdown file also its YAML front matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.inbox.readers.text import (
    Block,
    Extract,
    Reader,
    UnreadableError,
    blocks_of,
    decoded,
    one_line,
    without_unfit,
)

if TYPE_CHECKING:
    from markdown_it.token import Token

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
FRONT_FIELDS = ("title", "source", "effective", "supersedes", "route")
"""What is taken from a front matter; its other keys belong to other programs."""
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.DOTALL | re.MULTILINE)


def read_html(content: bytes | str) -> Extract:
    """Return the text of a page, or of a piece of one, in the encoding that it names or that its bytes show.

    Raises:
        UnreadableError: It is nested too deeply.
    """
    from bs4 import BeautifulSoup

    try:
        soup = BeautifulSoup(content, "html.parser")
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
    """A walk through a page in order that gathers words until a block ends."""

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
            yield Block(without_unfit(_words(element)), _HEADINGS[name])
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

    @staticmethod
    def _rows(table: Any) -> Iterator[str]:
        """Yield the caption and the rows of a table, cells with a bar between them."""
        for part in table.find_all(["caption", "tr"]):
            cells = [part] if part.name == "caption" else part.find_all(["th", "td"])
            texts = [_words(cell) for cell in cells]
            if any(texts):
                yield without_unfit(" | ".join(texts))


def _words(element: Any) -> str:
    """Return the words of an element on one line."""
    return one_line(" ".join(block.text for block in _Walk().blocks(element)))


def read_markdown(content: bytes) -> Extract:
    """Return the text of a Markdown file: links by their words, lists with their marks, tables by rows.

    Raises:
        UnreadableError: It is not UTF-8, or its front matter is not YAML.
    """
    from markdown_it import MarkdownIt

    text = decoded(content)
    fields, text = _front_matter(text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return Extract(blocks_of(_blocks(tokens)), one_line(str(fields.pop("title", ""))), fields)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the fields of a front matter and the text behind it; what only looks like one stays in the text."""
    import yaml

    found = _FRONT.match(text)
    if found is None:
        return {}, text
    try:
        front = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        raise UnreadableError(f"its front matter is not YAML: {one_line(str(error))}") from error
    if not isinstance(front, dict):
        return {}, text
    taken = {name: front[name] for name in FRONT_FIELDS if front.get(name) is not None}
    if "effective" in taken:
        taken["effective"] = str(taken["effective"])  # YAML knows dates, JSON does not
    return taken, text[found.end() :]


def _blocks(tokens: Sequence[Token]) -> Iterator[Block]:
    """Yield a block for each heading, paragraph, list item, table row and piece of code."""
    marks: list[str] = []
    cells: list[str] | None = None
    level, mark = 0, ""
    rows: list[str] = []
    for token in tokens:
        match token.type:
            case "heading_open":
                level = int(token.tag[1])
            case "heading_close":
                level = 0
            case "bullet_list_open":
                marks.append("-")
            case "ordered_list_open":
                marks.append("1")
            case "bullet_list_close" | "ordered_list_close":
                marks.pop()
            case "list_item_open":
                mark = "- " if marks[-1] == "-" else f"{token.info}. "
            case "tr_open":
                cells = []
            case "tr_close":
                rows.append(" | ".join(cells or ()))
                cells = None
            case "table_close":
                yield Block("\n".join(rows))
                rows = []
            case "inline":
                inline = _inline(token.children or ())
                if cells is not None:
                    cells.append(one_line(inline))
                else:
                    yield Block(mark + inline, level)
                    mark = ""
            case "fence" | "code_block":
                yield Block(mark + token.content.rstrip("\n"))
                mark = ""
            case "html_block":
                yield from read_html(token.content).blocks


def _inline(tokens: Sequence[Token]) -> str:
    """Return the words of a line; tags of HTML in it fall away, their words stay."""
    words = {"softbreak": "\n", "hardbreak": "\n", "html_inline": ""}
    return "".join(words.get(token.type, token.content) for token in tokens)


HTML = Reader("html", (".html", ".htm", ".xhtml"), read_html)
MARKDOWN = Reader("markdown", (".md", ".markdown"), read_markdown)
