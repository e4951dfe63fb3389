from __future__ import annotations

import pytest

from teacher.parsing.lines import DropReason
from teacher.parsing.parser import ParsedEdit, parse_self_edit
from teacher.parsing.specs import RejectReason
from teacher.self_edit import SelfEdit


def texts_of(parsed: ParsedEdit) -> list[str]:
    assert parsed.edit is not None, parsed.detail
    return [i.text if i.answer is None else f"{i.text} => {i.answer}" for i in parsed.edit.implications]


def count_lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip())


def render(edit: SelfEdit, *, one_line: bool) -> str:
    joint = " " if one_line else "\n"
    return "\n".join(
        f"- {i.text}" if i.answer is None else f"Question: {i.text}{joint}Answer: {i.answer}" for i in edit.implications
    )


# Openings of real completions of Qwen2.5-7B and GPT-4.1 (arXiv 2506.10943, published data; some shortened).
EXAMPLES = {
    "numbered": ("1. Apollo 12 was manned.\n2. It landed.", ["Apollo 12 was manned.", "It landed."], {}),
    "bulleted": ("- The grammar is simple.\n- It has cases.", ["The grammar is simple.", "It has cases."], {}),
    "bold lead-in": (
        "**Implications:**\n\n1. **OPEC's pricing:** OPEC did not adjust prices.",
        ["OPEC's pricing: OPEC did not adjust prices."],
        {"echoed_prompt": 1},
    ),
    "preamble, bold number, nested bullet": (
        "Certainly! Here is a list of implications:\n\n**1. The legislative process is complex.**\n   - This "
        "complexity slows it.\n**2. Legal Certainty**\n   - Citizens can rely on it.",
        ["The legislative process is complex.", "This complexity slows it.", "Citizens can rely on it."],
        {"preamble": 1, "heading": 1},
    ),
    "preamble and rules": (
        "Certainly! Here are three different ways to rewrite the passage:\n\n---\n\n**Rewritten Passage 1:**\nThe "
        "capture of Cyprus was a turning point.\n\n---\n",
        ["The capture of Cyprus was a turning point."],
        {"preamble": 1, "marker_only": 2, "heading": 1},
    ),
    "headings": (
        "### Rewritten Passages\n\n---\n\n**Passage 1:**\nFresno lies in California.",
        ["Fresno lies in California."],
        {"echoed_prompt": 1, "marker_only": 1, "heading": 1},
    ),
    "heading with a title": ("### Version 1: Chatty\n\nNeptune is cold.", ["Neptune is cold."], {"heading": 1}),
    "repeated label lines": (
        "* United Methodist Church:\nIt has bishops.\n\n* United Methodist Church:\nIt has elders.",
        ["It has bishops.", "It has elders."],
        {"heading": 2},
    ),
    "first question without a label": (
        "What happened to the Shah?\nAnswer 1: He died.\n\nQuestion 2:  Where did he die?\nAnswer 2:  On an island.",
        ["What happened to the Shah? => He died.", "Where did he die? => On an island."],
        {},
    ),
    "A: as the label": (
        "What event was it?\nA: The election\n\nQuestion 2: Who won?\nA: Bush",
        ["What event was it? => The election", "Who won? => Bush"],
        {},
    ),
    "double numbering": (
        "1. Who owned it?\nAnswer 1: 1. Citizens did.\nQuestion 2: 2. What was it?\nAnswer 2: 2. Land.",
        ["Who owned it? => Citizens did.", "What was it? => Land."],
        {},
    ),
    "broken order": (
        "1) What do courts decide?\nQuestion 2: 1) What do parliaments decide?\nAnswer 1: Treaties.",
        ["What do parliaments decide? => Treaties."],
        {"unanswered_question": 1},
    ),
    "multiple choice": (
        "What were the responses?\nA. Dollar crises\nB. Oil shock\nAnswer 1: B",
        ["What were the responses? => Oil shock"],
        {"choice": 2},
    ),
    "Chinese": ("* 1962年，平面设计师设计了标志。", ["1962年，平面设计师设计了标志。"], {}),
    "tag": (
        "<noinput>\n**Rewritten Passages:**\nTesla was born in Smiljan.",
        ["Tesla was born in Smiljan."],
        {"marker_only": 1, "echoed_prompt": 1},
    ),
    # Made up.
    "all questions first": (
        "Question 1: Who?\nQuestion 2: Where?\nQuestion 3: When?\nAnswer 1: Ada.\nAnswer 2: Oslo.",
        ["Who? => Ada.", "Where? => Oslo."],
        {"unanswered_question": 1},
    ),
    "answer alone": ("Question 1: Who? Answer: Ada.\nAnswer 7: In Oslo.", ["Who? => Ada."], {"unpaired_answer": 1}),
    "numbering resumes": (
        "1. Ada is tall.\n2. Bo is old.\n\nAre there other implications?\nCertainly! Here are more:\n3. Cy is kind.",
        ["Ada is tall.", "Bo is old.", "Cy is kind."],
        {"other_task": 2},
    ),
    "wrapped": ("1. It takes CO\n2 and water.\n2. It grows.", ["It takes CO 2 and water.", "It grows."], {}),
    "duplicates but for case and punctuation": (
        "- A is B.\n- a  is b\n- Question: Who? Answer: X\nQuestion: Who?\nAnswer: X.",
        ["A is B.", "Who? => X"],
        {"duplicate": 3},
    ),
}


@pytest.mark.parametrize(("text", "texts", "dropped"), EXAMPLES.values(), ids=EXAMPLES)
def test_parse_reads_all_formats(text: str, texts: list[str], dropped: dict[str, int]) -> None:
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == texts
    assert parsed.dropped == dropped
    assert parsed.kept + sum(dropped.values()) == count_lines(text)


