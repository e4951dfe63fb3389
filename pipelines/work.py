"""The units of work of a run, as plain functions: sample, update and score, learn. No Prefect, no MLflow."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluation.answers import AnswerScore, end_tokens_of, first_line
from evaluation.errors import ScoringError, UpdateError
from evaluation.grader_config import GridVotesGrading
from evaluation.tasks import KnowledgeTask, Question
from pipelines.config import QuestionSet, RunConfig
from pipelines.records import BankRecord, LearningRecord, ReplicateRecord, UsageRecord
from pipelines.workspace import Workspace
from student.adapters import Adapter, save_adapter
from student.augmentations import with_examples
from student.config import UpdateRecipe
from student.lora_bank import LoraBank
from student.scoring import ScoringFailure
from student.updates import UpdateJob, UpdateOutcome, UpdateResult, make_job
from teacher.learning import learn
from teacher.rewards import RewardFailure
from teacher.selection import WeightedExample
from teacher.self_edit import SelfEdit


class UpdateRequest(NamedTuple):
    """One update to make: a self-edit of a document, with a seed."""

    document_id: str
    sample: int
    """Index of the self-edit among those of its document."""
    edit: SelfEdit | None
    """None is the student without an update."""
    seed: int
    keep: bool = False
    """Leave the adapter in the work directory, under its own digest."""


def update_job(ws: Workspace, request: UpdateRequest) -> UpdateJob | None:
    """Return the training of one update by the run's recipe; None for the student without an update."""
    if request.edit is None:
        return None
    config = ws.config.student
    task, edit, note = ws.tasks[request.document_id], request.edit, ""
    if task.puzzle is not None:
        edit, note = with_examples(edit, task.puzzle, request.seed)
    key = f"{request.document_id}#{request.sample}"
    tokenizer = ws.student.tokenizer
    job = make_job(key, edit, task.document, tokenizer, config.update, config.answer_format, request.seed)
    return dataclasses.replace(job, note=note)


def run_bank(ws: Workspace, requests: Sequence[UpdateRequest], questions: QuestionSet) -> BankRecord:
    """Return the scores of some updates; what fails does so alone, with a reason.

    Args:
        ws: The run's workspace.
        requests: Updates to train, as many at once as the bank has slots, and to score.
        questions: Which questions to ask.
    """
    started = time.perf_counter()
    student, config = ws.student, ws.config.student
    made = [update_job(ws, request) for request in requests]
    jobs = {i: job for i, job in enumerate(made) if job is not None}
    with bank_of(ws, config.update) as bank:
        results = dict(zip(jobs, bank.train(list(jobs.values())), strict=True))
        asked = [i for i in range(len(requests)) if i not in results or results[i].outcome is UpdateOutcome.OK]
        adapters = [results[i].adapter if i in results else None for i in asked]
        sets = [questions_of(ws.tasks[requests[i].document_id], questions) for i in asked]
        probes = ws.probes_beside(questions)
        known = _score_probes(ws, bank, probes)
        with_probes = [(*mine, *probes) for mine in sets]
        scores = dict(
            zip(asked, bank.score(adapters, with_probes, student.tokenizer, config.answer_format), strict=True)
        )
        written = dict(zip(asked, write_answers(ws, bank, adapters, sets, questions), strict=True))
    records = []
    for i, request in enumerate(requests):
        result = results.get(i)
        if request.keep and result is not None and result.adapter is not None:
            save_adapter(result.adapter, ws.adapter_dir(result.adapter.digest), config.model)
        records.append(_replicate(request, result, scores.get(i), written.get(i), known))
    return BankRecord(replicates=tuple(records), seconds=time.perf_counter() - started, usage=_usage(bank))


def _score_probes(ws: Workspace, bank: LoraBank, probes: Sequence[Question]) -> tuple[bool, ...]:
    """Return which probes the student answers without an update.

    Raises:
        ScoringError: It could not be scored.
    """
    if not probes:
        return ()
    found = bank.score([None], [probes], ws.student.tokenizer, ws.config.student.answer_format)[0]
    if isinstance(found, ScoringFailure):
        raise ScoringError(f"retention probes: the student without an update cannot be scored: {found.reason}")
    return tuple(score.exact for score in found)


