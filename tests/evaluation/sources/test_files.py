from __future__ import annotations

import gzip
import json
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.text import clean_text
from evaluation.sources.files import JsonLinesData, SquadData, json_lines, load_tasks, parse_json, read_data_file
from evaluation.sources.rows import MAX_LISTED_ROWS, Refusals
from evaluation.tasks import split_tasks
from tests.evaluation.factories import ASKED, mistakes, pairs, paragraph, refusal, row, squad, write_lines, write_squad


def test_jsonl_row_with_every_key_is_read_as_given(tmp_path: Path) -> None:
    full = row(
        id="ada-1",
        title="Ada",
        source="archive, box 7",
        entities=["Ada", "Babbage"],
        held_out_questions=[{"question": "By whom?", "answer": "Ada"}],
    )
    (task,) = load_tasks(write_lines(tmp_path / "d.jsonl", full))
    assert task.document.model_dump() == {
        "id": "ada-1",
        "text": "Ada wrote a program.",
        "title": "Ada",
        "source": "archive, box 7",
        "entities": ("Ada", "Babbage"),
    }
    assert pairs(task) == [("Who?", "Ada")]
    assert [(q.question, q.answer) for q in task.held_out_questions] == [("By whom?", "Ada")]
    assert re.fullmatch(r"[0-9a-f]{64}", task.document.digest)


def test_jsonl_row_with_required_keys_gets_id_and_source(tmp_path: Path) -> None:
    config = write_lines(tmp_path / "d.jsonl", "", row(title="Ada & Co"), row(text="Other."))
    first, second = load_tasks(config)
    assert first.id == f"Ada_Co-{first.document.digest[:12]}"
    assert second.id == second.document.digest[:12]
    assert second.document.source == f"{config.path}: line 3"


def test_jsonl_derived_ids_do_not_depend_on_neighbours_and_never_clash(tmp_path: Path) -> None:
    alone = load_tasks(write_lines(tmp_path / "a.jsonl", row(title="T")))[0].id
    # A given id that looks like a derived one, the same document twice, and another before it.
    config = write_lines(tmp_path / "b.jsonl", row(text="Other."), row(title="T"), row(title="T"))
    assert [task.id for task in load_tasks(config)][1:] == [alone, f"{alone}-2"]
    config = write_lines(tmp_path / "c.jsonl", row(title="T"), row(id=alone, text="Other."))
    assert [task.id for task in load_tasks(config)] == [f"{alone}-2", alone]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
        lambda text: b"\n \n" + text.encode() + b"\n\n",
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-be"),
        lambda text: gzip.compress(text.encode("utf-32")),
        lambda text: b"[\n" + text.replace("\n", ",\n").encode() + b"\n]\n",
        lambda text: unicodedata.normalize("NFD", text).encode(),
        lambda text: text.replace("}]", '}], "title": NaN').encode(),
    ],
    ids=["bom", "crlf", "gzip", "gzip-bom-crlf", "blank-lines", "utf16", "utf16be", "utf32", "array", "nfd", "nan"],
)
def test_jsonl_file_saved_otherwise_gives_the_same_tasks(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    text = "\n".join(json.dumps(row(text=f"Text {i}: Zoë.", id=str(i)), ensure_ascii=False) for i in range(3))
    plain, other = tmp_path / "plain.jsonl", tmp_path / "other.jsonl"
    plain.write_text(text, encoding="utf-8")
    other.write_bytes(encode(text))
    digests = [task.digest for task in load_tasks(JsonLinesData(path=plain))]
    assert len(set(digests)) == 3
    assert [task.digest for task in load_tasks(JsonLinesData(path=other))] == digests


def test_jsonl_strings_are_clean_and_questions_stripped(tmp_path: Path) -> None:
    odd = "\ufeff  One.\u2028Two.\x85Three.\x0b  "
    raw = json.dumps(row(text=odd, questions=[{"question": " Who? ", "answer": "\tAda\n"}]), ensure_ascii=False)
    (task,) = load_tasks(write_lines(tmp_path / "d.jsonl", raw))
    assert task.document.text == "  One.\nTwo.\nThree.\n  "
    assert pairs(task) == [("Who?", "Ada")]
    windows, unix = (load_tasks(write_lines(tmp_path / "d.jsonl", row(text=t)))[0] for t in ("a\r\nb\rc", "a\nb\nc"))
    assert windows.document.text == "a\nb\nc"
    assert windows.digest == unix.digest


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=50, deadline=None)
def test_jsonl_any_text_is_read_back_or_refused_by_line(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[str, list[tuple[str, str]]]]
) -> None:
    lines = [row(text=text, questions=[{"question": q, "answer": a} for q, a in asked]) for text, asked in documents]
    config = write_lines(tmp_path_factory.mktemp("any") / "d.jsonl", *lines)
    strings = [[text, *(s for pair in asked for s in pair)] for text, asked in documents]
    bad = [
        i
        for i, row_strings in enumerate(strings, 1)
        if any("\0" in s or not clean_text(s).strip() for s in row_strings)
    ]
    if bad:
        message = refusal(config)
        assert sorted(by_line(message)) == bad
        return
    tasks = load_tasks(config)
    assert [task.document.text for task in tasks] == [clean_text(text) for text, _ in documents]
    assert len({task.id for task in tasks}) == len(tasks)
    assert [len(task.questions) for task in tasks] == [len(asked) for _, asked in documents]


