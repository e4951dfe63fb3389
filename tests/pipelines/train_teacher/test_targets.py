"""Lines to imitate are read back as they are, whatever begins the answer, and end as a sampled completion does."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.tasks import Document
from pipelines.train_teacher.warm_start import end_token, readable_lines, target_text, target_tokens
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import PROMPTS, prompt_token_ids
from teacher.self_edit import Implication

DOCUMENT = Document(id="d", title="Mill", text="The mill was opened in 1871 by Anton Keller.")
PAIRS = (Implication(text="Who opened it?", answer="Anton Keller"), Implication(text="When?", answer="1871"))
STATEMENT = Implication(text="The mill is old.")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", sorted(PROMPTS))
@pytest.mark.parametrize("chat", [False, True])
def test_targets_are_read_back_as_the_lines_that_they_were_made_of(name: str, chat: bool) -> None:
    template, tokenizer = PROMPTS[name], AutoTokenizer.from_pretrained(MICRO_MODELS["micro-teacher"])
    tokenizer.chat_template = CHAT
    prompt = template.render_chat(DOCUMENT, tokenizer) if chat else template.render(DOCUMENT)
    given = [*PAIRS, PAIRS[0], STATEMENT, Implication(text="Broken Answer: line?", answer="Question 3:")]
    lines = readable_lines(given, prompt, template.cue)
    begins_question = template.cue.startswith("Question")
    assert lines == PAIRS if begins_question else (*PAIRS, STATEMENT)
    read = parse_self_edit(target_text(lines, prompt, template.cue), prompt=prompt)
    assert (read.edit.implications if read.edit else None, read.dropped) == (lines, {})
    if begins_question:
        expected = " Who opened it?\nAnswer 1: Anton Keller\nQuestion 2: When?\nAnswer 2: 1871"
        assert target_text(lines, prompt, template.cue) == expected


def test_tokens_continue_the_prompt_and_end_as_the_chat_template_ends_an_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MICRO_MODELS["micro-teacher"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = CHAT
    eos, closing = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_token(tokenizer, {eos, closing}, chat=True) == closing
    assert end_token(tokenizer, {eos, closing}, chat=False) == eos
    assert end_token(tokenizer, {eos}, chat=True) == eos
    assert end_token(tokenizer, (), chat=False) is None
    ids = target_tokens(tokenizer, "Passage: it\nQuestion 1:", " Who?\nAnswer 1: it", eos)
    whole = prompt_token_ids(tokenizer, "Passage: it\nQuestion 1: Who?\nAnswer 1: it")
    assert [*prompt_token_ids(tokenizer, "Passage: it\nQuestion 1:"), *ids] == [*whole, eos]
