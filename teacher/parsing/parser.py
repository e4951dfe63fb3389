"""The parser of self-edits: from whatever a language model wrote to a self-edit, or a typed reason why not.

`parse_self_edit` never raises on model output and never loses a line silently. A line is what `str.splitlines` gives;
each non-blank line of the text is counted exactly once:

    kept + sum(dropped.values()) + spec_lines == non-blank lines

`kept` lines are part of an implication (question and answer of a pair count one line each, unless they stand on one
line; a wrapped line counts too), `spec_lines` are JSON that became augmentations and training, and the others are
counted in `dropped` by reason. Implications inside a JSON block are counted as lines of their own, on top: one for
each line of a text, two for a pair.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import model_validator

from evaluation.common.data import Frozen
from teacher.parsing.assembly import Assembly, DropReason, assemble
from teacher.parsing.lines import (
    Kind,
    Line,
    classify,
    count_lines,
    has_letter,
    is_digit_loop,
    is_terminated,
    normalise,
    prompt_echoes,
    remove_bold,
    strip_markers,
)
from teacher.parsing.specs import RejectReason, Specification, read_specification
from teacher.self_edit import Implication, SelfEdit

__all__ = ["DropReason", "Flag", "ParsedEdit", "RejectReason", "parse_self_edit"]

_PROMPT_TAIL = re.compile(r"(?:\A|\n)[ \t]*(?:(?P<question>(?:Question|Q)\s?\d{0,4}\s?:)|[-*•]|\d{1,3}[.)])[ \t]*\Z")
_NON_LATIN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")
_LONG_LINE = 200
"""Characters from which a text's only line is taken to be cut when it does not end like a sentence."""


class Flag(StrEnum):
    """What else was noticed about a text; a flag alone never rejects it."""

    CUT_AT_CAP = "cut_at_cap"
    """The engine stopped at its token limit, or, when that is unknown, the last line breaks off."""
    DIGIT_LOOP = "digit_loop"
    """At least one line counts or repeats a number."""
    REPETITIVE = "repetitive"
    """More than 30% of the lines are duplicates, or more than 1,500 characters compress to under a quarter."""
    OTHER_SCRIPT = "other_script"
    """More than a fifth of the letters are not Latin, and the prompt's are."""
    UNDECODABLE = "undecodable"
    """Lone surrogates were replaced by U+FFFD."""


class ParsedEdit(Frozen):
    """What a text was read as: exactly one of `edit` and `reason` is set."""

    edit: SelfEdit | None = None
    reason: RejectReason | None = None
    """Why there is no edit; None when there is one."""
    detail: str = ""
    """What was wrong, for people: the field, what was got and what is allowed, or the counts; empty for an edit."""
    kept: int = 0
    """Lines with usable content, at least 0; of a rejected text, those that would have been used."""
    spec_lines: int = 0
    """Lines of JSON that were read as a specification, good or bad, at least 0."""
    dropped: dict[DropReason, int] = {}
    """Lines left out, at least 1 for each reason that occurs."""
    flags: tuple[Flag, ...] = ()
    """What else was noticed, in the order of `Flag`."""

    @model_validator(mode="after")
    def _one_outcome(self) -> ParsedEdit:
        if (self.edit is None) == (self.reason is None):
            raise ValueError("exactly one of edit and reason must be set")
        return self


def parse_self_edit(
    text: str,
    *,
    prompt: str = "",
    finish_reason: Literal["stop", "length"] | None = None,
) -> ParsedEdit:
    """Return the self-edit that a language model wrote, or the reason why there is none.

    Args:
        text: The completion, of any content and length; read in linear time.
        prompt: What the completion continues. Its lines are recognised when repeated, and an opening at its end
            ("Question 1:", "- ") counts as the beginning of the first line.
        finish_reason: How the engine stopped; None when unknown.
    """
    flags: set[Flag] = set()
    decodable = _replace_surrogates(text)
    if decodable != text:
        flags.add(Flag.UNDECODABLE)
        text = decodable
    spec = read_specification(text)
    lines = count_lines(text)
    assembly = _drop_duplicates(_read_lines(spec, prompt))
    flags |= _find_flags(text, prompt, finish_reason, assembly)
    if finish_reason == "length":
        assembly = _drop_cut_line(assembly, spec.rest)
    counted = Counter(assembly.dropped.values())
    counted[DropReason.EXTRA_SPECIFICATION] += spec.extra_lines
    dropped = {reason: counted[reason] for reason in DropReason if counted[reason]}
    edit, reason, detail = _verdict(assembly, spec, dropped)
    return ParsedEdit(
        edit=edit,
        reason=reason,
        detail=detail,
        kept=len(assembly.kept_lines),
        spec_lines=lines - count_lines(spec.rest) - spec.extra_lines,
        dropped=dropped,
        flags=tuple(flag for flag in Flag if flag in flags),
    )


