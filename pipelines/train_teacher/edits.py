"""Self-edits as records: of controls, of several completions, of given lengths, the most frequent; and measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, product, zip_longest
from typing import NamedTuple

from evaluation.common.data import derive_seed
from evaluation.common.errors import InputError
from evaluation.microworld.texts import LineKind, classify_line, oracle_lines
from evaluation.microworld.world import Sheet
from evaluation.statistics import known_means
from evaluation.tasks import KnowledgeTask, Question
from pipelines.loop.loop import Loop
from pipelines.loop.update import questions_of
from pipelines.records import Edit, Sampling, by_document
from pipelines.settings import QuestionSet
from pipelines.train_teacher import sources
from pipelines.train_teacher.plan import APPLIED
from teacher.filters import EditFacts, edit_facts, first_equal, mean_distinct
from teacher.kinds import STRATEGIES, STRATEGY
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit

_QUESTIONS: tuple[QuestionSet, QuestionSet] = ("rewards", "comparison")

NULL_LINE = "It is good to know such things."
"""A line that says nothing about any document."""

ROTATION = 3
"""Places by which self-edits move on to another document. In the micro-world kinds of entities take turns in threes, so
the other document is about entities of the same kind and its values are of the same classes: the harder control. The
last three documents get those of the first three, which are of their kind where the number of documents is a multiple
of three."""


def null_edits(tasks: Sequence[KnowledgeTask]) -> tuple[Edit, ...]:
    """Return a self-edit for each document that says nothing."""
    return tuple(made_edit(task.id, (Implication(text=NULL_LINE),)) for task in tasks)


def oracle_edits(tasks: Sequence[KnowledgeTask], sheets: Mapping[str, Sheet]) -> tuple[Edit, ...]:
    """Return a self-edit for each document that tells all facts of its sheet, each as a question and as a statement."""
    return tuple(
        made_edit(
            task.id, tuple(Implication(text=text, answer=answer) for text, answer in oracle_lines(sheets[task.id]))
        )
        for task in tasks
    )


def other_documents_edits(edits: Sequence[Edit], tasks: Sequence[KnowledgeTask]) -> tuple[Edit, ...]:
    """Return for each document the self-edits that were written about the one `ROTATION` places on.

    Indexes stay, and so does what was not parsed. Three documents are rotated by one place, so that none gets its own.

    Raises:
        InputError: There are fewer than two documents.
    """
    count = len(tasks)
    if count < 2:
        raise InputError(
            f"controls: got {count} documents for other_document, need at least 2 to give one the self-edits of "
            "another. Raise data.test_documents, or leave other_document out of comparison.variants."
        )
    step = ROTATION % count or 1
    givers = {task.id: tasks[(i + step) % count].id for i, task in enumerate(tasks)}
    written = by_document(edits)
    return tuple(
        edit.model_copy(update={"document_id": task.id}) for task in tasks for edit in written.get(givers[task.id], [])
    )


def written_line(line: Implication) -> str:
    """Return a line as the micro teacher writes it."""
    return f"- {line.line}\n"


def at_budget(edits: Sequence[Edit], budget: int, count: Callable[[str], int]) -> Edit:
    """Return one self-edit from the lines of several of one document, as many whole lines as a budget allows.

    Lines are taken in the order of the self-edits' indexes. All that the teacher wrote counts: a line that repeats an
    earlier one but for case and white space costs its tokens and is taken once, and lines that the parser dropped of a
    self-edit that is used up cost theirs. The first line is taken whatever its length, and the first that does not fit
    ends it: shorter ones after it would be chosen for their length. What the self-edits say of augmentations and
    training is left out, since each may say something else.

    Args:
        edits: Of one document, at least one, in any order; those without a line are passed over and cost nothing.
        budget: Tokens, at least 1.
        count: Tokens of a text; asked for each line as `written_line` writes it.

    Returns:
        A record with index 0 and the tokens used: at most the budget, or those of the first line where that is longer.
        Without any line to take it is the first of the given records, with its failure and no tokens.
    """
    ordered = sorted(edits, key=lambda edit: edit.index)
    document_id = ordered[0].document_id
    taken: dict[str, Implication] = {}
    used = 0
    for edit in ordered:
        lines = edit.edit.implications if edit.edit is not None else ()
        costs = [count(written_line(line)) for line in lines]
        for line, tokens in zip(lines, costs, strict=True):
            if taken and used + tokens > budget:
                return made_edit(document_id, tuple(taken.values()), used)
            taken.setdefault(_normalised(written_line(line)), line)
            used += tokens
        dropped = max(edit.tokens - sum(costs), 0) if lines else 0
        if taken and used + dropped > budget:
            return made_edit(document_id, tuple(taken.values()), max(used, budget))
        used += dropped
    if not taken:
        return ordered[0].model_copy(update={"index": 0, "token_ids": (), "completion_tokens": 0})
    return made_edit(document_id, tuple(taken.values()), used)


def budgeted(edits: Sequence[Edit], budgets: Mapping[str, int], count: Callable[[str], int]) -> tuple[Edit, ...]:
    """Return one self-edit `at_budget` for each document, in the order in which documents first occur."""
    return tuple(at_budget(mine, budgets[document], count) for document, mine in by_document(edits).items())


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def made_edit(document_id: str, lines: Iterable[Implication], tokens: int = 0, index: int = 0) -> Edit:
    """Return a self-edit of lines that nobody sampled as such; `tokens` is what writing them took."""
    edit = SelfEdit(implications=tuple(lines))
    text = "".join(map(written_line, edit.implications))
    return Edit.written(document_id, edit, text, index=index, tokens=tokens)


# Self-consistency


def most_written(sampling: Sampling, count: int) -> Sampling:
    """Return each document's self-edits by how often they were written, each once (self-consistency).

    At most `count` are kept. Drafts without a self-edit come last, in the order in which they were written, so that a
    document whose drafts all fail keeps its reason.
    """
    kept: list[Edit] = []
    for drafts in by_document(sampling.edits).values():
        votes = Counter(first_equal([edit.edit for edit in drafts]))  # by the place of the first equal draft
        ordered = [drafts[place] for place, _ in votes.most_common()]  # ties: the first one written
        ordered.sort(key=lambda edit: edit.edit is None)
        kept += [edit.model_copy(update={"index": place}) for place, edit in enumerate(ordered[:count])]
    return sampling.model_copy(update={"edits": tuple(kept)})


# Self-edits that several completions go into

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
    return (
        made_edit(edits[0].document_id, lines, sum(edit.tokens for edit in edits), edits[0].index)
        if lines
        else edits[0]
    )


def _lines(edit: Edit) -> tuple[Implication, ...]:
    return edit.edit.implications if edit.edit else ()


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
            tokens = sum(count(written_line(line)) for line in missed)
            edit = made_edit(edit.document_id, missed, tokens, edit.index)
        elif edit.edit is not None:
            why = "no line has a question that the student misses"
            edit = edit.model_copy(update={"edit": None, "rejection": why, "failure": RewardFailure.PARSE_FAILED})
        found.append(edit)
    return sampling.model_copy(update={"edits": tuple(found)})


# Measures without training


class Diagnostics(NamedTuple):
    """What self-edits are measured against."""

    tasks: Mapping[str, KnowledgeTask]
    """By id."""
    sheets: Mapping[str, Sheet] | None
    """The fact tables behind the documents, by id; None outside the micro-world."""

    def facts(self, edit: Edit, questions: QuestionSet) -> EditFacts:
        """Return the measures of one self-edit against a set of questions."""
        task = self.tasks[edit.document_id]
        return edit_facts(edit.edit or SelfEdit(), edit.tokens, task.document.text, questions_of(task, questions))

    def of(self, edits: Sequence[Edit]) -> dict[str, float]:
        """Return the mean measures of some self-edits.

        `distinct_1` and `distinct_2` are over the self-edits of a document; `answers` is the share of the gold answers
        that occur, `leaked_<set>` the share of the questions of that set that occur word by word, and `overlap_<set>`
        the share of their n-grams. In the micro-world `share_<kind>` is the share of each kind of line (`LineKind`),
        and `coverage` the share of a document's facts that some true line states, name first.
        """
        if not edits:
            return {}
        parsed = [edit for edit in edits if edit.edit is not None]
        texts = {name: [edit.text for edit in mine] for name, mine in by_document(parsed).items()}
        rewards, comparison = ([self.facts(edit, questions) for edit in parsed] for questions in _QUESTIONS)
        notes = {
            "parsed": len(parsed) / len(edits),
            "lines": sum(facts.lines for facts in rewards) / len(edits),
            "tokens": sum(edit.tokens for edit in edits) / len(edits),
        } | known_means(
            {
                "distinct_1": [mean_distinct(texts, 1)],
                "distinct_2": [mean_distinct(texts, 2)],
                "leaked_rewards": [facts.leaked_questions for facts in rewards],
                "overlap_rewards": [facts.ngram_overlap for facts in rewards],
                "answers": [facts.coverage for facts in rewards],
                "leaked_comparison": [facts.leaked_questions for facts in comparison],
                "overlap_comparison": [facts.ngram_overlap for facts in comparison],
            }
        )
        return notes | (_line_shares(self.sheets, parsed) if self.sheets is not None and parsed else {})


def _line_shares(sheets: Mapping[str, Sheet], edits: Sequence[Edit]) -> dict[str, float]:
    counts: Counter[LineKind] = Counter()
    coverage = []
    for edit in edits:
        sheet = sheets[edit.document_id]
        lines = [implication.line for implication in (edit.edit.implications if edit.edit else ())]
        classified = [classify_line(line, sheet) for line in lines]
        counts.update(line.kind for line in classified)
        stated = {(c.name, c.attribute) for c in classified if c.kind in (LineKind.STATEMENT, LineKind.QUESTION)}
        coverage.append(len(stated) / len(sheet.facts))
    total = max(1, counts.total())
    shares = {f"share_{kind.value}": counts[kind] / total for kind in LineKind}
    return {**shares, "coverage": sum(coverage) / len(coverage)}