def bank_of(ws: Workspace, recipe: UpdateRecipe) -> LoraBank:
    """Return a bank on the run's student, not yet open."""
    config = ws.config.student
    return LoraBank(
        ws.student.model,
        recipe.target_modules,
        depth=recipe.depth,
        max_slots=config.bank_slots,
        memory_bytes=config.bank_memory_bytes,
        base_digest=ws.student_digest,
    )


def _usage(bank: LoraBank) -> UsageRecord:
    """Return what the bank's last training took."""
    usage = bank.usage
    return UsageRecord(slots=usage.slots, tokens=usage.tokens, places=usage.places, peak_bytes=usage.peak_bytes)


def run_joint(
    ws: Workspace,
    edits: Sequence[SelfEdit],
    tasks: Sequence[KnowledgeTask],
    recipe: UpdateRecipe,
    *,
    seed: int,
) -> BankRecord:
    """Return the scores, document by document, of one adapter that is trained on all self-edits together and kept.

    Args:
        ws: The run's workspace.
        edits: Whose lines are trained on; specs of single edits do not apply.
        tasks: What to ask, with the held-out phrasings.
        recipe: Of the one update.
        seed: Of the adapter's start and of the order of lines.
    """
    started = time.perf_counter()
    student, config = ws.student, ws.config.student
    whole = SelfEdit(implications=tuple(line for edit in edits for line in edit.implications))
    document = tasks[0].document
    job = make_job("joint", whole, document, student.tokenizer, recipe, config.answer_format, seed)
    with bank_of(ws, recipe) as bank:
        result = bank.train([job])[0]
        asked = [questions_of(task, "comparison") for task in tasks] if result.adapter is not None else []
        adapters = [result.adapter] * len(asked)
        scores = bank.score(adapters, asked, student.tokenizer, config.answer_format)
        written = write_answers(ws, bank, adapters, asked, "comparison")
    if result.adapter is not None:
        save_adapter(result.adapter, ws.adapter_dir(result.adapter.digest), config.model)
    replicates = [
        _replicate(
            UpdateRequest(task.id, 0, whole, seed),
            result,
            scores[i] if scores else None,
            written[i] if written else None,
        )
        for i, task in enumerate(tasks)
    ]
    return BankRecord(replicates=tuple(replicates), seconds=time.perf_counter() - started, usage=_usage(bank))


def answer_settings(config: RunConfig, which: QuestionSet) -> dict[str, Any] | None:
    """Return what decides the students' texts, for content keys; None where none are written. Who grades is no part."""
    grading = config.grading_for(which)
    return None if grading is None else grading.model_dump(mode="json", exclude={"grader"})


def write_answers(
    ws: Workspace,
    bank: LoraBank,
    adapters: Sequence[Adapter | None],
    questions: Sequence[Sequence[Question]],
    which: QuestionSet,
) -> Sequence[list[str] | ScoringFailure | None]:
    """Return what each student writes in answer to its questions, for the run's grader; Nones where it has none.

    Args:
        ws: The run's workspace.
        bank: Open.
        adapters: K students.
        questions: K lists, of any lengths.
        which: Of a task's they are.
    """
    grading, tokenizer = ws.config.grading_for(which), ws.student.tokenizer
    if grading is None:
        return [None] * len(adapters)
    prompts = [[ws.config.student.answer_format.render(q.question) for q in asked] for asked in questions]
    longest = grading.max_new_tokens
    if grading.engine == "bank":
        texts = bank.generate(adapters, prompts, tokenizer, max_new_tokens=longest)
    else:
        from student.vllm_answers import answer_with_vllm

        ends = sorted(end_tokens_of(ws.student.model, tokenizer))
        texts = answer_with_vllm(
            ws.answer_engine, adapters, prompts, tokenizer, max_new_tokens=longest, end_tokens=ends
        )
    # A grid goes over several lines, and what follows it is passed over in reading.
    cut = str.strip if isinstance(grading.grader, GridVotesGrading) else first_line
    return [mine if isinstance(mine, ScoringFailure) else [cut(text) for text in mine] for mine in texts]


