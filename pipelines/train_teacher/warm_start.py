"""The warm start: which lines of which training documents a teacher imitates before the first round, and in which form.

Lines take the form that the teacher's prompt begins, which the parser reads back as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, InputError
from evaluation.common.text import NO_THOUGHTS
from evaluation.sources.files import json_lines, read_data_file
from evaluation.sources.rows import Content, Refusals
from evaluation.tasks import KnowledgeTask, Split
from teacher.algorithms.algorithm import Algorithm, WeightedExample
from teacher.algorithms.rest_em import RestEmConfig
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import prompt_template, prompt_token_ids
from teacher.samplers.sampler import LocalSampling, end_tokens, prompts_too_long
from teacher.self_edit import Implication

if TYPE_CHECKING:
    from pipelines.loop.loop import Loop

Targets = Mapping[str, Sequence[Implication]]
"""Lines to imitate by the id of their document."""
_FIRST_QUESTION = re.compile(r"(?:Question|Q) ?1:\Z")
_ANSWER = "The answer."


class WarmStartConfig(Frozen):
    """Supervised steps before the first round: the untrained teacher imitates lines about training documents."""

    documents: int = Field(default=48, ge=1, le=100_000)
    """Training documents whose lines are imitated, in [1, 100000]: the last ones, which rounds take after all others,
    since a teacher that has read a document's questions need not find them."""
    epochs: int = Field(default=2, ge=1, le=100)
    """Passes over them, in [1, 100]."""
    batch_size: int = Field(default=4, ge=1, le=65_536)
    """Documents for each optimizer step, in [1, 65536]."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=0.1)
    """Step size of AdamW, constant, in (0, 0.1]."""
    lines: Path | None = None
    """JSON Lines file with the lines to imitate, `{"id": document, "lines": text or list of texts}`, in any form that
    self-edits are read in; None takes the questions that rewards come from, with their answers."""

    def learning(self, like: Algorithm) -> RestEmConfig:
        """Return the supervised step: the targets' mean log-likelihood, in forward passes as small as `like`'s."""
        return RestEmConfig(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatch_size=self.batch_size,
            micro_batch_size=min(self.batch_size, like.micro_batch_size),
        )

    def targets(self, split: Split) -> Targets:
        """Return the lines of `documents` training documents, in their order.

        Raises:
            InputError: A line of the file is not of a training document, or holds nothing to imitate.
            ConfigError: There are fewer documents with lines.
        """
        given = _asked(split.train) if self.lines is None else _read(self.lines, split)
        there = [task.id for task in split.train if given.get(task.id)]
        if len(there) < self.documents:
            what = "questions" if self.lines is None else f"lines in {self.lines}"
            raise ConfigError(
                f"warm_start.documents: got {self.documents}, but there are only {len(there)} training documents with "
                f"{what}. Lower it, or give more."
            )
        return {name: given[name] for name in there[-self.documents :]}


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Content
    lines: Content | list[Content] = Field(min_length=1)


def _asked(tasks: Sequence[KnowledgeTask]) -> Targets:
    """Return each document's questions with their answers; texts to continue are no questions."""
    asked = {task.id: [q for q in task.questions if not q.is_continuation] for task in tasks}
    return {
        name: [Implication(text=" ".join(q.question.split()), answer=" ".join(q.answer.split())) for q in questions]
        for name, questions in asked.items()
    }


def _read(path: Path, split: Split) -> Targets:
    """Return the lines of a file by document id; InputError with all mistakes."""
    found: dict[str, Sequence[Implication]] = {}
    refusals, train = Refusals(str(path)), {task.id for task in split.train}
    others = {task.id for task in (*split.development, *split.test)}
    for place, raw in json_lines(read_data_file(path, "warm_start.lines"), refusals.refuse):
        row = refusals.parse(place, raw, _Row)
        if row is None:
            continue
        parsed = parse_self_edit(row.lines if isinstance(row.lines, str) else "\n".join(row.lines))
        if row.id in found:
            refusals.refuse(place, f"id {row.id!r} has lines already")
        elif row.id not in train:
            where = "is kept for development or test" if row.id in others else "is no document of the data"
            refusals.refuse(place, f"id {row.id!r} {where}; allowed are training documents")
        elif parsed.edit is None or not parsed.edit.implications:
            refusals.refuse(place, f"lines of {row.id!r} hold nothing to imitate: {parsed.detail or 'no line'}")
        else:
            found[row.id] = parsed.edit.implications
    refusals.check()
    return found


class Examples(NamedTuple):
    """What a teacher imitates."""

    examples: list[WeightedExample]
    texts: dict[str, str]
    """Of the targets, by document id."""
    left_out: dict[str, str]
    """Documents without a target, with the reason."""


def examples_of(loop: Loop, prompt: str, targets: Targets) -> Examples:
    """Return the targets as examples: after each document's prompt its lines, as many as fit a completion, and an end.

    Raises:
        InputError: No document has a target.
    """
    opened, teacher, cue = loop.open_teacher, loop.settings.teacher, prompt_template(prompt).cue
    assert isinstance(teacher.sampling, LocalSampling)
    tokenizer, longest = opened.policy.tokenizer, teacher.sampling.max_new_tokens
    end = end_token(tokenizer, end_tokens(opened.policy.model.get_base_model(), tokenizer), chat=teacher.chat)
    prompts = {name: loop.prompt(prompt, loop.tasks[name]) for name in targets}
    too_long = prompts_too_long(opened.sampler, list(prompts.values()))
    found = Examples([], {}, {})
    for place, (name, asked) in enumerate(prompts.items()):
        if place in too_long:
            found.left_out[name] = f"prompt of {too_long[place]} tokens, allowed are {opened.sampler.max_prompt_tokens}"
            continue
        lines = readable_lines(targets[name], asked, cue)
        texts = (target_text(lines[:count], asked, cue) for count in range(len(lines), 0, -1))
        made = ((text, target_tokens(tokenizer, asked, text, end)) for text in texts)
        text, tokens = next(((text, ids) for text, ids in made if len(ids) <= longest), ("", ()))
        if tokens:
            found.examples.append(WeightedExample(asked, tokens, 1.0, name))
            found.texts[name] = text
        else:
            what = f"no line fits {longest} tokens" if lines else "no line that this prompt could be answered with"
            found.left_out[name] = what
    if not found.examples:
        name, reason = next(iter(found.left_out.items()))
        raise InputError(
            f"warm_start: none of its {len(targets)} documents has a target, such as {name!r}: {reason}. Change "
            "teacher.prompt, warm_start.lines or teacher.sampling.max_new_tokens."
        )
    return found


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
