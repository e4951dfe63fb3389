"""What the fact table behind a document knows: the best lines to learn from, and which value could stand for which."""

from __future__ import annotations

from evaluation.microworld.templates import ATTRIBUTES, PHRASINGS
from evaluation.microworld.world import Sheet, ask


def oracle_lines(sheet: Sheet) -> tuple[tuple[str, str | None], ...]:
    """Return every fact twice, as pairs of text and answer: a question with its answer, and a statement without one.

    Both are in the first of their forms, so that the question is one that rewards ask and comparisons do not.
    """
    lines: list[tuple[str, str | None]] = []
    for fact in sheet.facts:
        question = ask(fact, PHRASINGS[0])
        lines.append((question.question, question.answer))
        lines.append((fact.words.statements[0].format(name=fact.name, value=fact.value), None))
    return tuple(lines)


def sheet_swaps(sheet: Sheet) -> dict[str, str]:
    """Return for each value of a document that of another of its entities, within the same attribute.

    Values of an attribute are handed on from entity to entity, so every true line becomes false with a value of the
    right class. A false line may become true: one that gives an entity the value which is swapped for its own. No value
    occurs under two attributes, since the attributes of a kind have different classes of values, without a common word.
    An attribute of a single entity is left out. The sentences of the world hold no value as a word of their own but at
    the end of "What mark does ... bear?"; such an ending stands for itself, so that the verb stays.
    """
    swaps: dict[str, str] = {}
    for attribute in dict.fromkeys(fact.attribute for fact in sheet.facts):
        values = [fact.value for fact in sheet.facts if fact.attribute == attribute]
        if len(values) > 1:
            swaps |= dict(zip(values, values[1:] + values[:1], strict=True))
    asked = (question for words in ATTRIBUTES[sheet.kind].values() for question in words.questions)
    endings = {question.split()[-1] for question in asked}
    return swaps | {ending: ending for ending in sorted(endings) if ending.removesuffix("?") in swaps}
