"""HTML as a browser parses and shows it, and MHTML; words that are not read are counted by kind."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import TYPE_CHECKING, NamedTuple

from evaluation.common.text import clean_text, decode_text
from pipelines.inbox.readers.text import OLE, Block, Extract, Reader, UnreadableError, blocks_of, one_line, paragraphs
from pipelines.inbox.readers.visible import Visibility

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode


_NO_TEXT = frozenset({"script", "style", "template", "head", "rp", "datalist"})
_INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "bdi", "bdo", "big", "button", "cite", "code", "data", "dfn", "em", "font", "i"}
    | {"ins", "kbd", "label", "mark", "math", "meter", "nobr", "output", "q", "rb", "rt", "rtc", "ruby", "samp"}
    | {"slot", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
)
_LISTS, _PREFORMATTED = frozenset({"ul", "ol", "menu", "dl"}), frozenset({"pre", "listing", "xmp", "plaintext"})
_LAYOUT = "table, table h1, table h2, table h3, table h4, table h5, table h6"
"""More than the table itself: it arranges a page."""
_MOST_CHARACTERS = 2_000
"""Of a block of a table; a longer one is divided between rows."""
_AROUND = {"q": ("“", "”"), "button": (" ", " ")}
_SPACE = re.compile(r"[ \t\r\n\f]+")
_ORDINAL = re.compile(r"(?:st|nd|rd|th|[eèoaº]s?|ers?|res?|tm|sm|[®™°′″ªº])\Z", re.IGNORECASE)
_DECLARED = re.compile(rb"(?:<meta[^>]+?charset|<\?xml[^>]+?encoding)\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
_LATIN = frozenset({"", "iso-8859-1", "latin1", "ascii", "us-ascii", "utf-16", "utf-16le", "utf-16be"})
"""Declarations that browsers take for windows-1252, where the bytes are not Unicode."""
_LEAST_MAIN = 3
"""A main part with less than 1 / 3 of a page's characters is not taken for the page."""


def read_html(content: bytes, charset: str = "") -> Extract:
    """Return what a reader sees of a page, without navigation, in the encoding that is given, declared or found out."""
    from selectolax.lexbor import LexborHTMLParser

    text, notes = _decoded(content, charset)
    tree = LexborHTMLParser(text)
    visibility, mains = Visibility(tree), tree.css("main, [role=main]")
    walk = Walk(visibility)
    blocks = walk.blocks(tree.body)
    if len(mains) == 1:
        inside = Walk(visibility).blocks(mains[0])
        if _LEAST_MAIN * sum(len(block.text) for block in inside) >= sum(len(block.text) for block in blocks):
            walk.left["outside the main part"] = _words(blocks) - _words(inside)
            blocks = inside
    found = tree.head.css_first("title") if tree.head else None
    return Extract(blocks, one_line(clean_text(found.text())) if found else "", notes=(*notes, *walk.notes))


def read_mhtml(content: bytes) -> Extract:
    """Return a saved web page (MHTML); raises UnreadableError where it holds none."""
    from email import message_from_bytes, policy

    message = message_from_bytes(content, policy=policy.default)
    pages = [part for part in message.walk() if part.get_content_type() in ("text/html", "application/xhtml+xml")]
    if not pages:
        raise UnreadableError("holds no web page; save the page as HTML")
    page = read_html(bytes(pages[0].get_payload(decode=True) or b""), pages[0].get_content_charset() or "")
    frames = (f"{len(pages) - 1} embedded pages are left out",) if pages[1:] else ()
    subject = one_line(clean_text(str(message["subject"] or "")))
    return page._replace(title=page.title or subject, notes=page.notes + frames)


def _words(blocks: Sequence[Block]) -> int:
    return sum(len(block.text.split()) for block in blocks)


