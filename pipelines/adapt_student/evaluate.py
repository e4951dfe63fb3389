"""What the night's student knows against the champion and the base, and the gate's decision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat, begun_text, first_line
from evaluation.gate.checks import PairedScore
from evaluation.gate.decisions import GateEvidence, GateReport, decide
from evaluation.graders import GradeItem, Grader
from evaluation.retention import retention_probes
from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Question
from pipelines.adapt_student.base import is_weak
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.learn import Learned, Night
from pipelines.adapt_student.state import BASE_STUDENT, StudentVersion
from pipelines.ask.answerer import Answerer
from pipelines.ask.answers import AnswerSettings, calibrated_confidence
from pipelines.loop.loop import Loop
from pipelines.loop.update import bank_of, write_answers
from pipelines.models import ModelRef, open_student
from pipelines.plan import Stage
from pipelines.records import Answered, Record
from student.adapters import load_adapter
from student.bank.scoring import ScoringFailure
from student.memory import ExternalMemory, MemoryEntry

PROBES, GENERAL = "general knowledge", "general"
"""Names of the retention probes, and of the general-knowledge questions of the contradiction check."""
_MOST_GENERAL = 100_000
"""Maximum general-knowledge questions that the contradiction check searches."""
_MOST_CONTRADICTIONS = 3
"""Contradictions shown of a document, at most."""
CONTRADICTION_SCORE = 1.5
"""Minimum retrieval score (`student.memory.Hit.score`) at which a question concerns a new document. Over nights of 2 to
12 micro-world documents, 95 % of the questions about their entities scored above 1.3 to 1.7, and 99.9 % of all others
below 1.36."""
_CALIBRATION = 256
"""Most answers that the confidence threshold is calibrated on."""


class Answers(Record):
    """One student's answers to some questions."""

    scores: tuple[float, ...]
    """By question: 1 if greedy decoding writes the gold answer, else 0; of a text to continue the geometric mean of the
    gold tokens' probabilities, in [0, 1]."""
    empty: int
    """Questions with an empty answer."""
    texts: tuple[str, ...] = ()
    """By question: what the student writes; without a grader a wrong answer ends with `...` at its first token that is
    not the gold answer's."""


class NightScores(NamedTuple):
    """Scores of one student of a night."""

    right: Mapping[str, Sequence[float | None]]
    """By document id, or name of a set of general questions: each question's score in [0, 1] (`Answers.scores`, or the
    grader's verdict); None without a verdict."""
    empty: int
    texts: Mapping[str, Sequence[str]] = MappingProxyType({})
    """What it answers (`Answers.texts`), by the same names."""

    def accuracy(self, *names: str) -> float | None:
        """Return the mean over documents of their mean score, in [0, 1]; None without any."""
        return known_mean(known_mean(self.right.get(name, ())) for name in names)


class KnownQuestion(NamedTuple):
    """Contradiction check: a question with a known answer about an entity of a new document."""

    owner: str
    """Id of the new document."""
    name: str
    number: int
    """Id of the earlier document that the question is on, or `GENERAL`, and the place among its questions, from 0."""


class Contradiction(Record):
    """A question that the champion answers and the night's student answers otherwise."""

    question: str
    old: str
    new: str
    """Both answers."""


class Measured(NamedTuple):
    """Scores of the three students of a night."""

    after: NightScores
    before: NightScores
    """The night's student and the champion, on the same questions."""
    base: NightScores
    """The base student, on the probes alone."""
    known: Sequence[KnownQuestion] = ()
    questions: Mapping[str, Sequence[Question]] = MappingProxyType({})
    """Those of `right` and `known`, by the same names."""

    @property
    def is_weak(self) -> bool:
        """Whether the base answers hardly any probe; see `is_weak`."""
        probes = self.base.right[PROBES]
        return is_weak(sum(map(bool, probes)), self.base.empty, len(probes))