def by_line(message: str) -> dict[int, str]:
    """Return the reason of each line that a message names."""
    listed = re.findall(r": lines? ([\d, ]+)(?: and \d+ more)?: (.*)", message)
    return {int(number): reason for numbers, reason in listed for number in numbers.split(", ")}


NO_ITEM = "must have at least 1 item after validation, not 0"
BAD_LINES: list[tuple[str | dict[str, Any], str]] = [
    ({"questions": ASKED}, "text is missing"),
    (row(text=""), "text is empty"),
    (row(text=" \n"), "text is only white space"),
    (row(text=7), "text must be a valid string"),
    (row(text=None), "text must be a valid string"),
    (row(id="first"), "id 'first' was already given at line 1"),
    (row(id=3), "id must be a valid string"),
    (row(id=""), "id is empty"),
    ({"text": "T."}, "questions is missing"),
    (row(questions=[]), f"questions {NO_ITEM}"),
    (row(questions={"question": "Q?", "answer": "A"}), "questions must be a valid list"),
    (row(questions=["Q?"]), "questions[0] must be a valid dictionary or instance of QuestionRow"),
    (row(questions=[*ASKED, {"question": "Q?"}]), "questions[1].answer is missing"),
    (row(questions=[{"question": "Q?", "answer": None}]), "questions[0].answer must be a valid string"),
    (row(questions=[{"question": "Q?", "answer": " "}]), "questions[0].answer is only white space"),
    (row(questions=[{"question": "", "answer": "A"}]), "questions[0].question is empty"),
    (row(questions=[{"question": "Q?", "answer": "A", "id": "q"}]), "questions[0].id is an unknown key (allowed: "),
    (row(held_out_questions=[{"answer": "A"}]), "held_out_questions[0].question is missing"),
    (row(entities="Ada"), "entities must be a valid list"),
    (row(entities=["Ada", 2]), "entities[1] must be a valid string"),
    (row(context="T."), "context is an unknown key; did you mean text? (allowed: id, title, text,"),
    ('{"text": "T.", ', "broken JSON: "),
    ("not json", "broken JSON: Expecting value at column 1"),
    ("[" * 100_000, "broken JSON: nested too deeply"),
    ('{"text": ' + "1" * 5000 + "}", "broken JSON: a number has too many digits"),
    ('{"text": "a", "text": "b"}', "an object gives the key 'text' more than once"),
    ('["a list"]', "must be a valid dictionary or instance of DocumentRow"),
    ("null", "must be a valid dictionary or instance of DocumentRow"),
    (row(text="a\0b"), "text holds a NUL character"),
    ('{"text": "a\0b"}', "broken JSON: Invalid control character at column 12"),
    (row(text="a\ud800b"), "text holds an unpaired surrogate"),
    (row(questions=[{"question": "Q?", "answer": "\udfff"}]), "questions[0].answer holds an unpaired surrogate"),
    (row() | {"\ud800": 1}, "must be a valid string, unable to parse raw data as a unicode string"),
    ('{"text": "\ud800"}', "not UTF-8: byte 11 has 0xed"),
    ({"questions": [], "x": 1}, f"text is missing; questions {NO_ITEM}; x is an unknown key"),
    (row() | {"a\nb": 1}, r"'a\nb' is an unknown key (allowed: "),
]


