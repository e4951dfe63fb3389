"""The parser of self-edits: model output to a self-edit, or a typed reason for its absence.

`parse_self_edit` never raises on model output and accounts for every non-blank line of `str.splitlines` exactly once:

    kept + sum(dropped.values()) + spec_lines == non-blank lines

`kept` lines are part of an implication, `spec_lines` are JSON read as a specification, and `dropped` counts the others
by reason. Implications inside JSON count in addition: one line for each line of a text, two for a pair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from evaluation.common.data import Frozen
from teacher.parsing.assembly import Item, assemble
from teacher.parsing.lines import (
    DropReason,
    Kind,
    Line,
    classify,
    count_lines,
    is_terminated,
    normalise,
    prompt_echoes,
    remove_bold,
    strip_markers,
)
from teacher.parsing.specs import RejectReason, Specification, read_specification
from teacher.self_edit import Implication, SelfEdit

_PROMPT_TAIL = re.compile(r"(?:\A|\n)[ \t]*(?:(?P<question>(?:Question|Q)\s?\d{0,4}\s?:)|[-*•]|\d{1,3}[.)])[ \t]*\Z")


class ParsedEdit(Frozen):
    """Result of parsing a text: exactly one of `edit` and `reason` is set."""

    edit: SelfEdit | None
    reason: RejectReason | None
    detail: str
    """Message for a rejected text: the field, what was got and what is allowed, or the line counts."""
    kept: int
    """Lines with usable content; of a rejected text, those that would have been used."""
    spec_lines: int
    """Lines of JSON read as a specification, valid or not."""
    dropped: dict[DropReason, int]
    """Dropped lines by reason; each count is at least 1."""


def parse_self_edit(text: str, *, prompt: str = "", finish_reason: Literal["stop", "length"] = "stop") -> ParsedEdit:
    """Return the self-edit in a completion, or the reason why there is none, in linear time.

    Args:
        text: The completion, of any content and length.
        prompt: The prompt it continues. Echoed lines are recognized, and an opening at its end ("Question 1:", "- ")
            is part of the first line.
        finish_reason: With `length`, an incomplete last line is dropped.
    """
    text = _replace_surrogates(text)
    spec = read_specification(text)
    items, counted = _read_lines(spec, prompt)
    _drop_duplicates(items)
    if finish_reason == "length":
        _drop_cut_line(items, spec.rest)
    kept = [item for item in items if item.dropped is None]
    counted.update(item.dropped for item in items if item.dropped is not None for _ in item.lines)
    counted[DropReason.EXTRA_SPECIFICATION] += spec.extra_lines
    dropped = {reason: counted[reason] for reason in DropReason if counted[reason]}
    edit, reason, detail = _verdict(kept, spec, dropped)
    return ParsedEdit(
        edit=edit,
        reason=reason,
        detail=detail,
        kept=sum(len(item.lines) for item in kept),
        spec_lines=count_lines(text) - count_lines(spec.rest) - spec.extra_lines,
        dropped=dropped,
    )


def _verdict(
    items: Sequence[Item], spec: Specification, dropped: Mapping[DropReason, int]
) -> tuple[SelfEdit | None, RejectReason | None, str]:
    """Return the edit, or the reason and detail why there is none."""
    if spec.reason is not None:
        return None, spec.reason, spec.detail
    if items or spec.augmentations is not None or spec.training is not None:
        implications = tuple(Implication(text=item.text, answer=item.answer) for item in items)
        edit = SelfEdit(implications=implications, augmentations=spec.augmentations, training=spec.training)
        return edit, None, ""
    if not dropped:
        return None, RejectReason.EMPTY, "the text is blank"
    detail = "every line was dropped: " + ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    looped = 2 * dropped.get(DropReason.DIGIT_LOOP, 0) >= sum(dropped.values())
    return None, RejectReason.DIGIT_LOOP if looped else RejectReason.NO_USABLE_LINES, detail


def _replace_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_lines(spec: Specification, prompt: str) -> tuple[list[Item], Counter[DropReason]]:
    """Return the items outside the JSON blocks, followed by those inside; see `assemble`."""
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
    entries: list[Line] = []
    for text, answer in spec.entries:
        entries += _entry_lines(_replace_surrogates(text), _replace_surrogates(answer or ""), len(lines) + len(entries))
    (outside, dropped), (inside, more) = assemble(lines), assemble(entries)
    return outside + inside, dropped + more


def _continue_prompt(first: Line, tail: re.Match[str]) -> Line:
    """Return the first line with the label or marker at the end of the prompt applied."""
    if first.kind not in (Kind.STATEMENT, Kind.CHOICE, DropReason.HEADING):
        return first
    if tail["question"] is None:
        return first._replace(marked=True, weak_heading=False)
    question = classify(f"{tail['question']} {first.text}", first.at)
    return question._replace(marked=first.marked, numbers=question.numbers + first.numbers)


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


def _drop_duplicates(items: Sequence[Item]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item.dropped is None:
            key = (normalise(item.text), normalise(item.answer or ""))
            item.dropped = DropReason.DUPLICATE if key in seen else None
            seen.add(key)


def _drop_cut_line(items: Sequence[Item], text: str) -> None:
    """Drop the implication that the end of `text` truncates, if any."""
    last = count_lines(text) - 1
    cut = [item for item in items if item.dropped is None and last in item.lines]
    if cut and text[-1:] not in ("\r", "\n") and not is_terminated(cut[-1].last_text):
        cut[-1].dropped = DropReason.CUT_LINE
