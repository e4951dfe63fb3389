"""Long documents in parts: split on headings, then on paragraphs, then on sentences, as far as needed.

A section that fits stays whole. Nothing is lost or changed but white space at the cuts: the parts' texts after each
other hold every character of the document that is not white space, in order, headings included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from evaluation.graders import normalize_answer
from evaluation.tasks import Question
from pipelines.inbox.blocks import Block, cut, joined, one_line

MOST_CHARACTERS = 4_000
"""Longest part by default, in characters: about 1,000 tokens of English, which leaves a teacher room to write."""
LEAST_CHARACTERS = 200
"""Smallest limit that makes sense; shorter parts would tear sentences from what they are about."""
PATH_MARK = " > "
"""Between the headings of a part's title."""

_GAP = "\n\n"
_CUTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\n+"), "\n"),
    (re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|(?<=[。！？])"), " "),
    (re.compile(r"\s+"), " "),
)
"""Where a paragraph may be cut, the best first, and what joins the pieces again: lines, sentences, words."""


class Part(NamedTuple):
    """A part of a document."""

    path: tuple[str, ...]
    """Headings above it, the highest first; its own first heading is the last."""
    text: str
    """Not blank, at most as long as asked."""

    def title(self, whole: str, most: int) -> str:
        """Return the title of the whole and the headings, the highest of them left out where they get too long.

        Args:
            whole: The document's title; may be empty.
            most: Longest title, in characters.
        """
        path = [whole] if whole and self.path[:1] != (whole,) else []
        path += self.path
        while len(path) > 2 and len(PATH_MARK.join(path)) > most:
            del path[1]
        return cut(PATH_MARK.join(path), most)


class _Piece(NamedTuple):
    """Blocks under a path of headings."""

    path: tuple[tuple[int, str], ...]
    blocks: tuple[Block, ...]


def split_sections(blocks: Sequence[Block], most_characters: int = MOST_CHARACTERS) -> list[Part]:
    """Return a document in parts, one where it fits.

    Args:
        blocks: The document, in reading order; at least one block.
        most_characters: Longest part, in characters, at least `LEAST_CHARACTERS`.

    Raises:
        ValueError: `most_characters` is too small.
    """
    if most_characters < LEAST_CHARACTERS:
        raise ValueError(f"most_characters: got {most_characters}, allowed is at least {LEAST_CHARACTERS}")
    whole = joined(blocks)
    if len(whole) <= most_characters:
        return [Part((), whole)]
    pieces = _glued(list(_on_headings(_Piece((), tuple(blocks)), 1, most_characters)), most_characters)
    return [
        Part(tuple(heading for _, heading in piece.path), text)
        for piece in pieces
        for text in _packed([block.text for block in piece.blocks], _GAP, most_characters, _cut_paragraph)
    ]


def _on_headings(piece: _Piece, level: int, most: int) -> Iterator[_Piece]:
    """Yield a piece cut before its headings of `level` and, where that is not enough, of lower levels."""
    if level > 6 or len(joined(piece.blocks)) <= most:
        yield piece
        return
    starts = [i for i, block in enumerate(piece.blocks) if block.level == level]
    for start, end in zip([0, *starts], [*starts, len(piece.blocks)], strict=True):
        part = piece.blocks[start:end]
        if part:
            above = tuple(item for item in piece.path if item[0] < level)
            opens = part[0].level == level
            path = (*above, (level, one_line(part[0].text))) if opens else piece.path
            yield from _on_headings(_Piece(path, part), level + 1, most)


def _glued(pieces: list[_Piece], most: int) -> list[_Piece]:
    """Return the pieces with those that are nothing but headings put in front of the one that follows."""
    glued: list[_Piece] = []
    for piece in pieces:
        before = glued[-1] if glued else None
        if before is not None and all(block.level for block in before.blocks):
            together = before.blocks + piece.blocks
            if len(joined(together)) <= most:
                glued[-1] = _Piece(piece.path, together)
                continue
        glued.append(piece)
    return glued


def _packed(
    texts: Sequence[str], mark: str, most: int, cut: Callable[[str, int], Iterator[str]] | None = None
) -> Iterator[str]:
    """Yield the texts, as many joined as fit; those that do not fit alone are cut."""
    held = ""
    for text in texts:
        for piece in [text] if len(text) <= most or cut is None else cut(text, most):
            if held and len(held) + len(mark) + len(piece) > most:
                yield held
                held = ""
            held = f"{held}{mark}{piece}" if held else piece
    if held:
        yield held


def _cut_paragraph(text: str, most: int, depth: int = 0) -> Iterator[str]:
    """Yield a paragraph in pieces: cut at lines, else at sentences, else at words, at worst within a word."""
    if depth == len(_CUTS):
        yield from (text[start : start + most] for start in range(0, len(text), most))
        return
    pattern, mark = _CUTS[depth]
    pieces = [piece for piece in _divided(pattern, text) if piece]
    yield from _packed(pieces, mark, most, lambda piece, size: _cut_paragraph(piece, size, depth + 1))


def _divided(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """Yield a text cut after each match; what the match holds beside white space stays with what is before it."""
    start = 0
    for match in pattern.finditer(text):
        yield text[start : match.end()].strip()
        start = match.end()
    yield text[start:].strip()


def shared_out(questions: Sequence[Question], texts: Sequence[str]) -> list[tuple[Question, ...]]:
    """Return the questions of each part of a document: each goes to the part that says most of what it asks.

    That is the first with the whole answer, of several the one with most of the question's words; without any such
    part, the one with most words of question and answer.

    Args:
        questions: Of the whole document.
        texts: Of its parts, at least one.
    """
    shares: list[list[Question]] = [[] for _ in texts]
    normal = [normalize_answer(text) for text in texts]
    words = [Counter(text.split()) for text in normal]
    for question in questions:
        answer = normalize_answer(question.answer)
        asked = set(f"{normalize_answer(question.question)} {answer}".split())
        fits = [
            (bool(answer) and f" {answer} " in f" {text} ", sum(word in held for word in asked))
            for text, held in zip(normal, words, strict=True)
        ]
        shares[max(range(len(texts)), key=lambda i: (fits[i], -i))].append(question)
    return [tuple(share) for share in shares]
