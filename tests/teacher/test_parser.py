from __future__ import annotations

import gzip
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher.parser import DropReason, Flag, ParsedEdit, RejectReason, parse_self_edit
from teacher.self_edit import AugmentationSpec, Implication, SelfEdit, TrainingSpec

SharedData = Callable[..., Path]

FAMILIES = ("base_val", "base_val_prompt-long", "base_val_prompt-rewrite", "base_val_prompt-self-qa", "iter1_val")


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
    "bulleted": (
        "- The Dutch grammar is simple.\n- It has cases.",
        ["The Dutch grammar is simple.", "It has cases."],
        {},
    ),
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
    "heading with a title": (
        "### Version 1: Informal and Chatty\n\nNeptune is a cold planet.",
        ["Neptune is a cold planet."],
        {"heading": 1},
    ),
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
}


@pytest.mark.parametrize(("text", "texts", "dropped"), EXAMPLES.values(), ids=EXAMPLES)
def test_parse_reads_real_formats(text: str, texts: list[str], dropped: dict[str, int]) -> None:
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
    ],
)
def test_parse_leaves_statements_unchanged(line: str) -> None:
    assert texts_of(parse_self_edit(line)) == [line]


def test_parse_pairs_by_number_when_all_questions_come_first() -> None:
    text = "Question 1: Who?\nQuestion 2: Where?\nQuestion 3: When?\nAnswer 1: Ada.\nAnswer 2: Oslo."
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == ["Who? => Ada.", "Where? => Oslo."]
    assert parsed.dropped == {DropReason.UNANSWERED_QUESTION: 1}


def test_parse_counts_answers_without_a_question() -> None:
    parsed = parse_self_edit("Question 1: Who? Answer: Ada.\nAnswer 7: In Oslo.")
    assert texts_of(parsed) == ["Who? => Ada."]
    assert parsed.dropped == {DropReason.UNPAIRED_ANSWER: 1}


@pytest.mark.parametrize(
    ("tail", "text", "expected"),
    [
        ("Question 1: ", "Name a comedian.\nAnswer 1: Milligan", ["Name a comedian. => Milligan"]),
        ("Question 1:", " Where? Answer: Oslo", ["Where? => Oslo"]),
        ("Question: ", "Where? Answer: Oslo", ["Where? => Oslo"]),
        ("- ", "Ada lives in Oslo.\n- Bo lives in Rome.", ["Ada lives in Oslo.", "Bo lives in Rome."]),
    ],
)
def test_parse_continues_what_the_prompt_began(tail: str, text: str, expected: list[str]) -> None:
    assert texts_of(parse_self_edit(text, prompt="Passage: Some text.\n" + tail)) == expected


def test_parse_drops_what_repeats_the_prompt() -> None:
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


def test_parse_goes_on_when_the_numbering_does() -> None:
    text = "1. Ada is tall.\n2. Bo is old.\n\nAre there other implications?\nCertainly! Here are more:\n3. Cy is kind."
    assert texts_of(parse_self_edit(text)) == ["Ada is tall.", "Bo is old.", "Cy is kind."]


def test_parse_joins_wrapped_lines() -> None:
    parsed = parse_self_edit("1. Plants take up CO\n2 and water.\n2. They grow.")
    assert texts_of(parsed) == ["Plants take up CO 2 and water.", "They grow."]
    assert parsed.kept == 3


def test_parse_drops_duplicates_up_to_case_and_punctuation() -> None:
    parsed = parse_self_edit("- A is B.\n- a  is b\n- Question: Who? Answer: X\nQuestion: Who?\nAnswer: X.")
    assert texts_of(parsed) == ["A is B.", "Who? => X"]
    assert parsed.dropped == {DropReason.DUPLICATE: 3}


@pytest.mark.parametrize(
    "text", ["1. " * 682, "1. 1. 2. 2. 3. 3. 4. 4.", "1. 2. 3. 4. 5. 6. 7.", "1 2 3 4 5 6 7 8\n" * 9]
)
def test_parse_rejects_digit_loops(text: str) -> None:
    parsed = parse_self_edit(text)
    assert parsed.reason is RejectReason.DIGIT_LOOP
    assert Flag.DIGIT_LOOP in parsed.flags


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
    for mode in ("clean",) if reason is RejectReason.NO_USABLE_LINES else ("clean", "verbatim"):
        parsed = parse_self_edit(text, mode=mode)  # type: ignore[arg-type]
        assert (parsed.edit, parsed.reason) == (None, reason)
        assert parsed.detail


