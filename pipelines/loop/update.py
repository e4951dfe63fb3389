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
from pipelines.records import Known, ScoredUpdate
from pipelines.settings import GradingConfig, LoopSettings, QuestionSet
from student.adapters import Adapter, save_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure, SlotScores
from student.config import PASSAGE_TEMPLATE, Objective, UpdateRecipe
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
    objective: Objective | None = None
    """Of the update; None is that of the recipe."""
    passages: tuple[str, ...] = ()
    """In the context of the student without an update, one before each question; empty for none."""


def questions_of(task: KnowledgeTask, which: QuestionSet) -> tuple[Question, ...]:
    """Return the questions of a task that rewards use, or the held-out ones, as they are or in other words."""
    if which == "paraphrases":
        return tuple(other for question in task.comparison_questions for other in question.rephrased)
    return task.questions if which == "rewards" else task.comparison_questions


def recipe_of(trial: Trial, recipe: UpdateRecipe) -> UpdateRecipe:
    """Return the run's recipe with the objective of a trial."""
    return recipe if trial.objective is None else recipe.model_copy(update={"objective": trial.objective})


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
    read = _read(work)
    with bank_of(settings, config.update) as bank:
        results = dict(zip(requests, bank.train(list(requests.values())), strict=True))
        usage = bank.usage
        failed = {i for i, result in results.items() if result.outcome is not UpdateOutcome.OK}
        asked = [i for i in range(len(work.trials)) if i not in failed and i not in read]
        adapters = [results[i].adapter if i in results else None for i in asked]
        sets = [questions_of(work.tasks[work.trials[i].document_id], work.questions) for i in asked]
        known = _known_probes(bank, work, tokenizer)
        with_probes = [(*mine, *work.probes) for mine in sets]
        scores = dict(zip(asked, bank.score(adapters, with_probes, tokenizer, config.answer_format), strict=True))
        answers = {i: results[i].adapter if i in results else None for i in (*asked, *read)}
        written = dict(zip(answers, _answers(bank, work, answers), strict=True))
    records = []
    for i, trial in enumerate(work.trials):
        result = results.get(i)
        if trial.keep and result is not None and result.adapter is not None:
            place = adapter_dir(work.work_dir, result.adapter.digest)
            prove_student(ref, save_adapter(result.adapter, place, config.model))
        found, probes = (read[i], ()) if i in read else (scores.get(i), known)
        record = _scored(trial, result, found, written.get(i), probes)
        if work.questions == "comparison" and isinstance(found, list) and not record.answers:
            said = tokenizer.batch_decode([score.written for score in found], skip_special_tokens=True)
            record = record.model_copy(update={"said": tuple(text.strip() for text in said[: len(record.exact)])})
        records.append(record)
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
        recipe_of(trial, config.update),
        config.answer_format,
        trial.seed,
        expansion=domain_of(task).expand(task, trial.edit, trial.seed),
    )


def _opening(passage: str) -> str:
    return PASSAGE_TEMPLATE.replace("{context}", passage) if passage else ""


def _read(work: BankWork) -> dict[int, SlotScores]:
    """Return the scores of the trials with passages in context, by place; a passage is read once for its questions."""
    chosen = {i: trial for i, trial in enumerate(work.trials) if trial.passages}
    if not chosen:
        return {}
    asked = {i: questions_of(work.tasks[trial.document_id], work.questions) for i, trial in chosen.items()}
    sets: dict[tuple[int, str], list[Question]] = {}
    for i, trial in chosen.items():
        for question, passage in zip(asked[i], trial.passages, strict=True):
            sets.setdefault((i, _opening(passage)), []).append(question)
    config, contexts = work.settings.student, [opening for _, opening in sets]
    student, form = open_student(ModelRef.of(config, work.settings)), config.answer_format
    found = score_in_context(*student, contexts, list(sets.values()), form, template="{context}")
    failures: dict[int, SlotScores] = {}
    known: dict[tuple[int, Question], AnswerScore] = {}
    for ((i, _), mine), scores in zip(sets.items(), found, strict=True):
        if isinstance(scores, ScoringFailure):
            failures[i] = scores
        else:
            known |= {(i, question): score for question, score in zip(mine, scores, strict=True)}
    return {i: failures.get(i) or [known[i, question] for question in mine] for i, mine in asked.items()}


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
    bank: LoraBank, work: BankWork, adapters: Mapping[int, Adapter | None]
) -> Sequence[list[str] | ScoringFailure | None]:
    """Return the answers of the students of some trials as text, for the grader; Nones where the flow needs none.

    `adapters` are by the trial's place.
    """
    grading, config = work.settings.grading_for(work.questions), work.settings.student
    if grading is None:
        return [None] * len(adapters)

    def prompts(trial: Trial) -> list[str]:
        asked = questions_of(work.tasks[trial.document_id], work.questions)
        forms = [config.answer_format.behind(_opening(passage)) for passage in trial.passages]
        return [f.render(q.question) for f, q in zip(forms or [config.answer_format] * len(asked), asked, strict=True)]

    ref, chosen = ModelRef.of(config, work.settings), [work.trials[i] for i in adapters]
    given = list(adapters.values()), list(map(prompts, chosen))
    texts = write_answers(ref, grading, bank, *given, config.update.rank)
    cuts = [domain_of(work.tasks[trial.document_id]).answer_in for trial in chosen]
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
    found = grader.grade(grade_items(updates, tasks, questions))
    verdicts.extend(found)
    grades = iter(found)
    return tuple(_with_grades(update, [next(grades) for _ in update.answers]) for update in updates)


def grade_items(
    updates: Sequence[ScoredUpdate], tasks: Mapping[str, KnowledgeTask], questions: QuestionSet
) -> list[GradeItem]:
    """Return the students' texts with their questions and gold answers, in the order of the updates."""
    return [
        GradeItem(question.question, question.answer, answer)
        for update in updates
        if update.answers
        for question, answer in zip(questions_of(tasks[update.document_id], questions), update.answers, strict=True)
    ]


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


def ask_base(settings: LoopSettings, questions: Sequence[Question]) -> Known:
    """Return which questions the student answers right without an update; each is asked, or fails, alone."""
    student = open_student(ModelRef.of(settings.student, settings))
    sets, form = [[question] for question in questions], settings.student.answer_format
    found = score_in_context(student.model, student.tokenizer, [""] * len(sets), sets, form, template="{context}")
    return Known(exact=tuple(not isinstance(scores, ScoringFailure) and scores[0].exact for scores in found))