def _decoded(content: bytes, charset: str) -> tuple[str, tuple[str, ...]]:
    """Return a page as text, and a note where a browser would guess or show replacement characters."""
    found = _DECLARED.search(content[:4096])
    declared = (charset or (found[1].decode() if found else "")).lower()
    if not (declared and content.isascii()):  # ISO-2022-JP has no other bytes; pages in Unicode may declare anything
        with suppress(ValueError):
            return decode_text(content), ()
    try:
        text = content.decode("cp1252" if declared in _LATIN else declared, "replace")
    except (LookupError, UnicodeError):
        raise UnreadableError(f"declares the unknown encoding {declared!r}; save it in UTF-8") from None
    if not declared:
        return text, ("it declares no encoding and is read as windows-1252",)
    return text, (f"{wrong} characters are not {declared}",) if (wrong := text.count("\ufffd")) else ()


class _Cell(NamedTuple):
    """A cell of a table."""

    text: str
    rows: int
    """Rows that it spans; 0 for all that follow."""
    columns: int
    heads: bool
    """Whether it is a header."""


class Walk:
    """Depth-first traversal, to any depth, that collects text until a block ends."""

    def __init__(self, visibility: Visibility, left: Counter[str] | None = None) -> None:
        self.left: Counter[str] = Counter() if left is None else left
        """Words that were left out by kind."""
        self._visibility = visibility
        self._blocks: list[Block] = []
        self._words: list[str] = []
        self._lines: list[str] = []  # of the outermost list that is open
        self._lists: list[int] = []  # numbers of their next items, 0 for none
        self._mark, self._level, self._preformatted = "", 0, 0
        self._terms: list[str] = []  # that the next definitions are of
        self._defined = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, as notes of an extract."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.left.most_common() if count > 0)
        return (f"words left out: {counts}",) if counts else ()

    def blocks(self, root: LexborNode | None) -> tuple[Block, ...]:
        """Return the blocks below an element; none if there is no element."""
        stack: list[LexborNode | Callable[[], None]] = [*reversed([*_children(root)])]
        while stack:
            item = stack.pop()
            if callable(item):
                item()
            elif item.is_text_node:
                text = item.text_content or ""
                self._words.append(text if self._preformatted else _SPACE.sub(" ", text))
            elif item.is_element_node and (leave := self._enter(item)) is not None:
                stack.append(leave)
                stack.extend(reversed([*_children(item)]))
        self._end()
        self._flush()
        return blocks_of(self._blocks)

    def _enter(self, node: LexborNode) -> Callable[[], None] | None:
        """Begin an element; return what ends it, or None if its content is not walked."""
        name, attributes = node.tag or "", node.attributes
        if name in _NO_TEXT or self._is_left_out(node):
            return None
        if name == "math":  # its formula in one line, where that is given
            annotation = node.css_first("annotation")
            formula = attributes.get("alttext") or (annotation.text() if annotation else node.text(separator=" "))
            self._words.append(one_line(formula))
        elif name in ("br", "img"):
            self._words.append("\n" if name == "br" else _SPACE.sub(" ", attributes.get("alt") or ""))
        elif name in _INLINE:
            return self._inline(node, name)
        elif name == "table" and len(node.css(_LAYOUT)) == 1:
            self._end()
            self._keep_term()
            self._flush()
            self._blocks += _table(list(self._rows(node)))
        else:
            self._end()
            self._begin(node, name)
            return lambda: self._leave(name)
        return None

    def _is_left_out(self, node: LexborNode) -> bool:
        if kind := self._visibility.left_out(node):
            self.left[kind] += len(node.text(separator=" ").split())
        return bool(kind)

    def _inline(self, node: LexborNode, name: str) -> Callable[[], None]:
        opening, closing = _AROUND.get(name, ("", ""))
        start = len(self._words)
        self._words.append(opening)

        def leave() -> None:
            if name in ("sup", "sub", "rt"):
                inner, before = one_line("".join(self._words[start:])), "".join(self._words[max(0, start - 3) : start])
                self._words[start:] = [_set_apart(name, inner, before, node)] if inner else []
            self._words.append(closing)

        return leave

    def _begin(self, node: LexborNode, name: str) -> None:
        attributes = node.attributes
        if name in _LISTS:
            self._keep_term()
            self._terms, self._defined = [], False
            self._lists.append(_number(attributes.get("start"), 1) if name == "ol" else 0)
        elif name == "li" and self._lists:
            number = self._lists[-1] and _number(attributes.get("value"), self._lists[-1])
            self._mark, self._lists[-1] = f"{number}. " if number else "- ", number + bool(number)
        elif name == "dt" and self._defined:
            self._terms, self._defined = [], False
        elif name == "dd" and self._terms:
            self._mark, self._defined = ", ".join(self._terms) + ": ", True
        elif name in _PREFORMATTED:
            self._preformatted += 1
        elif re.fullmatch("h[1-6]", name):
            self._level = int(name[1])
        elif attributes.get("role") == "heading":
            self._level = min(max(_number(attributes.get("aria-level"), 2), 1), 6)

    def _leave(self, name: str) -> None:
        if name == "dt" and (term := one_line("".join(self._words))):
            self._terms.append(term)
            self._words = []
        elif name == "dl" and self._terms:
            self._end()
            self._lines += [] if self._defined else [", ".join(self._terms)]
            self._terms, self._defined = [], False
        self._end()
        self._level = 0
        if name in _PREFORMATTED:
            self._preformatted -= 1
        elif name in ("li", "dd"):
            self._keep_term()
            self._mark = ""
        elif name in _LISTS and self._lists:
            self._lists.pop()
            if not self._lists:
                self._flush()

    def _end(self) -> None:
        """End the text that was collected: a line of a list, or a block."""
        text, self._words = "".join(self._words), []
        if not self._preformatted:
            text = "\n".join(one_line(line) for line in text.split("\n")).strip()
        if not text.strip():
            return
        if self._lists and not self._level and not self._preformatted:
            indent = "  " * (len(self._lists) - bool(self._mark))
            self._lines.append(indent + self._mark + text.replace("\n", f"\n{indent}  "))
        else:
            if self._level:
                self._keep_term()
            self._flush()
            self._blocks.append(Block(one_line(text), self._level) if self._level else Block(self._mark + text))
        self._mark = ""

    def _keep_term(self) -> None:
        """Put a term in a line of its own if its definition does not begin with text."""
        if self._mark.endswith(": "):
            self._lines.append("  " * (len(self._lists) - 1) + self._mark.rstrip())
            self._mark = ""

    def _flush(self) -> None:
        """End the list that is open."""
        self._blocks.append(Block("\n".join(self._lines)))
        self._lines = []

    def _rows(self, table: LexborNode) -> Iterator[list[_Cell]]:
        """Yield the cells of a table's caption and rows."""
        for row in table.css("caption, tr"):
            if not self._is_left_out(row):
                own = [row] if row.tag == "caption" else [each for each in _children(row) if each.tag in ("td", "th")]
                yield [self._cell(each) for each in own]

    def _cell(self, cell: LexborNode) -> _Cell:
        shown = () if self._is_left_out(cell) else Walk(self._visibility, self.left).blocks(cell)
        rows, columns = (_number(cell.attributes.get(name), 1) for name in ("rowspan", "colspan"))
        return _Cell(one_line(" ".join(block.text for block in shown)), rows, columns, cell.tag != "td")


