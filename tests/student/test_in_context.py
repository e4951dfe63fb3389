"""The proxy reward: scores with a self-edit in the student's context."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evaluation.answers import AnswerFormat, score_answers
from evaluation.checkpoints import Checkpoint, load_checkpoint
from evaluation.microworld.oracle import oracle_lines
from evaluation.microworld.world import WorldDocument, draw_documents
from student.in_context import score_in_context
from student.scoring import ScoringFailure

DOCUMENTS = draw_documents("development", 3, 5)


@pytest.fixture(scope="module")
def student() -> Checkpoint:
    return load_checkpoint("micro-student")


def statements(document: WorldDocument) -> str:
    return " ".join(text for text, answer in oracle_lines(document.sheet) if answer is None)


def scores(student: Checkpoint, contexts: Sequence[str]) -> list[list[float]]:
    asked = [document.task.questions for document in DOCUMENTS]
    found = score_in_context(student.model, student.tokenizer, contexts, asked, AnswerFormat())
    assert not any(isinstance(one, ScoringFailure) for one in found)
    return [[score.probability for score in one] for one in found if not isinstance(one, ScoringFailure)]


def test_scores_equal_those_with_the_context_in_front_of_each_question(student: Checkpoint) -> None:
    contexts = [statements(DOCUMENTS[0]), DOCUMENTS[1].task.document.text, "Short {and} odd."]
    for context, document, found in zip(contexts, DOCUMENTS, scores(student, contexts), strict=True):
        plain = AnswerFormat(prompt=f"Passage: {context}\n{AnswerFormat().prompt}")
        expected = score_answers(student.model, student.tokenizer, document.task.questions, plain)
        assert found == pytest.approx([score.probability for score in expected], rel=1e-4, abs=1e-6)


def test_reading_the_facts_helps_and_reading_nothing_does_not(student: Checkpoint) -> None:
    def mean(contexts: list[str]) -> float:
        values = [value for one in scores(student, contexts) for value in one]
        return sum(values) / len(values)

    told = mean([document.task.document.text for document in DOCUMENTS])
    nothing = mean(["It is good to know such things."] * len(DOCUMENTS))
    assert told > nothing + 0.3


def test_a_context_that_is_too_long_fails_alone(student: Checkpoint) -> None:
    asked = [DOCUMENTS[0].task.questions] * 2
    contexts = ["word " * 3000, statements(DOCUMENTS[0])]
    long, fine = score_in_context(student.model, student.tokenizer, contexts, asked, AnswerFormat())
    assert isinstance(long, ScoringFailure)
    assert not isinstance(fine, ScoringFailure)
    assert len(fine) == len(asked[0])


def test_no_question_has_no_score(student: Checkpoint) -> None:
    assert score_in_context(student.model, student.tokenizer, ["A text."], [()], AnswerFormat()) == [[]]