def test_parse_drops_the_line_that_the_token_limit_cut() -> None:
    text = "- A is B.\n- C is a very"
    cut = parse_self_edit(text, finish_reason="length")
    assert texts_of(cut) == ["A is B."]
    assert cut.flags == (Flag.CUT_AT_CAP,)
    assert cut.dropped == {DropReason.CUT_LINE: 1}
    assert texts_of(parse_self_edit(text + "\n", finish_reason="length")) == ["A is B.", "C is a very"]
    unknown = parse_self_edit(text)
    assert unknown.flags == (Flag.CUT_AT_CAP,)
    assert unknown.kept == 2
    assert parse_self_edit(text, finish_reason="stop").flags == ()
    assert parse_self_edit("- A is B\n- C is D").flags == ()  # a list without full stops is no sign of a cut


def test_parse_flags_other_script_and_repetition() -> None:
    assert parse_self_edit("- 阿波罗登月计划开始了。").flags == (Flag.OTHER_SCRIPT,)
    assert parse_self_edit("- 阿波罗登月计划开始了。", prompt="阿波罗计划").flags == ()
    assert parse_self_edit("- A is B.\n" * 5).flags == (Flag.REPETITIVE,)


def test_parse_applies_limits_by_leaving_out_whole_implications() -> None:
    text = "- one two three four\n- A is B.\n- Question: Who? Answer: X\n- C is D."
    parsed = parse_self_edit(text, max_lines=2, max_line_characters=12)
    assert texts_of(parsed) == ["A is B.", "Who? => X"]
    assert parsed.dropped == {DropReason.LINE_TOO_LONG: 1, DropReason.OVER_LIMIT: 1}


# --- specifications -------------------------------------------------------------------------------------------------

SEAL_SPEC = {
    "data_generation": {
        "use_basic_augmentations": True,
        "use_size_augmentations": False,
        "use_chain_augmentations": True,
        "use_repeat_augmentations": False,
    },
    "training": {"strategy": "train_using_output_tokens", "learning_rate": 5e-5, "num_train_epochs": 3},
}
"""The form that SEAL's few-shot prompt asks for (arXiv 2506.10943, section 3.2)."""
SEAL_EDIT = SelfEdit(
    augmentations=AugmentationSpec(use_basic_augmentations=True, use_chain_augmentations=True),
    training=TrainingSpec(learning_rate=5e-5, epochs=3, loss_on="answer"),
)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SEAL_SPEC),
        json.dumps(SEAL_SPEC, indent=4),
        f"```json\n{json.dumps(SEAL_SPEC, indent=2)}\n```",
        f"Here is the configuration: {json.dumps(SEAL_SPEC)}",
        json.dumps({"config": SEAL_SPEC}),
        json.dumps(SEAL_SPEC["data_generation"]) + "\n" + json.dumps({"training": SEAL_SPEC["training"]}),
        SEAL_EDIT.model_dump_json(),
    ],
)
def test_parse_reads_specifications(text: str) -> None:
    parsed = parse_self_edit(text)
    assert parsed.edit == SEAL_EDIT, parsed.detail
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)


def test_parse_reads_lines_and_specification_together() -> None:
    text = '- Ada lives in Oslo.\n\n```json\n{"training": {\n  "rank": 8, "epochs": 2.0}}\n```\n- Bo lives in Rome.'
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == ["Ada lives in Oslo.", "Bo lives in Rome."]
    assert parsed.edit is not None
    assert parsed.edit.training == TrainingSpec(rank=8, epochs=2)
    assert (parsed.kept, parsed.spec_lines, parsed.dropped) == (2, 2, {DropReason.MARKER_ONLY: 2})


def test_parse_reads_implications_from_json() -> None:
    text = '{"implications": ["1. A is B.", {"question": "Who?", "answer": "X"}, "a is b", {"text": "C is D."}]}'
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == ["A is B.", "Who? => X", "C is D."]
    assert (parsed.kept, parsed.spec_lines, parsed.dropped) == (4, 1, {DropReason.DUPLICATE: 1})


