"""The contradiction check, and the gate's evidence."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluation.gate.decisions import GateConfig, GateEvidence, decide
from evaluation.microworld.world import MicroworldData, Sheet, WorldDocument, draw_documents, known_facts
from evaluation.retention import retention_probes
from evaluation.tasks import Question
from pipelines.adapt_student import evaluate
from pipelines.adapt_student.base import ask_base
from pipelines.adapt_student.config import NightConfig
from pipelines.settings import load
from tests.pipelines.adapt_student.factories import DEMO, rewritten

KNOWN = retention_probes(MicroworldData(), 10_000, 0)


def scores(right: bool, **counts: int) -> evaluate.NightScores:
    return evaluate.NightScores({name: (right,) * count for name, count in counts.items()}, 0)


def wrong_documents(earlier: Sequence[WorldDocument]) -> list[WorldDocument]:
    """Documents with wrong values: of a person known from the pretraining, and of two earlier documents."""
    facts = [fact for fact in known_facts()[0] if fact.kind == "person"][:2]
    sheets = [Sheet("person", tuple(facts)), *(document.sheet for document in earlier[:2])]
    return [rewritten(random.Random(i), sheet, f"wrong-{i}") for i, sheet in enumerate(sheets)]


def test_wrong_documents_concern_known_questions_and_honest_ones_do_not() -> None:
    drawn = draw_documents("test", 8, 0)
    known = {document.task.id: document.task.comparison_questions for document in drawn[:4]} | {evaluate.GENERAL: KNOWN}
    assert evaluate.known_questions([document.task for document in drawn[4:]], known) == ()
    wrong = wrong_documents(drawn[:4])
    found = evaluate.known_questions([document.task for document in wrong], known)
    names = {name for document in wrong for name in document.task.document.entities}
    of_the_same = {
        (name, i)
        for name, questions in known.items()
        for i, question in enumerate(questions)
        if any(entity in question.question for entity in names)
    }
    assert {(question.name, question.number) for question in found} <= of_the_same
    assert any(question.name == evaluate.GENERAL for question in found)
    assert len(found) >= 0.8 * len(of_the_same)
    assert {question.owner for question in found} <= {document.task.id for document in wrong}


def test_known_questions_are_paired_and_name_suspects() -> None:
    drawn = draw_documents("test", 4, 0)
    earlier = {document.task.id: document.task.comparison_questions for document in drawn}
    wrong = [document.task for document in wrong_documents(drawn)]
    known = evaluate.known_questions(wrong, earlier | {evaluate.GENERAL: KNOWN[:50]})
    counts = {name: len(questions) for name, questions in earlier.items()} | {evaluate.GENERAL: 50}

    def measured(after: bool, before: bool) -> evaluate.Measured:
        return evaluate.Measured(scores(after, **counts), scores(before, **counts), scores(True), known)

    gained, lost, same = measured(True, False), measured(False, True), measured(True, True)
    pairs = evaluate.known_pairs(gained)
    assert len(pairs) == len({pair.document for pair in pairs}) == len(known) > 0
    assert {(pair.candidate, pair.reference) for pair in pairs} == {(1.0, 0.0)}
    assert evaluate.suspects(gained) == ()
    assert set(evaluate.suspects(lost)) == {question.owner for question in known}
    assert evaluate.suspects(same) == evaluate.suspects(lost)  # no harm was seen of these, but no good either


def test_evidence_pairs_every_question_and_lists_unscored_documents() -> None:
    after = evaluate.NightScores({"a": (True, True), "b": (True,), evaluate.PROBES: (True, False)}, 1)
    before = evaluate.NightScores({"a": (False, False), "b": (False,), evaluate.PROBES: (True, True)}, 0)
    measured = evaluate.Measured(after, before, evaluate.NightScores({evaluate.PROBES: (False, True)}, 0))
    evidence = evaluate.evidence_of(measured, ["a"], {"night-0001": ["b", "c"]}, {"update": None})
    assert [(pair.candidate, pair.reference) for pair in evidence.new] == [(1.0, 0.0), (1.0, 0.0)]
    assert len(evidence.earlier["night-0001"]) == 1
    (probes,) = evidence.probes.values()
    assert [(pair.candidate, pair.reference) for pair in probes] == [(1.0, 0.0), (0.0, 1.0)]  # against the base
    assert (evidence.unscored, evidence.answered, evidence.collapsed) == (("c",), 5, 1)
    assert after.accuracy("a", "c") == 1.0
    assert after.accuracy("c") is None


def test_a_base_that_hardly_answers_shows_neither_forgetting_nor_collapse() -> None:
    def evidence(base: tuple[bool, ...], empty: int) -> GateEvidence:
        after = evaluate.NightScores({"a": (0.5, None), evaluate.PROBES: (False,) * len(base)}, 3)
        measured = evaluate.Measured(
            after, evaluate.NightScores({"a": (0.25, True)}, 0), evaluate.NightScores({evaluate.PROBES: base}, empty)
        )
        return evaluate.evidence_of(measured, ["a"], {}, {"update": None})

    known = evidence((True,) * 2 + (False,) * 18, 0)
    assert len(known.probes[evaluate.PROBES]) == 20
    assert [(pair.candidate, pair.reference) for pair in known.new] == [(0.5, 0.25)]  # the other has no verdict
    empty = evidence((True,) * 2 + (False,) * 18, 12)
    assert [pair.reference for pair in empty.probes[evaluate.PROBES]] == [1.0, 1.0]
    assert evidence((False,) * 20, 0).probes == {}
    collapse = {check.name: check.verdict for check in decide(empty, GateConfig()).checks}
    assert collapse["empty or degenerate answers"] == "pass"  # 3 of 22, where the base has 12 of 20
    silent = GateEvidence(new=(), unasked=2, canaries={"update": None}, answered=9, probes=known.probes)
    assert [check.verdict for check in decide(silent, GateConfig()).checks if check.name == "new documents"] == ["pass"]


def test_the_base_is_asked_before_the_first_night_and_a_wrong_form_is_named() -> None:
    config = load(DEMO, NightConfig, ["probes=20", "threads=1"])
    (line,) = ask_base(config)
    assert "of 20 probes" in line
    wrong = load(DEMO, NightConfig, ["probes=20", "threads=1", "general=null"])
    told = " ".join(ask_base(wrong))
    assert "student.format" in told
    assert "few-shot: " in told
    assert list(ask_base(load(DEMO, NightConfig, ["probes=0"]))) == []


def test_answers_of_a_night_are_shown_right_and_wrong() -> None:
    asked = (Question(question="Where does Ann live?", answer="Rome"), Question(question="And Bob?", answer="Oslo"))
    told = {"a": ("Rome", "Ro ...")}
    after, other = evaluate.NightScores({"a": (1.0, 0.0)}, 0, told), evaluate.NightScores({}, 0)
    shown = evaluate.answered(evaluate.Measured(after, other, other, [], {"a": asked}))
    rows = [(each.gold, each.answer, each.right) for each in shown]
    assert rows == [("Rome", "Rome", True), ("Oslo", "Ro ...", False)]
