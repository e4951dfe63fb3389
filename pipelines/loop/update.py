"""Updates: self-edits trained into adapters of the frozen student, and the student's scores after each of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.common.errors import ScoringError
from evaluation.domains import domain_of
from evaluation.exact_match import AnswerScore, end_tokens_of
from evaluation.graders import DomainGrading, Grade, GradeItem, Grader
from evaluation.tasks import KnowledgeTask, Question
from pipelines.models import ModelRef, open_answer_engine, open_student, prove_student, student_digest, student_for
from pipelines.records import Edit, InContext, ScoredUpdate
from pipelines.settings import GradingConfig, LoopSettings, QuestionSet
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure
from student.config import UpdateRecipe
from student.in_context import score_in_context
from student.updates import UpdateOutcome, UpdateRequest, UpdateResult, make_request
from teacher.rewards import RewardFailure
from teacher.self_edit import SelfEdit

_PROMPTS = 64
"""Prompts of an adapter that are continued together; bounds memory."""


@dataclass(frozen=True)
class Trial:
    """A self-edit to try on the student, with a seed."""

    document_id: str
    index: int
    """Of the self-edit among those of its document."""
    edit: SelfEdit | None
    """None is the student without an update."""
    seed: int
    keep: bool = False
    """Leave the adapter in the work directory, under its own digest."""


def questions_of(task: KnowledgeTask, which: QuestionSet) -> tuple[Question, ...]:
    """Return the questions of a task that rewards use, or the held-out ones."""
    return task.questions if which == "rewards" else task.comparison_questions


def bank_of(settings: LoopSettings, recipe: UpdateRecipe) -> AbstractContextManager[LoraBank]:
    """Return a bank on the student, not yet open, for updates by a recipe."""
    student, ref = settings.student, ModelRef.of(settings.student, settings)
    return LoraBank(
        student_for(ref, recipe).model,
        recipe.target_modules,
        depth=recipe.depth,
        max_slots=student.bank_slots,
        memory_bytes=None if student.bank_memory_gb is None else int(student.bank_memory_gb * 1e9),
        base_digest=student_digest(ref),
    )


def adapter_dir(work_dir: Path, digest: str) -> Path:
    """Return the directory of a student's adapter, whether or not it was kept."""
    return work_dir / "adapters" / digest[:20]


class BankWork(NamedTuple):
    """Trials for one bank: plain data."""

    settings: LoopSettings
    trials: tuple[Trial, ...]
    tasks: Mapping[str, KnowledgeTask]
    """Of the trials' documents, by id."""
    questions: QuestionSet
    probes: tuple[Question, ...]
    """Retention probes that each student is asked besides."""
    work_dir: Path


def train_and_score(work: BankWork) -> tuple[ScoredUpdate, ...]:
    """Return the scores of some trials; a failure concerns its own trial alone and has a reason."""
    started = time.perf_counter()
    settings, config = work.settings, work.settings.student
    ref = ModelRef.of(config, settings)
    tokenizer = open_student(ref).tokenizer
    made = {i: _request(work, trial, tokenizer) for i, trial in enumerate(work.trials)}
    requests = {i: request for i, request in made.items() if request is not None}
    with bank_of(settings, config.update) as bank:
        results = dict(zip(requests, bank.train(list(requests.values())), strict=True))
        usage = bank.usage
        asked = [i for i in range(len(work.trials)) if i not in results or results[i].outcome is UpdateOutcome.OK]
        adapters = [results[i].adapter if i in results else None for i in asked]
        sets = [questions_of(work.tasks[work.trials[i].document_id], work.questions) for i in asked]
        known = _known_probes(bank, work, tokenizer)
        with_probes = [(*mine, *work.probes) for mine in sets]
        scores = dict(zip(asked, bank.score(adapters, with_probes, tokenizer, config.answer_format), strict=True))
        written = dict(zip(asked, _answers(bank, work, asked, adapters, sets), strict=True))
    records = []
    for i, trial in enumerate(work.trials):
        result = results.get(i)
        if trial.keep and result is not None and result.adapter is not None:
            place = adapter_dir(work.work_dir, result.adapter.digest)
            prove_student(ref, save_adapter(result.adapter, place, config.model))
        records.append(_scored(trial, result, scores.get(i), written.get(i), known))
    took = {
        "slots": usage.slots,
        "peak_bytes": usage.peak_bytes,
        "seconds": (time.perf_counter() - started) / len(records),
    }
    return tuple(record.model_copy(update=took) for record in records)


