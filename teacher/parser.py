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

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from teacher.parsing.assembly import Assembly
from teacher.parsing.filters import apply_limits, drop_cut_line, drop_duplicates, find_flags
from teacher.parsing.reading import read_lines, replace_surrogates
from teacher.parsing.reasons import DropReason, Flag, RejectReason
from teacher.parsing.specs import Specification, read_specification
from teacher.parsing.text import count_lines
from teacher.parsing.verbatim import split_verbatim
from teacher.self_edit import Implication, SelfEdit

__all__ = ["DropReason", "Flag", "ParsedEdit", "RejectReason", "parse_self_edit"]


class ParsedEdit(BaseModel):
    """What a text was read as: exactly one of `edit` and `reason` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    mode: Literal["clean", "verbatim"] = "clean",
    split_newlines: bool = True,
    max_lines: int | None = None,
    max_line_characters: int | None = None,
) -> ParsedEdit:
    """Return the self-edit that a language model wrote, or the reason why there is none.

    Args:
        text: The completion, of any content and length; read in linear time.
        prompt: What the completion continues. Its lines are recognised when repeated, and an opening at its end
            ("Question 1:", "- ") counts as the beginning of the first line.
        finish_reason: How the engine stopped; None when unknown.
        mode: "clean" reads statements, pairs and JSON specifications; "verbatim" splits as SEAL does (see
            `teacher.parsing.verbatim`) and reads no JSON.
        split_newlines: Whether each line is a sequence; used by "verbatim" alone, "clean" always works by lines.
        max_lines: Keep at most so many implications, the first ones; None for no limit.
        max_line_characters: Leave out implications longer than this, question and answer together; None for no limit.
    """
    flags: set[Flag] = set()
    decodable = replace_surrogates(text)
    if decodable != text:
        flags.add(Flag.UNDECODABLE)
        text = decodable
    spec = read_specification(text) if mode == "clean" else Specification(rest=text)
    lines = count_lines(text)
    if mode == "verbatim":
        assembly = split_verbatim(text, split_newlines=split_newlines) if lines else Assembly()
    else:
        assembly = drop_duplicates(read_lines(spec, prompt))
    flags |= find_flags(text, prompt, finish_reason, assembly)
    if mode == "clean" and finish_reason == "length":
        assembly = drop_cut_line(assembly, spec.rest)
    assembly = apply_limits(assembly, max_lines, max_line_characters)
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
