"""Self-edits that serve as controls, and self-edits of given lengths. Pure functions on records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from evaluation.errors import InputError
from evaluation.microworld.oracle import oracle_lines
from evaluation.microworld.world import Sheet
from evaluation.tasks import KnowledgeTask
from pipelines.records import EditRecord
from teacher.self_edit import Implication, SelfEdit

NULL_LINE = "It is good to know such things."
"""A line that says nothing about any document."""

ROTATION = 3
"""Places by which self-edits move on to another document. In the micro-world kinds of entities take turns in threes, so
the other document is about entities of the same kind and its values are of the same classes: the harder control."""


def null_edits(tasks: Sequence[KnowledgeTask]) -> tuple[EditRecord, ...]:
    """Return a self-edit for each document that says nothing."""
    return tuple(_made(task.id, (Implication(text=NULL_LINE),)) for task in tasks)


def oracle_edits(tasks: Sequence[KnowledgeTask], sheets: Mapping[str, Sheet]) -> tuple[EditRecord, ...]:
    """Return a self-edit for each document that tells all of its facts, each as a question and as a statement."""
    return tuple(
        _made(task.id, tuple(Implication(text=text, answer=answer) for text, answer in oracle_lines(sheets[task.id])))
        for task in tasks
    )


def other_documents_edits(edits: Sequence[EditRecord], tasks: Sequence[KnowledgeTask]) -> tuple[EditRecord, ...]:
    """Return for each document the self-edits that were written about the one `ROTATION` places on.

    Args:
        edits: Of all documents.
        tasks: The documents, in the order in which they are rotated.

    Raises:
        InputError: There is only one document.
    """
    count = len(tasks)
    if count < 2:
        raise InputError(f"controls: got {count} document, need at least 2 to give one the self-edits of another.")
    step = ROTATION % count or 1
    givers = {task.id: tasks[(i + step) % count].id for i, task in enumerate(tasks)}
    by_document = _by_document(edits)
    return tuple(
        edit.model_copy(update={"document_id": task.id})
        for task in tasks
        for edit in by_document.get(givers[task.id], [])
    )


def answer_swaps(task: KnowledgeTask) -> dict[str, str]:
    """Return for each distinct gold answer of a document the next one; empty where there is only one."""
    answers = list(dict.fromkeys(question.answer for question in task.questions))
    return dict(zip(answers, answers[1:] + answers[:1], strict=True)) if len(answers) > 1 else {}


def swapped_edits(edits: Sequence[EditRecord], swaps: Mapping[str, Mapping[str, str]]) -> tuple[EditRecord, ...]:
    """Return the self-edits with values replaced by others, whole words and all at once.

    Args:
        edits: Those of documents without swaps are left out: unaltered they would be no control.
        swaps: By document id, what stands for what.
    """
    return tuple(_swapped(edit, swaps[edit.document_id]) for edit in edits if swaps.get(edit.document_id))


def _swapped(edit: EditRecord, swaps: Mapping[str, str]) -> EditRecord:
    longest_first = sorted(swaps, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def other(text: str) -> str:
        return pattern.sub(lambda match: swaps[match[0]], text)

    changed = None
    if edit.edit is not None:
        lines = tuple(
            Implication(text=other(line.text), answer=None if line.answer is None else other(line.answer))
            for line in edit.edit.implications
        )
        # Not `model_copy`, which would keep the digest of the old content.
        changed = SelfEdit(implications=lines, augmentations=edit.edit.augmentations, training=edit.edit.training)
    return edit.model_copy(
        update={
            "text": other(edit.text),
            "edit": changed,
            "token_ids": (),
            "completion_tokens": edit.tokens,
        }
    )


def written_line(line: Implication) -> str:
    """Return a line as the micro teacher writes it."""
    told = line.text if line.answer is None else f"Question: {line.text} Answer: {line.answer}"
    return f"- {told}\n"


def at_budget(edits: Sequence[EditRecord], budget: int, count: Callable[[str], int]) -> EditRecord:
    """Return one self-edit from the lines of several of one document, as many whole lines as a budget allows.

    Lines are taken in the order of the self-edits' indexes, equal ones once; the first line is taken whatever its
    length, and the first that does not fit ends it.

    Args:
        edits: Of one document, at least one; those without a parsed self-edit are passed over.
        budget: Tokens.
        count: Tokens of a text as the teacher writes it.
    """
    taken: dict[str, Implication] = {}
    used = 0
    for edit in sorted(edits, key=lambda e: e.index):
        for line in edit.edit.implications if edit.edit is not None else ():
            written = written_line(line)
            key = " ".join(written.casefold().split())
            if key in taken:
                continue
            tokens = count(written)
            if taken and used + tokens > budget:
                return _made(edits[0].document_id, tuple(taken.values()), used)
            taken[key] = line
            used += tokens
    if not taken:
        return edits[0].model_copy(update={"index": 0, "token_ids": (), "completion_tokens": 0})
    return _made(edits[0].document_id, tuple(taken.values()), used)


def budgeted(
    edits: Sequence[EditRecord], budgets: Mapping[str, int] | int, count: Callable[[str], int]
) -> tuple[EditRecord, ...]:
    """Return one self-edit at its budget for each document, in the order of documents.

    Args:
        edits: Of any number of documents.
        budgets: Tokens, the same for all or by document id.
        count: Tokens of a text as the teacher writes it.
    """
    return tuple(
        at_budget(mine, budgets if isinstance(budgets, int) else budgets[document], count)
        for document, mine in _by_document(edits).items()
    )


def _by_document(edits: Sequence[EditRecord]) -> dict[str, list[EditRecord]]:
    found: dict[str, list[EditRecord]] = {}
    for edit in edits:
        found.setdefault(edit.document_id, []).append(edit)
    return found


def _made(document_id: str, lines: tuple[Implication, ...], tokens: int = 0) -> EditRecord:
    return EditRecord(
        document_id=document_id,
        index=0,
        text="".join(map(written_line, lines)),
        token_ids=(),
        completion_tokens=tokens,
        finish_reason="stop",
        edit=SelfEdit(implications=lines),
    )
