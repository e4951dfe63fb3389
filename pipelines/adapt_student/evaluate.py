"""What the night's student knows against the champion and the base, and the gate's decision."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat
from evaluation.gate.checks import PairedScore
from evaluation.gate.decisions import GateEvidence, GateReport, decide
from evaluation.retention import retention_probes
from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Question
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.learn import Learned, Night
from pipelines.adapt_student.state import BASE_STUDENT, StudentVersion
from pipelines.answers import AnswerSettings, calibrated_confidence
from pipelines.ask import Answerer
from pipelines.loop.loop import Loop
from pipelines.loop.update import bank_of
from pipelines.models import ModelRef, open_student
from pipelines.plan import Stage
from pipelines.records import Record
from student.adapters import load_adapter
from student.bank.scoring import ScoringFailure
from student.memory import ExternalMemory, MemoryEntry

PROBES, GENERAL = "general knowledge", "general"
"""Names of the retention probes, and of the general-knowledge questions of the contradiction check."""
_MOST_GENERAL = 100_000
"""Maximum general-knowledge questions that the contradiction check searches."""
CONTRADICTION_SCORE = 1.5
"""Minimum retrieval score (`student.memory.Hit.score`) at which a question concerns a new document. Over nights of 2 to
12 micro-world documents, 95 % of the questions about their entities scored above 1.3 to 1.7, and 99.9 % of all others
below 1.36."""
_CALIBRATION = 256
"""Most answers that the confidence threshold is calibrated on."""


class Answers(Record):
    """One student's answers to some questions."""

    exact: tuple[bool, ...]
    """By question: greedy decoding writes the gold answer."""
    empty: int


class NightScores(NamedTuple):
    """Correct answers of one student of a night."""

    right: Mapping[str, Sequence[bool]]
    """By document id, or name of a set of general questions: each question."""
    empty: int

    def accuracy(self, *names: str) -> float | None:
        """Return the mean over documents of the share of correct answers, in [0, 1]; None without any."""
        return known_mean(known_mean(self.right.get(name, ())) for name in names)


class KnownQuestion(NamedTuple):
    """Contradiction check: a question with a known answer about an entity of a new document."""

    owner: str
    """Id of the new document."""
    name: str
    number: int
    """Id of the earlier document that the question is on, or `GENERAL`, and the place among its questions, from 0."""


class Measured(NamedTuple):
    """Scores of the three students of a night."""

    after: NightScores
    before: NightScores
    """The night's student and the champion, on the same questions."""
    base: NightScores
    """The base student, on the probes alone."""
    known: Sequence[KnownQuestion] = ()
    questions: Mapping[str, Sequence[Question]] = {}
    """Those of `after` and `before`, by the same names."""


def score_student(
    loop: Loop, config: NightConfig, student: StudentVersion, questions: Mapping[str, Sequence[Question]]
) -> NightScores:
    """Return which questions, by document id or name of a set, a student answers correctly as in `preceptor ask`."""
    asked = [question for some in questions.values() for question in some]
    answerer = Answerer(open_student(loop.student_ref), student.adapter, student.state.memory, config.asking)
    prompts = [answerer.prompt_for(question.question) for question in asked]
    posed = [
        (question.model_copy(update={"question": prompt.text}), prompt.adapted)
        for question, prompt in zip(asked, prompts, strict=True)
    ]
    content = {
        "student": loop.student_digest,
        "adapter": None if student.adapter is None else student.adapter.digest,
        "posed": [[question.question, question.answer, adapted] for question, adapted in posed],
        "joiner": config.student.answer_format.joiner,
    }
    describe = f"asking {len(asked)} questions"
    found = loop.execution.run(
        "night-scores", content, check_answers, config, student.directory, posed, describe=describe
    )
    exact = iter(found.exact)
    right = {name: tuple(itertools.islice(exact, len(some))) for name, some in questions.items()}
    return NightScores(right, found.empty)


def check_answers(config: NightConfig, adapter: Path | None, posed: Sequence[tuple[Question, bool]]) -> Answers:
    """Return whether a student writes the gold answers, by one teacher-forced pass; raises ScoringError.

    `posed` has whole prompts with their gold answers, and whether the adapter (a directory) is used.
    """
    loaded = None if adapter is None else load_adapter(adapter)
    tokenizer = open_student(ModelRef.of(config.student.model, config)).tokenizer
    plain = AnswerFormat(prompt="{question}", joiner=config.student.answer_format.joiner)
    exact, empty = [False] * len(posed), 0
    with bank_of(config, config.update) as bank:
        for adapted in (False, True):
            mine = [i for i, (_, uses) in enumerate(posed) if uses is adapted]
            questions = [posed[i][0] for i in mine]
            found = bank.score([loaded if adapted else None], [questions], tokenizer, plain)[0]
            if isinstance(found, ScoringFailure):
                raise ScoringError(f"night: the student cannot be scored: {found.reason}")
            for i, score in zip(mine, found, strict=True):
                exact[i] = score.exact
            empty += sum(score.empty for score in found)
    return Answers(exact=tuple(exact), empty=empty)


def known_questions(new: Sequence[KnowledgeTask], known: Mapping[str, Sequence[Question]]) -> tuple[KnownQuestion, ...]:
    """Return the known questions for which retrieval finds one of the new documents.

    A night of wrong facts about known entities moves few retention probes, which are about everything; questions about
    the same entities show it first. `known` has questions on earlier documents and on general knowledge by name.
    """
    memory = ExternalMemory(MemoryEntry(id=task.id, title=task.document.title, text=task.document.text) for task in new)
    return tuple(
        KnownQuestion(hits[0].entry.id, name, number)
        for name, questions in known.items()
        for number, question in enumerate(questions)
        if (hits := memory.search(question.question, 1, CONTRADICTION_SCORE))
    )


