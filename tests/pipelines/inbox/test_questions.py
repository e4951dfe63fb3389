from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.answers import normalize_answer
from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.exact_match import AnswerFormat, score_answers
from evaluation.microworld.world import PHRASINGS, WorldDocument, ask, draw_documents, known_facts
from evaluation.tasks import Question
from pipelines.inbox import questions
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.questions import Dropped, WriterSettings, continuations, sentences_to_complete, writer_prompts
from student.in_context import score_in_context
from teacher.samplers.sampler import Completion, FailedCompletion, Seeds
from teacher.samplers.transformers import TransformersSampler, TransformersSampling

WORLD = draw_documents("train", 3, 11)
write_questions = partial(questions.write_questions, prompt="micro-self-qa", samples=2, seed=5)


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
    found = write_questions(DOCUMENTS, sampler, student, AnswerFormat())
    assert {its.evidence for its in found} == {"questions by the teacher"}
    return [list(its.questions) for its in found]


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
    (alone,) = write_questions(DOCUMENTS[2:3], sampler, student, AnswerFormat())
    assert list(alone.questions) == written[2]


def test_prompts_hold_no_question(written: list[list[Question]]) -> None:
    asked = [
        each.model_copy(update={"questions": tuple(outcome[::2]), "held_out_questions": tuple(outcome[1::2])})
        for each, outcome in zip(DOCUMENTS, written, strict=True)
    ]
    for name in ("micro-self-qa", "worked-self-qa"):
        prompts = writer_prompts(asked, name)
        assert prompts == writer_prompts(DOCUMENTS, name)
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

    def sample(
        self, prompts: Sequence[str], *, n: int, seed: Seeds, stop: str | None = None
    ) -> Sequence[Sequence[Completion | FailedCompletion]]:
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
        "Passage: another one",
        pair("Never read?", good.answer),
    ]
    more = ("A statement about the passage.", pair(f"{good.question} Why?", good.answer), "", lines[1])
    recorded = Recorded("\n".join(lines), *more, FailedCompletion("timeout", "slow"))
    (outcome,) = write_questions(DOCUMENTS[:1], recorded, student, AnswerFormat())
    assert outcome.questions == (Question(question=good.question, answer=good.answer),)
    assert outcome.dropped == {
        Dropped.DUPLICATE: 1,
        Dropped.NOT_ANSWERED: 1,
        Dropped.NOT_IN_PASSAGE: 1,
        Dropped.IN_QUESTION: 1,
        Dropped.LONG_ANSWER: 1,
        Dropped.SEVERAL: 1,
        Dropped.NO_QUESTION: 2,
        Dropped.FAILED: 1,
    }
    assert "1 answer too long" in outcome.note


def test_facts_that_the_student_knows_are_not_asked(student: Checkpoint) -> None:
    fact = next(f for f in known_facts()[0] if score_answers(*student, [ask(f, PHRASINGS[0])], AnswerFormat())[0].exact)
    asked = ask(fact, PHRASINGS[0])
    known = InboxDocument(text=fact.words.passage[0].format(name=fact.name, value=fact.value), source="known")
    recorded = Recorded(pair(asked.question, asked.answer))
    (outcome,) = write_questions([known], recorded, student, AnswerFormat())
    assert outcome.dropped[Dropped.KNOWN] >= 1
    assert asked.question not in {question.question for question in outcome.questions}
    assert outcome.evidence != "questions by the teacher"


def test_document_too_long_for_the_writer_or_the_student_is_asked_by_its_own_sentences(student: Checkpoint) -> None:
    question = ask(WORLD[1].sheet.facts[0], PHRASINGS[0])
    text = "The mill was opened by Anton Keller in 1871. " + "It rained for a long time and nobody came. " * 30
    long = InboxDocument(text=text, source="long")
    recorded = Recorded(pair(question.question, question.answer), limit=200)
    first, second = write_questions([long, DOCUMENTS[1]], recorded, student, AnswerFormat())
    assert (len(second.questions), len(recorded.prompts)) == (1, 1)
    assert first.evidence == "sentences to complete"
    assert Question(question="Complete the sentence: The mill was opened by", answer="Anton Keller") in first.questions
    assert first.dropped[Dropped.TOO_LONG_FOR_TEACHER] == 1
    long = InboxDocument(text=" ".join([DOCUMENTS[1].text] * 40), source="long")
    (outcome,) = write_questions([long], Recorded(pair(question.question, question.answer)), student, AnswerFormat())
    assert outcome.dropped[Dropped.UNSCORED] == 1
    assert outcome.evidence == "sentences to complete"


def test_without_anything_to_complete_sentences_have_a_probability_and_a_single_word_has_nothing(
    student: Checkpoint,
) -> None:
    rain = InboxDocument(text="it rains and pours\n\nthey sing and dance", source="rain")
    word = InboxDocument(text="Rain", source="word")
    told, empty = write_questions([rain, word], Recorded("Nothing."), student, AnswerFormat())
    assert told.evidence == "probability of sentences"
    assert [q.answer for q in told.questions] == ["they sing and dance"]
    assert all(question.is_continuation for question in told.questions)
    (score,) = score_answers(*student, told.questions, AnswerFormat())
    text = AnswerFormat(prompt="{question}")
    plain = Question(question=told.questions[0].question, answer=told.questions[0].answer)
    assert score_answers(*student, [plain], text) == [score]
    assert 0.0 < score.token_probability < 1.0
    assert (empty.questions, empty.evidence) == ((), "none")
    assert "nothing can be asked" in empty.note


@given(
    st.lists(st.sampled_from(["The", "mill", "of", "Anton", "Keller", "opened", "in", "1871.", "and", "\n", "a", "7,"]))
)
def test_completed_sentences_stand_in_the_passage(words: list[str]) -> None:
    document = InboxDocument(text=" ".join(["Once", *words]), source="drawn", title="Mill")
    whole = " ".join(document.text.split())
    found = sentences_to_complete(document)
    assert len({question.question for question in found}) == len(found)
    for question in found:
        stem = question.question.partition(": ")[2]
        assert f"{stem} {question.answer}" in whole
        assert 1 <= len(question.answer.split()) <= 4
    assert all(question.answer in whole for question in continuations(document))


def test_the_default_prompt_is_that_of_the_teacher() -> None:
    assert WriterSettings().prompt_for("micro-teacher") == "micro-self-qa"
    assert WriterSettings().prompt_for("some/model") == "worked-self-qa"
    assert WriterSettings(prompt="rewrite").prompt_for("micro-teacher") == "rewrite"
