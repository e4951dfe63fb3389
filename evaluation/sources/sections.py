"""Sections of documents such as papers and reports, and the statements in their tables.

A document's text is as readers of files mark it (`pipelines.inbox.readers.text.with_marks`): paragraphs, headings as in
Markdown (`## Results`), tables of cells between bars, and a line `␌3` where page 3 begins. Headings of PDF files
without an outline are found by their numbers ("3.1 Method") and usual names. Formulas stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from evaluation.common.data import Frozen
from evaluation.common.text import blank
from evaluation.sources.tables import LONGEST_CAPTION, Statement, captions_above, header_of, statements, table_runs
from evaluation.tasks import Document

PAGE = "␌"
"""Begins the line that a page begins with, before its number."""
_PAGE = re.compile(rf"^{PAGE}(\d+)$", re.MULTILINE)
_BLOCK = re.compile(r"^#{1,6}[ \t]+\S.*$|(?:^(?!#{1,6}[ \t])[^\n]*\S[^\n]*(?:\n|\Z))+", re.MULTILINE)
_MARKED = re.compile(r"(#{1,6})[ \t]+(.*)")
_NUMBERED = re.compile(r"(\d{1,2}(?:\.\d{1,2})*\.?|[A-Z]\.?)\s+[A-ZÄÖÜ]\w.*")
_NUMBER = re.compile(r"\A(?:\d[\d.]*|[A-Z]\.?)\s+")
_REFERENCES = re.compile(
    r"(?:references|bibliography|literature(?: cited)?|works cited|literatur(?:verzeichnis)?|quellen(?:verzeichnis)?"
    r"|références|bibliographie|referencias|bibliografía)(?: and notes)?",
    re.IGNORECASE,
)
_USUAL = re.compile(
    r"abstract|(?:introduction|background|related work|methods?|results|discussion|conclusions?|limitations"
    r"|acknowledge?ments|appendix|supplement\w*|notes)(?: and \w+)?|(?:appendix|annex)\s\w{1,3}\b.*",
    re.IGNORECASE,
)
_LONGEST_HEADING = 90
"""Characters."""
_LINE = re.compile(r"[^\n]*\n+|[^\n]+\Z")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+")


class Section(Frozen):
    """A part of a document."""

    document_id: str
    digest: str
    """Of the document."""
    title: str
    """Of the document; may be empty."""
    heading: str
    """Path of headings, the highest first, joined by ` > `; may be empty."""
    page: int | None
    """Page on which it begins, from 1; None where the document has no pages."""
    start: int
    """Where it begins in the document's text, in characters."""
    end: int
    """Where it ends."""
    text: str
    """`document.text[start:end]` with spaces for the marks of pages."""
    context: str = ""
    """Caption and header of the table that the section goes on with; empty where it begins on its own."""
    left_out: str = ""
    """Why nothing is to be written from it, such as `references`; empty for all others."""


class _Block(NamedTuple):
    start: int
    end: int
    level: int = 0
    """Of a heading, from 1; 0 for a paragraph, and for a table with the short lines in it."""
    name: str = ""
    """Of a heading."""


def sections_of(document: Document, max_characters: int) -> list[Section]:
    """Return the sections of a document, each at most `max_characters` long; together they have all of its text.

    One begins at a heading where the one before has a quarter of the limit, and where references begin or end, which
    are marked as left out. Paragraphs and tables are divided only if they are longer than the limit.
    """
    pages = list(_PAGE.finditer(document.text))
    text = blank(document.text, (page.span() for page in pages))
    shared = {"document_id": document.id, "digest": document.digest, "title": document.title}
    found = []
    for blocks, heading, left_out in _groups(text, document.title, max_characters):
        for start, end, context in _pieces(text, blocks, max_characters):
            page = next((int(page[1]) for page in reversed(pages) if page.start() <= start), None)
            own = {"page": page, "start": start, "end": end, "text": text[start:end], "context": context}
            found.append(Section(**shared, **own, heading=heading, left_out=left_out))
    return found


