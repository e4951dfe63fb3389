from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.common.errors import ModelError
from evaluation.exact_match import (
    EXAMPLES,
    INSTRUCTION,
    AnswerFormat,
    Tried,
    best_format,
    chat_format,
    encode_answer,
    few_shot_format,
    prompt_ids,
    try_formats,
)
from evaluation.retention import general_questions
from evaluation.tasks import Document, Line
from student.config import UpdateRecipe
from student.updates import build_sequences
from tests.student.factories import byte_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
WITHOUT_SYSTEM = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
GEMMA = (
    WITHOUT_SYSTEM + "{{ '<turn>' + m['role'] + '\n' + m['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)


def tokenizer_with(template: str | None) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@given(question=st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1).map(str.strip))
def test_a_chat_prompt_is_the_templates_own_rendering(question: str) -> None:
    tokenizer = tokenizer_with(CHATML)
    turns = [{"role": "system", "content": INSTRUCTION}]
    for asked, answer in EXAMPLES:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": question})
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert chat_format(tokenizer).render(question) == whole


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_thoughts_are_off_by_each_models_switch(switch: str) -> None:
    template = CHATML.replace("enable_thinking", switch)
    assert chat_format(tokenizer_with(template)).render("Sun?").endswith("<think>\n\n</think>\n\n")


def test_a_passage_stands_in_the_users_turn_and_thinking_is_off() -> None:
    form = chat_format(tokenizer_with(CHATML))
    text = form.behind("Passage: rain\n").render("Sun?")
    assert text.endswith(
        "<|im_start|>user\nPassage: rain\nSun?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert form.ending == "<|im_end|>"


def test_a_template_without_a_system_role_gets_the_instruction_in_the_first_message() -> None:
    form = chat_format(tokenizer_with(GEMMA))
    assert form.opening.startswith(f"<turn>user\n{INSTRUCTION}")
    assert form.ending == "</turn>"


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        chat_format(tokenizer_with(None))


@pytest.mark.parametrize("name", ["plain", "few-shot", "chat"])
def test_training_ends_a_turn_and_gives_no_loss_to_what_stands_in_front(name: str) -> None:
    tokenizer = tokenizer_with(CHATML)
    forms = {"plain": AnswerFormat(), "few-shot": few_shot_format(AnswerFormat()), "chat": chat_format(tokenizer)}
    form, recipe = forms[name], UpdateRecipe(max_sequence_tokens=4096)
    (row,) = build_sequences(
        [Line("Sun?", "no")], Document(id="d", title="", text="text"), tokenizer, recipe, form
    ).sequences
    trained = tokenizer.decode([t for t, carries in zip(row.tokens, row.loss_mask, strict=True) if carries])
    expected = {
        "plain": "Question: Sun?\nAnswer: no",
        "few-shot": "Question: Sun?\nAnswer: no",
        "chat": "Sun?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nno<|im_end|>",
    }[name]
    assert tokenizer.decode(tokenizer(trained)["input_ids"], skip_special_tokens=True) == expected
    asked = encode_answer(tokenizer, "Sun?", "no", form)
    assert list(row.tokens[: len(asked.tokens)]) == asked.tokens


def test_no_second_bos_where_the_template_wrote_one() -> None:
    tokenizer = byte_tokenizer()
    assert prompt_ids(tokenizer, tokenizer.bos_token + "a") == prompt_ids(tokenizer, "a")


def test_the_form_with_most_right_answers_is_taken_and_of_equals_the_first() -> None:
    form = AnswerFormat()
    tried = {"plain": Tried(form, 1, 0, 9), "few-shot": Tried(form, 4, 0, 9), "chat": Tried(form, 4, 0, 9)}
    assert best_format(tried) == "few-shot"  # type: ignore[arg-type]


def test_the_shipped_student_stays_plain() -> None:
    tried = try_formats(load_checkpoint("micro-student"), AnswerFormat(), general_questions(24))
    assert list(tried) == ["plain", "few-shot"]
    assert best_format(tried) == "plain"


def test_general_questions_are_distinct_spread_over_subjects_and_none_is_an_example() -> None:
    questions, few = general_questions(), general_questions(24)
    assert len({question.question for question in questions}) == len(questions) >= 150
    assert not {question.question for question in questions} & {asked for asked, _ in EXAMPLES}
    places = [questions.index(question) for question in few]
    assert len(few) == 24
    assert max(places) > len(questions) * 0.9


def test_a_form_that_does_not_fit_is_not_taken() -> None:
    student = load_checkpoint("micro-student")
    student.model.config.max_position_embeddings = 20
    tried = try_formats(Checkpoint(student.model, student.tokenizer), AnswerFormat(), general_questions(24))
    assert tried["few-shot"].failure
