from __future__ import annotations

import datetime
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.sources.files import JsonLinesData, load_tasks
from evaluation.tasks import Question
from pipelines.inbox.intake import (
    MIN_CHARACTERS,
    Intake,
    Section,
    assign_questions,
    split_sections,
)
from pipelines.inbox.readers.text import Block, blocks_of
from tests.pipelines.inbox.files import pdf, word_file


def taken(path: Path, **settings: Any) -> Intake:
    return Intake(**settings).read(path).check()


def piped(content: str, **settings: Any) -> Intake:
    return Intake(**settings).read(Path("-"), io.BytesIO(content.encode())).check()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a file of each format, good and bad, in the current directory."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "docs"
    (made / "sub" / ".git").mkdir(parents=True)
    (made / "a.md").write_text("# Refunds\n\nTen days.")
    (made / "b.pdf").write_bytes(pdf([["Text of a page."], []]))
    (made / "c.docx").write_bytes(word_file())
    (made / "d.png").write_bytes(b"\x89PNG")
    (made / "e.txt").write_text("  \n")
    (made / "sub" / "f.html").write_text("<title>Page</title><p>Text.")
    (made / "sub" / "g.jsonl").write_text('{"text": "Good."}\n\n{"text": "Bad.", "colour": "red"}\nnot JSON\n')
    (made / "sub" / "h.json").write_text(json.dumps([{"role": "user", "content": "Hello?"}]))
    (made / "sub" / ".git" / "i.txt").write_text("Hidden.")
    (made / ".j.txt").write_text("Hidden.")
    (made / "~$c.docx").write_text("Lock.")
    return made


def test_directory_is_read_in_order_and_bad_files_are_skipped(folder: Path) -> None:
    found = taken(Path("docs"))
    assert [(each.source, each.title) for each in found.documents] == [
        ("docs/a.md", "Refunds"),
        ("docs/b.pdf", "b"),
        ("docs/c.docx", "Refund handbook"),
        ("docs/sub/f.html", "Page"),
        ("docs/sub/g.jsonl", ""),
        ("docs/sub/h.json", "Hello?"),
    ]
    places, reasons = list(found.skipped), list(found.skipped.values())
    assert places == ["docs/d.png", "docs/e.txt", "docs/sub/g.jsonl: line 3", "docs/sub/g.jsonl: line 4"]
    assert "no supported format (jsonl, json, " in reasons[0]
    assert reasons[1] == "is empty"
    assert reasons[2].startswith("colour is an unknown key (allowed: ")
    assert reasons[3].startswith("broken JSON")
    assert found.notes == ["docs/b.pdf: no text on 1 of 2 pages (2): blank or scanned"]
    assert len(found.files) == 8


def test_source_is_the_same_however_a_path_is_written(folder: Path) -> None:
    ways = [Path("docs/a.md"), Path("./docs/sub/../a.md"), folder / "a.md"]
    assert {taken(way).documents[0].id for way in ways} == {taken(Path("docs")).documents[0].id}
    os.chdir(folder)
    assert taken(Path("a.md")).documents[0].source == "a.md"
    os.chdir(folder / "sub")
    (folder / "link").symlink_to("sub")
    assert taken(folder / "a.md").documents[0].source == (folder / "a.md").as_posix()
    assert taken(Path("../a.md"), root=folder.parent).documents[0].source == "docs/a.md"
    assert taken(folder / "link" / "f.html", root=folder).documents[0].source == "sub/f.html"


def test_given_source_takes_precedence_over_the_path(folder: Path) -> None:
    assert taken(folder / "a.md", source="wiki").documents[0].source == "wiki"
    assert {each.source for each in taken(folder, source="wiki").documents} >= {"wiki/a.md", "wiki/sub/f.html"}


