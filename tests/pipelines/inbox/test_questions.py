from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.exact_match import AnswerFormat, score_answers
from evaluation.graders import normalize_answer
from evaluation.microworld.world import PHRASINGS, WorldDocument, ask, draw_documents, known_facts
from evaluation.tasks import Question
from pipelines.inbox import questions
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.questions import WriterSettings, writer_prompts
from student.in_context import score_in_context
from teacher.samplers.sampler import Completion, FailedCompletion
from teacher.samplers.transformers import TransformersSampler, TransformersSampling

WORLD = draw_documents("train", 3, 11)
write_questions = partial(questions.write_questions, seed=5)
SETTINGS = WriterSettings(samples=2)


def inbox(drawn: WorldDocument) -> InboxDocument:
    told = drawn.task.document
    return InboxDocument(title=told.title, text=told.text, source=told.source)


DOCUMENTS = [inbox(drawn) for drawn in WORLD]


@pytest.fixture(scope="module")
def student() -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint("micro-student")


@pytest.fixture(scope="module")
def sampler() -> TransformersSampler:
    teacher = load_checkpoint("micro-teacher")
    return TransformersSampler(teacher.model, teacher.tokenizer, TransformersSampling(max_new_tokens=120))


@pytest.fixture(scope="module")
def written(sampler: TransformersSampler, student: Checkpoint) -> list[list[Question]]:
    return write_questions(DOCUMENTS, sampler, student, AnswerFormat(), SETTINGS)


def test_micro_models_write_questions_that_are_right(written: list[list[Question]]) -> None:
    # On 40 other documents 330 of 333 questions are right, none is wrong, and 3 use words unknown to the world.
    right = 0
    for drawn, outcome in zip(WORLD, written, strict=True):
        assert len(outcome) >= 3
        truth = {normalize_answer(ask(f, p).question): f.value for f in drawn.sheet.facts for p in PHRASINGS}
        known = [q for q in outcome if normalize_answer(q.question) in truth]
        assert all(truth[normalize_answer(q.question)] == q.answer for q in known)
        right += len(known)
    assert right >= 0.9 * sum(len(outcome) for outcome in written)


def test_each_question_kept_is_answered_with_the_passage_and_not_without(
    written: list[list[Question]], student: Checkpoint
) -> None:
    for document, outcome in zip(DOCUMENTS, written, strict=True):
        asked = outcome
        (read,) = score_in_context(student.model, student.tokenizer, [document.text], [asked], AnswerFormat())
        assert isinstance(read, list)
        assert all(score.exact for score in read)
        assert not any(score.exact for score in score_answers(*student, asked, AnswerFormat()))
        assert all(normalize_answer(q.answer) in normalize_answer(document.text) for q in asked)
        assert len({normalize_answer(q.question) for q in asked}) == len(asked)


def test_questions_do_not_depend_on_what_else_is_asked(
    written: list[list[Question]], sampler: TransformersSampler, student: Checkpoint
) -> None:
    alone = write_questions(DOCUMENTS[2:3], sampler, student, AnswerFormat(), SETTINGS)
    assert alone == written[2:3]


def test_prompts_hold_no_question(written: list[list[Question]]) -> None:
    asked = [
        each.model_copy(update={"questions": tuple(outcome[::2]), "held_out_questions": tuple(outcome[1::2])})
        for each, outcome in zip(DOCUMENTS, written, strict=True)
    ]
    for name in ("micro-self-qa", "self-qa"):
        settings = WriterSettings(prompt=name)
        prompts = writer_prompts(asked, settings)
        assert prompts == writer_prompts(DOCUMENTS, settings)
        for prompt, outcome in zip(prompts, written, strict=True):
            assert not any(question.question in prompt for question in outcome)


class Recorded:
    """A sampler that gives back given completions, since what a model writes cannot be chosen."""

    def __init__(self, *texts: str | FailedCompletion, limit: int | None = None) -> None:
        self._texts = texts
        self.max_prompt_tokens = limit
        self.prompts: list[str] = []

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def sample(self, prompts: Sequence[str], *, n: int, seed: int) -> Sequence[Sequence[Completion | FailedCompletion]]:
        self.prompts += prompts
        made = [t if isinstance(t, FailedCompletion) else Completion(t, (), "stop") for t in self._texts]
        return [made for _ in prompts]

    def close(self) -> None:
        pass


def pair(question: str, answer: str) -> str:
    return f"Question: {question} Answer: {answer}"


def test_only_short_spans_of_the_passage_that_the_student_answers_with_it_are_kept(student: Checkpoint) -> None:
    drawn = WORLD[0]
    fact, other = drawn.sheet.facts[0], next(f for f in drawn.sheet.facts if f.name != drawn.sheet.facts[0].name)
    good = ask(fact, PHRASINGS[0])
    lines = [
        pair(good.question, good.answer + "."),
        pair(good.question, good.answer),
        pair(good.question, other.value),  # not answered
        pair(good.question, "quokka"),  # not in the passage
        pair(f"Is it {good.answer}?", good.answer),
        pair("What is told?", " ".join(DOCUMENTS[0].text.split()[:14])),  # too long
    ]
    more = ("A statement about the passage.", pair(f"{good.question} Why?", good.answer), "")
    recorded = Recorded("\n".join(lines), *more, FailedCompletion("timeout", "slow"))
    (outcome,) = write_questions(DOCUMENTS[:1], recorded, student, AnswerFormat(), WriterSettings())
    assert outcome == [Question(question=good.question, answer=good.answer)]


def test_facts_that_the_student_knows_are_not_asked(student: Checkpoint) -> None:
    fact = next(f for f in known_facts()[0] if score_answers(*student, [ask(f, PHRASINGS[0])], AnswerFormat())[0].exact)
    asked = ask(fact, PHRASINGS[0])
    known = InboxDocument(text=fact.words.passage[0].format(name=fact.name, value=fact.value), source="known")
    recorded = Recorded(pair(asked.question, asked.answer))
    assert write_questions([known], recorded, student, AnswerFormat(), WriterSettings()) == [[]]


def test_document_too_long_for_the_writer_or_the_student_gets_no_questions(student: Checkpoint) -> None:
    question = ask(WORLD[1].sheet.facts[0], PHRASINGS[0])
    long = InboxDocument(text="word " * 300, source="long")
    recorded = Recorded(pair(question.question, question.answer), limit=200)
    first, second = write_questions([long, DOCUMENTS[1]], recorded, student, AnswerFormat(), WriterSettings())
    assert (len(first), len(second), len(recorded.prompts)) == (0, 1, 1)
    long = InboxDocument(text=" ".join([DOCUMENTS[1].text] * 40), source="long")
    (outcome,) = write_questions(
        [long], Recorded(pair(question.question, question.answer)), student, AnswerFormat(), WriterSettings()
    )
    assert len(outcome) == 0