def _request(work: BankWork, trial: Trial, tokenizer: Any) -> UpdateRequest | None:
    if trial.edit is None:
        return None
    config, task = work.settings.student, work.tasks[trial.document_id]
    return make_request(
        f"{trial.document_id}#{trial.index}",
        trial.edit,
        task.document,
        tokenizer,
        config.update,
        config.answer_format,
        trial.seed,
        expansion=domain_of(task).expand(task, trial.edit, trial.seed),
    )


def _known_probes(bank: LoraBank, work: BankWork, tokenizer: Any) -> tuple[bool, ...]:
    """Return which probes the student answers without an update.

    Raises:
        ScoringError: It could not be scored.
    """
    if not work.probes:
        return ()
    found = bank.score([None], [work.probes], tokenizer, work.settings.student.answer_format)[0]
    if isinstance(found, ScoringFailure):
        raise ScoringError(f"retention probes: the student without an update cannot be scored: {found.reason}")
    return tuple(score.exact for score in found)


def _answers(
    bank: LoraBank,
    work: BankWork,
    asked: Sequence[int],
    adapters: Sequence[Adapter | None],
    questions: Sequence[Sequence[Question]],
) -> Sequence[list[str] | ScoringFailure | None]:
    """Return the answers of each student as text, for the grader; Nones where the flow needs none."""
    grading, config = work.settings.grading_for(work.questions), work.settings.student
    if grading is None:
        return [None] * len(adapters)
    prompts = [[config.answer_format.render(q.question) for q in mine] for mine in questions]
    texts = write_answers(ModelRef.of(config, work.settings), grading, bank, adapters, prompts, config.update.rank)
    cuts = [domain_of(work.tasks[work.trials[i].document_id]).answer_in for i in asked]
    return [
        mine if isinstance(mine, ScoringFailure) else [cut(text) for text in mine]
        for cut, mine in zip(cuts, texts, strict=True)
    ]


def write_answers(
    ref: ModelRef,
    grading: GradingConfig,
    bank: LoraBank,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[str]],
    rank: int,
) -> Sequence[list[str] | ScoringFailure]:
    """Return each student's continuation of each of its prompts, by the bank or by vLLM with adapters up to `rank`."""
    student = open_student(ref)
    most = grading.max_new_tokens
    if grading.engine == "bank":
        found: list[list[str] | ScoringFailure] = [[] for _ in adapters]
        for start in range(0, max(map(len, prompts), default=0), _PROMPTS):
            part = [mine[start : start + _PROMPTS] for mine in prompts]
            more = bank.generate(adapters, part, student.tokenizer, max_new_tokens=most)
            for k, (texts, new) in enumerate(zip(found, more, strict=True)):
                found[k] = [*texts, *new] if isinstance(texts, list) and isinstance(new, list) else new
        return found
    from student.bank.scoring import answer_with_vllm

    return answer_with_vllm(
        open_answer_engine(ref, grading.vllm, rank),
        adapters,
        prompts,
        student.tokenizer,
        max_new_tokens=most,
        end_tokens=sorted(end_tokens_of(student.model, student.tokenizer)),
    )


_FAILURES = {
    UpdateOutcome.OVER_BUDGET: RewardFailure.OVER_BUDGET,
    UpdateOutcome.CANARY_FAILED: RewardFailure.CANARY_FAILED,
    UpdateOutcome.NON_FINITE: RewardFailure.NON_FINITE,
}
"""What an update's outcome means for the reward; every other failed outcome is `update_failed`."""


