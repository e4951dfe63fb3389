"""Scores with a text in the student's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import ScoringError
from evaluation.exact_match import AnswerFormat, AnswerScore, score_answers
from evaluation.microworld.texts import oracle_lines
from evaluation.microworld.world import draw_documents
from evaluation.tasks import Question
from student.bank.bank import LoraBank
from student.bank.scoring import ScoringFailure, SlotScores
from student.in_context import score_in_context
from tests.student.factories import BOS, EOS, VOCABULARY, MakeModel, byte_tokenizer, tiny_model

DOCUMENTS = draw_documents("development", 3, 5)
FORMAT = AnswerFormat()
POSITIONS = 256
CONTEXTS = ["", "One.", "A longer text, {with} {question} and {{braces}}.", "Zoë writes this one", "none asks"]
QUESTIONS = [
    [Question(question=f"Question {i} of {k}?", answer="xy"[: 1 + i % 2]) for i in range(n)]
    for k, n in enumerate((2, 1, 4, 3, 0))
]


def plainly(model: Any, tokenizer: Any, context: str, questions: Sequence[Question]) -> list[AnswerScore]:
    """Return the scores with the context's own braces kept from being filled in by the answer format."""
    asked = [Question(question=f"Passage: {context}\n{FORMAT.render(q.question)}", answer=q.answer) for q in questions]
    return score_answers(model, tokenizer, asked, AnswerFormat(prompt="{question}"))


def assert_same(found: SlotScores, expected: Sequence[AnswerScore], tolerance: float = 1e-5) -> None:
    assert not isinstance(found, ScoringFailure)
    for one, other in zip(found, expected, strict=True):
        assert (one.exact, one.predicted, one.empty) == (other.exact, other.predicted, other.empty)
        assert one.probability == pytest.approx(other.probability, rel=0, abs=tolerance)
        assert one.log_probability == pytest.approx(other.log_probability, rel=tolerance, abs=tolerance)


def other_model(kind: str) -> Any:
    """Return a random model of a family with sliding windows, a table of positions, or nothing to share."""
    common = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            return GPT2LMHeadModel(GPT2Config(**common, n_embd=64, n_layer=2, n_head=2, n_positions=POSITIONS)).eval()
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, **common}
        if kind == "mamba":
            return MambaForCausalLM(MambaConfig(**sizes)).eval()
        heads = {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
        return MistralForCausalLM(
            MistralConfig(**sizes, **heads, max_position_embeddings=POSITIONS, sliding_window=12)
        ).eval()


def tokens_read(model: Any, work: Callable[[], object]) -> int:
    """Return how many places the model reads during `work`, padding included."""
    read = 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        nonlocal read
        read += inputs[0].numel()

    handle = model.get_input_embeddings().register_forward_hook(count)
    try:
        work()
    finally:
        handle.remove()
    return read


@pytest.mark.parametrize("places", [16_384, 200, 1])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "granite"])
def test_scores_equal_those_with_the_context_in_front_of_each_question(
    make_model: MakeModel, tokenizer: Any, kind: str, places: int
) -> None:
    model = make_model(kind, torch.float64)
    found = score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT, places=places)
    for context, questions, scores in zip(CONTEXTS, QUESTIONS, found, strict=True):
        assert_same(scores, plainly(model, tokenizer, context, questions) if questions else [])


@pytest.mark.parametrize("kind", ["mistral", "gpt2", "mamba"])
def test_scores_of_other_architectures_are_the_same_too(tokenizer: Any, kind: str) -> None:
    model = other_model(kind)
    found = score_in_context(model, tokenizer, CONTEXTS[:3], QUESTIONS[:3], FORMAT)
    for context, questions, scores in zip(CONTEXTS, QUESTIONS, found, strict=False):
        assert_same(scores, plainly(model, tokenizer, context, questions), tolerance=3e-5)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_scores_depend_on_the_own_context_alone(data: st.DataObject) -> None:
    """Whatever else is asked, and in however many passes."""
    model, tokenizer = tiny_model("llama", torch.float64), byte_tokenizer()
    texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
    words = st.text("abc?{}", min_size=1, max_size=4)
    asked = st.lists(st.builds(Question, question=words, answer=words), max_size=3)
    cases = data.draw(st.lists(st.tuples(texts, asked), max_size=4))
    places = data.draw(st.integers(1, 500))
    found = score_in_context(model, tokenizer, [c for c, _ in cases], [q for _, q in cases], FORMAT, places=places)
    for (context, questions), scores in zip(cases, found, strict=True):
        (alone,) = score_in_context(model, tokenizer, [context], [questions], FORMAT)
        assert not isinstance(alone, ScoringFailure)
        assert_same(scores, alone)