def _verdict(
    assembly: Assembly, spec: Specification, dropped: dict[DropReason, int]
) -> tuple[SelfEdit | None, RejectReason | None, str]:
    """Return the edit when there is anything in it and its specification is good, else reason and detail."""
    if spec.reason is not None:
        return None, spec.reason, spec.detail
    implications = tuple(Implication(text=item.text, answer=item.answer) for item in assembly.items)
    if implications or spec.augmentations is not None or spec.training is not None:
        edit = SelfEdit(implications=implications, augmentations=spec.augmentations, training=spec.training)
        return edit, None, ""
    if not dropped:
        return None, RejectReason.EMPTY, "the text holds no line that says anything"
    detail = "every line was dropped: " + ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    looped = 2 * dropped.get(DropReason.DIGIT_LOOP, 0) >= sum(dropped.values())
    return None, RejectReason.DIGIT_LOOP if looped else RejectReason.NO_USABLE_LINES, detail


def _replace_surrogates(text: str) -> str:
    """Return `text` with pairs of surrogates joined and lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_lines(spec: Specification, prompt: str) -> Assembly:
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
        entries += _entry_lines(_replace_surrogates(text), _replace_surrogates(answer or ""), len(lines) + len(entries))
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


def _drop_duplicates(assembly: Assembly) -> Assembly:
    """Return `assembly` without what an earlier implication says already."""
    seen: set[tuple[str, str]] = set()
    reasons: dict[int, DropReason] = {}
    for position, item in enumerate(assembly.items):
        key = (normalise(item.text), normalise(item.answer or ""))
        if key in seen:
            reasons[position] = DropReason.DUPLICATE
        seen.add(key)
    return _leave_out(assembly, reasons)


def _drop_cut_line(assembly: Assembly, text: str) -> Assembly:
    """Return `assembly` without the implication in whose middle `text` ends, if it does."""
    last = count_lines(text) - 1
    cut = [position for position, item in enumerate(assembly.items) if last in item.lines]
    if not cut or _ends_line(text) or is_terminated(assembly.items[cut[-1]].last_text):
        return assembly
    return _leave_out(assembly, {cut[-1]: DropReason.CUT_LINE})


def _leave_out(assembly: Assembly, reasons: Mapping[int, DropReason]) -> Assembly:
    """Return `assembly` without the items at the positions in `reasons`; lines of other items stay kept."""
    left = Assembly([item for position, item in enumerate(assembly.items) if position not in reasons])
    kept = left.kept_lines
    out = {at: reason for position, reason in reasons.items() for at in assembly.items[position].lines}
    left.dropped = assembly.dropped | {at: reason for at, reason in out.items() if at not in kept}
    return left


def _find_flags(text: str, prompt: str, finish_reason: str | None, assembly: Assembly) -> set[Flag]:
    """Return what is to be noticed about `text`, whose implications are in `assembly`."""
    flags: set[Flag] = set()
    if finish_reason == "length" or (finish_reason is None and _breaks_off(text, assembly)):
        flags.add(Flag.CUT_AT_CAP)
    if any(is_digit_loop(line) for line in text.splitlines()):
        flags.add(Flag.DIGIT_LOOP)
    duplicates = sum(reason is DropReason.DUPLICATE for reason in assembly.dropped.values())
    if duplicates > 0.3 * (len(assembly.dropped) + len(assembly.kept_lines)) or _compresses(text):
        flags.add(Flag.REPETITIVE)
    if _share_not_latin(text) > 0.2 and _share_not_latin(prompt) <= 0.2:
        flags.add(Flag.OTHER_SCRIPT)
    return flags


def _ends_line(text: str) -> bool:
    return bool(text) and text[-1] in "\r\n"


def _breaks_off(text: str, assembly: Assembly) -> bool:
    """Say whether the last line ends in the middle of a sentence while most implications before it do not."""
    lines = text.split("\n")
    if not text.strip() or _ends_line(text) or is_terminated(text.rstrip()) or not has_letter(lines[-1]):
        return False
    before = [is_terminated(item.last_text) for item in assembly.items[:-1]]
    return 2 * sum(before) > len(before) if before else len(lines[-1]) >= _LONG_LINE


def _compresses(text: str) -> bool:
    data = text.encode()
    return len(text) > 1500 and len(zlib.compress(data)) < 0.25 * len(data)


def _share_not_latin(text: str) -> float:
    """Return the share of letters outside the Latin script, in [0, 1]; 0 for a text without letters."""
    if text.isascii():
        return 0.0
    letters = len(_LETTER.findall(text))
    return len(_NON_LATIN.findall(text)) / letters if letters else 0.0
