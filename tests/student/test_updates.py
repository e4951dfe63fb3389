"""Training sequences, requests, and the usage of banks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.exact_match import AnswerFormat, encode_answer
from evaluation.tasks import Document, Line, lines_of
from student.config import UpdateRecipe
from student.updates import BankUsage, SkipReason, TrainingSequence, build_sequences, make_request
from teacher.self_edit import Implication, SelfEdit, TrainingSpec
from tests.student.factories import byte_tokenizer

DOCUMENT = Document(id="d", title="Iguanas", text="Iguanas climb.")
EDIT = SelfEdit(
    implications=(Implication(text="Iguanas can climb."), Implication(text="What climbs?", answer="An iguana"))
)


def test_build_sequences_statement_and_answer_with_loss_on_all(tokenizer: Any) -> None:
    data = build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, UpdateRecipe(), AnswerFormat())
    texts = [tokenizer.decode(sequence.tokens) for sequence in data.sequences]
    assert texts == ["<s>Iguanas can climb.</s>", "<s>Question: What climbs?\nAnswer: An iguana</s>"]
    assert all(all(sequence.loss_mask) for sequence in data.sequences)
    assert data.skipped == ()


def test_build_sequences_answer_loss_covers_answer_and_end_and_whole_statements(tokenizer: Any) -> None:
    data = build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, UpdateRecipe(loss_on="answer"), AnswerFormat())
    statement, answered = data.sequences
    assert all(statement.loss_mask)
    kept = [token for token, loss in zip(answered.tokens, answered.loss_mask, strict=True) if loss]
    assert tokenizer.decode(kept) == " An iguana</s>"


def test_build_sequences_training_prompt_is_the_scoring_prompt(tokenizer: Any) -> None:
    wrapper = AnswerFormat(prompt="ask {question} tell")
    data = build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, UpdateRecipe(), wrapper)
    scored = encode_answer(tokenizer, "What climbs?", "An iguana", wrapper)
    assert list(data.sequences[1].tokens[:-1]) == scored.tokens


def test_build_sequences_passage_and_title_as_seal_does(tokenizer: Any) -> None:
    recipe = UpdateRecipe(include_passage=True, title_prefix=True)
    edit = SelfEdit(implications=(Implication(text="They climb."),))
    data = build_sequences(lines_of(edit), DOCUMENT, tokenizer, recipe, AnswerFormat())
    texts = [tokenizer.decode(s.tokens, skip_special_tokens=True) for s in data.sequences]
    assert texts == ["Iguanas\nThey climb.", "Iguanas\nIguanas climb."]
    raw = build_sequences(lines_of(SelfEdit()), DOCUMENT, tokenizer, UpdateRecipe(include_passage=True), AnswerFormat())
    assert [tokenizer.decode(s.tokens, skip_special_tokens=True) for s in raw.sequences] == ["Iguanas climb."]
    assert build_sequences(lines_of(SelfEdit()), DOCUMENT, tokenizer, UpdateRecipe(), AnswerFormat()) == ((), ())


def test_build_sequences_long_line_is_left_out_and_recorded(tokenizer: Any) -> None:
    recipe = UpdateRecipe(max_sequence_tokens=20)
    data = build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, recipe, AnswerFormat())
    assert len(data.sequences) == 1  # 18 letters with beginning and end are 20 tokens.
    (skipped,) = data.skipped
    assert (skipped.line, skipped.reason) == (1, SkipReason.TOO_LONG)
    assert "allowed are 20" in skipped.detail


def test_build_sequences_line_without_a_token_to_predict_is_left_out(tokenizer: Any) -> None:
    class Bare:
        """The same tokenizer without beginning and end tokens."""

        bos_token_id = eos_token_id = None

        def __call__(self, text: str, **options: Any) -> Any:
            return tokenizer(text, **options)

    edit = SelfEdit(implications=(Implication(text="x"), Implication(text="xy")))
    data = build_sequences(lines_of(edit), DOCUMENT, Bare(), UpdateRecipe(), AnswerFormat())
    assert [len(s.tokens) for s in data.sequences] == [2]
    assert [(s.line, s.reason) for s in data.skipped] == [(0, SkipReason.TOO_SHORT)]


def test_build_sequences_answer_without_token_boundary_is_left_out() -> None:
    edit = SelfEdit(implications=(Implication(text="q", answer="b"), Implication(text="q", answer="c")))
    wrapper = AnswerFormat(prompt="{question}a", joiner="")
    data = build_sequences(lines_of(edit), DOCUMENT, byte_tokenizer((("a", "b"),)), UpdateRecipe(), wrapper)
    assert len(data.sequences) == 1
    assert [(s.line, s.reason) for s in data.skipped] == [(0, SkipReason.NO_BOUNDARY)]


@pytest.mark.parametrize("mask", [(True, False), (False, False), (True,)])
def test_training_sequence_without_labels_is_refused(mask: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match="at least one set after the first"):
        TrainingSequence((1, 2), mask)


@given(lines=st.lists(st.tuples(st.text(min_size=1, max_size=30), st.none() | st.text(min_size=1, max_size=9))))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_build_sequences_every_line_is_trained_on_or_recorded(
    tokenizer: Any, lines: list[tuple[str, str | None]]
) -> None:
    edit = SelfEdit(implications=tuple(Implication(text=text, answer=answer) for text, answer in lines))
    data = build_sequences(lines_of(edit), DOCUMENT, tokenizer, UpdateRecipe(max_sequence_tokens=60), AnswerFormat())
    assert len(data.sequences) + len(data.skipped) == len(lines)
    assert all(len(sequence.tokens) <= 60 for sequence in data.sequences)
    assert all(sequence.tokens[0] == tokenizer.bos_token_id for sequence in data.sequences)
    assert all(sequence.tokens[-1] == tokenizer.eos_token_id for sequence in data.sequences)


def test_build_sequences_loss_on_outputs_is_on_those_of_demonstrations_and_on_the_answer(tokenizer: Any) -> None:
    query = "Input:\n10\nOutput:\n01\n23\nInput:\n4\nOutput:\n5\nInput:\n67\nOutput:\n"
    wrapper = AnswerFormat(prompt="<{question}", joiner="")
    lines = Line(query, "76", outputs=((18, 23), (41, 42))), Line("Rows turn.")
    data = build_sequences(lines, DOCUMENT, tokenizer, UpdateRecipe(loss_on="outputs"), wrapper)
    pairs, statement = data.sequences
    kept = [token for token, loss in zip(pairs.tokens, pairs.loss_mask, strict=True) if loss]
    assert tokenizer.decode(kept) == "01\n23576</s>"
    assert all(statement.loss_mask)
    plain = build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, UpdateRecipe(loss_on="outputs"), AnswerFormat())
    assert plain == build_sequences(lines_of(EDIT), DOCUMENT, tokenizer, UpdateRecipe(loss_on="answer"), AnswerFormat())


def test_make_request_takes_the_training_spec_into_the_recipe(tokenizer: Any) -> None:
    edit = SelfEdit(implications=(Implication(text="x"),), training=TrainingSpec(rank=3, epochs=2, learning_rate=1e-3))
    job = make_request("k", edit, Document(id="d", text="t"), tokenizer, UpdateRecipe(), AnswerFormat(), 5)
    assert (job.recipe.rank, job.recipe.epochs, job.recipe.learning_rate) == (3, 2, 1e-3)
    assert job.recipe.alpha == UpdateRecipe().alpha


def test_usage_of_several_banks_is_the_sum_or_the_highest() -> None:
    one = BankUsage(slots=3, tokens=60, places=80, splits=1, peak_bytes=5)
    other = BankUsage(slots=2, tokens=9, places=12)
    assert BankUsage.merged([one, other]) == BankUsage(slots=3, tokens=69, places=92, splits=1, peak_bytes=5)
    assert BankUsage.merged([one, other]).padding_share == 0.25
    assert BankUsage.merged([]) == BankUsage()
    assert BankUsage().padding_share is None
