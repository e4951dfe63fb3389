"""Documents that are ZIP archives of XML: DOCX and PPTX, of whatever program, and EPUB, all by way of HTML."""

from __future__ import annotations

import html
import io
import itertools
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from evaluation.common.text import clean_text
from pipelines.inbox.readers.html import HTML
from pipelines.inbox.readers.text import OLE, Block, Extract, Reader, UnreadableError, one_line

MAX_PART_BYTES = 50 * 2**20
_PLAIN_BYTES, _MOST_RATIO = 10 * 2**20, 100
"""Of one part of an archive; more, or beyond the second what is compressed by more, is a decompression bomb."""
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_FLOAT = re.compile("\0(.*?)\1", re.DOTALL)
"""What hangs on a paragraph, such as a note or a text box; characters of text are none of these."""
_SLIDE_TITLE, _PARAGRAPH = re.compile("<h2>.*?</h2>"), re.compile("</?p>")
_GALLERY = "{*}sdtPr/{*}docPartObj/{*}docPartGallery"
_READ_FIRST = frozenset({"styles", "numbering", "footnotes", "endnotes"})
_SYMBOLS = {0xB0: "°", 0xB1: "±", 0xB3: "≥", 0xA3: "≤", 0xB4: "×", 0xB9: "≠", 0xAE: "→"}
"""Of the Symbol font; others are taken for bullets."""
_TRUE = frozenset({"", "1", "true", "on"})
_MOST_SPAN, _MOST_REPEATED = 20, 1000
"""Columns of a merged cell, and characters of one that are repeated in the rows below."""


class _Archive:
    """The parts of an archive, as bytes or XML, and what a reader leaves out of them."""

    def __init__(self, content: bytes) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        self.names = set(self._zip.namelist())
        self.left_out: Counter[str] = Counter()

    def read(self, name: str) -> bytes:
        """Return the content of a part."""
        part = self._zip.getinfo(name)
        size, ratio = part.file_size, part.file_size // max(1, part.compress_size)
        if size > MAX_PART_BYTES or (size > _PLAIN_BYTES and ratio > _MOST_RATIO):
            limits = f"{MAX_PART_BYTES // 2**20} MiB and {_MOST_RATIO} times"
            unpacked = f"{size / 2**20:.0f} MiB, {ratio} times its size"
            raise UnreadableError(
                f"has a part {name} that unpacks to {unpacked}; allowed are {limits}; is it a document?"
            )
        return self._zip.read(name)

    def tree(self, name: str) -> Any:
        """Return the root element of a part, an empty one if the archive lacks it."""
        from lxml import etree

        parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
        return etree.fromstring(self.read(name) if name in self.names else b"<none/>", parser)

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """Return kind and name of the parts that a part of an Office file refers to, by id."""
        folder, file = posixpath.split(name)
        links = self.tree(posixpath.join(folder, "_rels", f"{file}.rels"))
        paths = [posixpath.normpath(posixpath.join("/", folder, each.get("Target", "")))[1:] for each in links]
        return {
            e.get("Id"): (posixpath.basename(e.get("Type", "")), path) for e, path in zip(links, paths, strict=True)
        }

    def first(self, kind: str, of: str = "") -> str:
        """Return the name of the first related part of a kind, empty if there is none."""
        return next((name for found, name in self.related(of).values() if found == kind), "")


def _reader(kind: str, read: Callable[[_Archive], Extract]) -> Callable[[bytes], Extract]:
    """Return a reader of archives that refuses legacy files by name and adds title and notes."""

    def read_archive(content: bytes) -> Extract:
        if content.startswith(OLE):
            raise UnreadableError(
                f"is a legacy Office file (.doc, .ppt) or encrypted; save it as .{kind} without a password"
            )
        archive = _Archive(content)
        found = read(archive)
        core = archive.tree(archive.first("core-properties"))
        title = found.title or one_line(clean_text(core.findtext("{*}title") or ""))
        notes = (f"left out: {count} {what}" for what, count in archive.left_out.items() if count)
        return found._replace(title=title, notes=(*notes, *found.notes))

    return read_archive