def test_jsonl_all_mistakes_are_listed_in_one_message_with_file_line_and_reason(tmp_path: Path) -> None:
    good_first, good_last = row(id="first"), row(id="last", text="Fine.")
    config = write_lines(tmp_path / "bad.jsonl", good_first, *(line for line, _ in BAD_LINES), "", good_last)
    message = refusal(config)
    head, *listed, advice = message.splitlines()
    assert head == f"{config.path}: {len(BAD_LINES)} bad rows, nothing was loaded:"
    assert '"question": ...' in advice
    assert len(listed) < len(BAD_LINES)  # equal mistakes share a line
    found = by_line(message)
    for number, (_, reason) in enumerate(BAD_LINES, start=2):
        assert found[number].startswith(reason)
    message.encode()  # printable on any UTF-8 terminal, whatever the bad rows hold


def test_jsonl_repeated_id_is_found_beside_other_mistakes_of_either_row(tmp_path: Path) -> None:
    config = write_lines(tmp_path / "d.jsonl", row(id="x", text=""), row(id="x"), row(id="x", text=5))
    message = refusal(config)
    assert "3 bad rows" in message
    assert message.count("id 'x' was already given at line 1") == 2


def test_jsonl_many_bad_rows_are_capped_and_counted(tmp_path: Path) -> None:
    config = write_lines(tmp_path / "d.jsonl", *(row(id=i) | {f"k{i}": 1} for i in range(60)), *["{}"] * 60)
    lines = refusal(config).splitlines()
    assert "120 bad rows" in lines[0]
    assert len(lines) == 1 + MAX_LISTED_ROWS + 1 + 1
    assert lines[-2].strip() == "and 11 more"
    config = write_lines(tmp_path / "d.jsonl", row(questions=[{}] * 20))
    assert refusal(config).splitlines()[1].endswith("; and 35 more")


