"""Sections of documents, and the statements in their tables (a first, simple form)."""

from __future__ import annotations

from typing import NamedTuple

from evaluation.common.data import Frozen
from evaluation.tasks import Document


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
    """`document.text[start:end]` with line breaks for the marks of pages."""
    context: str = ""
    """Caption and header of the table that the section goes on with; empty where it begins on its own."""
    left_out: str = ""
    """Why nothing is to be written from it, such as `references`; empty for all others."""


class Statement(NamedTuple):
    """A value of a table as a line."""

    text: str
    """`company, item, period: value unit`."""
    start: int
    """Where the table's row begins in the document's text, in characters."""
    end: int
    uncertain: bool = False
    """Whether company, item, period or unit may be wrong; such a line is not to be trained on unmarked."""


def sections_of(document: Document, max_characters: int) -> list[Section]:
    """Return the sections of a document, each at most `max_characters` long, those that are left out marked."""
    text, found, start = document.text, list[Section](), 0
    while start < len(text):
        end = min(start + max_characters, len(text))
        if end < len(text) and (cut := text.rfind("\n\n", start, end)) > start:
            end = cut + 2
        found.append(
            Section(
                document_id=document.id,
                digest=document.digest,
                title=document.title,
                heading="",
                page=text.count("\f", 0, start + 1) or None,
                start=start,
                end=end,
                text=text[start:end].replace("\f", "\n"),
            )
        )
        start = end
    return found


def statements_of(section: Section) -> list[Statement]:
    """Return the values of the tables in a section, each as a line with its row's place in the document."""
    return []