def _at(element: Any, path: str, name: str = "val") -> str | None:
    """Return an attribute of the element at a path, in any namespace: "" if it has none, None without the element."""
    found = element.find("/".join(f"{{*}}{step}" for step in path.split("/"))) if path else element
    return None if found is None else next((v for k, v in found.attrib.items() if k.rpartition("}")[2] == name), "")


def _vanishes(element: Any) -> bool:
    """Return whether run properties, or those of a style, hide text."""
    return _at(element, "vanish") in _TRUE or _at(element, "rPr/vanish") in _TRUE


class _Walk:
    """Depth-first traversal of a document or slide that writes HTML; what hangs on a paragraph is put after it."""

    def __init__(self, archive: _Archive, main: str) -> None:
        self._archive = archive
        self.relations = archive.related(main)
        """Of the part that is read."""
        trees = {kind: archive.tree(name) for kind, name in self.relations.values() if kind in _READ_FIRST}
        self._styles = {_at(each, "", "styleId"): each for each in trees.get("styles", ())}
        self._notes = {(n.tag, _at(n, "", "id")): n for kind in ("footnotes", "endnotes") for n in trees.get(kind, ())}
        numbering = trees.get("numbering", ())
        lists = {_at(each, "", "abstractNumId"): each for each in numbering if each.tag.endswith("abstractNum")}
        self._levels = {
            _at(each, "", "numId"): [
                (_at(e, "numFmt"), _at(e, "lvlText") or "", int(_at(e, "start") or 1) - 1)
                for e in lists.get(_at(each, "abstractNumId"), ())
                if e.tag.endswith("}lvl")
            ]
            for each in numbering
        }
        self._counts = {number: [start for _, _, start in levels] for number, levels in self._levels.items()}
        self._above: dict[int, str] = {}
        """Cells of the row before by column."""
        self._column = 0

    def part(self, name: str) -> str:
        """Return the HTML of a part."""
        before, self.relations = self.relations, self._archive.related(name)
        text = self._inside(self._archive.tree(name))
        self.relations = before
        return text

    def target(self, element: Any) -> str:
        """Return the name of the part that an element refers to, empty if there is none."""
        return next((self.relations[each][1] for each in element.attrib.values() if each in self.relations), "")

    def _inside(self, element: Any) -> str:
        return "".join(map(self._element, element))

    def _element(self, element: Any) -> str:
        left_out = self._archive.left_out
        match str(element.tag).rpartition("}")[2]:
            case "t" if not len(element):
                return html.escape(clean_text(element.text or ""))
            case "p":
                return self._paragraph(element)
            case "r":
                return self._run(element)
            case "tbl" | "tr" | "tc" as name:
                return self._table(element, name)
            case "tab":
                return " "
            case "br" | "cr":
                return "<br>"
            case "noBreakHyphen":
                return "-"
            case "sym":
                return _SYMBOLS.get(int(_at(element, "", "char") or "0", 16) & 0xFF, "•")
            case "del" | "moveFrom":
                left_out["characters of tracked deletions"] += len("".join(element.itertext()))
            case "AlternateContent":
                return next(filter(None, map(self._inside, element)), "")
            case "txbxContent":
                return f"\0{self._inside(element)}\1"
            case "footnoteReference" | "endnoteReference":
                note = self._notes.pop((element.tag.removesuffix("Reference"), _at(element, "", "id")), ())
                return f"\0{self._inside(note)}\1"
            case "relIds":
                return f"\0{self.part(self.target(element))}\1"
            case "chart":
                return f"\0{self._chart(self._archive.tree(self.target(element)))}\1"
            case "sdt" if "Table of Contents" in (_at(e, "") for e in element.iterfind(_GALLERY)):
                left_out["tables of contents"] += 1
            case "sp":
                return self._shape(element)
            case "altChunk":
                left_out["embedded documents"] += 1
            case "blip":
                left_out["pictures"] += 1
            case "den":
                return f"/{self._inside(element)}"
            case "sup" | "sub" as name:
                return f"<{name}>{self._inside(element)}</{name}>"
            case name if name != "instrText" and not name.endswith("Pr"):
                return self._inside(element)
        return ""

    def _paragraph(self, element: Any) -> str:
        text = self._inside(element)
        floats, text = "".join(_FLOAT.findall(text)), _FLOAT.sub("", text)
        level, mark = self._style(element)
        tag = f"h{level}" if level else "p"
        return (f"<{tag}>{mark}{text}</{tag}>" if text.strip() else "") + floats

    def _style(self, paragraph: Any) -> tuple[int, str]:
        """Return heading level and list mark of a paragraph, its own or of the styles that its style is based on."""
        chain, style = [paragraph], _at(paragraph, "pPr/pStyle")
        while style in self._styles and self._styles[style] not in chain:
            chain.append(self._styles[style])
            style = _at(chain[-1], "basedOn")
        level, mark = None, None
        for each in chain:
            name, outline, number = _at(each, "name") or "", _at(each, "pPr/outlineLvl"), _at(each, "pPr/numPr/numId")
            if level is None and (outline or name.lower() == "title" or _HEADING.fullmatch(name)):
                level = int(outline) + 1 if outline else int(name[-1]) if name[-1].isdigit() else 1
            if mark is None and number:
                mark = self._mark(number, int(_at(each, "pPr/numPr/ilvl") or 0))
            elif mark is None and name.startswith("List") and name != "List Paragraph":
                mark = "- "
        level = min(level, 6) if level and level < 10 else 0
        return level, "" if level and mark == "- " else mark or ""

    def _mark(self, number: str, depth: int) -> str:
        """Return the bullet or number of the next item of a list."""
        levels, counts = self._levels.get(number, []), self._counts.get(number, [])
        if number == "0" or depth >= len(levels):
            return ""
        counts[depth:] = [counts[depth] + 1, *(start for _, _, start in levels[depth + 1 :])]
        if levels[depth][0] in ("bullet", "none"):
            return "- "

        def shown(match: re.Match[str]) -> str:
            place = min(int(match[1]), len(levels)) - 1
            value = counts[place] or 1
            return chr(97 + (value - 1) % 26) if levels[place][0] == "lowerLetter" else str(value)

        return re.sub("%([1-9])", shown, html.escape(levels[depth][1])) + " "

    def _run(self, element: Any) -> str:
        text, own = self._inside(element), element.find("{*}rPr")
        if own is None:
            return text
        styles = [own, *(e for e in (self._styles.get(_at(own, "rStyle")),) if e is not None)]
        white = _at(own, "color") in ("FFFFFF", "ffffff") and own.find("{*}shd") is None
        if (white and not any(element.iterancestors("{*}tbl", "{*}txbxContent"))) or any(map(_vanishes, styles)):
            self._archive.left_out["characters that nobody sees"] += len(text)
            return ""
        if (
            any(_at(own, name) in _TRUE for name in ("strike", "dstrike"))
            or own.get("strike", "noStrike") != "noStrike"
        ):
            text = f"<del>{text}</del>"
        raised = _at(own, "vertAlign") == "superscript" or int(own.get("baseline", "0")) > 0
        return f"<sup>{text}</sup>" if raised else text

    def _table(self, element: Any, name: str) -> str:
        """Return a table, row or cell; a cell that goes on from above is repeated, one over columns is not."""
        before, column = self._above, self._column
        if name == "tbl":
            self._above = {}
            text = f"<table>{self._inside(element)}</table>"
            self._above = before
            return text
        if name == "tr":
            self._column = 0
            text = f"<tr>{self._inside(element)}</tr>" if element.find("{*}trPr/{*}del") is None else ""
            self._column = column
            return text
        if element.get("hMerge") == "1":
            return "<td></td>"
        span = min(int(_at(element, "tcPr/gridSpan") or 1), _MOST_SPAN)
        goes_on = _at(element, "tcPr/vMerge") in ("", "continue") or element.get("vMerge") == "1"
        own = self._inside(element)
        text = before.get(column, "") if goes_on else own
        self._above[column], self._column = text[:_MOST_REPEATED], column + span
        return f"<td>{text}</td>" + "<td></td>" * (span - 1 if element.getnext() is not None else 0)

    def _chart(self, tree: Any) -> str:
        """Return a line for each series of a chart: its name, then categories with values."""
        lines = []
        for series in tree.iter("{*}ser"):
            paths = ("tx", "cat", "xVal", "val", "yVal")
            name, places, x, values, y = ([v.text or "" for v in series.iterfind(f"{{*}}{p}//{{*}}v")] for p in paths)
            pairs = map(" ".join, itertools.zip_longest(places or x, values or y, fillvalue=""))
            lines.append(f"<p>{html.escape(clean_text(' '.join(name) + ': ' + '; '.join(pairs)))}</p>")
        return "".join(lines)

    def _shape(self, element: Any) -> str:
        """Return a shape of a slide: its title as a heading, nothing for date, footer and number."""
        kind, text = _at(element, "nvSpPr/nvPr/ph", "type"), self._inside(element)
        if kind in ("title", "ctrTitle") and text:
            return f"<h2>{_PARAGRAPH.sub(' ', text)}</h2>"
        return "" if kind in ("sldNum", "dt", "ftr", "hdr") else text


