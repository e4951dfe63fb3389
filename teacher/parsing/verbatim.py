"""SEAL's own way to cut a completion into training sequences, for replication (arXiv 2506.10943, its published code).

What is reproduced, for the part of a sequence that follows the title:

- The text is cut at every `---`; pieces are stripped and empty ones left out. A text of nothing else stays whole.
- With `split_newlines`, each non-empty stripped line of a piece is a sequence of its own, list markers kept. When the
  second sequence starts with "1.", the first is taken for a preamble and left out.
- With `split_newlines`, a text that holds both "Question N:" and "Answer:" (an answer label *without* a number) is
  instead cut before each line that starts with "Question N:", whether or not it holds `---`; the first part gets the
  prefix "Question 1: " unless it starts with "Question"; parts keep their inner and trailing line breaks. Texts with
  "Answer N:" do not match, so that their questions and answers become separate sequences.

What is not: an empty text, of which SEAL makes one sequence of the title alone, is no self-edit here. SEAL appends the
passage itself as the last sequence; that is the student's part.
"""

from __future__ import annotations

import re

from teacher.parsing.assembly import Assembly, Item
from teacher.parsing.reasons import DropReason
from teacher.parsing.text import count_lines

_QUESTION = re.compile(r"Question\s+\d+:")
_ANSWER = re.compile(r"Answer\s*:")
_NEXT_QUESTION = re.compile(r"\n(?=Question\s+\d+:)")


def split_verbatim(text: str, *, split_newlines: bool) -> Assembly:
    """Return SEAL's sequences of `text`, without title and passage, and the lines that it leaves out.

    Args:
        text: A completion with at least one non-blank line.
        split_newlines: Whether each line is a sequence of its own.
    """
    if split_newlines and _QUESTION.search(text) and _ANSWER.search(text):
        return _split_questions(text)
    lines = [line for line in text.splitlines() if line.strip()]
    dropped = dict.fromkeys(range(len(lines)), DropReason.MARKER_ONLY)
    if split_newlines:
        pieces = [(at, piece.strip()) for at, line in enumerate(lines) for piece in line.split("---") if piece.strip()]
        pieces = pieces or [(at, line.strip()) for at, line in enumerate(lines)]
        if len(pieces) > 1 and pieces[1][1].startswith("1."):
            dropped[pieces.pop(0)[0]] = DropReason.PREAMBLE
        items = [Item(piece, None, [at]) for at, piece in pieces]
    else:
        items = _segments(text)
    for item in items:
        for at in item.lines:
            dropped.pop(at, None)
    return Assembly(items, dropped)


def _segments(text: str) -> list[Item]:
    """Return the pieces between `---`, each with the non-blank lines that it touches."""
    items: list[Item] = []
    parts: list[str] = []
    touched: list[int] = []

    def close() -> None:
        if touched:
            items.append(Item("".join(parts).strip(), None, list(touched)))
        parts.clear()
        touched.clear()

    at = 0
    for line in text.splitlines(keepends=True):
        for cut, part in enumerate(line.split("---")):
            if cut:
                close()
            parts.append(part)
            if part.strip():
                touched.append(at)
        at += bool(line.strip())
    close()
    return items or [Item(text.strip(), None, list(range(at)))]


def _split_questions(text: str) -> Assembly:
    """Return one sequence for each question with its answer."""
    parts = _NEXT_QUESTION.split(text.strip())
    if not parts[0].lstrip().startswith("Question"):
        parts[0] = "Question 1: " + parts[0].strip()
    items, at = [], 0
    for part in parts:
        count = count_lines(part)
        items.append(Item(part, None, list(range(at, at + count))))
        at += count
    return Assembly(items, {})
