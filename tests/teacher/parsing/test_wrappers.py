"""What models put around a self-edit: thoughts, marks of chat templates, tags, JSON, tables, labels, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.text import without_thoughts
from teacher.parsing.lines import DropReason
from teacher.parsing.parser import ParsedEdit, parse_self_edit
from tests.teacher.parsing.test_parser import count_lines

NINE, BOATS = "The pier has nine berths.", "Nine boats can moor."
BOTH = [(NINE, None), (BOATS, None)]
PAIRS = [("How many berths?", "nine"), ("Where is it?", "Brantholm")]
PLAIN = f"1. {NINE}\n2. {BOATS}"
THOUGHTS = ["<think>{}</think>\n", "<thinking>\n{}\n</thinking>\n", "<THOUGHT>{}</THOUGHT>", "[THINK]{}[/THINK]"]
THOUGHTS += ["◁think▷{}◁/think▷", "<seed:think>{}</seed:think>", "<scratchpad>{}</scratchpad>\n", "{}\n</think>\n\n"]
THOUGHTS += [
    "<|begin_of_thought|>{}<|end_of_thought|>\n",
    "<|START_THINKING|>{}<|END_THINKING|>",
    "<think>a<think>{}</think>",
]
THOUGHTS += ["<think>a <think> b </think> {} </think>", "<think></think>{}</reasoning>"]
THOUGHTS += ["<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"]
THOUGHTS += ["analysisWe list. {}assistantfinal", "<reasoning effort='low'>{}</reasoning>\n<answer>\n"]


def learned(parsed: ParsedEdit) -> list[tuple[str, str | None]]:
    return [] if parsed.edit is None else [(line.text, line.answer) for line in parsed.edit.implications]


def test_field_cases_teach_what_they_say(shared_data: Callable[..., Path]) -> None:
    lines = shared_data("..", "cases", "completions.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    found = {case["case"]: learned(parse_self_edit(case["completion"])) for case in cases}
    assert found == {case["case"]: [(each["text"], each["answer"]) for each in case["learned"]] for case in cases}


@pytest.mark.parametrize("spelling", THOUGHTS)
def test_thoughts_are_not_learned(spelling: str) -> None:
    text = spelling.format("Perhaps it has ten.\nLet me count:\n1. The crane is red.") + PLAIN
    parsed = parse_self_edit(text)
    assert learned(parsed) == BOTH
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("", "<think>\nIt may have ten.\n1. The crane is red."),
        ("Passage.\n<think>\n", "It may have ten.\n1. The crane is red."),
        ("", "<|channel|>analysis<|message|>It may have ten."),
        ("", "<think>a</think><think>\nIt may have ten."),
    ],
)
def test_a_thought_without_an_end_teaches_nothing(prompt: str, text: str) -> None:
    parsed = parse_self_edit(text, prompt=prompt)
    assert parsed.edit is None
    assert parsed.dropped == {DropReason.THOUGHT: count_lines(text)}


@given(st.text(st.sampled_from("ab<>/\n think")), st.lists(st.sampled_from(THOUGHTS), max_size=4))
def test_thoughts_are_blanked_in_place(text: str, spellings: list[str]) -> None:
    whole = "".join(spelling.format(text) for spelling in spellings) + text
    found = without_thoughts(whole)
    assert len(found) == len(whole)
    assert len(found.splitlines()) == len(whole.splitlines())
    assert all(a in (b, " ") for a, b in zip(found, whole, strict=True))


WRAPPED = {
    "array": json.dumps([NINE, BOATS], indent=1),
    "fenced array": f"Sure, here are the implications:\n```json\n{json.dumps([NINE, BOATS])}\n```\n",
    "array of objects": json.dumps([{"statement": NINE}, {"implication": BOATS}]),
    "array under a name": json.dumps({"statements": [NINE, BOATS]}),
    "array that was cut": f'```json\n["{NINE}", "{BOATS}", "The crane is',
    "array with a comma too many": f'["{NINE}", "{BOATS}",]',
    "items with attributes": f'<item id="1">{NINE}</item><item id="2">{BOATS}</item>',
    "call": json.dumps({"name": "write", "arguments": {"implications": [NINE, BOATS]}}),
    "call with quoted arguments": json.dumps({"name": "w", "arguments": json.dumps({"implications": [NINE, BOATS]})}),
    "function": json.dumps({"function": {"name": "w", "arguments": json.dumps({"lines": [NINE, BOATS]})}}),
    "table of statements": f"| # | Implication |\n|---|---|\n| 1 | {NINE} |\n| 2 | {BOATS} |",
    "function in tags": f"<function=write>{json.dumps({'implications': [NINE, BOATS]})}</function>",
    "tags on lines": f"<output>\n{NINE}\n{BOATS}\n</output>",
    "tags in a line": f"<answer>{NINE}</answer>\n<answer>{BOATS}</answer>",
    "items in one line": f"<ul><li>{NINE}</li><li>{BOATS}</li></ul>",
    "chat": f"<|im_start|>assistant\n{NINE}\n{BOATS}<|im_end|>\n<|im_start|>user\nThanks. The crane is red.",
    "header": f"<|start_header_id|>assistant<|end_header_id|>\n\n{PLAIN}<|eot_id|>",
    "end": f"{PLAIN}</s>\nThe crane is red.\n",
    "end of a turn": f"<start_of_turn>model\n{PLAIN}<end_of_turn>\n",
    "bold": f"**Implications:**\n\n**1.** {NINE}\n**2.** {BOATS}",
    "in other words": f"Natürlich! Hier sind die Aussagen:\n1. {NINE}\n2. {BOATS}",
    "circled": f"① {NINE}\n② {BOATS}",
    "full-width": f"（1）{NINE}\n（2）{BOATS}",
    "ideographic": f"1、{NINE}\n2、{BOATS}",
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_taken_off(text: str) -> None:
    assert learned(parse_self_edit(text)) == BOTH


ASKED = {
    "objects": json.dumps([{"question": q, "answer": a} for q, a in PAIRS]),
    "short names": json.dumps({"pairs": [{"q": q, "a": a} for q, a in PAIRS]}),
    "lines of objects": "\n".join(json.dumps({"question": q, "answer": a}) for q, a in PAIRS),
    "table": "\n".join(["| # | Question | Answer |", "|---|:-:|---|", *(f"| 1 | {q} | {a} |" for q, a in PAIRS)]),
    "German table": "\n".join(["| Frage | Antwort |", "|---|---|", *(f"| {q} | {a} |" for q, a in PAIRS)]),
    "tags alone": "".join(f"<question>{q}</question>\n<answer>{a}</answer>\n" for q, a in PAIRS),
    "tags": "".join(f"<qa><question>{q}</question> <answer>{a}</answer></qa>\n" for q, a in PAIRS),
    **{
        word: "\n".join(f"{word} {i}: {q}\n{answer} {i}: {a}" for i, (q, a) in enumerate(PAIRS, 1))
        for word, answer in (("Pregunta", "Respuesta"), ("Question", "Réponse"), ("Вопрос", "Ответ"), ("Soru", "Cevap"))
    },
    "Japanese": "\n".join(f"質問：{q}\n答え：{a}" for q, a in PAIRS),
    "Korean, in a line": "\n".join(f"질문: {q} 답변: {a}" for q, a in PAIRS),
    "Arabic": "\n".join(f"سؤال: {q}\nجواب: {a}" for q, a in PAIRS),
}


@pytest.mark.parametrize("text", ASKED.values(), ids=ASKED)
def test_questions_keep_their_answers(text: str) -> None:
    assert learned(parse_self_edit(text)) == PAIRS


@pytest.mark.parametrize("value", [9, 1.5, -3, True])
def test_answers_that_are_numbers_are_read(value: float) -> None:
    text = json.dumps([{"question": "How many berths?", "answer": value}])
    assert learned(parse_self_edit(text)) == [("How many berths?", json.dumps(value))]


@pytest.mark.parametrize(
    "text",
    [
        "I cannot assist with that.\nPlease give me another passage.",
        "I’m very sorry, but I am unable to write these.",
        "Sorry, I can't help with that request.",
        "As an AI language model, I cannot do this.",
        "Unfortunately, I am not able to answer this.",
        "As a large language model, I don't do this.",
        "Sorry, but I won't be able to help with this.",
        "Ich kann dir dabei nicht helfen.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, no puedo ayudar con eso.",
        "Извините, я не могу помочь.",
        "很抱歉，我无法回答这个问题。",
        "申し訳ありませんが、お答えできません。",
        "죄송합니다. 도와드릴 수 없습니다.",
    ],
)
def test_refusals_are_not_learned(text: str) -> None:
    parsed = parse_self_edit(text)
    assert parsed.edit is None
    assert set(parsed.dropped) == {DropReason.REFUSAL}


@pytest.mark.parametrize(
    "line",
    [
        "Sorry sights met the sailors in Brantholm.",
        "We can't help but marvel at the pier.",
        "码头有九个泊位",
        "桟橋には九つのバースがあります",
        "ท่าเรือมีท่าจอดเรือเก้าท่า",
        "रंगमंच में नौ घाट हैं।",
        "يحتوي الرصيف على تسعة مراسي.",
        "На пристани девять причалов.",
        "See [1] and [2] for the berths of the pier.",
        'The tags <b> and </b> make text bold, and ["a"] is a list.',
        "His analysis was a success, said the assistant in the final.",
    ],
)
def test_statements_stay_as_they_are(line: str) -> None:
    assert learned(parse_self_edit(line)) == [(line, None)]