@pytest.mark.parametrize("config", [JsonLinesData, SquadData])
def test_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, config: type[JsonLinesData] | type[SquadData]
) -> None:
    whole = gzip.compress(b"[" + json.dumps(row()).encode() * 50 + b"]")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    cases = {
        "empty": (b"", "is empty"),
        "blank": (b"\n \r\n\t", "is empty"),
        "bom": (b"\xef\xbb\xbf\n", "is empty"),
        "empty.gz": (gzip.compress(b""), "is empty"),
        "cut.gz": (whole[:-20], "truncated or damaged"),
        "head.gz": (whole[:5], "truncated or damaged"),
        "damaged.gz": (bytes(damaged), "truncated or damaged"),
        "no-deflate.gz": (whole[:10] + b"\xff" + whole[11:], "truncated or damaged"),
        "utf16": ("\n ".encode("utf-16"), "is empty"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(config(path=tmp_path / name))
        assert f"'{tmp_path / name}'" in message
        assert reason in message
    assert "cannot be read: Is a directory" in refusal(config(path=tmp_path))
    assert "cannot be read: No such file" in refusal(config(path=tmp_path / "missing"))
    assert "cannot be read: Not a directory" in refusal(config(path=tmp_path / "empty" / "below-a-file"))


def test_squad_official_and_regrouped_forms_give_the_same_tasks(tmp_path: Path) -> None:
    nested = squad(
        paragraph("One.", ("Who?", ["Ada", "Ada L."]), ("When?", ["1843"])), paragraph("Two.", ("Why?", ["x"]))
    )
    grouped = [
        {"title": "Ada", "context": "One.", "questions": [*ASKED, {"question": "When?", "answer": "1843"}]},
        {"title": "Ada", "context": "Two.", "questions": [{"question": "Why?", "answer": "x"}]},
    ]
    first = load_tasks(write_squad(tmp_path / "official.json", nested))
    second = load_tasks(write_squad(tmp_path / "regrouped.json", grouped))
    assert [(task.id, task.digest) for task in first] == [(task.id, task.digest) for task in second]
    assert pairs(first[0]) == [("Who?", "Ada"), ("When?", "1843")]
    assert first[1].document.title == "Ada"
    assert first[1].document.source == f"{tmp_path / 'official.json'}: data[0].paragraphs[1]"


def test_squad_repeated_paragraphs_and_questions_are_kept(tmp_path: Path) -> None:
    again = paragraph("One.", ("Who?", ["Ada"]), ("Who?", ["Ada"]))
    first, second = load_tasks(write_squad(tmp_path / "d.json", squad(again, again)))
    assert len(first.questions) == 2
    assert first.document.digest == second.document.digest
    assert second.id == f"{first.id}-2"


def test_squad_official_mistakes_are_listed_by_json_path(tmp_path: Path) -> None:
    value = squad(
        paragraph("Fine.", ("Who?", ["Ada"])),
        paragraph("No answer.", ("Who?", ["Ada"]), ("When?", [])),
        {"qas": [{"question": "Q?", "answers": [{"text": "A"}]}]},
        {"context": "", "qas": []},
        "paragraph",
        {"context": "C.", "qas": [{"question": 5, "answers": [{"text": ""}]}, {"answers": "A"}]},
    )
    value["data"] += [{"title": 3, "paragraphs": [paragraph("C.", ("Q?", ["A"]))]}, {"title": "No paragraphs"}]
    assert mistakes(write_squad(tmp_path / "bad.json", value)) == [
        f"data[0].paragraphs[1].qas[1]: answers {NO_ITEM}",
        "data[0].paragraphs[2]: context is missing",
        f"data[0].paragraphs[3]: context is empty; qas {NO_ITEM}",
        "data[0].paragraphs[4]: must be a valid dictionary or instance of _Paragraph",
        "data[0].paragraphs[5].qas[0]: question must be a valid string",
        "data[0].paragraphs[5].qas[0].answers[0]: text is empty",
        "data[0].paragraphs[5].qas[1]: question is missing; answers must be a valid list",
        "data[1]: title must be a valid string",
        "data[2]: paragraphs is missing",
    ]


def test_squad_regrouped_mistakes_are_listed_by_json_path(tmp_path: Path) -> None:
    good = {"id": "x", "context": "C.", "questions": ASKED}
    value = [good, good, {"title": "T", "questions": [{"question": "Q?"}]}, 7, {"context": "a\0", "questions": []}]
    assert mistakes(write_squad(tmp_path / "bad.json", value)) == [
        "[1]: id 'x' was already given at [0]",
        "[2]: context is missing",
        "[2].questions[0]: answer is missing",
        "[3]: must be a valid dictionary or instance of _Regrouped",
        f"[4]: context holds a NUL character (U+0000); questions {NO_ITEM}",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"data": [', "broken JSON: Expecting value at column 11"),
        (b'[\n{"title":\n}]', "broken JSON: Expecting value at line 3 column 1"),
        (b'[\n{"title": "\xff"}]', "not UTF-8: byte 14 has 0xff"),
        (b'{"text": "T.", "questions": []}', "not SQuAD: the top level must be"),
        (b'"text"', "not SQuAD: the top level must be"),
        (b"[]", "holds no document"),
        (b'{"data": []}', f"top level: data {NO_ITEM}"),
        (b'{"data": {}}', "top level: data must be a valid list"),
    ],
)
def test_squad_file_that_is_no_squad_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    message = refusal(SquadData(path=path))
    assert str(path) in message
    assert reason in message


def test_squad_sample_is_seeded_and_keeps_ids(tmp_path: Path) -> None:
    value = squad(*(paragraph(f"Text {i}.", ("Q?", [str(i)])) for i in range(20)))
    config = write_squad(tmp_path / "d.json", value)
    everything = load_tasks(config)
    sample = load_tasks(SquadData(path=config.path, max_documents=5))
    assert len(sample) == 5
    assert set(sample) <= set(everything)
    assert sample == load_tasks(SquadData(path=config.path, max_documents=5)) != everything[:5]
    assert len(load_tasks(SquadData(path=config.path, max_documents=99))) == 20


def test_squad_development_set_is_read_whole(shared_data: Callable[..., Path]) -> None:
    # 2,067 paragraphs and 10,570 questions: the data's README; SQuAD v1.1's development set has 48 articles
    # (arXiv 1606.05250). The 35 questions asked again about the same paragraph were counted in the raw file.
    tasks = load_tasks(SquadData(path=shared_data("squad", "squad_val.json.gz")))
    assert len(tasks) == 2067
    assert sum(len(task.questions) for task in tasks) == 10_570
    assert len({task.document.title for task in tasks}) == 48
    assert len({task.id for task in tasks}) == len({task.document.digest for task in tasks}) == 2067
    asked = Counter((task.id, question.question) for task in tasks for question in task.questions)
    assert sum(count > 1 for count in asked.values()) == 35


def test_squad_sample_of_200_is_seals_evaluation_set_in_order(shared_data: Callable[..., Path]) -> None:
    recorded = json.loads(gzip.decompress(shared_data("seal", "completions", "base_val.json.gz").read_bytes()))
    config = SquadData(path=shared_data("squad", "squad_val.json.gz"), max_documents=200)
    tasks = load_tasks(config)
    assert [task.document.text for task in tasks] == [item["context"] for item in recorded]
    split = split_tasks(tasks, development=20, test=50, seed=config.split_seed)
    assert tuple(map(len, split)) == (130, 20, 50)


@pytest.mark.parametrize(
    ("written", "read"),
    [("9", "9"), ("1.50", "1.50"), ("-0", "0"), ("-3.0", "-3.0"), ("1e3", "1e3"), ("true", "true"), ("false", "false")],
)
def test_answers_that_are_numbers_are_read_as_written(tmp_path: Path, written: str, read: str) -> None:
    line = f'{{"text": "T.", "questions": [{{"question": "Q?", "answer": {written}}}]}}'
    (task,) = load_tasks(write_lines(tmp_path / "d.jsonl", line))
    assert pairs(task) == [("Q?", read)]
    nested = json.dumps(squad(paragraph("T.", ("Q?", ["THE NUMBER"])))).replace('"THE NUMBER"', written)
    (tmp_path / "s.json").write_text(nested)
    assert pairs(load_tasks(SquadData(path=tmp_path / "s.json"))[0]) == [("Q?", read)]


def test_questions_without_an_answer_are_left_out_and_counted(
    tmp_path: Path, shared_data: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    tasks = load_tasks(SquadData(path=shared_data("..", "cases", "squad_v2.json")))
    assert [pairs(task) for task in tasks] == [
        [("How many berths?", "nine")],
        [("Where does Ilse live?", "Varley")],
        [("When does it open?", "six")],
    ]
    assert ": 2 of" in caplog.text
    whole = squad(paragraph("C.", ("Q?", [])))
    whole["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert ": 1 of" in refusal(write_squad(tmp_path / "none.json", whole))


@pytest.mark.parametrize(
    ("name", "texts"), [("jsonl_utf16.jsonl", 2), ("jsonl_array.jsonl", 2), ("nfd_answers.jsonl", 4)]
)
def test_field_cases_are_read(shared_data: Callable[..., Path], tmp_path: Path, name: str, texts: int) -> None:
    refusals = Refusals(name)
    rows = list(json_lines(read_data_file(shared_data("..", "cases", name)), refusals.refuse))
    refusals.check()
    assert [type(raw["text"]) for _, raw in rows] == [str] * texts
    if name == "nfd_answers.jsonl":
        tasks = load_tasks(JsonLinesData(path=shared_data("..", "cases", name)))
        assert {answer for task in tasks for _, answer in pairs(task)} == {"Café Nérac", "“six” – five"}


def test_large_files_are_read_in_linear_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    keys = ", ".join(f'"k{i % 60_000}": 1' for i in range(120_000))
    message = refusal(write_lines(tmp_path / "keys.jsonl", f"{{{keys}}}"))
    assert "59995 more" in message
    parse_json(json.dumps([{"text": f"T{i}"} for i in range(300_000)]).encode())
    assert time.perf_counter() - started < 20  # about 1 s; minutes when each key is compared with all