def test_row_has_all_fields_and_settings_fill_the_others() -> None:
    row = {
        "id": "kb-1",
        "title": "Refunds",
        "text": "Ten days.\r\nNever more.",
        "source": "crm",
        "effective": "2026-01-31",
        "supersedes": "kb-0",
        "route": "memory",
        "entities": ["Refund"],
        "questions": [{"question": "How many days? ", "answer": "Ten"}],
        "held_out_questions": [{"question": "In how many days?", "answer": "Ten"}],
    }
    settings = {"source": "s", "effective": datetime.date(2000, 1, 1), "supersedes": ("x", "y"), "route": "weights"}
    full, bare = piped(json.dumps(row) + '\n{"text": "B."}', **settings).documents
    changed = {"text": "Ten days.\nNever more.", "effective": datetime.date(2026, 1, 31), "supersedes": ("kb-0",)}
    changed |= {"name": row.pop("id"), "whole": "", "entities": ("Refund",), "client": ""}
    changed["questions"] = ({"question": "How many days?", "answer": "Ten", "phrasing": "", "paraphrases": None},)
    changed["held_out_questions"] = (
        {"question": "In how many days?", "answer": "Ten", "phrasing": "", "paraphrases": None},
    )
    assert full.model_dump() == row | changed
    assert (bare.source, bare.effective, bare.supersedes) == ("s", datetime.date(2000, 1, 1), ("x", "y"))
    assert bare.route == "weights"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"title": "t"}', "text is missing"),
        ('{"text": " "}', "text is only white space"),
        ('{"text": 3}', "text must be a valid string"),
        ('{"text": "a", "effective": "31.1.2026"}', "effective must be a date written YYYY-MM-DD, got '31.1.2026'"),
        ('{"text": "a", "effective": 20260131}', "effective must be a date written YYYY-MM-DD, got 20260131"),
        ('{"text": "a", "route": "disk"}', "route must be 'weights' or 'memory'"),
        ('{"text": "a", "questions": [{"question": "q"}]}', "questions[0].answer is missing"),
        ('{"text": "a", "text": "b"}', "an object gives the key 'text' more than once"),
        ('["a"]', "must be an object with `text`"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "system", "content": "Only this."}]}', "holds no text"),
        ('{"text": "a", "title": "' + "t" * 501 + '"}', "title has 501 characters, allowed are at most 500"),
    ],
)
def test_bad_row_is_skipped_with_line_and_reason(row: str, reason: str) -> None:
    found = piped(f'{{"text": "Good."}}\n{row}')
    assert [each.text for each in found.documents] == ["Good."]
    ((place, why),) = found.skipped.items()
    assert place == "standard input: line 2"
    assert reason in why


def test_nothing_usable_is_an_error_that_lists_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: text is missing\n.*line 2: broken JSON"):
        piped('{"title": "t"}\n{')
    with pytest.raises(InputError, match="the directory has no files"):
        taken(tmp_path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        taken(tmp_path / "absent.md")
    with pytest.raises(InputError, match="is empty"):
        piped("")


def test_named_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match="is not a regular file"):
        taken(tmp_path)


def test_standard_input_is_read_in_the_given_format() -> None:
    assert [each.text for each in piped("One.\n\nTwo.", format="text").documents] == ["One.\n\nTwo."]
    assert piped("# T\n\nText.", format="markdown").documents[0].title == "T"


