"""What lines mean among their neighbours: answers meet their questions, wrapped lines are joined, drift is cut off."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from teacher.parsing.lines import Kind, Line, has_letter, is_terminated

_COLONS = (":", "：")
_LISTED_BEFORE_DRIFT = 2
"""After so many list items or pairs and no loose paragraph, an unmarked line after a blank one ends the edit."""


class DropReason(StrEnum):
    """Why a line that was written did not become part of the self-edit."""

    MARKER_ONLY = "marker_only"
    """No letter in it: a rule, a fence, a lone number or bullet, a tag."""
    HEADING = "heading"
    """A title, a label or the introduction of a list; it states nothing."""
    PREAMBLE = "preamble"
    """Words to the reader around the content ("Certainly! Here is ...:", "I hope this helps")."""
    ECHOED_PROMPT = "echoed_prompt"
    """Repeats the prompt: its instruction, one of its labels or its passage."""
    OTHER_TASK = "other_task"
    """Follows the end of the edit: the model went on with another passage, a chat or a closing remark."""
    DUPLICATE = "duplicate"
    """Says what an earlier line of this edit says, up to case, spaces and final punctuation."""
    DIGIT_LOOP = "digit_loop"
    """Counts or repeats a number ("1. 1. 1.", "1. 2. 3.")."""
    UNANSWERED_QUESTION = "unanswered_question"
    """A question that got no answer."""
    UNPAIRED_ANSWER = "unpaired_answer"
    """An answer to no question."""
    CHOICE = "choice"
    """An option of a multiple-choice question."""
    CUT_LINE = "cut_line"
    """The last line, when the engine stopped at the token limit in the middle of it."""
    EXTRA_SPECIFICATION = "extra_specification"
    """A JSON block with a part that an earlier block has already given."""


@dataclass(eq=False)
class Item:
    """An implication in the making, with the lines that it was made of."""

    text: str
    answer: str | None
    lines: list[int]
    awaits: bool = False
    """A bare label opened it; the next line is its text, or its answer when `text` is there."""
    numbers: tuple[int, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    """Choices listed under a question, by letter."""

    @property
    def last_text(self) -> str:
        """The part that a wrapped line would continue."""
        return self.text if self.answer is None else self.answer


@dataclass
class Assembly:
    """The implications of a text, and the fate of each of its lines."""

    items: list[Item] = field(default_factory=list)
    """In the order of their first lines."""
    dropped: dict[int, DropReason] = field(default_factory=dict)
    """Position of each line that is in no item, with the reason."""

    @property
    def kept_lines(self) -> set[int]:
        """Positions of the lines that items are made of."""
        return {at for item in self.items for at in item.lines}


def assemble(lines: Sequence[Line]) -> Assembly:
    """Return the implications that `lines` hold; every line ends up in exactly one item or in `dropped`."""
    state = _State()
    for line, following in itertools.zip_longest(lines, lines[1:]):
        state.feed(line, following.kind if following else None)
    return state.finish()


class _State:
    """What has been read so far."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.open: dict[int, Item] = {}  # questions without an answer, by first line, in order
        self.open_by_number: dict[int, list[Item]] = {}  # holds answered ones too, until they are looked up
        self.dropped: dict[int, DropReason] = {}
        self.previous: Item | None = None  # what the line just before became part of
        self.after_marked_heading = False
        self.over = False  # another task began; nothing after it belongs to the edit
        self.suspended = False  # the list seems to have ended; it continues if its numbering does
        self.listed = self.loose = self.last_number = 0

    def feed(self, line: Line, following: Kind | None) -> None:
        previous, self.previous = self.previous, None
        after_heading, self.after_marked_heading = self.after_marked_heading, False
        if self.over:
            self.dropped[line.at] = DropReason.OTHER_TASK
        elif self._fill(line, previous) or self._continue(line, previous):
            return
        elif line.kind in (Kind.TASK_START, Kind.PASSAGE):
            self._start_task(line)
        elif self._is_drift(line, following, after_heading):
            self.suspended = True
            self.dropped[line.at] = DropReason.OTHER_TASK
        elif line.kind in (Kind.MARKER_ONLY, Kind.DIGIT_LOOP, Kind.ECHO, Kind.HEADING, Kind.PREAMBLE):
            self._drop_noise(line)
        else:
            self._take(line, following, previous)

    def finish(self) -> Assembly:
        for item in self.open.values():
            reason = DropReason.UNANSWERED_QUESTION if item.text else DropReason.HEADING
            self.dropped.update(dict.fromkeys(item.lines, reason))
        kept = [item for item in self.items if _has_content(item)]
        for item in self.items:
            if not _has_content(item):
                reason = DropReason.MARKER_ONLY if item.last_text else DropReason.UNANSWERED_QUESTION
                self.dropped.update(dict.fromkeys(item.lines, reason))
        return Assembly(sorted(kept, key=lambda item: min(item.lines)), self.dropped)

    def _fill(self, line: Line, previous: Item | None) -> bool:
        """Give a bare "Question 3:" or "Answer 3:" its text from the line after it."""
        if previous is None or not previous.awaits:
            return False
        fits = line.kind in (Kind.STATEMENT, Kind.CHOICE) or (
            line.kind is Kind.MARKER_ONLY and any(character.isalnum() for character in line.text)
        )
        if not fits:
            return False
        if previous.answer is None:
            previous.text = line.text
        else:
            previous.answer = line.text
        previous.awaits = False
        previous.lines.append(line.at)
        self.previous = previous
        return True

    def _continue(self, line: Line, previous: Item | None) -> bool:
        """Join a wrapped line to the item before it: no blank line, no marker, and the sentence is not finished."""
        if previous is None or line.gap or line.marked or line.kind is not Kind.STATEMENT or self._is_open(previous):
            return False
        first = line.text[0]
        if is_terminated(previous.last_text) or first.isupper() or (first.isalpha() and not first.islower()):
            return False
        joined = f"{previous.last_text} {line.text}"
        if previous.answer is None:
            previous.text = joined
        else:
            previous.answer = joined
        previous.lines.append(line.at)
        self.previous = previous
        return True

    def _start_task(self, line: Line) -> None:
        """End the edit at another task; before any content it is the prompt itself that is repeated."""
        if line.kind is Kind.PASSAGE and line.text and not (self.items or self.open):
            self._keep(line, None)
            return
        self.dropped[line.at] = DropReason.ECHOED_PROMPT
        self.over = bool(self.items or self.open)

    def _is_drift(self, line: Line, following: Kind | None, after_heading: bool) -> bool:
        """Say whether `line` belongs to what a model wrote after its list had ended."""
        if self.suspended:
            if line.numbers:  # the list continues, or another one begins
                self.suspended = line.numbers[0] != self.last_number + 1
                self.over = self.suspended
            return self.suspended
        if line.kind not in (Kind.STATEMENT, Kind.PREAMBLE, Kind.CHOICE) or line.marked or line.indented:
            return False
        if after_heading or line.weak_heading or following is Kind.ANSWER or (self.open and line.kind is Kind.CHOICE):
            return False
        return self.listed >= _LISTED_BEFORE_DRIFT and self.loose == 0

    def _drop_noise(self, line: Line) -> None:
        reasons = {
            Kind.MARKER_ONLY: DropReason.MARKER_ONLY,
            Kind.DIGIT_LOOP: DropReason.DIGIT_LOOP,
            Kind.ECHO: DropReason.ECHOED_PROMPT,
            Kind.HEADING: DropReason.HEADING,
            Kind.PREAMBLE: DropReason.PREAMBLE,
        }
        first = not (self.items or self.open)
        introduces = line.kind is Kind.HEADING and line.text.endswith(_COLONS) and len(line.text.split()) >= 5
        is_preamble = first and introduces and not line.marked
        self.dropped[line.at] = DropReason.PREAMBLE if is_preamble else reasons[line.kind]
        self.after_marked_heading = line.kind is Kind.HEADING and line.marked

    def _take(self, line: Line, following: Kind | None, previous: Item | None) -> None:
        """Read a line of content."""
        kind = line.kind
        if kind is Kind.CHOICE and previous is not None and self._is_open(previous):
            if line.text[:1] == "A" and following is not Kind.CHOICE:
                self._answer(line._replace(text=line.text[2:].strip()), previous)
            else:
                previous.options[line.text.lstrip("(")[:1]] = line.text.lstrip("(")[2:].strip()
                self.dropped[line.at] = DropReason.CHOICE
                self.previous = previous
            return
        if kind is Kind.QUESTION or (kind is Kind.STATEMENT and (line.text.endswith("?") or following is Kind.ANSWER)):
            self._ask(line)
        elif kind is Kind.ANSWER:
            self._answer(line, previous)
        elif kind is Kind.PAIR:
            self._keep(line, line.answer)
        elif line.weak_heading:
            self.dropped[line.at] = DropReason.HEADING
        else:
            self._keep(line, None)

    def _keep(self, line: Line, answer: str | None) -> None:
        item = Item(line.text, answer, [line.at])
        self.items.append(item)
        self.previous = item
        if line.marked or answer is not None:
            self.listed += 1
            self.last_number = line.numbers[0] if line.numbers else self.last_number
        else:
            self.loose += 1

    def _ask(self, line: Line) -> None:
        item = Item(line.text, line.answer, [line.at], not line.text or line.answer == "", line.numbers)
        if line.answer == "":  # "Question: ...? Answer:" with the answer on the next line
            self.items.append(item)
        else:
            self.open[line.at] = item
            for number in line.numbers:
                self.open_by_number.setdefault(number, []).append(item)
        self.last_number = line.numbers[0] if line.numbers else self.last_number
        self.previous = item

    def _answer(self, line: Line, previous: Item | None) -> None:
        """Give an answer to the question of its number, else to the question just before it."""
        item = previous if previous is not None and self._is_open(previous) else None
        if item is None or item.numbers:  # an unlabelled question keeps the answer right below it
            item = self._open_question(line.numbers) or item
        if item is None and not line.numbers and self.open:
            item = next(reversed(self.open.values()))
        if item is None or not item.text:
            self.dropped[line.at] = DropReason.UNPAIRED_ANSWER
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
        """Return the latest open question that has one of `numbers`."""
        found: list[Item] = []
        for number in numbers:
            asked = self.open_by_number.get(number, [])
            while asked and not self._is_open(asked[-1]):
                asked.pop()
            found += asked[-1:]
        return max(found, key=lambda item: item.lines[0], default=None)


def _has_content(item: Item) -> bool:
    """Say whether an item states something: a letter in its text, and a letter or a digit in its answer."""
    answered = item.answer is None or any(character.isalnum() for character in item.answer)
    return has_letter(item.text) and answered