def test_parse_counts_a_second_specification() -> None:
    parsed = parse_self_edit('{"training": {"epochs": 2}}\n{"training": {"epochs": 3}}')
    assert parsed.edit == SelfEdit(training=TrainingSpec(epochs=2))
    assert (parsed.spec_lines, parsed.dropped) == (1, {DropReason.EXTRA_SPECIFICATION: 1})


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        (
            '{"training": {"learning_rate": 5.0}}',
            "out_of_range",
            "training.learning_rate: got 5.0, allowed: 1e-06 to 0.1",
        ),
        (
            '{"training": {"num_train_epochs": 0}}',
            "out_of_range",
            "training.num_train_epochs: got 0, allowed: 1 to 100",
        ),
        ('{"training": {"learning_rate": NaN}}', "out_of_range", "got nan, allowed: 1e-06 to 0.1"),
        ('{"training": {"learning_rate": -1e999}}', "out_of_range", "got -inf"),
        ('- A is B.\n{"rank": 257}', "out_of_range", "training.rank: got 257, allowed: 1 to 256"),
        ('{"training": {"epochs": 2.5}}', "invalid_value", "training.epochs: got 2.5, allowed: a number from 1 to 100"),
        ('{"training": {"epochs": true}}', "invalid_value", "training.epochs: got True"),
        ('{"training": {"learning_rate": "fast"}}', "invalid_value", "training.learning_rate: got 'fast'"),
        (
            '{"training": {"strategy": "all"}}',
            "invalid_value",
            "training.strategy: got 'all', allowed are ['train_using",
        ),
        ('{"training": {"loss_on": "x"}}', "invalid_value", "training.loss_on: got 'x'"),
        ('{"training": {"epochs": 2, "num_train_epochs": 3}}', "invalid_value", "given twice"),
        ('{"training": [1]}', "invalid_value", "training: got [1], allowed is an object"),
        ('{"data_generation": {"use_basic_augmentations": "yes"}}', "invalid_value", "augmentations.use_basic"),
        ('{"implications": "A is B."}', "invalid_value", "implications: got 'A is B.'"),
        ('{"training": {"momentum": 1}}', "unknown_field", "training: got the field 'momentum', allowed are ['epochs'"),
        ('{"training": {}, "notes": 1}', "unknown_field", "got the field 'notes'"),
        ('{"training": {"epochs": 3', "invalid_json", "not JSON"),
        ("{'training': {'epochs': 3}}", "invalid_json", "not JSON"),
        ('- A is B.\n{"training": {"epochs": 3,}}', "invalid_json", "not JSON"),
        ('{"training": {"epochs": 3, "epochs": 4}}', "invalid_json", "a field is given twice"),
        ('{"training":' + "[" * 100_000, "invalid_json", "not JSON"),
        ('{"training": {"epochs": ' + "9" * 5_000 + "}}", "invalid_json", "not JSON"),
    ],
)
def test_parse_rejects_specifications_that_cannot_be_honoured(text: str, reason: str, named: str) -> None:
    parsed = parse_self_edit(text)
    assert (parsed.edit, parsed.reason) == (None, reason)
    assert named in parsed.detail
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)


@pytest.mark.parametrize("text", ["f(n) = {1, 2} holds for all n.", 'The set {"a": 1} is a dictionary.'])
def test_parse_leaves_other_braces_alone(text: str) -> None:
    assert texts_of(parse_self_edit(text)) == [text]


# --- verbatim mode --------------------------------------------------------------------------------------------------


def seal_sequences(text: str, *, split_newlines: bool) -> list[str]:
    """SEAL's sequences as its code describes them, without title and passage."""
    if split_newlines and re.search(r"Question\s+\d+:", text) and re.search(r"Answer\s*:", text):
        blocks = re.split(r"\n(?=Question\s+\d+:)", text.strip())
        if not blocks[0].lstrip().startswith("Question"):
            blocks[0] = f"Question 1: {blocks[0].strip()}"
        return blocks
    segments = list(filter(None, map(str.strip, text.split("---")))) or [text.strip()]
    if not split_newlines:
        return segments
    lines = [line.strip() for segment in segments for line in segment.splitlines() if line.strip()]
    return lines[1:] if lines[1:] and lines[1].startswith("1.") else lines


