"""Assembly of classified lines into implications: pairs answers with questions, joins wrapped lines, cuts off drift."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from teacher.parsing.lines import DropReason, Kind, Line, has_letter, is_terminated

_COLONS = (":", "：")
_LISTED_BEFORE_DRIFT = 2
"""After this many list items or pairs without a loose paragraph, an unmarked line after a blank one ends the edit."""


@dataclass(eq=False)
class Item:
    """An implication under construction."""

    text: str
    answer: str | None
    lines: list[int]
    """Indices of its lines."""
    awaits: bool = False
    """Opened by a bare label: the next line is its text, or its answer if it has a text."""
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


def assemble(lines: Sequence[Line]) -> tuple[list[Item], Counter[DropReason]]:
    """Return the items in `lines`, dropped ones included, and the number of lines without an item by reason.

    Every line is in exactly one item or counted.
    """
    state = _State()
    for line, following in itertools.zip_longest(lines, lines[1:]):
        state.feed(line, following.kind if following else None)
    for item in state.open.values():
        item.dropped = DropReason.UNANSWERED_QUESTION if item.text else DropReason.HEADING
    for item in state.items:
        if not item.has_content:
            item.dropped = DropReason.MARKER_ONLY if item.last_text else DropReason.UNANSWERED_QUESTION
    return sorted([*state.items, *state.open.values()], key=lambda item: min(item.lines)), state.dropped


class _State:
    """State of the assembly after some lines."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.open: dict[int, Item] = {}  # unanswered questions, by first line, in order
        self.open_by_number: dict[int, list[Item]] = {}  # answered ones are removed lazily
        self.dropped: Counter[DropReason] = Counter()  # lines without an item
        self.previous: Item | None = None  # the item of the previous line
        self.after_marked_heading = False
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
        elif isinstance(line.kind, DropReason):
            self._drop_noise(line, line.kind)
        else:
            self._add(line, following, previous)

    def _fill(self, line: Line, previous: Item | None) -> bool:
        """Complete a bare "Question 3:" or "Answer 3:" with the text of the next line."""
        if previous is None or not previous.awaits:
            return False
        is_number = line.kind is DropReason.MARKER_ONLY and any(map(str.isalnum, line.text))
        if not is_number and line.kind not in (Kind.STATEMENT, Kind.CHOICE):
            return False
        previous.extend(line, line.text)
        previous.awaits = False
        return True

    def _continue(self, line: Line, previous: Item | None) -> bool:
        """Join a wrapped line to the previous item: no blank line, no marker, and an incomplete sentence."""
        if previous is None or line.gap or line.marked or line.kind is not Kind.STATEMENT or self._is_open(previous):
            return False
        first = line.text[0]
        if is_terminated(previous.last_text) or first.isupper() or (first.isalpha() and not first.islower()):
            return False
        previous.extend(line, f"{previous.last_text} {line.text}")
        return True

    def _start_task(self, line: Line) -> None:
        """End the edit at another task; before any content it is an echo of the prompt."""
        if line.kind is Kind.PASSAGE and line.text and not (self.items or self.open):
            self._add_item(line, None)
            return
        self.dropped[DropReason.ECHOED_PROMPT] += 1
        self.over = bool(self.items or self.open)

    def _is_drift(self, line: Line, following: Kind | DropReason | None, after_heading: bool) -> bool:
        """Return whether `line` was written after the end of the list."""
        if self.suspended:
            if line.numbers:  # the list resumes, or another one begins
                self.suspended = line.numbers[0] != self.last_number + 1
                self.over = self.suspended
            return self.suspended
        if line.kind not in (Kind.STATEMENT, DropReason.PREAMBLE, Kind.CHOICE) or line.marked or line.indented:
            return False
        if after_heading or line.weak_heading or following is Kind.ANSWER or (self.open and line.kind is Kind.CHOICE):
            return False
        return self.listed >= _LISTED_BEFORE_DRIFT and self.loose == 0

    def _drop_noise(self, line: Line, reason: DropReason) -> None:
        first, heading = not (self.items or self.open), reason is DropReason.HEADING
        introduces = heading and line.text.endswith(_COLONS) and len(line.text.split()) >= 5
        self.dropped[DropReason.PREAMBLE if first and introduces and not line.marked else reason] += 1
        self.after_marked_heading = heading and line.marked

    def _add(self, line: Line, following: Kind | DropReason | None, previous: Item | None) -> None:
        """Add a line of content."""
        kind = line.kind
        if kind is Kind.CHOICE and previous is not None and self._is_open(previous):
            if line.text[:1] == "A" and following is not Kind.CHOICE:
                self._add_answer(line._replace(text=line.text[2:].strip()), previous)
            else:
                previous.options[line.text.lstrip("(")[:1]] = line.text.lstrip("(")[2:].strip()
                self.dropped[DropReason.CHOICE] += 1
                self.previous = previous
        elif kind is Kind.QUESTION or (
            kind is Kind.STATEMENT and (line.text.endswith("?") or following is Kind.ANSWER)
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
        self.previous = Item(line.text, answer, [line.at])
        self.items.append(self.previous)
        if line.marked or answer is not None:
            self.listed += 1
            self.last_number = line.numbers[0] if line.numbers else self.last_number
        else:
            self.loose += 1

    def _add_question(self, line: Line) -> None:
        item = Item(line.text, line.answer, [line.at], not line.text or line.answer == "", line.numbers)
        if line.answer == "":  # "Question: ...? Answer:" with the answer on the next line
            self.items.append(item)
        else:
            self.open[line.at] = item
            for number in line.numbers:
                self.open_by_number.setdefault(number, []).append(item)
        self.last_number = line.numbers[0] if line.numbers else self.last_number
        self.previous = item

    def _add_answer(self, line: Line, previous: Item | None) -> None:
        """Pair an answer with the question of its number, or else with the preceding one."""
        item = previous if previous is not None and self._is_open(previous) else None
        if item is None or item.numbers:  # an unlabelled question keeps the answer right below it
            item = self._open_question(line.numbers) or item
        if item is None and not line.numbers and self.open:
            item = next(reversed(self.open.values()))
        if item is None or not item.text:
            self.dropped[DropReason.UNPAIRED_ANSWER] += 1
            return
        del self.open[item.lines[0]]
        item.answer, item.awaits = item.options.get(line.text.strip("(). "), line.text), not line.text
        item.lines.append(line.at)
        self.items.append(item)
        self.listed += 1
        self.previous = item

    def _is_open(self, item: Item) -> bool:
        return item.lines[0] in self.open

    def _open_question(self, numbers: tuple[int, ...]) -> Item | None:
        """Return the latest open question with one of `numbers`."""
        found: list[Item] = []
        for number in numbers:
            candidates = self.open_by_number.get(number, [])
            while candidates and not self._is_open(candidates[-1]):
                candidates.pop()
            found += candidates[-1:]
        return max(found, key=lambda item: item.lines[0], default=None)