def known_pairs(measured: Measured) -> tuple[PairedScore, ...]:
    """Return the scores on the known questions, in their order."""
    after, before = measured.after.right, measured.before.right
    return tuple(
        PairedScore(
            document=f"{GENERAL} {i}" if name == GENERAL else f"{name}/{i}",
            candidate=after[name][i],
            reference=before[name][i],
        )
        for _, name, i in measured.known
    )


def suspects(measured: Measured) -> tuple[str, ...]:
    """Return the ids of new documents about known entities of which the night's student knows no more than before.

    All of these are quarantined when the check fails, not only those that lost: beside a wrong document that did harm
    there may be another whose harm the next night would show.
    """
    change: dict[str, float] = {}
    for question, pair in zip(measured.known, known_pairs(measured), strict=True):
        change[question.owner] = change.get(question.owner, 0.0) + pair.candidate - pair.reference
    return tuple(owner for owner, total in change.items() if total <= 0.0)


def measure(night: Night, student: StudentVersion, stage: Stage) -> Measured:
    """Return the scores of the night's student, the champion and the base on the same questions."""
    config, loop = night.config, night.loop
    new = {planned.task.id for planned in night.plan.documents}
    tasks = {held.task.id: held.task for held in student.state.active}
    general = retention_probes(config.general, _MOST_GENERAL, loop.seed("retention"))
    earlier = {name: task.comparison_questions for name, task in tasks.items() if name not in new}
    found = known_questions([task for name, task in tasks.items() if name in new], {**earlier, GENERAL: general})
    probes: dict[str, Sequence[Question]] = {PROBES: loop.probes}
    questions = {name: task.comparison_questions for name, task in tasks.items()} | probes
    questions[GENERAL] = [general[each.number] for each in found if each.name == GENERAL]
    place = itertools.count()  # among the general questions that are asked
    known = [each._replace(number=next(place)) if each.name == GENERAL else each for each in found]
    scores = []
    compared = ((student, questions), (night.parent, questions), (BASE_STUDENT, probes))
    for step, (each, some) in zip(stage.steps, compared, strict=True):
        with loop.reporter.step(step, stage.name):
            scores.append(score_student(loop, config, each, some))
    after, before, base = scores
    return Measured(after, before, base, known, questions)


def answer_settings(night: Night, student: StudentVersion, measured: Measured) -> AnswerSettings:
    """Return how the night's student is asked from now on, its confidence calibrated on what the night asked it.

    Only answers from the weights count: with a matching passage there is always an answer.
    """
    config, model = night.config, open_student(night.loop.student_ref)
    answerer = Answerer(model, student.adapter, student.state.memory, config.asking)
    asked = [question.question for some in measured.questions.values() for question in some]
    right = [each for name in measured.questions for each in measured.after.right[name]]
    posed = [(answerer.prompt_for(question), each) for question, each in zip(asked, right, strict=True)]
    posed = [(prompt, each) for prompt, each in posed if prompt.used == "weights"]
    posed = posed[:: len(posed) // _CALIBRATION + 1]
    answers = zip(answerer.complete([prompt for prompt, _ in posed]), posed, strict=True)
    least = calibrated_confidence((answer.confidence, each) for answer, (_, each) in answers)
    form = config.student.answer_format
    return AnswerSettings(answer_format=form, least_confidence=least, **config.memory.model_dump())


def ask_gate(night: Night, learned: Learned, measured: Measured) -> GateReport | None:
    """Return the gate's report; None without a gate."""
    if night.config.gate is None:
        return None
    groups = {name: [held.task.id for held in group] for name, group in learned.student.state.groups().items()}
    new, update = groups.pop(night.plan.night, []), learned.update
    failure = None if update is None or update.adapter_digest else update.detail
    return decide(evidence_of(measured, new, groups, {"update": failure}), night.config.gate)


def evidence_of(
    measured: Measured, new: Sequence[str], earlier: Mapping[str, Sequence[str]], canaries: Mapping[str, str | None]
) -> GateEvidence:
    """Return the gate's evidence.

    New and earlier documents are the whole population, not a sample: what a student knows of them is uncertain only by
    the choice of questions, so each question counts by itself. Probes are a sample. `new` and `earlier` (by night) have
    ids of documents, `canaries` the reasons of failure by name, None if passed.
    """
    after, before = measured.after.right, measured.before.right
    names = [*new, *(name for group in earlier.values() for name in group)]

    def pairs(ids: Sequence[str]) -> tuple[PairedScore, ...]:
        return tuple(
            PairedScore(document=f"{name}/{i}", candidate=mine, reference=theirs)
            for name in ids
            for i, (mine, theirs) in enumerate(zip(after.get(name, ()), before.get(name, ()), strict=True))
        )

    probes = enumerate(zip(after[PROBES], measured.base.right[PROBES], strict=True))
    against_base = tuple(PairedScore(document=f"probe {i}", candidate=a, reference=b) for i, (a, b) in probes)
    return GateEvidence(
        new=pairs(new),
        earlier={night: pairs(group) for night, group in earlier.items()},
        probes={PROBES: against_base} if against_base else {},
        touched=known_pairs(measured),
        collapsed=measured.after.empty,
        answered=sum(map(len, after.values())),
        canaries=canaries,
        unscored=tuple(name for name in names if not after.get(name) or not before.get(name)),
    )
