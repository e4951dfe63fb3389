"""The parser of self-edits: model output to a self-edit, or a typed reason for its absence.

`parse_self_edit` never raises on model output and accounts for every non-blank line of `str.splitlines` exactly once:

    kept + sum(dropped.values()) + spec_lines == non-blank lines

`kept` lines are part of an implication, `spec_lines` are JSON read as a specification, and `dropped` counts the others
by reason. Implications inside JSON count in addition: one line for each line of a text, two for a pair. Classified
lines (`teacher.parsing.lines`) become implications: answers are paired with questions, wrapped lines joined, drift cut.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from evaluation.common.data import Frozen
from evaluation.common.text import without_thoughts
from teacher.parsing.lines import (
    DropReason,
    Kind,
    Line,
    classify,
    count_lines,
    has_letter,
    is_terminated,
    normalise,
    prompt_echoes,
    remove_bold,
    strip_markers,
    without_markup,
)
from teacher.parsing.specs import RejectReason, Specification, read_specification
from teacher.self_edit import Implication, SelfEdit

_PROMPT_TAIL = re.compile(r"(?:\A|\n)[ \t]*(?:(?P<question>(?:Question|Q)\s?\d{0,4}\s?:)|[-*•]|\d{1,3}[.)])[ \t]*\Z")
_COLONS = (":", "：")
_LISTED_BEFORE_DRIFT = 2
"""After this many list items or pairs without a loose paragraph, an unmarked line after a blank one ends the edit."""


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
    answer = without_thoughts(text, prompt)
    spoken, over = without_markup(answer)
    spec = read_specification(spoken)
    items, counted = _read_lines(spec, prompt)
    counted[DropReason.THOUGHT] += count_lines(text) - count_lines(answer)
    counted[DropReason.MARKER_ONLY] += count_lines(answer) - count_lines(spoken) - over
    counted[DropReason.OTHER_TASK] += over
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
        spec_lines=count_lines(spoken) - count_lines(spec.rest) - spec.extra_lines,
        dropped=dropped,
    )


def _verdict(
    items: Sequence[_Item], spec: Specification, dropped: Mapping[DropReason, int]
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
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_lines(spec: Specification, prompt: str) -> tuple[list[_Item], Counter[DropReason]]:
    """Return the items outside the JSON blocks, followed by those inside; see `_assemble`."""
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
    (outside, dropped), (inside, more) = _assemble(lines), _assemble(entries)
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


def _drop_duplicates(items: Sequence[_Item]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item.dropped is None:
            key = (normalise(item.text), normalise(item.answer or ""))
            item.dropped = DropReason.DUPLICATE if key in seen else None
            seen.add(key)


def _drop_cut_line(items: Sequence[_Item], text: str) -> None:
    """Drop the implication that the end of `text` truncates, if any."""
    last = count_lines(text) - 1
    cut = [item for item in items if item.dropped is None and last in item.lines]
    if cut and text[-1:] not in ("\r", "\n") and not is_terminated(cut[-1].last_text):
        cut[-1].dropped = DropReason.CUT_LINE


@dataclass(eq=False)
class _Item:
    """An implication under construction."""

    text: str
    answer: str | None
    lines: list[int]
    awaits: bool = False
    """Opened by a bare label: the next line is its text, or its answer if it has a text."""
    pending: bool = False
    """A question without an answer so far."""
    numbers: tuple[int, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    """Choices listed under a question, by letter."""
    dropped: DropReason | None = None
    """Why it is not part of the self-edit; None if it is."""

    @property
    def last_text(self) -> str:
        """The part that a wrapped line continues."""
        return self.text if self.answer is None else self.answer

    def extend(self, line: Line, last_text: str) -> None:
        """Add a line that changes the last part to `last_text`."""
        if self.answer is None:
            self.text = last_text
        else:
            self.answer = last_text
        self.lines.append(line.at)

    @property
    def has_content(self) -> bool:
        """Whether the text has a letter, and the answer a letter or a digit."""
        return has_letter(self.text) and (self.answer is None or any(map(str.isalnum, self.answer)))


def _assemble(lines: Sequence[Line]) -> tuple[list[_Item], Counter[DropReason]]:
    """Return the items in `lines`, dropped ones included, and the number of lines without an item by reason.

    Every line is in exactly one item or counted.
    """
    state = _State()
    for line, following in itertools.zip_longest(lines, lines[1:]):
        state.feed(line, following.kind if following else None)
    for item in state.items:
        if item.pending:
            item.dropped = DropReason.UNANSWERED_QUESTION if item.text else DropReason.HEADING
        elif not item.has_content:
            item.dropped = DropReason.MARKER_ONLY if item.last_text else DropReason.UNANSWERED_QUESTION
    return state.items, state.dropped


class _State:
    """State of the assembly after some lines."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.questions: dict[int | None, list[_Item]] = {}  # by number, and all; answered ones are removed lazily
        self.dropped: Counter[DropReason] = Counter()  # lines without an item
        self.previous: _Item | None = None  # the item of the previous line
        self.after_marked_heading = False
        self.refused = False
        self.over = False  # another task began; the rest is not part of the edit
        self.suspended = False  # the list seems to have ended; it resumes if its numbering does
        self.listed = self.loose = self.last_number = 0

    def feed(self, line: Line, following: Kind | DropReason | None) -> None:
        previous, self.previous = self.previous, None
        after_heading, self.after_marked_heading = self.after_marked_heading, False
        if self.over:
            self.dropped[DropReason.OTHER_TASK] += 1
        elif self._fill(line, previous) or self._continue(line, previous):
            self.previous = previous
        elif line.kind in (Kind.TASK_START, Kind.PASSAGE):
            self._start_task(line)
        elif self._is_drift(line, following, after_heading):
            self.suspended = True
            self.dropped[DropReason.OTHER_TASK] += 1
        elif self.refused and line.kind is Kind.STATEMENT and not line.marked:
            self.dropped[DropReason.REFUSAL] += 1
        elif isinstance(line.kind, DropReason):
            self.refused |= line.kind is DropReason.REFUSAL
            self._drop_noise(line, line.kind)
        else:
            self._add(line, following, previous)

    def _fill(self, line: Line, previous: _Item | None) -> bool:
        """Complete a bare "Question 3:" or "Answer 3:" with the text of the next line."""
        if previous is None or not previous.awaits:
            return False
        is_number = line.kind is DropReason.MARKER_ONLY and any(map(str.isalnum, line.text))
        if not is_number and line.kind not in (Kind.STATEMENT, Kind.CHOICE):
            return False
        previous.extend(line, line.text)
        previous.awaits = False
        return True

    def _continue(self, line: Line, previous: _Item | None) -> bool:
        """Join a wrapped line to the previous item: no blank line, no marker, and an incomplete sentence."""
        if previous is None or line.gap or line.marked or line.kind is not Kind.STATEMENT or previous.pending:
            return False
        first = line.text[0]
        if is_terminated(previous.last_text) or first.isupper() or (first.isalpha() and not first.islower()):
            return False
        previous.extend(line, f"{previous.last_text} {line.text}")
        return True

    def _start_task(self, line: Line) -> None:
        """End the edit at another task; before any content it is an echo of the prompt."""
        if line.kind is Kind.PASSAGE and line.text and not self.items:
            self._add_item(line, None)
            return
        self.dropped[DropReason.ECHOED_PROMPT] += 1
        self.over = bool(self.items)

    def _is_drift(self, line: Line, following: Kind | DropReason | None, after_heading: bool) -> bool:
        """Return whether `line` was written after the end of the list."""
        if self.suspended:
            if line.numbers:  # the list resumes, or another one begins
                self.suspended = line.numbers[0] != self.last_number + 1
                self.over = self.suspended
            return self.suspended
        if line.kind not in (Kind.STATEMENT, DropReason.PREAMBLE, Kind.CHOICE) or line.marked or line.indented:
            return False
        if after_heading or line.weak_heading or following is Kind.ANSWER:
            return False
        if line.kind is Kind.CHOICE and self._open_question(None) is not None:
            return False
        return self.listed >= _LISTED_BEFORE_DRIFT and self.loose == 0

    def _drop_noise(self, line: Line, reason: DropReason) -> None:
        heading = reason is DropReason.HEADING
        introduces = heading and line.text.endswith(_COLONS) and len(line.text.split()) >= 5
        self.dropped[DropReason.PREAMBLE if introduces and not (self.items or line.marked) else reason] += 1
        self.after_marked_heading = heading and line.marked

    def _add(self, line: Line, following: Kind | DropReason | None, previous: _Item | None) -> None:
        """Add a line of content."""
        kind = line.kind
        if kind is Kind.CHOICE and previous is not None and previous.pending:
            if line.text[:1] == "A" and following is not Kind.CHOICE:
                self._add_answer(line._replace(text=line.text[2:].strip()), previous)
            else:
                previous.options[line.text.lstrip("(")[:1]] = line.text.lstrip("(")[2:].strip()
                self.dropped[DropReason.CHOICE] += 1
                self.previous = previous
        elif kind is Kind.QUESTION or (
            kind is Kind.STATEMENT and (line.text.endswith(("?", "？", "؟")) or following is Kind.ANSWER)
        ):
            self._add_question(line)
        elif kind is Kind.ANSWER:
            self._add_answer(line, previous)
        elif kind is Kind.PAIR:
            self._add_item(line, line.answer)
        elif line.weak_heading:
            self.dropped[DropReason.HEADING] += 1
        else:
            self._add_item(line, None)

    def _add_item(self, line: Line, answer: str | None) -> None:
        self.previous = _Item(line.text, answer, [line.at])
        self.items.append(self.previous)
        if line.marked or answer is not None:
            self.listed += 1
            self.last_number = line.numbers[0] if line.numbers else self.last_number
        else:
            self.loose += 1

    def _add_question(self, line: Line) -> None:
        item = _Item(line.text, line.answer, [line.at], not line.text or line.answer == "", numbers=line.numbers)
        self.items.append(item)
        if line.answer is None:  # else "Question: ...? Answer:" with the answer on the next line
            item.pending = True
            for number in (None, *line.numbers):
                self.questions.setdefault(number, []).append(item)
        self.last_number = line.numbers[0] if line.numbers else self.last_number
        self.previous = item

    def _add_answer(self, line: Line, previous: _Item | None) -> None:
        """Pair an answer with the question of its number, or else with the preceding one."""
        item = previous if previous is not None and previous.pending else None
        if item is None or item.numbers:  # an unlabelled question keeps the answer right below it
            item = self._open_question(*line.numbers) or item
        if item is None and not line.numbers:
            item = self._open_question(None)
        if item is None or not item.text:
            self.dropped[DropReason.UNPAIRED_ANSWER] += 1
            return
        item.answer, item.awaits = item.options.get(line.text.strip("(). "), line.text), not line.text
        item.pending = False
        item.lines.append(line.at)
        self.listed += 1
        self.previous = item

    def _open_question(self, *numbers: int | None) -> _Item | None:
        """Return the latest open question with one of `numbers`; None stands for any."""
        found: list[_Item] = []
        for candidates in (self.questions.get(number, []) for number in numbers):
            while candidates and not candidates[-1].pending:
                candidates.pop()
            found += candidates[-1:]
        return max(found, key=lambda item: item.lines[0], default=None)
