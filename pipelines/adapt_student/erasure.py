"""The proof of an erasure: whether a student still knows what it is to have forgotten, asked of its weights alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from evaluation.common.data import digest_json
from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerScore
from evaluation.gate.checks import PairedScore, differences_of
from evaluation.statistics import Interval, bootstrap_mean, known_mean, known_means
from evaluation.tasks import KnowledgeTask, Question
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.state import (
    Erasure,
    StudentVersion,
    read_state,
    student_directory,
    student_label,
    student_version,
)
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import log_finished
from pipelines.loop.update import bank_of
from pipelines.models import ModelRef, close_models, open_student, with_answer_format
from pipelines.reports.format import counted, percent, plain_table, points_interval
from pipelines.terminal import open_console
from student.adapters import load_adapter
from student.bank.scoring import ScoringFailure

_OPTIONS = 8
"""Answers of a document that a probe chooses from, at most."""
_FEWEST, _LARGE = 6, 0.5
"""Answers below which an interval says nothing, and the gain, in [0, 1], that counts as one all the same."""


class Probes(NamedTuple):
    """What one student does with the probes, without a memory."""

    right: list[float]
    """By probe: 1 if greedy decoding writes the gold answer, else 0."""
    probability: list[float]
    """By probe: geometric mean of the gold tokens' probabilities, in [0, 1]."""
    choice: list[float]
    """By probe: the gold answer's probability among up to `_OPTIONS` answers of its document, in [0, 1]. Learning other
    documents makes all answers of a kind more probable, this alone those that go with the question."""


def prove(settings: NightConfig, registry: Registry, erasure: Erasure, work_dir: Path) -> bool:
    """Return whether the champion answers what was forgotten no better than the last version without it.

    Better is a gain in exact answers, or in the choice among the document's own answers, whose 95 % interval is above
    0; with fewer than `_FEWEST` answers a gain above `_LARGE`. All questions with one answer count as one, since they
    are not independent. The figures are printed and logged, without any text.
    """
    holder, tasks = _holder(registry, erasure, work_dir)
    champions = erasure.clean, registry.champion("student")
    students = {"learned it": holder}
    students |= {
        what: student_version(registry, number, work_dir)
        for what, number in zip(("before it", "in use now"), champions, strict=True)
    }
    try:
        probes = dict(zip(students, ask_probes(settings, [*students.values()], tasks), strict=True))
    finally:
        close_models()
    _, before, now = probes.values()
    facts = [(name, question.answer) for name, task in tasks.items() for question in _questions(task)]
    gains = {name: _gain(facts, getattr(now, name), getattr(before, name)) for name in ("right", "choice")}
    few = len({*facts}) < _FEWEST
    gone = not any(gain.mean > _LARGE if few else gain.low > 0.0 for gain in gains.values())
    _print(students, tasks, probes, gains, len({*facts}))
    record = {
        "documents": {name: task.document.digest for name, task in tasks.items()},
        "erased_versions": erasure.versions,
        "versions": {what: each.number for what, each in students.items()},
        "adapters": {what: each.adapter and each.adapter.digest for what, each in students.items()},
        "by_question": {what: each._asdict() for what, each in probes.items()},
        "gains": {name: gain.model_dump() for name, gain in gains.items()},
        "gone": gone,
    }
    columns = {f"{what}/{name}": mine for what, each in probes.items() for name, mine in each._asdict().items()}
    run, _ = log_finished(
        settings.tracking,
        work_dir,
        f"erasure of {counted(len(tasks), 'document')}",
        params={"versions": list(erasure.versions), "questions": len(now.right)},
        tags={"preceptor.kind": "erasure", "preceptor.outcome": "gone" if gone else "not gone"},
        metrics=known_means(columns),
        texts={"erasure.json": json.dumps(record, indent=2)},
    )
    typer.echo(f"{_verdict(gone, len({*facts}))} The record, without any text, is MLflow's run {run}.")
    return gone