def _word(archive: _Archive) -> Extract:
    """Return the body of a DOCX file with its notes and text boxes, without headers, comments and tracked deletions."""
    main = archive.first("officeDocument")
    for kind, name in archive.related(main).values():
        if kind in ("header", "footer", "comments") and "".join(archive.tree(name).itertext()).strip():
            archive.left_out["headers and footers" if kind != "comments" else "sets of comments"] += 1
    return _as_page(_Walk(archive, main).part(main))


def _slides(archive: _Archive) -> Extract:
    """Return the slides that are shown, each with its title as a heading and the speaker's notes."""
    main = archive.first("officeDocument")
    walk, texts = _Walk(archive, main), []
    for number, each in enumerate(archive.tree(main).iter("{*}sldId"), start=1):
        name = walk.target(each)
        if archive.tree(name).get("show") in ("0", "false"):
            archive.left_out["hidden slides"] += 1
            continue
        text = walk.part(name)
        title = _SLIDE_TITLE.search(text)
        texts += [title[0] if title else f"<h2>Slide {number}</h2>", _SLIDE_TITLE.sub("", text, count=1)]
        for kind, other in archive.related(name).values():
            if kind == "notesSlide":
                texts.append(walk.part(other))
            archive.left_out["sets of comments"] += kind == "comments"
    return _as_page("".join(texts))


