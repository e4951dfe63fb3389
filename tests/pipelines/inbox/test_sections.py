from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.tasks import Question
from pipelines.inbox.blocks import Block, blocks_of, joined
from pipelines.inbox.sections import LEAST_CHARACTERS, Part, shared_out, split_sections

WORDS = st.text(alphabet="abcäß。.!? \n\t-#日", min_size=1, max_size=900)
BLOCKS = st.lists(st.builds(Block, WORDS, st.integers(0, 6)), min_size=1, max_size=12).map(blocks_of).filter(bool)


@given(BLOCKS, st.integers(LEAST_CHARACTERS, 1200))
def test_parts_hold_everything_in_order_and_are_short_enough(blocks: tuple[Block, ...], most: int) -> None:
    parts = split_sections(blocks, most)
    assert "".join("".join(part.text for part in parts).split()) == "".join(joined(blocks).split())
    assert all(0 < len(part.text) <= most and part.text.strip() for part in parts)
    assert (len(parts) == 1) == (len(joined(blocks)) <= most)


def sentence(topic: str, number: int) -> str:
    return f"This sentence number {number} is about {topic} and nothing else."


def section(topic: str, level: int, sentences: int) -> list[Block]:
    return [Block(topic, level), *(Block(sentence(topic, i)) for i in range(sentences))]


def test_document_that_fits_stays_whole() -> None:
    blocks = section("A", 1, 2)
    assert split_sections(blocks, 400) == [Part((), joined(blocks))]


def test_sections_are_cut_at_headings_and_told_by_their_path() -> None:
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


def test_section_that_fits_is_not_cut_at_its_own_headings() -> None:
    blocks = [*section("A", 1, 1), *section("B", 2, 1), *section("C", 1, 5)]
    assert [part.path for part in split_sections(blocks, 350)] == [("A",), ("C",)]


def test_heading_that_skips_a_level_stands_under_the_one_above() -> None:
    blocks = [*section("A", 1, 3), *section("Deep", 4, 3), *section("B", 2, 3)]
    assert [part.path for part in split_sections(blocks, 210)] == [("A",), ("A", "Deep"), ("A", "B")]


def test_long_paragraph_is_cut_between_sentences() -> None:
    text = " ".join(sentence("rain", i) for i in range(20))
    parts = split_sections([Block(text)], 300)
    assert len(parts) > 3
    assert all(part.text.endswith("else.") for part in parts)
    assert " ".join(part.text for part in parts) == text


def test_paragraphs_are_packed_as_many_as_fit() -> None:
    blocks = [Block("x" * 99) for _ in range(10)]
    assert [len(part.text) for part in split_sections(blocks, 403)] == [402, 402, 200]


def test_word_longer_than_a_part_is_cut() -> None:
    assert [len(part.text) for part in split_sections([Block("x" * 450)], 200)] == [200, 200, 50]


def test_limit_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 200"):
        split_sections([Block("a")], 199)


def test_title_is_the_path_under_the_whole_and_loses_its_middle_first() -> None:
    part = Part(("Handbook", "Refunds", "Fees"), "text")
    assert part.title("Handbook", 100) == "Handbook > Refunds > Fees"
    assert part.title("Rules", 100) == "Rules > Handbook > Refunds > Fees"
    assert part.title("Handbook", 20) == "Handbook > Fees"
    assert part.title("Handbook", 10) == "Handbook …"
    assert Part((), "text").title("", 10) == ""


def test_each_question_goes_to_the_part_that_answers_it() -> None:
    texts = ["Cranes nest at Lake Orrin in May.", "Otters fish at Lake Orrin in June.", "Nothing is said here."]
    crane = Question(question="When do cranes nest?", answer="in May")
    otter = Question(question="Where do otters fish?", answer="Lake Orrin")
    free = Question(question="Summarise what otters do", answer="They live by fishing")
    assert shared_out([free, otter, crane], texts) == [(crane,), (free, otter), ()]


@given(st.lists(st.sampled_from(["a b", "b c", "the", "c d"]), max_size=6), st.integers(1, 4))
def test_no_question_is_lost_or_doubled(answers: list[str], parts: int) -> None:
    questions = [Question(question=f"q{i}?", answer=answer) for i, answer in enumerate(answers)]
    shares = shared_out(questions, ["a b c", "c d", "b", "x"][:parts])
    assert sorted(q.question for share in shares for q in share) == sorted(q.question for q in questions)