def _print(
    students: Mapping[str, StudentVersion],
    tasks: Mapping[str, KnowledgeTask],
    probes: Mapping[str, Probes],
    gains: Mapping[str, Interval],
    facts: int,
) -> None:
    first, *_ = probes.values()
    title = f"{counted(len(first.right), 'question')} on {counted(len(tasks), 'forgotten document')}, without memory"
    table = plain_table(title, heads=("student", "right, %", "gold probability, %", "choice, %"))
    for what, each in probes.items():
        table.add_row(
            f"{student_label(students[what].number)}, {what}", *(percent(known_mean(column)) for column in each)
        )
    told = (f"{what} {points_interval(gain)}" for what, gain in gains.items())
    table.caption = f"In use now minus before it, by {facts} answers, in points: {', '.join(told)}"
    open_console().print(table)


def _verdict(gone: bool, facts: int) -> str:
    if not gone:
        return (
            "NOT FORGOTTEN: the champion answers these questions better than the version before it, beyond noise. Look "
            "for other documents that say the same, and forget these, too."
        )
    if facts < _FEWEST:
        return f"Fewer than {_FEWEST} different answers show no more than a large gain, and there is none."
    return "Gone: the champion answers these questions no better than the version before it, beyond noise."


def _holder(registry: Registry, erasure: Erasure, work_dir: Path) -> tuple[StudentVersion, dict[str, KnowledgeTask]]:
    """Return the version that was in use, and the forgotten documents as the erased versions hold them, by id."""
    assert erasure.champion is not None
    tasks: dict[str, KnowledgeTask] = {}
    for number in (erasure.champion, *reversed(erasure.versions)):  # later ones may be without a removed document
        directory = registry.fetch("student", number, student_directory(work_dir, number), erased=True)
        state = read_state(directory)
        tasks |= {each.task.id: each.task for each in state.documents if each.task.id in erasure.documents}
        if number == erasure.champion:
            holder = StudentVersion(number, directory, load_adapter(directory), state)
        if len(tasks) == len(erasure.documents):
            break
    return holder, tasks


def _questions(task: KnowledgeTask) -> list[Question]:
    return list(dict.fromkeys((*task.questions, *task.held_out_questions)))


def ask_probes(
    settings: NightConfig, students: Sequence[StudentVersion], tasks: Mapping[str, KnowledgeTask]
) -> list[Probes]:
    """Return what students answer to all questions on some documents, by their weights alone; raises ScoringError."""
    settings = with_answer_format(settings)
    probes: list[list[Question]] = []
    for task in tasks.values():
        asked = _questions(task)
        answers = list(dict.fromkeys(question.answer for question in asked))
        for question in asked:
            at = answers.index(question.answer)
            chosen = (answers[at:] + answers[:at])[:_OPTIONS]  # the gold one first
            probes.append([question.model_copy(update={"answer": answer}) for answer in chosen])
    rows = [row for probe in probes for row in probe]
    tokenizer = open_student(ModelRef.of(settings.student, settings)).tokenizer
    adapters = [student.adapter for student in students]
    with bank_of(settings, settings.update) as bank:
        scored = bank.score(adapters, [rows] * len(adapters), tokenizer, settings.student.answer_format)
    found = []
    for scores in scored:
        if isinstance(scores, ScoringFailure):
            raise ScoringError(f"forget: a student cannot be asked: {scores.reason}")
        left = iter(scores)
        found.append(_probes([list(itertools.islice(left, len(probe))) for probe in probes]))
    return found


def _probes(scores: Sequence[Sequence[AnswerScore]]) -> Probes:
    """Return figures from each probe's scores, the gold answer's first."""
    choice = []
    for gold, *others in scores:
        most = max(each.log_probability for each in (gold, *others))
        shares = [math.exp(each.log_probability - most) for each in (gold, *others)]
        choice.append(shares[0] / sum(shares))
    gold_scores = [some[0] for some in scores]
    return Probes([float(g.exact) for g in gold_scores], [g.token_probability for g in gold_scores], choice)


def _gain(facts: Sequence[tuple[str, str]], now: Sequence[float], before: Sequence[float]) -> Interval:
    """Return the mean paired difference over facts with its 95 % interval."""
    scores = zip(facts, now, before, strict=True)
    pairs = [PairedScore(document=digest_json(fact), candidate=a, reference=b) for fact, a, b in scores]
    return bootstrap_mean(differences_of(pairs), bounds=(-1.0, 1.0))
