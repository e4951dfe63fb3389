"""What a teacher imitates: given lines in the form that its prompt begins, which the parser reads back as they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from evaluation.common.text import NO_THOUGHTS
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import prompt_token_ids
from teacher.self_edit import Implication

_FIRST_QUESTION = re.compile(r"(?:Question|Q) ?1:\Z")
_ANSWER = "The answer."


def target_text(lines: Sequence[Implication], prompt: str, cue: str = "") -> str:
    """Return lines as the continuation of a prompt: numbered where it ends with `Question 1:`, else one `- ` item each.

    `cue` is the template's; a chat's prompt leaves out its last line break, with which the text then begins.
    """
    if opened := _FIRST_QUESTION.search(prompt):
        question, answer = ("Question", "Answer") if opened[0].startswith("Question") else ("Q", "A")
        pairs = [f" {line.text}\n{answer} {i}: {line.answer}" for i, line in enumerate(lines, 1)]
        return pairs[0] + "".join(f"\n{question} {i}:{pair}" for i, pair in enumerate(pairs[1:], 2))
    opening = "\n" if cue.endswith("\n") and not prompt.endswith("\n") else ""
    return opening + "\n".join(f"- {line.line}" for line in lines)


def readable_lines(lines: Sequence[Implication], prompt: str, cue: str = "") -> tuple[Implication, ...]:
    """Return those of some lines that the parser reads back from `target_text` exactly as they are, each once.

    A prompt that begins a question leaves statements out.
    """

    def read(some: tuple[Implication, ...]) -> tuple[Implication, ...]:
        parsed = parse_self_edit(target_text(some, prompt, cue), prompt=prompt).edit if some else None
        return () if parsed is None else parsed.implications

    asked = bool(_FIRST_QUESTION.search(prompt))
    alone = tuple(line for line in dict.fromkeys(lines) if (line.answer or not asked) and read((line,)) == (line,))
    together = read(alone)
    kept = tuple(line for line in alone if line in together)  # the parser takes what differs in case alone once
    return kept if read(kept) == kept else ()


def end_token(tokenizer: Any, ends: Collection[int], *, chat: bool) -> int | None:
    """Return the token with which an answer ends, one of those that end sampling; None for a model that has none.

    In a chat it is the one that the chat template writes behind an assistant's answer, such as `<|im_end|>`.
    """
    if chat:
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": _ANSWER}]
        written = str(tokenizer.apply_chat_template(turns, tokenize=False, **NO_THOUGHTS))
        closing = tokenizer(written.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
        if found := [token for token in closing if token in ends]:
            return int(found[0])
    return tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends, default=None)


def target_tokens(tokenizer: Any, prompt: str, text: str, end: int | None) -> tuple[int, ...]:
    """Return the tokens of a text behind a prompt, and the end token."""
    before, whole = prompt_token_ids(tokenizer, prompt), prompt_token_ids(tokenizer, prompt + text)
    # Where the tokens of the prompt are not its own, because one spans the seam, the text is read alone.
    apart = whole[: len(before)] != before
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if apart else whole[len(before) :]
    return (*ids, *(() if end is None else (end,)))