def test_scores_of_the_micro_student_equal_plain_ones_and_its_context_is_read_once() -> None:
    model, tokenizer = load_checkpoint("micro-student")
    statements = " ".join(text for text, answer in oracle_lines(DOCUMENTS[1].sheet) if answer is None)
    contexts = [DOCUMENTS[0].task.document.text, statements, "Short {and} odd."]
    asked = [document.task.questions for document in DOCUMENTS]
    found: list[SlotScores] = []
    expected: list[list[AnswerScore]] = []
    shared = tokens_read(model, lambda: found.extend(score_in_context(model, tokenizer, contexts, asked, FORMAT)))
    plain = tokens_read(
        model, lambda: expected.extend(plainly(model, tokenizer, c, q) for c, q in zip(contexts, asked, strict=True))
    )
    for scores, others in zip(found, expected, strict=True):
        assert_same(scores, others)
    assert shared < plain / 2


def test_scores_while_a_bank_has_the_models_attention(make_model: MakeModel, tokenizer: Any) -> None:
    """Packed attention takes no mask, so each question reads its context."""
    model = make_model("llama", torch.float64)
    before = score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT)
    with LoraBank(model):
        inside = score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT)
    for one, other in zip(inside, before, strict=True):
        assert not isinstance(other, ScoringFailure)
        assert_same(one, other)


def test_template_is_what_stands_in_front(make_model: MakeModel, tokenizer: Any) -> None:
    model = make_model()
    (alone,) = score_in_context(model, tokenizer, ["Passage: One.\n"], [QUESTIONS[1]], FORMAT, template="{context}")
    assert_same(alone, plainly(model, tokenizer, "One.", QUESTIONS[1]))
    (empty,) = score_in_context(model, tokenizer, [""], [QUESTIONS[1]], FORMAT, template="{context}")
    assert_same(empty, score_answers(model, tokenizer, QUESTIONS[1], FORMAT))


@pytest.mark.parametrize("template", ["Passage:", "{context} {context}", ""])
def test_template_without_one_place_for_the_context_is_refused(
    make_model: MakeModel, tokenizer: Any, template: str
) -> None:
    with pytest.raises(ScoringError, match="exactly once"):
        score_in_context(make_model(), tokenizer, ["c"], [QUESTIONS[1]], FORMAT, template=template)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_scored_in_evaluation_mode_and_gets_its_mode_back(
    make_model: MakeModel, tokenizer: Any, training: bool
) -> None:
    model = make_model()
    expected = score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train(training)
    assert score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT) == expected
    assert model.training is training


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_context_that_is_too_long_fails_alone(make_model: MakeModel, tokenizer: Any, kind: str) -> None:
    """The last token of an answer is only ever a label and takes no position."""
    model = other_model(kind) if kind == "gpt2" else make_model(kind, torch.float64)
    asked = [Question(question="Who?", answer="xy")]
    around = len(f"<Passage: \n{FORMAT.render('Who?')} xy")  # one token a byte, and one before the first
    contexts = ["a" * (POSITIONS + 1 - around), "a" * (POSITIONS + 2 - around), "short"]
    # Behind the short context, in the pass of the first, stands more than the model has positions left there.
    lengthy = [Question(question=letter * 40, answer="xy") for letter in "ab"]
    fits, long, short = score_in_context(model, tokenizer, contexts, [asked, asked, lengthy], FORMAT)
    assert_same(fits, plainly(model, tokenizer, contexts[0], asked), tolerance=3e-5)
    assert_same(short, plainly(model, tokenizer, "short", lengthy), tolerance=3e-5)
    assert isinstance(long, ScoringFailure)
    assert f"{POSITIONS + 1} tokens" in long.reason


def test_question_without_a_token_boundary_fails_its_context_alone(make_model: MakeModel) -> None:
    joined = AnswerFormat(joiner="")
    merging = byte_tokenizer(((":", "!"),))
    asked = [[Question(question="Who?", answer="!")], [Question(question="Who?", answer="x")]]
    merged, fine = score_in_context(make_model(), merging, ["c", "c"], asked, joined)
    assert isinstance(merged, ScoringFailure)
    assert "no token boundary" in merged.reason
    assert not isinstance(fine, ScoringFailure)


def test_weights_that_are_not_finite_give_failures(make_model: MakeModel, tokenizer: Any) -> None:
    model = make_model()
    model.lm_head.weight.data[:] = float("nan")
    found = score_in_context(model, tokenizer, CONTEXTS, QUESTIONS, FORMAT)
    assert [isinstance(scores, ScoringFailure) for scores in found] == [bool(questions) for questions in QUESTIONS]
