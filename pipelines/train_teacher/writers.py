"""Self-edits of sources that several completions go into: mixed prompts, Active Reading, and what a student misses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, product, zip_longest

from evaluation.common.data import derive_seed
from evaluation.tasks import KnowledgeTask, Question
from pipelines.loop.loop import Loop
from pipelines.records import Edit, Sampling
from pipelines.train_teacher import sources
from pipelines.train_teacher.edits import written_line
from pipelines.train_teacher.plan import APPLIED
from teacher.kinds import STRATEGIES, STRATEGY
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit

Writer = Callable[..., Sampling]
"""Called with tasks, the number `n` of self-edits for each of them, and a seed."""


def writer_of(loop: Loop, source: sources.PromptedSource | sources.ExternalGenerator | sources.OwnQuestions) -> Writer:
    """Return who writes the self-edits of a source: the untrained teacher, the student, or a model at an endpoint."""
    match source:
        case sources.ExternalGenerator():
            return partial(loop.ask, source.sampling, "external", source.prompt)
        case sources.OwnQuestions():
            return partial(loop.sample_student, source.prompt)
        case sources.MixedPrompts():
            return partial(write_mixed, loop, source.prompts)
        case sources.ActiveReading():
            return partial(write_actively, loop)
        case _:
            return partial(loop.sample, None, source.prompt)


def write_mixed(loop: Loop, prompts: Sequence[str], tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
    """Return self-edits with the lines of a completion of each prompt, in turn."""
    return _joined([loop.sample(None, prompt, tasks, n=n, seed=seed) for prompt in prompts], tasks, n)


def write_actively(loop: Loop, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
    """Return self-edits of two steps (Active Reading, arXiv 2508.09494): strategies for a passage, then their use.

    The teacher writes a list of strategies and then, with each of its first `APPLIED` ones, or these again where there
    are fewer, a completion; a self-edit has the lines of these in turn. Strategies are no part of it and not among its
    tokens. Where none could be read, it fails as its list did.
    """
    lists = loop.sample(None, STRATEGIES, tasks, n=n, seed=seed)
    parts = [lists.model_copy(update={"edits": tuple(edit for edit in lists.edits if not _lines(edit))})]
    for index, place in product(range(n), range(APPLIED)):
        listed = {edit.document_id: _lines(edit) for edit in lists.edits if edit.index == index and _lines(edit)}
        read = [task for task in tasks if task.id in listed]
        texts = [loop.prompt(STRATEGY, task, listed[task.id][place % len(listed[task.id])].line) for task in read]
        made = loop.write(None, STRATEGY, texts, read, n=1, seed=derive_seed(seed, place, index))
        moved = tuple(edit.model_copy(update={"index": index}) for edit in made.edits)
        parts.append(made.model_copy(update={"edits": moved}))
    return _joined(parts, tasks, n)


def _joined(parts: Sequence[Sampling], tasks: Sequence[KnowledgeTask], n: int) -> Sampling:
    """Return self-edits of the same documents and indexes as one each, as far as they fitted the teacher."""
    grouped: dict[tuple[str, int], list[Edit]] = {}
    for edit in chain.from_iterable(part.edits for part in parts):
        grouped.setdefault((edit.document_id, edit.index), []).append(edit)
    keys = [(task.id, index) for task in tasks for index in range(n) if (task.id, index) in grouped]
    too_long = {name: why for part in parts for name, why in part.too_long.items() if (name, 0) not in grouped}
    edits = tuple(in_turn(grouped[key]) for key in keys)
    return Sampling(edits=edits, too_long=too_long, seconds=sum(part.seconds for part in parts))


def in_turn(edits: Sequence[Edit]) -> Edit:
    """Return one self-edit with the first line of each of some self-edits, then the second of each, and so on.

    All that was written counts as its tokens. Without any line it is the first of them, with its failure.
    """
    lines = [line for row in zip_longest(*map(_lines, edits)) for line in row if line is not None]
    return _of_lines(edits[0], lines, sum(edit.tokens for edit in edits)) if lines else edits[0]


def _lines(edit: Edit) -> tuple[Implication, ...]:
    return edit.edit.implications if edit.edit else ()


def _of_lines(like: Edit, lines: Iterable[Implication], tokens: int) -> Edit:
    edit = SelfEdit(implications=tuple(lines))
    text = "".join(map(written_line, edit.implications))
    return Edit.written(like.document_id, edit, text, index=like.index, tokens=tokens)


def only_missed(loop: Loop, sampling: Sampling, count: Callable[[str], int]) -> Sampling:
    """Return the self-edits with those lines alone whose questions the base student answers wrongly.

    It is asked without the passage (after GraphGen, arXiv 2505.20416). Statements are left out, and tokens are those of
    the lines that are left, by `count`. A self-edit without any is refused, as there is nothing to teach.
    """
    asked = {
        (line.text, line.answer): Question(question=line.text, answer=line.answer)
        for edit in sampling.edits
        for line in _lines(edit)
        if line.answer and line.answer.strip() and line.text.strip()
    }
    known = dict(zip(asked, loop.knows(list(asked.values())), strict=True))
    found = []
    for edit in sampling.edits:
        missed = [line for line in _lines(edit) if line.answer and not known.get((line.text, line.answer), True)]
        if missed:
            edit = _of_lines(edit, missed, sum(count(written_line(line)) for line in missed))
        elif edit.edit is not None:
            why = "no line has a question that the student misses"
            edit = edit.model_copy(update={"edit": None, "rejection": why, "failure": RewardFailure.PARSE_FAILED})
        found.append(edit)
    return sampling.model_copy(update={"edits": tuple(found)})