@pytest.mark.parametrize(
    ("text", "split", "expected", "dropped"),
    [
        ("1. A\n\n- B --- C\n---\n", True, ["1. A", "- B", "C"], {"marker_only": 1}),
        ("Sure:\n1. A\n2. B", True, ["1. A", "2. B"], {"preamble": 1}),
        ("Sure:\n1. A\n---\n2. B", False, ["Sure:\n1. A", "2. B"], {"marker_only": 1}),
        (
            "Who?\nAnswer: X\n\nQuestion 2: Y?\n---\nAnswer: Z\n\nQuestion 3: W?",
            True,
            ["Question 1: Who?\nAnswer: X", "Question 2: Y?\n---\nAnswer: Z\n", "Question 3: W?"],
            {},
        ),
        ("Who?\nAnswer 1: X\nQuestion 2: Y?", True, ["Who?", "Answer 1: X", "Question 2: Y?"], {}),
        ("---", True, ["---"], {}),
        ('{"training": {"epochs": 900}}', True, ['{"training": {"epochs": 900}}'], {}),
    ],
)
def test_verbatim_splits_as_seal_does(text: str, split: bool, expected: list[str], dropped: dict[str, int]) -> None:
    parsed = parse_self_edit(text, mode="verbatim", split_newlines=split)
    assert texts_of(parsed) == expected == seal_sequences(text, split_newlines=split)
    assert parsed.dropped == dropped


# --- real completions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completions(shared_data: SharedData) -> dict[str, list[tuple[str, str]]]:
    """Prompt and text of SEAL's published completions of Qwen2.5-7B, by prompt family."""
    found = {}
    for family in FAMILIES:
        with gzip.open(shared_data("seal", "completions", f"{family}.json.gz"), "rt", encoding="utf-8") as file:
            found[family] = [(row["prompt"], text) for row in json.load(file) for text in row["completions"]]
    return found


def all_of(completions: dict[str, list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    return itertools.chain.from_iterable(completions.values())


# Measured with this parser on the files above; no published figures exist for it.
MEASURED = {}


def test_real_completions_keep_their_counts(completions: dict[str, list[tuple[str, str]]]) -> None:
    assert sum(map(len, completions.values())) == 5250
    for family, rows in completions.items():
        counts: Counter[str] = Counter()
        for prompt, text in rows:
            parsed = parse_self_edit(text, prompt=prompt)
            assert parsed.kept + sum(parsed.dropped.values()) == count_lines(text)
            counts.update(parsed.dropped)
            counts.update(flag for flag in parsed.flags)
            counts.update({"lines": count_lines(text), "kept": parsed.kept, "rejected": parsed.edit is None})
            if parsed.edit is not None:
                counts["implications"] += len(parsed.edit.implications)
                counts["pairs"] += sum(i.answer is not None for i in parsed.edit.implications)
        assert {name: n for name, n in counts.items() if n} == MEASURED[family], family


def test_real_edits_parse_back_from_their_rendering(completions: dict[str, list[tuple[str, str]]]) -> None:
    for prompt, text in itertools.islice(all_of(completions), 0, None, 3):
        edit = parse_self_edit(text, prompt=prompt).edit
        if edit is not None:
            assert parse_self_edit(render(edit, one_line=True)).edit == edit
            assert parse_self_edit(render(edit, one_line=False)).edit == edit
            assert parse_self_edit(edit.model_dump_json()).edit == edit


def test_real_completions_split_verbatim_as_seal_does(completions: dict[str, list[tuple[str, str]]]) -> None:
    for (_, text), split in itertools.product(all_of(completions), (True, False)):
        parsed = parse_self_edit(text, mode="verbatim", split_newlines=split)
        assert texts_of(parsed) == seal_sequences(text, split_newlines=split)
        assert parsed.kept + sum(parsed.dropped.values()) == count_lines(text)


def test_real_self_qa_rarely_takes_seals_question_branch(completions: dict[str, list[tuple[str, str]]]) -> None:
    rows = completions["base_val_prompt-self-qa"]
    edits = [parse_self_edit(text, mode="verbatim").edit for _, text in rows]
    in_blocks = [edit for edit in edits if edit and any("\nAnswer" in i.text for i in edit.implications)]
    branch = [text for _, text in rows if re.search(r"Question\s+\d+:", text) and re.search(r"Answer\s*:", text)]
    assert len(branch) == 117  # of 1,000: an audit of SEAL's data counted the same
    assert len(in_blocks) <= len(branch)


# --- invariants -----------------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    # fmt: off
    [
        "1. ",
        "- ",
        "**",
        "### ",
        "A. ",
        "B) ",
        "---",
        "```json",
        "{",
        "}",
        "1. 1. 1. ",
        "?",
        "Question 2: ",
        "Answer 2: ",
        "Answer:",
        "Q:",
        "A: ",
        "Passage:",
        "Implications:",
        "Sure, here is:",
        "Ada lives in Oslo.",
        "Where does Ada live?",
        "You are an AI assistant.",
        "\n",
        "\n\n",
        "\r\n",
        "\u2028",
        "\x85",
        "\x1c",
        "\x0b",
        "\ufeff",
        "\u200b",
        "\t",
        "\x00",
        "\ud800",
        "\udc00",
        "é",
        "中文",
        json.dumps(SEAL_SPEC, indent=1),
        '{"training": {"epochs": 0}}',
        '{"training": ',
    ]
    # fmt: on
)
ANYTHING = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=30).map("".join),
)