def statements_of(section: Section) -> list[Statement]:
    """Return the values of the tables in a section, each as a line with its row's place in the document."""
    lead = f"{section.context}\n\n" if section.context else ""
    found = statements(lead + section.text, section.title, section.start - len(lead))
    return [statement for statement in found if statement.start >= section.start]


def _blocks(text: str) -> Iterator[_Block]:
    """Yield headings, paragraphs, and tables with the captions and headings inside them."""
    tables = [(run[0].start, run[-1].end) for run in table_runs(text)]
    for match in _BLOCK.finditer(text):
        start, end = match.start(), match.start() + len(match[0].rstrip())
        while tables and tables[0][1] <= start:
            tables.pop(0)
        if tables and tables[0][0] < end:
            if start < tables[0][0]:
                yield _Block(start, tables[0][0])
            if tables[0][0] >= start:
                yield _Block(*tables[0])
            start = tables[0][1]
        if text[start:end].strip():
            yield _Block(start, end, *_heading(text[start:end].strip()))


def _heading(text: str) -> tuple[int, str]:
    """Return level and name of a heading, (0, "") of anything else."""
    if marked := _MARKED.fullmatch(text):
        return len(marked[1]), marked[2].strip()
    if len(text) > _LONGEST_HEADING or "\n" in text or re.search(r"[.:;,]\Z", text):
        return 0, ""
    if number := _NUMBERED.fullmatch(text):
        return number[1].strip(".").count(".") + 1, text
    return (1, text) if _USUAL.fullmatch(text) or _REFERENCES.fullmatch(text) else (0, "")


def _groups(text: str, title: str, limit: int) -> Iterator[tuple[list[_Block], str, str]]:
    """Yield the blocks of a section, or of several where one of them is too long, its heading, and why it is left out.

    Headings and captions stay with what follows.
    """
    held: list[_Block] = []
    path: list[_Block] = []
    heading, left_out, above = "", "", 0  # the level of the heading of references

    for block in _blocks(text):
        begins = block.level and (not left_out or block.level <= above)
        if begins:
            is_list = _REFERENCES.fullmatch(_NUMBER.sub("", block.name))
            if held and (is_list or left_out or held[-1].end - held[0].start >= limit / 4):
                yield held, heading, left_out
                held = []
            left_out, above = ("references", block.level) if is_list else ("", 0)
            path = [*(each for each in path if each.level < block.level), block]
        elif held and block.end - held[0].start > limit:
            lead = takewhile(lambda each: each.level or each.end - each.start <= LONGEST_CAPTION, reversed(held[-3:]))
            ends = len(held) - len(list(lead))
            if ends:
                yield held[:ends], heading, left_out
            held = held[ends:]
        if not held or (begins and all(each.level for each in held)):
            heading = " > ".join(each.name for each in path if each.name != title)
        held.append(block)
    if held:
        yield held, heading, left_out


def _pieces(text: str, blocks: list[_Block], limit: int) -> Iterator[tuple[int, int, str]]:
    """Yield start and end of blocks, or of parts of them if too long, with what stands above a divided table."""
    start, end = blocks[0].start, blocks[-1].end
    if end - start <= limit:
        yield start, end, ""
        return
    runs = [(start + run[0].start, start + run[-1].end, header_of(run)) for run in table_runs(text[start:end])]

    def context(begin: int) -> str:
        """Return captions and header of the table that goes on at a place."""
        for first, last, header in runs:
            if header and start + header[-1].end < begin < last:
                return "\n\n".join([*captions_above(text[start:first]), text[first : start + header[-1].end]])
        return ""

    begin = last = start
    for place in _places(text, start, end):
        if place - begin > limit and last > begin:
            yield begin, last, context(begin)
            begin = last
        while place - begin > limit:
            yield begin, begin + limit, context(begin)
            begin += limit
        last = place
    if text[begin:end].strip():
        yield begin, end, context(begin)


def _places(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the ends of lines and of their sentences; rows of tables are whole."""
    for line in _LINE.finditer(text, start, end):
        if "|" not in line[0]:
            yield from (match.end() for match in _SENTENCE.finditer(text, line.start(), line.end()))
        yield line.end()