def questions_of(task: KnowledgeTask, which: QuestionSet) -> tuple[Question, ...]:
    """Return the questions of a task that rewards use, or the held-out ones."""
    return task.questions if which == "rewards" else task.comparison_questions


_FAILURES = {
    UpdateOutcome.OVER_BUDGET: RewardFailure.OVER_BUDGET,
    UpdateOutcome.CANARY_FAILED: RewardFailure.CANARY_FAILED,
    UpdateOutcome.NON_FINITE: RewardFailure.NON_FINITE,
}
"""What an update's outcome means for the reward; every other failed outcome is `update_failed`."""


def _replicate(
    request: UpdateRequest,
    result: UpdateResult | None,
    scores: list[AnswerScore] | ScoringFailure | None,
    written: list[str] | ScoringFailure | None,
    known: Sequence[bool] = (),
) -> ReplicateRecord:
    """Return the record of one update and its scores.

    Args:
        request: What was asked for.
        result: Of the training; None for the student without an update.
        scores: By the forced pass: of the questions, then of the retention probes.
        written: The answers as text; None where none were wanted.
        known: Which of the probes the student answers without an update.
    """
    failure, detail = None, "" if result is None else result.detail
    if result is not None and result.outcome is not UpdateOutcome.OK:
        failure = _FAILURES.get(result.outcome, RewardFailure.UPDATE_FAILED)
        detail = f"{result.outcome.value}: {result.detail}"
    elif scores is None or isinstance(scores, ScoringFailure):
        failure = RewardFailure.SCORING_FAILED
        detail = "not scored" if scores is None else scores.reason
    elif isinstance(written, ScoringFailure):
        failure, detail = RewardFailure.SCORING_FAILED, written.reason
    answered = scores if isinstance(scores, list) and failure is None else []
    asked = len(answered) - len(known) if answered else 0
    answered, retained = answered[:asked], tuple(score.exact for score in answered[asked:])
    losses = () if result is None else result.losses
    return ReplicateRecord(
        document_id=request.document_id,
        index=request.sample,
        seed=request.seed,
        failure=failure,
        detail=detail,
        adapter_digest=None if result is None or result.adapter is None else result.adapter.digest,
        retained=retained,
        forgetting=(sum(known) - sum(retained)) / len(known) if retained else None,
        exact=tuple(score.exact for score in answered),
        probability=tuple(score.probability for score in answered),
        token_probability=tuple(math.exp(score.log_probability / len(score.predicted)) for score in answered),
        answers=tuple(written) if isinstance(written, list) and failure is None else (),
        empty=sum(score.empty for score in answered),
        steps=0 if result is None else result.steps,
        tokens=0 if result is None else result.tokens,
        padded_tokens=0 if result is None else result.padded_tokens,
        first_loss=losses[0] if losses and failure is None else None,
        last_loss=losses[-1] if losses and failure is None else None,
    )


def learn_round(ws: Workspace, policy: str | None, examples: Sequence[WeightedExample], *, seed: int) -> LearningRecord:
    """Return the step of the teacher from a saved state on a round's examples; the new state is saved.

    Args:
        ws: The run's workspace.
        policy: State to start from; None is the untrained teacher.
        examples: With their weights; none leaves the teacher as it was.
        seed: Of the order of the examples.
    """
    started = time.perf_counter()
    teacher = ws.at_policy(policy)
    ws.forget_policy()
    report = learn(teacher, examples, ws.config.teacher.learning, seed)
    if report.skipped_steps:
        raise UpdateError(
            f"teacher: {report.skipped_steps} of {len(report.steps)} learning steps had a loss or gradient that is not "
            "finite. Lower teacher.learning.learning_rate; the rounds before this one are kept."
        )
    name = ws.keep_policy()
    return LearningRecord(
        policy=name,
        policy_digest=teacher.digest,
        examples=report.examples,
        tokens=report.tokens,
        loss=report.loss,
        kl=report.kl,
        entropy=report.entropy,
        clip_fraction=report.clip_fraction,
        gradient_norm=report.gradient_norm,
        seconds=time.perf_counter() - started,
    )