def _table(rows: Sequence[Sequence[_Cell]]) -> Iterator[Block]:
    """Yield a table: cells separated by ` | `, a cell that spans rows or columns repeated in each."""
    lines = [" | ".join(line) if any(line) else "" for line in _grid(rows)]
    heads = [*itertools.takewhile(lambda i: rows[i] and all(cell.heads for cell in rows[i]), range(len(rows)))]
    header = [lines[i] for i in heads if lines[i]]
    held, size = list(header), 0
    for line in filter(None, lines[len(heads) :]):
        if size and size + len(line) > _MOST_CHARACTERS:
            yield Block("\n".join(held))
            held, size = list(header), 0
        held.append(line)
        size += len(line) + 1
    yield Block("\n".join(held))


def _grid(rows: Sequence[Sequence[_Cell]]) -> Iterator[list[str]]:
    """Yield the rows with a text for each column."""
    widest = max((len(row) for row in rows), default=0)
    spanning: dict[int, tuple[str, int]] = {}  # by column: a text from above, and for how many rows more
    for row in rows:
        if len(row) == 1 and row[0].columns >= widest > 1 and not spanning:
            yield [row[0].text]
            continue
        line: list[str] = []
        due = max(spanning, default=-1)
        for cell in (*row, None):
            while len(line) in spanning or (cell is None and len(line) <= due):
                text, more = spanning.pop(len(line), ("", 0))
                if more > 1:
                    spanning[len(line)] = (text, more - 1)
                line.append(text)
            for _ in range(min(cell.columns, widest) or 1 if cell else 0):
                if cell and cell.rows != 1:
                    spanning[len(line)] = (cell.text, cell.rows - 1 if cell.rows else len(rows))
                line.append(cell.text if cell else "")
        yield line