def score_student(
    loop: Loop,
    config: NightConfig,
    student: StudentVersion,
    questions: Mapping[str, Sequence[Question]],
    clients: Mapping[str, str] = MappingProxyType({}),
) -> NightScores:
    """Return the scores of questions, by document id or name of a set, that a student answers as in `preceptor ask`.

    `clients` has the clients who ask, by id of a document that is given to them alone. The configuration's grader
    decides where there is one.

    Raises:
        ScoringError: The student cannot be scored.
        BudgetError, EndpointError: A judge cannot be asked on.
    """
    asked = [question for some in questions.values() for question in some]
    askers = [clients.get(name, "") for name, some in questions.items() for _ in some]
    answerer = Answerer(open_student(loop.student_ref), student.adapter, student.state.memory, config.asking)
    posed = []
    for question, client in zip(asked, askers, strict=True):
        if question.is_continuation:
            posed.append((question, student.adapter is not None))
        else:
            prompt = answerer.prompt_for(question.question, client=client)
            posed.append((question.model_copy(update={"question": prompt.text}), prompt.adapted))
    grading = config.grading
    content = {
        "student": loop.student_digest,
        "adapter": None if student.adapter is None else student.adapter.digest,
        "posed": [[question.question, question.answer, adapted] for question, adapted in posed],
        "joiner": config.student.answer_format.joiner,
        # The grader is no part: it reads the stored answers.
        "answers": None if grading is None else grading.model_dump(mode="json", exclude={"grader"}),
    }
    describe = f"asking {len(asked)} questions"
    found = loop.execution.run(
        "night-scores", content, check_answers, config, student.directory, posed, describe=describe
    )
    scores, texts = iter(_verdicts(loop.grader, asked, found)), iter(found.texts)
    right = {name: tuple(itertools.islice(scores, len(some))) for name, some in questions.items()}
    written = {name: tuple(itertools.islice(texts, len(some))) for name, some in questions.items()}
    return NightScores(right, found.empty, written)


def _verdicts(grader: Grader | None, asked: Sequence[Question], found: Answers) -> list[float | None]:
    """Return the scores, with a grader those that it gives the students' texts."""
    scores: list[float | None] = list(found.scores)
    if grader is not None:
        graded = [i for i, question in enumerate(asked) if not question.is_continuation]
        items = [GradeItem(asked[i].question, asked[i].answer, found.texts[i]) for i in graded]
        for i, grade in zip(graded, grader.grade(items), strict=True):
            scores[i] = None if grade.correct is None else float(grade.correct)
    return scores


def check_answers(config: NightConfig, adapter: Path | None, posed: Sequence[tuple[Question, bool]]) -> Answers:
    """Return whether a student writes the gold answers, by one teacher-forced pass, and what it writes.

    `posed` has whole prompts with their gold answers, and whether the adapter (a directory) is used. Raises
    ScoringError.
    """
    loaded = None if adapter is None else load_adapter(adapter)
    ref = ModelRef.of(config.student, config)
    tokenizer = open_student(ref).tokenizer
    plain = AnswerFormat(prompt="{question}", joiner=config.student.answer_format.joiner)
    scores, texts, empty = [0.0] * len(posed), [""] * len(posed), 0
    with bank_of(config, config.update) as bank:
        for adapted in (False, True):
            mine = [i for i, (_, uses) in enumerate(posed) if uses is adapted]
            questions = [posed[i][0] for i in mine]
            student = [loaded if adapted else None]
            found = bank.score(student, [questions], tokenizer, plain)[0]
            written: list[str] | ScoringFailure = []
            if config.grading is not None:
                prompts = [[question.question for question in questions]]
                written = write_answers(ref, config.grading, bank, student, prompts, config.update.rank)[0]
            for failed in (found, written):
                if isinstance(failed, ScoringFailure):
                    raise ScoringError(f"night: the student cannot be scored: {failed.reason}")
            assert isinstance(found, list)
            assert isinstance(written, list)
            if config.grading is None:
                written = [begun_text(tokenizer, score) for score in found]
            for i, question, score in zip(mine, questions, found, strict=True):
                scores[i] = score.token_probability if question.is_continuation else float(score.exact)
                empty += score.empty and not question.is_continuation
            for i, text in zip(mine, written, strict=True):
                texts[i] = first_line(text)
    return Answers(scores=tuple(scores), empty=empty, texts=tuple(texts))


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
        if not question.is_continuation and (hits := memory.search(question.question, 1, CONTRADICTION_SCORE))
    )