def _as_page(text: str) -> Extract:
    page = text.translate({0: None, 1: None})
    return HTML.read(f'<meta charset="utf-8"><body>{page}</body>'.encode())


def _book(archive: _Archive) -> Extract:
    """Return the chapters of an EPUB in reading order, without its navigation page."""
    root = archive.tree("META-INF/container.xml").find("{*}rootfiles/{*}rootfile").get("full-path")
    package = archive.tree(root)
    items = {each.get("id"): each for each in package.iterfind("{*}manifest/{*}item")}
    blocks: list[Block] = []
    for each in package.iterfind("{*}spine/{*}itemref"):
        item = items[each.get("idref")]
        if "nav" not in item.get("properties", "").split():
            name = posixpath.join(posixpath.dirname(root), unquote(item.get("href")))
            blocks += HTML.read(archive.read(posixpath.normpath(name))).blocks
    return Extract(tuple(blocks), one_line(clean_text(package.findtext("{*}metadata/{*}title") or "")))


read_word = _reader("docx", _word)
read_slides = _reader("pptx", _slides)
WORD = Reader("docx", (".docx", ".docm", ".dotx", ".doc"), read_word)
SLIDES = Reader("pptx", (".pptx", ".pptm", ".ppsx", ".ppt"), read_slides)
BOOK = Reader("epub", (".epub",), _reader("epub", _book))