def _children(node: LexborNode | None) -> Iterator[LexborNode]:
    child = node.first_child if node is not None else None
    while child is not None:
        yield child
        child = child.next


def _number(value: str | None, default: int) -> int:
    return int(value[:9]) if value and value[:9].isdecimal() else default


def _set_apart(name: str, inner: str, before: str, node: LexborNode) -> str:
    """Return a superscript, subscript or reading so that it does not run into the text before it."""
    if name == "rt":
        return f"({inner})"
    if name == "sub":
        return inner if inner.isdigit() and before[-1:].isalpha() else f"_{inner}"
    link = node.css_first("a")
    note = link is not None and (link.attributes.get("href") or "").startswith("#")
    if note or inner.startswith("[") or (inner.strip("()*†‡§,").isdigit() and re.search(r"[.,;:!?\"”’]\Z", before)):
        return inner if inner.startswith("[") else f"[{inner}]"
    if not re.search(r"[\w)\]]\Z", before) or _ORDINAL.match(inner):
        return inner
    return f"^{inner}" if re.fullmatch(r"[+−-]?[\w.,′]+", inner) else f"^({inner})"


HTML = Reader("html", (".html", ".htm", ".xhtml"), read_html)
MHTML = Reader("mhtml", (".mhtml", ".mht"), read_mhtml)


_NEXT = re.compile(rb"^From \S.*\r?\n", re.MULTILINE)
"""Start of a message in a mailbox."""


def read_mail(content: bytes) -> Extract:
    """Return a message (EML), or those of a mailbox (MBOX), with the date of the only one as the day it holds from."""
    if content.startswith(OLE):
        raise UnreadableError("is an Outlook .msg file; save the message as .eml")
    letters = _NEXT.split(content) if content.startswith(b"From ") else [content]
    messages = [message_from_bytes(each, policy=policy.default) for each in letters if each.strip()]
    attachments: list[str] = []
    blocks = [block for message in messages for block in _message(message, attachments)]
    date, subject = messages[0]["date"], one_line(clean_text(messages[0]["subject"] or ""))
    fields = {"effective": date.datetime.date().isoformat()} if date and date.datetime and not messages[1:] else {}
    notes = (f"left out: {len(attachments)} attachments ({', '.join(attachments[:3])})",) if attachments else ()
    return Extract(blocks_of(blocks), "" if messages[1:] else subject, fields, notes)


def _message(message: EmailMessage, attachments: list[str]) -> list[Block]:
    """Return subject, sender and text of a message and of those attached to it; other attachments are named."""
    if not message["from"] and not message["subject"]:
        raise UnreadableError("has neither sender nor subject: it is no message")
    facts = {name: one_line(str(message[name] or "")) for name in ("From", "To", "Date")}
    blocks = [
        Block(str(message["subject"] or "No subject"), 2),
        Block("\n".join(f"{name}: {value}" for name, value in facts.items() if value)),
    ]
    body = message.get_body(("plain", "html"))
    if body is not None and body.get_content_subtype() == "html":
        blocks += HTML.read(b'<meta charset="utf-8">' + body.get_content().encode("utf-8", "replace")).blocks
    elif body is not None:
        blocks += paragraphs(body.get_content())
    for part in message.iter_attachments():
        if part.get_content_type() == "message/rfc822":
            blocks += _message(part.get_content(), attachments)
        else:
            attachments.append(part.get_filename() or part.get_content_type())
    return blocks


MAIL = Reader("mail", (".eml", ".mbox", ".msg"), read_mail)