def _known_scores(measured: Measured) -> Iterator[tuple[KnownQuestion, float, float]]:
    """Yield the known questions that both students have a score for, with the scores after and before the night."""
    for question in measured.known:
        after, before = (some.right[question.name][question.number] for some in (measured.after, measured.before))
        if after is not None and before is not None:
            yield question, after, before


def known_pairs(measured: Measured) -> tuple[PairedScore, ...]:
    """Return the scores on the known questions, in their order."""
    return tuple(
        PairedScore(document=f"{GENERAL} {i}" if name == GENERAL else f"{name}/{i}", candidate=after, reference=before)
        for (_, name, i), after, before in _known_scores(measured)
    )


def suspects(measured: Measured) -> tuple[str, ...]:
    """Return the ids of new documents about known entities of which the night's student knows no more than before.

    All of these are quarantined when the check fails, not only those that lost: beside a wrong document that did harm
    there may be another whose harm the next night would show.
    """
    change: dict[str, float] = {}
    for question, after, before in _known_scores(measured):
        change[question.owner] = change.get(question.owner, 0.0) + after - before
    return tuple(owner for owner, total in change.items() if total <= 0.0)


def measure(night: Night, student: StudentVersion, stage: Stage) -> Measured:
    """Return the scores of the night's student, the champion and the base on the same questions."""
    config, loop = night.config, night.loop
    new = {planned.task.id for planned in night.plan.documents}
    tasks = {held.task.id: held.task for held in student.state.active}
    general = retention_probes(config.general, _MOST_GENERAL, loop.seed("retention"))
    clients = student.state.private  # what one of them says contradicts nobody
    public = {name: task for name, task in tasks.items() if name not in clients}
    earlier = {name: task.comparison_questions for name, task in public.items() if name not in new}
    found = known_questions([task for name, task in public.items() if name in new], {**earlier, GENERAL: general})
    probes: dict[str, Sequence[Question]] = {PROBES: loop.probes}
    questions = {name: task.comparison_questions for name, task in tasks.items()} | probes
    questions[GENERAL] = [general[each.number] for each in found if each.name == GENERAL]
    place = itertools.count()  # among the general questions that are asked
    known = [each._replace(number=next(place)) if each.name == GENERAL else each for each in found]
    # Without an adapter and a memory the champion is the base student, which answers the probes once for both.
    is_base = night.parent.adapter is None and not night.parent.state.documents
    of_parent = {name: some for name, some in questions.items() if name != PROBES} if is_base else questions
    scores = []
    compared = ((student, questions), (night.parent, of_parent), (BASE_STUDENT, probes))
    for step, (each, some) in zip(stage.steps, compared, strict=True):
        with loop.reporter.step(step, stage.name):
            scores.append(score_student(loop, config, each, some, clients))
    after, before, base = scores
    if is_base:
        before = NightScores({**before.right, **base.right}, before.empty + base.empty)
    return Measured(after, before, base, known, questions)


def answered(measured: Measured) -> list[Answered]:
    """Return the questions on documents and probes with the answers of the night's student and their verdicts."""
    return [
        Answered(
            document=name,
            edit=0,
            question=question.question,
            gold=question.answer,
            answer=text,
            right=None if right is None else right >= 0.5,
        )
        for name, questions in measured.questions.items()
        for question, right, text in zip(questions, measured.after.right[name], measured.after.texts[name], strict=True)
        if not question.is_continuation
    ]


