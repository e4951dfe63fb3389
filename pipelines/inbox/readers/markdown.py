"""Markdown (CommonMark with tables) as plain text with headings, and what a YAML front matter says of the document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.inbox.blocks import Block, Extract, UnreadableError, blocks_of, decoded, one_line
from pipelines.inbox.readers.html import read_markup

if TYPE_CHECKING:
    from markdown_it.token import Token

FRONT_FIELDS = ("title", "source", "effective", "supersedes", "route")
"""What is taken from a front matter; its other keys belong to other programs."""
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.DOTALL | re.MULTILINE)


def read_markdown(content: bytes) -> Extract:
    """Return the text of a Markdown file: links by their words, lists with their marks, tables by rows.

    Raises:
        UnreadableError: It is not UTF-8, or its front matter is not YAML.
    """
    from markdown_it import MarkdownIt

    text = decoded(content)
    fields, text = _front_matter(text)
    title = fields.pop("title", "")
    if not isinstance(title, str):
        title = str(title)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return Extract(blocks_of(_blocks(tokens)), one_line(title), fields)


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
                yield from read_markup(token.content).blocks


def _inline(tokens: Sequence[Token]) -> str:
    """Return the words of a line; tags of HTML in it fall away, their words stay."""
    words = {"softbreak": "\n", "hardbreak": "\n", "html_inline": ""}
    return "".join(words.get(token.type, token.content) for token in tokens)
