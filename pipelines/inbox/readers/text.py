"""Text in blocks, as all readers return it; readers of plain text, HTML and Markdown (CommonMark with tables)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_BLANK_LINES = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)+")
_INVALID = re.compile("[\0\ud800-\udfff]")
_SKIPPED = frozenset(
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
_FRONT_FIELDS = ("title", "source", "effective", "supersedes", "route")
"""Front matter keys that are read; the others belong to other programs."""
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.DOTALL | re.MULTILINE)


class UnreadableError(ValueError):
    """A file or line is rejected; the message is the reason alone, and the caller adds the location."""


class Block(NamedTuple):
    """A paragraph or a heading."""

    text: str
    """Not blank."""
    level: int = 0
    """0 for a paragraph, 1 (highest) to 6 for a heading."""


class Extract(NamedTuple):
    """The content of a file."""

    blocks: tuple[Block, ...]
    """In reading order."""
    title: str = ""
    """From the file's own metadata; empty if it has none."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Further raw fields of an inbox row found in the file."""
    notes: tuple[str, ...] = ()
    """Warnings, such as pages without text."""


class Reader(NamedTuple):
    """A reader of files that hold one document."""

    format: str
    suffixes: tuple[str, ...]
    """File name extensions in lower case."""
    read: Callable[[bytes], Extract]
    """Raises UnreadableError for a file that it rejects, such as a damaged one."""


def read_plain(content: bytes) -> Extract:
    """Return the paragraphs of a text file."""
    return Extract(paragraphs(decoded(content)))


def paragraphs(text: str) -> tuple[Block, ...]:
    """Return the paragraphs of a plain text, which blank lines separate."""
    return blocks_of(map(Block, _BLANK_LINES.split(text)))


def blocks_of(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return the non-blank blocks, stripped."""
    return tuple(Block(block.text.strip(), block.level) for block in blocks if block.text.strip())


def one_line(text: str) -> str:
    """Return a text with its white space collapsed."""
    return " ".join(text.split())


def truncated(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters, with an ellipsis if it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def valid_unicode(text: str) -> str:
    """Return a text with NUL characters and unpaired surrogates replaced by U+FFFD."""
    return _INVALID.sub("\ufffd", text)


def decoded(content: bytes) -> str:
    """Return UTF-8, or UTF-16 with a byte order mark, as text with LF line ends; raises UnreadableError."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"is not UTF-8: line {line} has the byte {content[error.start]:#04x}; convert it, "
            "for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_html(content: bytes) -> Extract:
    """Return the visible text of a page without navigation; the encoding is declared or detected."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(content, "html.parser")
    try:
        title = one_line(soup.title.get_text()) if soup.title else ""
        return Extract(blocks_of(_Walk().blocks(_main(soup))), valid_unicode(title))
    except RecursionError as error:
        raise UnreadableError("is HTML that is nested too deeply") from error


def _main(soup: Any) -> Any:
    """Return the only non-empty `<main>` or `<article>`, else the whole page."""
    for name in ("main", "article"):
        found = soup.find_all(name)
        if len(found) == 1 and found[0].get_text(strip=True):
            return found[0]
    return soup


class _Walk:
    """Depth-first traversal that collects text until a block ends."""

    def __init__(self) -> None:
        self._words = ""
        self._mark = ""

    def blocks(self, root: Any) -> Iterator[Block]:
        """Yield the blocks below an element."""
        yield from self._inside(root)
        yield from self._end()

    def _end(self, level: int = 0) -> Iterator[Block]:
        """Yield the collected text, after its marker if it starts a list item."""
        if words := "\n".join(line.strip() for line in self._words.split("\n")).strip():
            yield Block(self._mark + valid_unicode(words), level)
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
        if name in _SKIPPED or element.has_attr("hidden"):
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
            yield Block(valid_unicode(_words(element)), _HEADINGS[name])
        elif name == "pre":
            yield Block(self._mark + valid_unicode(element.get_text().strip("\n")))
            self._mark = ""
        elif name == "table" and element.find("table") is None:
            yield Block("\n".join(self._rows(element)))
        else:
            if name == "ol":
                start = str(element.get("start"))[:9]
                first = int(start) if start.isdecimal() else 1
                for number, item in enumerate(element.find_all("li", recursive=False), first):
                    item["list marker"] = f"{number}. "
            elif name == "li":
                self._mark = element.get("list marker", "- ")
            yield from self._inside(element)
            yield from self._end()
            self._mark = ""

    @staticmethod
    def _rows(table: Any) -> Iterator[str]:
        """Yield a table's caption and rows, cells separated by ` | `."""
        for part in table.find_all(["caption", "tr"]):
            cells = [part] if part.name == "caption" else part.find_all(["th", "td"])
            texts = [_words(cell) for cell in cells]
            if any(texts):
                yield valid_unicode(" | ".join(texts))


def _words(element: Any) -> str:
    """Return an element's text on one line."""
    return one_line(" ".join(block.text for block in _Walk().blocks(element)))


def read_markdown(content: bytes) -> Extract:
    """Return the text of a Markdown file (CommonMark with tables) and its front matter."""
    from bs4 import BeautifulSoup
    from markdown_it import MarkdownIt

    fields, text = _front_matter(decoded(content))
    markdown = MarkdownIt("commonmark", {"breaks": True}).enable("table")
    # Unclosed tags must not swallow the text after them.
    markdown.add_render_rule("html_inline", lambda *_: "")
    markdown.add_render_rule(
        "html_block", lambda _, tokens, i, *__: str(BeautifulSoup(tokens[i].content, "html.parser"))
    )
    try:
        blocks = blocks_of(_Walk().blocks(BeautifulSoup(markdown.render(text), "html.parser")))
    except RecursionError as error:
        raise UnreadableError("holds HTML that is nested too deeply") from error
    return Extract(blocks, one_line(str(fields.pop("title", ""))), fields)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the front matter's known fields and the text after it; a leading thematic break is text."""
    import yaml

    found = _FRONT_MATTER.match(text)
    if found is None:
        return {}, text
    try:
        front = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        raise UnreadableError(f"its front matter is not YAML: {one_line(str(error))}") from error
    if not isinstance(front, dict):
        return {}, text
    taken = {name: front[name] for name in _FRONT_FIELDS if front.get(name) is not None}
    if "effective" in taken:
        taken["effective"] = str(taken["effective"])  # YAML parses dates, JSON does not
    return taken, text[found.end() :]


PLAIN = Reader("text", (".txt", ".text"), read_plain)
HTML = Reader("html", (".html", ".htm", ".xhtml"), read_html)
MARKDOWN = Reader("markdown", (".md", ".markdown"), read_markdown)