def answer_settings(night: Night, student: StudentVersion, measured: Measured) -> AnswerSettings:
    """Return how the night's student is asked from now on, its confidence calibrated on what the night asked it.

    Only answers from the weights count: with a matching passage there is always an answer.
    """
    config, model = night.config, open_student(night.loop.student_ref)
    answerer = Answerer(model, student.adapter, student.state.memory, config.asking)
    public = [name for name in measured.questions if name not in student.state.private]
    asked = [question.question for name in public for question in measured.questions[name]]
    right = [each for name in public for each in measured.after.right[name]]
    graded = ((question, each) for question, each in zip(asked, right, strict=True) if each in (0.0, 1.0))
    posed = [(answerer.prompt_for(question), bool(each)) for question, each in graded]
    posed = [(prompt, each) for prompt, each in posed if prompt.used == "weights"]
    posed = posed[:: len(posed) // _CALIBRATION + 1]
    answers = zip(answerer.complete([prompt for prompt, _ in posed]), posed, strict=True)
    least = calibrated_confidence((answer.confidence, each) for answer, (_, each) in answers)
    form = config.student.answer_format
    return AnswerSettings(answer_format=form, least_confidence=least, **config.memory.model_dump())


def contradictions(night: Night, student: StudentVersion, measured: Measured) -> dict[str, tuple[Contradiction, ...]]:
    """Return by id of a new document the known questions that the night's student no longer answers."""
    lost: dict[str, list[Question]] = {}
    for (owner, name, i), after, before in _known_scores(measured):
        question = measured.questions[name][i]
        if after < before and len(lost.get(owner, ())) < _MOST_CONTRADICTIONS:
            lost.setdefault(owner, []).append(question)
    reference = ModelRef.of(night.config.student, night.config)
    answerer = Answerer(open_student(reference), student.adapter, student.state.memory, night.config.asking)
    answers = iter(answerer.answer_many([question.question for mine in lost.values() for question in mine]))
    return {
        owner: tuple(Contradiction(question=q.question, old=q.answer, new=next(answers).text) for q in mine)
        for owner, mine in lost.items()
    }


def ask_gate(night: Night, learned: Learned, measured: Measured) -> GateReport | None:
    """Return the gate's report; None without a gate."""
    if night.config.gate is None:
        return None
    held = learned.student.state.groups()
    groups = {name: [each.task.id for each in group if each.task.questions] for name, group in held.items()}
    new, update = groups.pop(night.plan.night, []), learned.update
    failure = None if update is None or update.adapter_digest else update.detail
    evidence = evidence_of(measured, new, {name: ids for name, ids in groups.items() if ids}, {"update": failure})
    unasked = sum(not each.task.questions for each in held.get(night.plan.night, ()))
    return decide(evidence.model_copy(update={"unasked": unasked}), night.config.gate)


def evidence_of(
    measured: Measured, new: Sequence[str], earlier: Mapping[str, Sequence[str]], canaries: Mapping[str, str | None]
) -> GateEvidence:
    """Return the gate's evidence.

    New and earlier documents are the whole population, not a sample: what a student knows of them is uncertain only by
    the choice of questions, so each question counts by itself. Probes are a sample. `new` and `earlier` (by night) have
    ids of documents, `canaries` the reasons of failure by name, None if passed. Probes that a base does not answer are
    no evidence where it answers hardly any, which mostly is the fault of the form that it is asked in.
    """
    after, before = measured.after.right, measured.before.right
    names = [*new, *(name for group in earlier.values() for name in group)]

    def pairs(ids: Sequence[str]) -> tuple[PairedScore, ...]:
        return tuple(
            PairedScore(document=f"{name}/{i}", candidate=mine, reference=theirs)
            for name in ids
            for i, (mine, theirs) in enumerate(zip(after.get(name, ()), before.get(name, ()), strict=True))
            if mine is not None and theirs is not None
        )

    base, empty = measured.base.right[PROBES], measured.base.empty
    against_base = tuple(
        PairedScore(document=f"probe {i}", candidate=a, reference=b)
        for i, (a, b) in enumerate(zip(after[PROBES], base, strict=True))
        if a is not None and b is not None and (b or not measured.is_weak)
    )
    return GateEvidence(
        new=pairs(new),
        earlier={night: pairs(group) for night, group in earlier.items()},
        probes={PROBES: against_base} if against_base else {},
        touched=known_pairs(measured),
        collapsed=measured.after.empty,
        answered=sum(map(len, after.values())),
        base_collapsed=empty / len(base) if base else 0.0,
        canaries=canaries,
        unscored=tuple(n for n in names if None in (known_mean(after.get(n, ())), known_mean(before.get(n, ())))),
    )
