"""What happens to implications once they are read: duplicates, a cut last line, limits; and the flags of a text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from teacher.parsing.assembly import Assembly
from teacher.parsing.reasons import DropReason, Flag
from teacher.parsing.text import count_lines, has_letter, is_digit_loop, is_terminated, normalise

_NON_LATIN = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")
_LETTER = re.compile(r"[^\W\d_]")
_LONG_LINE = 200
"""Characters from which a text's only line is taken to be cut when it does not end like a sentence."""


def drop_duplicates(assembly: Assembly) -> Assembly:
    """Return `assembly` without what an earlier implication says already."""
    seen: set[tuple[str, str]] = set()
    reasons: dict[int, DropReason] = {}
    for position, item in enumerate(assembly.items):
        key = (normalise(item.text), normalise(item.answer or ""))
        if key in seen:
            reasons[position] = DropReason.DUPLICATE
        seen.add(key)
    return _leave_out(assembly, reasons)


def drop_cut_line(assembly: Assembly, text: str) -> Assembly:
    """Return `assembly` without the implication in whose middle `text` ends, if it does."""
    last = count_lines(text) - 1
    cut = [position for position, item in enumerate(assembly.items) if last in item.lines]
    if not cut or _ends_line(text) or is_terminated(assembly.items[cut[-1]].last_text):
        return assembly
    return _leave_out(assembly, {cut[-1]: DropReason.CUT_LINE})


def apply_limits(assembly: Assembly, max_lines: int | None, max_line_characters: int | None) -> Assembly:
    """Return `assembly` without implications that are too long, and without those after the first `max_lines`."""
    reasons: dict[int, DropReason] = {}
    for position, item in enumerate(assembly.items):
        if max_line_characters is not None and len(item.text) + len(item.answer or "") > max_line_characters:
            reasons[position] = DropReason.LINE_TOO_LONG
        elif max_lines is not None and position - len(reasons) >= max_lines:
            reasons[position] = DropReason.OVER_LIMIT
    return _leave_out(assembly, reasons)


def find_flags(text: str, prompt: str, finish_reason: str | None, assembly: Assembly) -> set[Flag]:
    """Return what is to be noticed about `text`, whose implications are in `assembly`, limits not yet applied."""
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


def _leave_out(assembly: Assembly, reasons: Mapping[int, DropReason]) -> Assembly:
    """Return `assembly` without the items at the positions in `reasons`; lines of other items stay kept."""
    left = Assembly([item for position, item in enumerate(assembly.items) if position not in reasons])
    kept = left.kept_lines
    out = {at: reason for position, reason in reasons.items() for at in assembly.items[position].lines}
    left.dropped = assembly.dropped | {at: reason for at, reason in out.items() if at not in kept}
    return left


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
