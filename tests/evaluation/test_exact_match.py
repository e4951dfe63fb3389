from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from evaluation.common.errors import ScoringError
from evaluation.exact_match import (
    AnswerFormat,
    EncodedAnswer,
    answer_batch,
    answer_scores,
    encode_answer,
    end_tokens_of,
    first_line,
    has_direct_head,
    score_answers,
)
from evaluation.tasks import Question
from tests.student.factories import BOS, EOS, VOCABULARY, byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_score_answers_exact_is_what_greedy_generation_writes(tokenizer: Any, kind: str) -> None:
    """Gold answers are real generations, whole, with one token changed, and cut, so that both outcomes occur."""
    model, wrapper, generator = (
        tiny_model(kind, initializer_range=0.3),
        AnswerFormat(prompt="Q {question} A"),
        random.Random(0),
    )
    questions, greedy = [], []
    for i in range(24):
        asked = "".join(chr(generator.randrange(97, 123)) for _ in range(generator.randrange(1, 9)))
        length = generator.randrange(1, 6)
        prompt = torch.tensor([[BOS, *tokenizer(wrapper.render(asked))["input_ids"]]])
        written = model.generate(prompt, max_new_tokens=length, do_sample=False, pad_token_id=EOS)[0, prompt.shape[1] :]
        tokens = written.tolist()
        if i % 3 == 1:
            tokens[generator.randrange(len(tokens))] = generator.randrange(256)
        questions.append((asked, tokens))
        greedy.append(written.tolist())
    encoded = [
        EncodedAnswer(prompt + tokens, len(prompt))
        for asked, tokens in questions
        for prompt in [[BOS, *tokenizer(wrapper.render(asked))["input_ids"]]]
    ]
    batch = answer_batch(encoded)
    with torch.inference_mode():
        logits = model(batch.input_ids).logits.flatten(0, 1)[batch.positions]
    scores = answer_scores(logits, batch.labels, batch.rows, len(encoded), end_tokens_of(model, tokenizer))
    exact = [score.exact for score in scores if score is not None]
    assert exact == [tokens == written for (_, tokens), written in zip(questions, greedy, strict=True)]
    assert 4 < sum(exact) < 24


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    [("llama", 1), ("llama", 3), ("llama", 64), ("granite", 3)],  # the last one scales its logits
)
def test_score_answers_equals_one_question_at_a_time_with_an_unpadded_forward(
    tokenizer: Any, kind: str, batch_size: int
) -> None:
    model, wrapper = tiny_model(kind), AnswerFormat()
    questions = [Question(question="a" * n, answer="b" * (1 + n % 3)) for n in (9, 1, 5, 2)]
    scores = score_answers(model, tokenizer, questions, wrapper, batch_size)
    for question, score in zip(questions, scores, strict=True):
        encoded = encode_answer(tokenizer, question.question, question.answer, wrapper)
        with torch.inference_mode():
            logs = model(torch.tensor([encoded.tokens])).logits[0].log_softmax(-1)
        places = range(encoded.prompt_length, len(encoded.tokens))
        total = sum(float(logs[i - 1, encoded.tokens[i]]) for i in places)
        assert score.log_probability == pytest.approx(total, abs=1e-4)
        assert score.probability == pytest.approx(math.exp(total), rel=1e-3)
        assert score.predicted == tuple(int(logs[i - 1].argmax()) for i in places)
        gold = tuple(encoded.tokens[encoded.prompt_length :])
        assert score.exact == (score.agreed == len(gold))
        assert score.written[: score.agreed] == gold[: score.agreed]
        assert score.written != gold[: len(score.written)] or score.exact
        assert 0.0 <= score.probability <= 1.0


def test_score_answers_restores_the_mode_and_takes_no_questions(tokenizer: Any) -> None:
    model = tiny_model().train()
    assert score_answers(model, tokenizer, [], AnswerFormat()) == []
    assert model.training


def test_score_answers_collapsed_model_is_empty(tokenizer: Any) -> None:
    model = tiny_model()
    model.lm_head = torch.nn.Linear(64, VOCABULARY)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data.zero_()
    model.lm_head.bias.data[EOS] = 1.0
    (score,) = score_answers(model, tokenizer, [Question(question="q", answer="a")], AnswerFormat())
    assert score.empty
    assert not score.exact
    assert score.predicted == (EOS, EOS)  # A space and a letter.


def test_score_answers_of_a_broken_model_is_an_error_not_a_zero(tokenizer: Any) -> None:
    model = tiny_model()
    model.lm_head.weight.data[0] = float("nan")
    with pytest.raises(ScoringError, match="1 of 1 questions are not finite"):
        score_answers(model, tokenizer, [Question(question="q", answer="a")], AnswerFormat())


def test_answer_batch_pads_rows_and_labels_what_follows_the_prompt() -> None:
    batch = answer_batch([EncodedAnswer([1, 2, 3], 1), EncodedAnswer([4, 5, 6, 7], 3)])
    assert batch.input_ids.tolist() == [[1, 2, 0], [4, 5, 6]]
    assert batch.positions.tolist() == [0, 1, 5]
    assert batch.labels.tolist() == [2, 3, 7]
    assert batch.rows.tolist() == [0, 0, 1]


def test_encode_answer_merge_across_the_boundary_is_refused() -> None:
    merging_tokenizer = byte_tokenizer((("a", "b"),))
    wrapper = AnswerFormat(prompt="{question}a", joiner="")
    with pytest.raises(ScoringError, match="no token boundary"):
        encode_answer(merging_tokenizer, "q", "b", wrapper)
    assert encode_answer(merging_tokenizer, "q", "c", wrapper).prompt_length == 3  # <s>, q, a.


def test_has_direct_head_notices_a_model_that_scales_its_logits() -> None:
    assert not has_direct_head(tiny_model("granite"))
    assert has_direct_head(tiny_model("llama"))
    assert has_direct_head(tiny_model("qwen2"))


@pytest.mark.parametrize("prompt", ["no place", "{question} {question}"])
def test_answer_format_without_one_place_is_refused(prompt: str) -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        AnswerFormat(prompt=prompt)


def test_answer_format_keeps_braces_of_the_question() -> None:
    assert AnswerFormat().render("what is {x}?") == "Question: what is {x}?\nAnswer:"


@pytest.mark.parametrize("thought", ["", "<think>\nBergen?\n</think>\n\n", "Bergen?\n</think>\n"])
def test_the_first_line_is_the_answer_behind_thoughts(thought: str) -> None:
    assert first_line(f"{thought}\n Oslo \nQuestion: Where?") == "Oslo"


def test_question_that_is_longer_than_the_model_is_refused_by_name(tokenizer: Any) -> None:
    model, asked = tiny_model(), Question(question="z" * 4_000, answer="a")
    limit = model.config.max_position_embeddings
    with pytest.raises(ScoringError, match=f"zzz.* takes .* tokens .* the model has {limit} positions"):
        score_answers(model, tokenizer, [asked], AnswerFormat())