def _scored(
    trial: Trial,
    result: UpdateResult | None,
    scores: list[AnswerScore] | ScoringFailure | None,
    written: list[str] | ScoringFailure | None,
    known: Sequence[bool],
) -> ScoredUpdate:
    """Return the record of one trial: training, scores of questions and then probes, and answers as text.

    `known` are the probes that the student answers without an update.
    """
    fields: dict[str, Any] = {"document_id": trial.document_id, "index": trial.index, "seed": trial.seed}
    if result is not None:
        fields |= {name: getattr(result, name) for name in ("detail", "steps", "tokens", "padded_tokens")}
        fields["adapter_digest"] = None if result.adapter is None else result.adapter.digest
        if result.outcome is not UpdateOutcome.OK:
            fields["detail"] = f"{result.outcome.value}: {result.detail}"
            return ScoredUpdate(failure=_FAILURES.get(result.outcome, RewardFailure.UPDATE_FAILED), **fields)
    for found in (scores, written):
        if isinstance(found, ScoringFailure):
            return ScoredUpdate(failure=RewardFailure.SCORING_FAILED, **fields | {"detail": found.reason})
    assert isinstance(scores, list)
    answered, retained = scores[: len(scores) - len(known)], scores[len(scores) - len(known) :]
    losses = () if result is None else result.losses
    return ScoredUpdate(
        retained=tuple(score.exact for score in retained),
        forgetting=(sum(known) - sum(score.exact for score in retained)) / len(known) if known else None,
        exact=tuple(score.exact for score in answered),
        probability=tuple(score.probability for score in answered),
        token_probability=tuple(score.token_probability for score in answered),
        answers=tuple(written) if isinstance(written, list) else (),
        empty=sum(score.empty for score in answered),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        **fields,
    )


def grade_updates(
    updates: Sequence[ScoredUpdate],
    tasks: Mapping[str, KnowledgeTask],
    questions: QuestionSet,
    settings: LoopSettings,
    grader: Grader | None,
    verdicts: list[Grade],
) -> tuple[ScoredUpdate, ...]:
    """Return the updates with the verdicts on the students' texts; unchanged where exact match decides.

    Rules are computed anew each time; a judge's replies come from the ledger where it was asked before, so that its
    failures are asked again. `verdicts` gets every verdict of `grader`, for an estimate of its noise.

    Raises:
        BudgetError: The judge's next call could exceed its budget.
        EndpointError: The judge's server refuses for good.
    """
    if settings.grading is not None and isinstance(settings.grading.grader, DomainGrading):
        return tuple(_by_domain(update, tasks[update.document_id], questions) for update in updates)
    if grader is None:
        return tuple(updates)
    items = [
        GradeItem(question.question, question.answer, answer)
        for update in updates
        if update.answers
        for question, answer in zip(questions_of(tasks[update.document_id], questions), update.answers, strict=True)
    ]
    found = grader.grade(items)
    verdicts.extend(found)
    grades = iter(found)
    return tuple(_with_grades(update, [next(grades) for _ in update.answers]) for update in updates)


def _by_domain(update: ScoredUpdate, task: KnowledgeTask, questions: QuestionSet) -> ScoredUpdate:
    if not update.answers:
        return update
    correct = domain_of(task).grade(questions_of(task, questions), update.answers)
    return update.model_copy(update={"correct": tuple(correct)})


def _with_grades(update: ScoredUpdate, grades: Sequence[Grade]) -> ScoredUpdate:
    if not grades:
        return update
    return update.model_copy(
        update={
            "correct": tuple(grade.correct for grade in grades),
            "ungraded": dict(Counter(grade.ungraded for grade in grades if grade.ungraded is not None)),
        }
    )


def read_in_context(settings: LoopSettings, edits: Sequence[Edit], tasks: Mapping[str, KnowledgeTask]) -> InContext:
    """Return the probability of the gold answers with each parsed self-edit in the student's context."""
    started = time.perf_counter()
    student = open_student(ModelRef.of(settings.student, settings))
    contexts = [" ".join(line.line for line in e.edit.implications) for e in edits if e.edit is not None]
    questions = [tasks[e.document_id].questions for e in edits]
    found = score_in_context(student.model, student.tokenizer, contexts, questions, settings.student.answer_format)
    return InContext(
        probabilities=tuple(
            None if isinstance(scores, ScoringFailure) else tuple(score.probability for score in scores)
            for scores in found
        ),
        seconds=time.perf_counter() - started,
    )
