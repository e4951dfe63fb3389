"""Grading what students wrote: after the units that trained them, so that a judge's failures are asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evaluation.grader_config import GridVotesGrading
from evaluation.graders import Grade, Graded, GradeItem
from evaluation.grids.adaptation import cell_accuracies, voted_verdicts
from evaluation.judge import JudgeGrader, judge_noise
from pipelines.config import QuestionSet
from pipelines.records import BankRecord, Interval, ReplicateRecord
from pipelines.results import JudgeRecord
from pipelines.work import questions_of
from pipelines.workspace import Workspace


def graded(ws: Workspace, record: BankRecord, questions: QuestionSet) -> BankRecord:
    """Return the record with the grader's verdicts on what students wrote; unchanged where exact match decides.

    Rules are computed anew each time; a judge's replies come from the ledger, where it has been asked before.

    Args:
        ws: The run's workspace.
        record: With `answers`.
        questions: Those that were asked.

    Raises:
        BudgetError: The judge's next call could exceed its budget.
        EndpointError: The judge's server refuses for good.
    """
    if ws.config.grading is not None and isinstance(ws.config.grading.grader, GridVotesGrading):
        return record.model_copy(update={"replicates": tuple(_voted(r, ws, questions) for r in record.replicates)})
    if ws.grader is None:
        return record
    items = [
        GradeItem(question.question, (question.answer,), answer)
        for r in record.replicates
        if r.answers
        for question, answer in zip(questions_of(ws.tasks[r.document_id], questions), r.answers, strict=True)
    ]
    verdicts = iter(ws.grader.grade(items))
    replicates = [_with_verdicts(r, [next(verdicts) for _ in r.answers], ws) for r in record.replicates]
    return record.model_copy(update={"replicates": tuple(replicates)})


def _voted(replicate: ReplicateRecord, ws: Workspace, questions: QuestionSet) -> ReplicateRecord:
    """Return an update's record with the verdicts of its views' votes."""
    if not replicate.answers:
        return replicate
    asked = questions_of(ws.tasks[replicate.document_id], questions)
    cells = cell_accuracies(asked, replicate.answers)
    return replicate.model_copy(
        update={"correct": tuple(voted_verdicts(asked, replicate.answers)), "cells": tuple(cells)}
    )


def judge_record(ws: Workspace) -> JudgeRecord | None:
    """Return how noisy the judge was over all that it graded so far; None where no judge grades."""
    if not isinstance(ws.grader, JudgeGrader):
        return None
    noise = judge_noise(ws.grades, **ws.intervals)
    return JudgeRecord(
        repeated=noise.repeated,
        disagreeing=None if noise.disagreeing is None else Interval.of(noise.disagreeing),
        flips=None if noise.flips is None else Interval.of(noise.flips),
        verdicts=noise.verdicts,
        unclear=noise.unclear,
        failed=noise.failed,
    )


def _with_verdicts(replicate: ReplicateRecord, grades: Sequence[Graded], ws: Workspace) -> ReplicateRecord:
    if not grades:
        return replicate
    ws.grades.extend(grades)
    return replicate.model_copy(
        update={
            "correct": tuple(grade.correct if isinstance(grade, Grade) else None for grade in grades),
            "ungraded": dict(Counter(grade.reason.value for grade in grades if not isinstance(grade, Grade))),
        }
    )
