"""Markdown (CommonMark with tables, struck text and footnotes) and its front matter."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from evaluation.common.text import clean_text
from pipelines.inbox.readers.html import Walk
from pipelines.inbox.readers.text import Extract, Reader, UnreadableError, one_line, text_of
from pipelines.inbox.readers.visible import Visibility

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"[a-z_][\w.-]*")
_PLAIN_VALUE = re.compile(r"^([A-Za-z_][\w.-]*):[ \t]+([^\s\"'\[{|>&*!].*?)[ \t]*$", re.MULTILINE)
_OWN = ("title", "source", "effective", "supersedes", "route")
_COMMON = frozenset({*_OWN, "author", "date", "description", "draft", "id", "layout", "slug", "tags"})
"""Without one of them a passage between two rules whose keys are not in lower case is text, such as `Note: closed`."""
_MEANT = frozenset({"del", "s", "strike", "sup", "sub", "ruby", "rt", "rp", "q"})
"""Inline tags that change what a text says; others are taken out."""
_ROW, _CODE = re.compile(r"^ {0,3}\|.*`.*$", re.MULTILINE), re.compile(r"`[^`]+`")
_TAG = re.compile(r"<(/?)([a-z]+)", re.IGNORECASE)


def read_markdown(content: bytes) -> Extract:
    """Return the text of a Markdown file and its front matter."""
    from selectolax.lexbor import LexborHTMLParser

    fields, notes, text = _front_matter(clean_text(text_of(content)))
    try:
        tree = LexborHTMLParser(_parser().render(_ROW.sub(_with_bars, text)))
    except RecursionError as error:
        raise UnreadableError("is nested too deeply") from error
    walk = Walk(Visibility(tree))
    blocks = walk.blocks(tree.body)
    return Extract(blocks, one_line(str(fields.pop("title", ""))), fields, (*notes, *walk.notes))


def _with_bars(row: re.Match[str]) -> str:
    """Return a table's row with the bars in its code escaped, which would else end a cell, and lose the last one."""
    return _CODE.sub(lambda code: re.sub(r"(?<!\\)\|", r"\|", code[0]), row[0])


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock, reference

    def link(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        """Parse the target of a link; a footnote is text, also where it could be one."""
        place = state.bMarks[start] + state.tShift[start]
        return not state.src.startswith("[^", place) and reference(state, start, end, silent)

    markdown = MarkdownIt("commonmark", {"breaks": True, "maxNesting": 100}).enable(["table", "strikethrough"])
    markdown.block.ruler.at("reference", link)
    # Unclosed tags must not swallow the text after them.
    markdown.add_render_rule("html_inline", lambda _, tokens, i, *__: _inline_tag(tokens, i))
    markdown.add_render_rule("html_block", lambda _, tokens, i, *__: _closed(tokens[i].content))
    return markdown


def _inline_tag(tokens: Sequence[Token], i: int) -> str:
    """Return a tag that means something if its counterpart is there, too."""
    tag = tokens[i].content
    found = _TAG.match(tag)
    if found is None or found[2].lower() not in _MEANT:
        return "\n" if found and found[2].lower() == "br" else ""
    other = f"<{'' if found[1] else '/'}{found[2].lower()}"
    rest = tokens[:i] if found[1] else tokens[i + 1 :]
    return tag if any(each.type == "html_inline" and each.content.lower().startswith(other) for each in rest) else ""


def _closed(html: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(re.sub(r"<(?=[^<>]*\Z)", "&lt;", html)).body
    return (body.inner_html if body else None) or ""


def _front_matter(text: str) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """Return the front matter's known fields, notes, and the text after it; a passage between two rules is text."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise UnreadableError("its front matter has YAML aliases, which are not read; write the values out")
            return super().compose_node(parent, index)

    found = _FRONT_MATTER.match(text)
    if found is None:
        return {}, (), text
    front: Any = None
    broken = ""
    for attempt in (found[1], _PLAIN_VALUE.sub(lambda m: f"{m[1]}: {json.dumps(m[2])}", found[1])):
        try:
            front = yaml.load(attempt, Loader)
            broken = ""
            break
        except UnreadableError:
            raise
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # such as a date that does not exist
            broken = str(error)
    if not isinstance(front, dict) or not front or not all(isinstance(key, str) for key in front):
        return {}, ("what is between the rules at its top is no YAML mapping and is read as text",) * bool(broken), text
    if not (_COMMON & front.keys() or all(_KEY.fullmatch(key) for key in front)):
        return {}, (), text
    values = {key: _value(key, front[key]) for key in _OWN if front.get(key) is not None}
    foreign = ", ".join(f"{key} {front[key]!r:.40}" for key, value in values.items() if value is None)
    notes = (f"not used, as the inbox has other forms for them: {foreign} in the front matter",) if foreign else ()
    return {key: value for key, value in values.items() if value is not None}, notes, text[found.end() :]


def _value(key: str, value: Any) -> Any:
    """Return the inbox's value of a key; None where it is in the form of another program."""
    if key == "effective":
        with suppress(ValueError):
            return datetime.datetime.fromisoformat(str(value)).date().isoformat()
        return None
    if key == "title":
        return None if isinstance(value, dict | list) else str(value)
    if key == "route":
        return value if value in ("weights", "memory") else None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values) or (key == "source" and len(values) != 1):
        return None
    return values[0] if key == "source" else values


MARKDOWN = Reader("markdown", (".md", ".markdown"), read_markdown)