def test_front_matter_overrides_settings(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\neffective: 2026-11-01\nroute: memory\nsource: wiki/a\n---\n# T\n\nText.")
    (tmp_path / "b.md").write_text("---\nroute: disk\n---\nText.")
    found = taken(tmp_path, route="weights")
    first, second = found.documents
    assert (first.effective, first.route, first.source) == (datetime.date(2026, 11, 1), "memory", "wiki/a")
    assert (second.route, found.skipped, len(found.notes)) == ("weights", {}, 1)


def test_long_document_is_split_and_each_part_has_its_questions() -> None:
    texts = [f"The {name} opens at {hour}. " * 12 for name, hour in (("bank", "nine"), ("mill", "six"))]
    row = {
        "title": "Hours",
        "text": "\n\n".join(text.strip() for text in texts),
        "questions": [{"question": "When does the mill open?", "answer": "six"}],
        "held_out_questions": [{"question": "When does the bank open?", "answer": "nine"}],
        "supersedes": ["old hours"],
    }
    first, second = piped(json.dumps(row), most_characters=400).documents
    assert (first.title, second.title) == ("Hours", "Hours")
    assert first.whole == second.whole != ""
    assert first.supersedes == second.supersedes == ("old hours",)
    assert first.questions == second.held_out_questions == ()
    assert second.questions == (Question(question="When does the mill open?", answer="six"),)
    assert first.held_out_questions == (Question(question="When does the bank open?", answer="nine"),)


def test_parts_of_a_file_are_titled_by_their_headings(tmp_path: Path) -> None:
    body = "Some words that fill the section. " * 8
    (tmp_path / "a.md").write_text(f"# Handbook\n\n## Refunds\n\n{body}\n\n## Travel\n\n{body}")
    found = taken(tmp_path, most_characters=400)
    assert [each.title for each in found.documents] == ["Handbook > Refunds", "Handbook > Travel"]


def test_rows_of_a_training_file_are_rows_of_the_inbox(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": "a", "text": "Ten days.", "entities": ["x"], "questions": [{"question": "How many?", "answer": "Ten"}]}'
    )
    task = load_tasks(JsonLinesData(path=path))[0]
    document = taken(path).documents[0]
    assert (document.name, document.as_task().questions) == (task.id, task.questions)
    assert document.document.digest == task.document.digest


WORDS = st.text(alphabet="abcäß。.!? \n\t-#日", min_size=1, max_size=900)
BLOCKS = st.lists(st.builds(Block, WORDS, st.integers(0, 6)), min_size=1, max_size=12).map(blocks_of).filter(bool)


@given(BLOCKS, st.integers(MIN_CHARACTERS, 1200))
def test_parts_hold_everything_in_order_and_are_short_enough(blocks: tuple[Block, ...], most: int) -> None:
    parts, whole = split_sections(blocks, most), "\n\n".join(block.text for block in blocks)
    assert "".join("".join(part.text for part in parts).split()) == "".join(whole.split())
    assert all(0 < len(part.text) <= most and part.text.strip() for part in parts)
    assert (len(parts) == 1) == (len(whole) <= most)


def sentence(topic: str, number: int) -> str:
    return f"This sentence number {number} is about {topic} and nothing else."


def section(topic: str, level: int, sentences: int) -> list[Block]:
    return [Block(topic, level), *(Block(sentence(topic, i)) for i in range(sentences))]


def test_sections_are_split_at_headings_and_have_their_path() -> None:
    blocks = [
        Block("Handbook", 1),
        *section("Refunds", 2, 3),
        *section("Deadlines", 3, 3),
        *section("Fees", 3, 3),
        *section("Travel", 2, 3),
    ]
    parts = split_sections(blocks, 260)
    assert [part.path for part in parts] == [
        ("Handbook", "Refunds"),
        ("Handbook", "Refunds", "Deadlines"),
        ("Handbook", "Refunds", "Fees"),
        ("Handbook", "Travel"),
    ]
    assert parts[0].text.startswith("Handbook\n\nRefunds\n\nThis sentence")
    assert parts[2].text.startswith("Fees\n\n")


def test_heading_that_skips_a_level_stands_under_the_one_above() -> None:
    blocks = [*section("A", 1, 3), *section("Deep", 4, 3), *section("B", 2, 3)]
    assert [part.path for part in split_sections(blocks, 210)] == [("A",), ("A", "Deep"), ("A", "B")]


def test_long_paragraph_is_cut_between_sentences() -> None:
    text = " ".join(sentence("rain", i) for i in range(20))
    parts = split_sections([Block(text)], 300)
    assert len(parts) > 3
    assert all(part.text.endswith("else.") for part in parts)
    assert " ".join(part.text for part in parts) == text


def test_section_title_is_the_path_and_drops_higher_headings_first() -> None:
    part = Section(("Handbook", "Refunds", "Fees"), "text")
    assert part.title("Handbook", 100) == "Handbook > Refunds > Fees"
    assert part.title("Rules", 100) == "Rules > Handbook > Refunds > Fees"
    assert part.title("Handbook", 20) == "Handbook > Fees"
    assert part.title("Handbook", 10) == "Handbook …"
    assert Section((), "text").title("", 10) == ""


def test_each_question_goes_to_the_part_that_answers_it() -> None:
    texts = ["Cranes nest at Lake Orrin in May.", "Otters fish at Lake Orrin in June.", "Nothing is said here."]
    crane = Question(question="When do cranes nest?", answer="in May")
    otter = Question(question="Where do otters fish?", answer="Lake Orrin")
    free = Question(question="Summarise what otters do", answer="They live by fishing")
    assert assign_questions([free, otter, crane], texts) == [(crane,), (free, otter), ()]


@given(st.lists(st.sampled_from(["a b", "b c", "the", "c d"]), max_size=6), st.integers(1, 4))
def test_no_question_is_lost_or_doubled(answers: list[str], parts: int) -> None:
    questions = [Question(question=f"q{i}?", answer=answer) for i, answer in enumerate(answers)]
    shares = assign_questions(questions, ["a b c", "c d", "b", "x"][:parts])
    assert sorted(q.question for share in shares for q in share) == sorted(q.question for q in questions)