@settings(max_examples=600, deadline=None)
@given(
    text=ANYTHING,
    prompt=ANYTHING,
    finish=st.sampled_from(["stop", "length", None]),
    split=st.booleans(),
    data=st.data(),
)
def test_parse_accounts_for_every_line_of_any_text(
    text: str, prompt: str, finish: str | None, split: bool, data: st.DataObject
) -> None:
    mode = data.draw(st.sampled_from(["clean", "verbatim"]))
    limits = {name: data.draw(st.none() | st.integers(0, 40)) for name in ("max_lines", "max_line_characters")}
    arguments = {"prompt": prompt, "finish_reason": finish, "mode": mode, "split_newlines": split, **limits}
    parsed = parse_self_edit(text, **arguments)  # type: ignore[arg-type]
    assert (parsed.edit is None) != (parsed.reason is None)
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)
    assert all(count > 0 for count in parsed.dropped.values())
    assert parse_self_edit(text, **arguments) == parsed  # type: ignore[arg-type]
    assert ParsedEdit.model_validate_json(parsed.model_dump_json()) == parsed
    if parsed.edit is not None:
        assert parsed.edit.digest
        assert len(parsed.edit.implications) <= (limits["max_lines"] if limits["max_lines"] is not None else 10**9)


WORDS = st.text(st.sampled_from("abcdefgh"), min_size=2, max_size=7)
SENTENCES = st.lists(WORDS, min_size=3, max_size=8).map(lambda words: " ".join(words).capitalize())
IMPLICATIONS = st.one_of(
    SENTENCES.map(lambda text: Implication(text=text + ".")),
    st.tuples(SENTENCES, WORDS).map(lambda pair: Implication(text=pair[0] + "?", answer=pair[1])),
)
EDITS = st.lists(IMPLICATIONS, min_size=1, max_size=8, unique_by=lambda i: (i.text, i.answer)).map(
    lambda implications: SelfEdit(implications=tuple(implications))
)


@settings(max_examples=150, deadline=None)
@given(edit=EDITS, one_line=st.booleans())
def test_parse_reads_back_what_a_clean_edit_renders_to(edit: SelfEdit, one_line: bool) -> None:
    parsed = parse_self_edit(render(edit, one_line=one_line))
    assert parsed.edit == edit
    assert parsed.dropped == {}
    assert parse_self_edit(edit.model_dump_json()).edit == edit


@pytest.mark.parametrize(
    "text",
    [
        "*" * 90_000,
        "**a " * 20_000,
        "1. " * 30_000,
        "- " * 45_000,
        " " * 90_000 + "x",
        "`" * 90_000,
        "{" + " \n" * 45_000,
        '{"' * 45_000,
        '{"a":' * 18_000,
        "Question: " * 9_000,
        "? A" * 30_000,
        "Let's read " * 8_000,
        "".join(f"{label} {n}: x?\n" for label in ("Question", "Answer") for n in range(5_000)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_parse_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    parse_self_edit(text)
    assert time.perf_counter() - started < 5  # 0.01 to 0.4 s when linear, minutes when a pattern backtracks