@pytest.mark.parametrize(
    "line",
    [
        "Question: Where does Ada live? Answer: Oslo",
        "- Question: Where does Ada live? Answer: Oslo",
        "3. **Question 3:** Where does Ada live? **Answer 3:** Oslo",
        "Q: Where does Ada live? A: Oslo",
        "* Q1: Where does Ada live? A1: Oslo",
        "Where does Ada live? Answer: Oslo",
        "Question: Where does Ada live?\nAnswer: Oslo",
        "Q: Where does Ada live?\nA: Oslo",
        "### Question 4:\nWhere does Ada live?\n**Answer 4:**\nOslo",
        "Question 1: Where does Ada live? Answer:\nOslo",
    ],
)
def test_parse_pairs_question_and_answer(line: str) -> None:
    parsed = parse_self_edit(line)
    assert texts_of(parsed) == ["Where does Ada live? => Oslo"]
    assert parsed.kept == count_lines(line)


@pytest.mark.parametrize(
    "line",
    [
        "The Answer to the riddle is a horse.",
        "Ada wrote the Answer: a short letter.",
        "Questions and Answers were exchanged in Oslo.",
        "The question is open.",
        "A. Lincoln was a president.",
        "J. Robert Oppenheimer led the laboratory.",
        "3.5 million people live there.",
        "-5 degrees is the mean in January.",
        "f(n) = {1, 2} holds for all n.",
        'The set {"a": 1} is a dictionary.',
    ],
)
def test_parse_leaves_statements_unchanged(line: str) -> None:
    assert texts_of(parse_self_edit(line)) == [line]


@pytest.mark.parametrize(
    ("tail", "text", "expected"),
    [
        ("Question 1: ", "Name a comedian.\nAnswer 1: Milligan", ["Name a comedian. => Milligan"]),
        ("Question 1:", " Where? Answer: Oslo", ["Where? => Oslo"]),
        ("Question: ", "Where? Answer: Oslo", ["Where? => Oslo"]),
        ("- ", "Ada lives in Oslo.\n- Bo lives in Rome.", ["Ada lives in Oslo.", "Bo lives in Rome."]),
    ],
)
def test_parse_continues_an_opening_at_the_end_of_the_prompt(tail: str, text: str, expected: list[str]) -> None:
    assert texts_of(parse_self_edit(text, prompt="Passage: Some text.\n" + tail)) == expected


def test_parse_drops_echoes_of_the_prompt() -> None:
    prompt = "Read the passage below and list what follows.\n\nPassage:\nWarsaw\nIt has a mermaid.\n\nImplications:\n"
    text = (
        "Read the passage below and list what follows.\nPassage:\nWarsaw\nIt has a mermaid.\nImplications:\n1. A is B."
    )
    parsed = parse_self_edit(text, prompt=prompt)
    assert texts_of(parsed) == ["A is B."]
    assert parsed.dropped == {DropReason.ECHOED_PROMPT: 5}


def test_parse_keeps_a_sentence_of_the_passage_that_is_a_list_item() -> None:
    prompt = "Passage: Oslo is home to Ada.\nImplications:\n"
    assert texts_of(parse_self_edit("- Oslo is home to Ada.", prompt=prompt)) == ["Oslo is home to Ada."]
    assert parse_self_edit("Oslo is home to Ada.", prompt=prompt).dropped == {DropReason.ECHOED_PROMPT: 1}


@pytest.mark.parametrize(
    "drift",
    [
        "Let's read the following passage and produce a list of implications.\n\nPassage:\nKenya\n1. Kenya is big.",
        "You are an AI assistant. User will you give you a task.\nSum 2 and 3.",
        "\nPassage:\nKenya\nThe population is large.\n\nImplications:\n1. Kenya is big.",
        "\nTranslate the following sentence to Czech: dog.\n\n1. Pes is the answer.",
        "\nOverall, the passage suggests that Oslo matters.",
    ],
)
def test_parse_ends_where_another_task_begins(drift: str) -> None:
    parsed = parse_self_edit("1. Ada lives in Oslo.\n2. Bo lives in Rome.\n" + drift)
    assert texts_of(parsed) == ["Ada lives in Oslo.", "Bo lives in Rome."]
    assert set(parsed.dropped) <= {DropReason.OTHER_TASK, DropReason.ECHOED_PROMPT}


@pytest.mark.parametrize(
    "text", ["1. " * 682, "1. 1. 2. 2. 3. 3. 4. 4.", "1. 2. 3. 4. 5. 6. 7.", "1 2 3 4 5 6 7 8\n" * 9]
)
def test_parse_rejects_digit_loops(text: str) -> None:
    assert parse_self_edit(text).reason is RejectReason.DIGIT_LOOP


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", RejectReason.EMPTY),
        (" \n\t\u2028\n", RejectReason.EMPTY),
        ("---\n1.\n* ", RejectReason.NO_USABLE_LINES),
        ("Implications:\n", RejectReason.NO_USABLE_LINES),
    ],
)
def test_parse_rejects_texts_without_content(text: str, reason: RejectReason) -> None:
    parsed = parse_self_edit(text)
    assert (parsed.edit, parsed.reason) == (None, reason)
    assert parsed.detail


def test_parse_drops_the_line_that_the_token_limit_cut() -> None:
    text = "- A is B.\n- C is a very"
    cut = parse_self_edit(text, finish_reason="length")
    assert texts_of(cut) == ["A is B."]
    assert cut.dropped == {DropReason.CUT_LINE: 1}
    assert texts_of(parse_self_edit(text + "\n", finish_reason="length")) == ["A is B.", "C is a very"]
    assert texts_of(parse_self_edit(text, finish_reason="stop")) == ["A is B.", "C is a very"]
