"""What the fact table behind a document knows: the best lines to learn from, and which value could stand for which."""

from __future__ import annotations

from evaluation.microworld.templates import PHRASINGS
from evaluation.microworld.world import Sheet, ask


def oracle_lines(sheet: Sheet) -> tuple[tuple[str, str | None], ...]:
    """Return every fact twice, as pairs of text and answer: a question with its answer, and a statement without one."""
    lines: list[tuple[str, str | None]] = []
    for fact in sheet.facts:
        question = ask(fact, PHRASINGS[0])
        lines.append((question.question, question.answer))
        lines.append((fact.words.statements[0].format(name=fact.name, value=fact.value), None))
    return tuple(lines)


def sheet_swaps(sheet: Sheet) -> dict[str, str]:
    """Return for each value of a document that of another of its entities, within the same attribute.

    Values of an attribute are handed on to the next entity, so every fact becomes false and stays of the right class.
    Two attributes of a kind never share a class of values, so no value occurs under both.
    """
    swaps: dict[str, str] = {}
    for attribute in dict.fromkeys(fact.attribute for fact in sheet.facts):
        values = [fact.value for fact in sheet.facts if fact.attribute == attribute]
        swaps |= dict(zip(values, values[1:] + values[:1], strict=True))
    return swaps
