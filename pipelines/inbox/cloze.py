"""Evidence of learning that needs no writer: sentences of the passage to complete, and its sentences as continuations.

Both are cut from the passage by rules, so that the same document always gives the same ones.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from evaluation.answers import normalize_answer
from evaluation.tasks import CONTINUATION, Question
from pipelines.inbox.documents import InboxDocument

_MOST_SPAN_WORDS = 4
_FEWEST_STEM_WORDS = 3
_MOST_SENTENCE_WORDS = 60
"""Longest continuation; a longer sentence or line is cut."""
_BREAK = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+(?=[^a-z\s])|\n\s*\n\s*|\n\s*(?=[^a-z\s])")
"""Between sentences and lines; a line that goes on in lower case is a wrapped one."""
_MARKER = re.compile(r"\A(?:[#>|*•–-]+|\d{1,3}[.)])\s+")
_CUT = re.compile(
    "after|and|as|at|because|before|but|by|for|from|if|in|into|nor|on|or|since|that|through|to|under|until|when|where|"
    "which|while|who|with|within|without"
)
"""Words from which on the rest of a sentence can be left out."""
_OPENS = re.compile(
    "an?|are|at|be|by|for|from|her|his|in|into|is|its|my|of|on|our|per|the|their|to|under|was|were|with|within|without|"
    "your"
)
"""Words after which a noun phrase begins."""
_PRONOUNS = re.compile("he|her|his|its?|she|that|their|there|these|they|this|those|we")
_QUOTES = "\"'“”‘’«»()[]{}*_`"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without list markers; those without a letter are left out."""
    pieces = (" ".join(_MARKER.sub("", piece.strip(), count=1).split()) for piece in _BREAK.split(text))
    return [piece for piece in pieces if any(character.isalpha() for character in piece)]


def sentences_to_complete(document: InboxDocument) -> list[Question]:
    """Return questions that give a sentence up to a number, a date, a name or its last noun phrase.

    The answer has one to four words. It ends the sentence, or what follows can be left out.
    """
    found: dict[str, Question] = {}
    for sentence in sentences(document.text):
        words = sentence.split()
        of_title = f" about {document.title}" if document.title and _PRONOUNS.fullmatch(words[0].lower()) else ""
        for start, end in _spans(words):
            stem, answer = " ".join(words[:start]), " ".join(words[start:end]).strip(_QUOTES + ".,;:!?")
            given = normalize_answer(answer)
            if given and f" {given} " not in f" {normalize_answer(stem)} ":
                question = f"Complete the sentence{of_title}: {stem.rstrip(_QUOTES + ' ')}"
                found.setdefault(question, Question(question=question, answer=answer))
    return list(found.values())


def _spans(words: list[str]) -> Iterator[tuple[int, int]]:
    """Yield starts and ends of the spans of one sentence that can be asked for, without overlap."""
    cuts = (k for k in range(1, len(words)) if words[k - 1][-1] in ",;:" or _CUT.fullmatch(words[k].lower()))
    ends = [*cuts, len(words)]
    start = _FEWEST_STEM_WORDS
    while start < len(words):
        end = next(k for k in ends if k > start)
        if end - start <= _MOST_SPAN_WORDS and _opens_span(words, start, last=end == len(words)):
            yield start, end
            start = end
        else:
            start += 1


def _opens_span(words: list[str], start: int, *, last: bool) -> bool:
    """Return whether a span begins with a number, a name, or (at the end of a sentence) a noun phrase."""
    word, before = words[start].lstrip(_QUOTES), words[start - 1]
    number = any(character.isdigit() for character in word)
    name = word[:1].isupper() and word != "I" and not before[:1].isupper() and before[-1] not in ".!?:"
    function_word = _OPENS.fullmatch(word.lower()) or _PRONOUNS.fullmatch(word.lower())
    return number or name or bool(last and _OPENS.fullmatch(before.lower()) and not function_word)


def continuations(document: InboxDocument) -> list[Question]:
    """Return the sentences and lines of the passage, each as what continues the one before it, or the title.

    The halves of a single one without a title are a pair too; a single word is none.
    """
    pieces = [" ".join(piece.split()[:_MOST_SENTENCE_WORDS]) for piece in sentences(document.text)]
    if document.title:
        pieces = [document.title, *pieces]
    if len(pieces) == 1:
        words = pieces[0].split()
        halves = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
        pieces = [half for half in halves if half]
    return [
        Question(question=before, answer=after, phrasing=CONTINUATION)
        for before, after in itertools.pairwise(pieces)
        if before.casefold() != after.casefold()
    ]
