"""From a text to its classified lines: white space, the prompt that it continues, implications inside JSON."""

from __future__ import annotations

import re

from teacher.parsing.assembly import Assembly, assemble
from teacher.parsing.rules import Kind, Line, classify, prompt_echoes
from teacher.parsing.specs import Specification
from teacher.parsing.text import remove_bold, strip_markers

_PROMPT_TAIL = re.compile(r"(?:\A|\n)[ \t]*(?:(?P<question>(?:Question|Q)\s?\d{0,4}\s?:)|[-*•]|\d{1,3}[.)])[ \t]*\Z")


def replace_surrogates(text: str) -> str:
    """Return `text` with pairs of surrogates joined and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_lines(spec: Specification, prompt: str) -> Assembly:
    """Return the implications of the text around the JSON blocks, followed by those inside them."""
    echoes = prompt_echoes(prompt)
    lines: list[Line] = []
    gap = False
    for raw in spec.rest.splitlines():
        if not raw.strip():
            gap = bool(lines)
            continue
        lines.append(classify(raw, len(lines), gap=gap, prompt_lines=echoes))
        gap = False
    if lines and (tail := _PROMPT_TAIL.search(prompt[-80:])):
        lines[0] = _continue_prompt(lines[0], tail)
    assembly = assemble(lines)
    entries: list[Line] = []
    for text, answer in spec.entries:
        entries += _entry_lines(replace_surrogates(text), replace_surrogates(answer or ""), len(lines) + len(entries))
    inside = assemble(entries)
    return Assembly(assembly.items + inside.items, assembly.dropped | inside.dropped)


def _continue_prompt(first: Line, tail: re.Match[str]) -> Line:
    """Return the first line as what it is after the label or the marker on which the prompt ends."""
    if first.kind not in (Kind.STATEMENT, Kind.CHOICE, Kind.HEADING):
        return first
    if tail["question"] is None:
        return first._replace(marked=True, weak_heading=False)
    asked = classify(f"{tail['question']} {first.text}", first.at)
    return asked._replace(marked=first.marked, numbers=asked.numbers + first.numbers)


def _entry_lines(text: str, answer: str, at: int) -> list[Line]:
    """Return an implication from JSON as list items: one for each line of a statement, two for a pair."""
    if not answer.strip():
        raw_lines = [raw for raw in text.splitlines() if raw.strip()]
        return [classify(raw, at + offset, marked=True) for offset, raw in enumerate(raw_lines)]
    question = strip_markers(remove_bold(_one_line(text))).text
    lines = [Line(at, Kind.QUESTION, question, marked=True)] if question else []
    return [*lines, Line(at + len(lines), Kind.ANSWER, _one_line(answer), marked=True)]


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
