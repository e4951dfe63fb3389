from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.tasks import Question
from teacher.filters import (
    EditFacts,
    FilterConfig,
    distinct_n,
    edit_facts,
    first_equal,
    leaks,
    mean_distinct,
    question_ngrams,
    reason_to_drop,
    refusal,
)
from teacher.parsing.parser import parse_self_edit
from teacher.rewards import RewardFailure
from teacher.self_edit import AugmentationSpec, Implication, SelfEdit

PASSAGE = "The Vistula is a river. Its source lies in Silesia, and its mouth at the Baltic Sea; its length is 1,047 km."
QUESTIONS = [
    Question(question="Where is the mouth of the Vistula?", answer="Baltic Sea"),
    Question(question="In what region does the Vistula have its source?", answer="Silesia"),
]
SHARES = ("leaked_questions", "ngram_overlap")

WORDS = st.sampled_from(
    ["Ada", "river", "Silesia", "1,047", "in", "the", "Zürich", "?", "New York", "%", "why", "日本"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
LINES = st.lists(st.builds(Implication, text=TEXTS, answer=st.none() | TEXTS), max_size=5)
ASKED = st.lists(st.builds(Question, question=TEXTS, answer=TEXTS), max_size=4)


def edit(*lines: str | tuple[str, str]) -> SelfEdit:
    return SelfEdit(
        implications=tuple(
            Implication(text=line) if isinstance(line, str) else Implication(text=line[0], answer=line[1])
            for line in lines
        )
    )


def facts(*lines: str | tuple[str, str], questions: Sequence[Question] = QUESTIONS, ngram: int = 3) -> EditFacts:
    return edit_facts(edit(*lines), 7, PASSAGE, questions, ngram=ngram)


@given(LINES, TEXTS, ASKED, st.integers(1, 9))
def test_shares_are_in_their_range(lines: list[Implication], passage: str, asked: list[Question], ngram: int) -> None:
    found = edit_facts(SelfEdit(implications=tuple(lines)), 3, passage, asked, ngram=ngram)
    assert all(0.0 <= getattr(found, name) <= 1.0 for name in SHARES)
    assert found.coverage is None or 0.0 <= found.coverage <= 1.0
    assert (found.coverage is None) == (not any(re.search(r"\w", q.answer) for q in asked))
    assert (found.tokens, found.lines) == (3, len(lines))


@given(LINES, TEXTS, ASKED, st.integers(1, 9))
def test_case_and_white_space_change_nothing(
    lines: list[Implication], passage: str, asked: list[Question], ngram: int
) -> None:
    def other(text: str) -> str:
        return f"  {text.swapcase()} ".replace(" ", " \t ")

    rewritten = [Implication(text=other(i.text), answer=other(i.answer) if i.answer else None) for i in lines]
    questions = [Question(question=q.question.upper(), answer=q.answer.lower()) for q in asked]
    plain = edit_facts(SelfEdit(implications=tuple(lines)), 3, passage, asked, ngram=ngram)
    assert edit_facts(SelfEdit(implications=tuple(rewritten)), 3, other(passage), questions, ngram=ngram) == plain


@given(LINES, st.builds(Implication, text=TEXTS), st.integers(0, 5), TEXTS, ASKED)
def test_another_line_anywhere_never_lowers_coverage(
    lines: list[Implication], line: Implication, place: int, passage: str, asked: list[Question]
) -> None:
    longer = [*lines[:place], line, *lines[place:]]
    before, after = (
        edit_facts(SelfEdit(implications=tuple(part)), 3, passage, asked, ngram=4).coverage for part in (lines, longer)
    )
    assert (before is None) == (after is None)
    assert before is None or after is None or after >= before


@given(LINES, ASKED, st.integers(1, 9), st.randoms())
def test_an_edit_with_every_question_leaks_all_and_covers_all_answers(
    lines: list[Implication], asked: list[Question], ngram: int, random: object
) -> None:
    leaky = [*lines, *(Implication(text=q.question, answer=q.answer) for q in asked)]
    random.shuffle(leaky)  # type: ignore[attr-defined]
    found = edit_facts(SelfEdit(implications=tuple(leaky)), 3, "Nothing of it.", asked, ngram=ngram)
    says_something = any(re.search(r"\w", q.question) for q in asked)
    assert found.leaked_questions == found.ngram_overlap == float(says_something)
    assert found.coverage in (None, 1.0)
    assert refusal(found, FilterConfig()) is None
    assert refusal(found, FilterConfig(max_overlap=0.0)) == (RewardFailure.LEAKED if says_something else None)


@given(TEXTS, ASKED, st.integers(1, 9))
def test_a_quotation_of_the_passage_is_no_leak(passage: str, asked: list[Question], ngram: int) -> None:
    found = edit_facts(edit(passage), 3, passage, asked, ngram=ngram)
    assert found.leaked_questions == found.ngram_overlap == 0.0


def test_coverage_counts_distinct_answers_as_whole_words_within_a_line() -> None:
    assert facts("It reaches the BALTIC  sea.").coverage == 0.5
    assert facts("It comes from Silesian hills.", "It ends in the Baltic", "Sea levels rise.").coverage == 0.0
    assert facts(("Where does it end?", "The Baltic-Sea"), "(Silesia)").coverage == 1.0
    assert facts().coverage == 0.0
    assert facts("Silesia", questions=[]).coverage is None
    numbers = [Question(question="How long?", answer=answer) for answer in ("47", "1,047 km", "1,047 KM", "%")]
    assert facts("1,047 km, or 650 miles", questions=numbers).coverage == 0.5
    assert facts("东京是日本的首都", questions=[Question(question="首都?", answer="日本")]).coverage == 1.0


def test_leaks_are_found_across_punctuation_and_lines_but_only_in_full() -> None:
    assert facts("where is the mouth -- of the Vistula", "x").leaked_questions == 0.5
    assert facts("Where is the mouth", "of the Vistula").leaked_questions == 0.5
    assert facts("Where is the mouth of the").leaked_questions == 0.0


def test_overlap_is_of_n_grams_that_the_passage_does_not_hold() -> None:
    """By hand: 5 + 7 trigrams, of which none is in the passage; the edit has the first two."""
    assert facts("Where is the mouth today").ngram_overlap == pytest.approx(2 / 12)
    short = [Question(question="Its source?", answer="Silesia"), Question(question="How long?", answer="1,047 km")]
    assert facts("how long it is", "its source", questions=short).ngram_overlap == 1.0  # the other is in the passage
    assert facts("how long ago", questions=short[:1]).ngram_overlap == 0.0


def test_an_edit_without_lines_has_shares_of_nothing() -> None:
    found = edit_facts(SelfEdit(augmentations=AugmentationSpec()), 5, PASSAGE, [], ngram=8)
    assert asdict(found) == {"tokens": 5, "lines": 0, "coverage": None} | dict.fromkeys(SHARES, 0.0)


BAD = EditFacts(tokens=101, lines=4, coverage=0.5, leaked_questions=0.0, ngram_overlap=0.4)
STRICT = FilterConfig(max_tokens=100, max_overlap=0.3)


def test_refusal_names_the_first_filter_that_fails() -> None:
    assert refusal(BAD, FilterConfig()) is None
    assert refusal(BAD, STRICT) == RewardFailure.OVER_BUDGET
    short = replace(BAD, tokens=100)
    assert refusal(short, STRICT) == RewardFailure.LEAKED
    assert refusal(replace(short, ngram_overlap=0.3), STRICT) is None


EDITS = [edit("a"), edit("b"), edit(("a", "b")), edit("a").model_copy(update={"augmentations": AugmentationSpec()})]


@given(st.lists(st.none() | st.sampled_from(EDITS), max_size=8))
def test_first_equal_points_to_the_first_of_its_kind(edits: list[SelfEdit | None]) -> None:
    copies = [None if e is None else SelfEdit.model_validate(e.model_dump()) for e in edits]
    for i, first in enumerate(first_equal(copies)):
        assert first == (i if edits[i] is None else edits.index(edits[i]))


@pytest.mark.parametrize(
    ("file", "coverage", "leaks"),
    [("train_rank_iter0", 0.55, False), ("train_rank_iter0_prompt-self-qa", 0.72, True)],
)
def test_recorded_self_edits_have_the_gold_answers_that_a_plain_search_finds(
    shared_data: Callable[..., Path], file: str, coverage: float, leaks: bool
) -> None:
    """SEAL's recorded self-edits (arXiv 2506.10943) of 50 SQuAD passages; figures recomputed by a plain search."""
    recorded = json.loads(gzip.decompress(shared_data("seal", "graded", f"{file}.json.gz").read_bytes()))
    found, searched = [], []
    for article in recorded["articles"]:
        for completion in article["completions"]:
            asked = {q["question"]: q["answer"] for q in completion["questions"]}
            parsed = parse_self_edit(completion["text"]).edit
            if parsed is not None:
                questions = [Question(question=q, answer=a) for q, a in asked.items()]
                found.append(edit_facts(parsed, 100, article["context"], questions, ngram=8))
                text, answers = completion["text"].casefold(), {a.casefold() for a in asked.values()}
                searched.append(sum(a in text for a in answers) / len(answers))
    mean = sum(f.coverage or 0.0 for f in found) / len(found)
    assert mean == pytest.approx(coverage, abs=0.01)
    assert mean == pytest.approx(sum(searched) / len(searched), abs=0.01)
    assert any(f.leaked_questions > 0.0 for f in found) == leaks


# Diversity

WORD_LISTS = st.lists(st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), max_size=8).map(" ".join), max_size=5)
N = st.integers(1, 4)


def grams_in(text: str, n: int) -> int:
    return max(len(text.split()) - n + 1, 0)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["the cat saw the cat"], 1, 3 / 5),
        (["the cat saw the cat"], 2, 3 / 4),
        (["the cat", "the cat"], 1, 2 / 4),
        (["the cat", "saw the"], 2, 2 / 2),  # "cat saw" would cross texts
        (["The cat.", "the CAT"], 2, 1 / 2),
        (["- A cat.\n- A dog."], 1, 3 / 4),  # list markers are no words
        (["- A cat.\n- A dog."], 2, 3 / 3),
        (["one two", "one"], 2, 1.0),
        (["one", "- ..."], 2, None),
        ([], 1, None),
    ],
)
def test_distinct_n_counts_distinct_runs_of_words(texts: list[str], n: int, share: float | None) -> None:
    assert distinct_n(texts, n) == share


@given(texts=WORD_LISTS, n=N)
def test_distinct_n_is_a_share_whatever_the_order_and_case(texts: list[str], n: int) -> None:
    share, total = distinct_n(texts, n), sum(grams_in(text, n) for text in texts)
    assert (share is None) == (total == 0)
    if share is not None:
        assert 1 / total <= share <= 1.0
    assert distinct_n(texts[::-1], n) == share
    assert distinct_n([text.upper() for text in texts], n) == share


def test_mean_distinct_weighs_documents_alike_and_leaves_out_those_without_words() -> None:
    groups = {"long": ["a b c d", "a b c d"], "short": ["a"], "empty": ["-", ""]}
    assert mean_distinct(groups, 1) == pytest.approx((4 / 8 + 1) / 2)


SOURCE = "The mill was opened in 1871 by Anton Keller, and it is now a museum of the town of Ravensburg."


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Anton Keller opened the mill in 1871.", None),
        ("The ma", "length"),
        ("Keller. " * 600, "length"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("Question: Who opened it? Answer: I cannot answer this question.", "refusal"),
        ("As an AI language model, I have no opinion of the mill.", "refusal"),
        ("Es tut mir leid, dazu kann ich nichts sagen.", "refusal"),
        ("Die Mühle ist von Keller und wurde im Jahr 1871 eröffnet.", "language"),
        ("Мельницу открыл Антон Келлер.", "language"),
        ("Question: What is it that the old mill of Anton Keller has been since? Answer: museum", "leak"),
        ("Keller said: I cannot complain.", None),
        ("$E = mc^2$ (1905)", None),
    ],
)
def test_reason_to_drop_names_the_first_filter_that_refuses_a_line(line: str, expected: str | None) -> None:
    asked = Question(question="What is it that the old mill of Anton Keller has been?", answer="a museum")
    assert reason_to_drop(line, SOURCE, question_ngrams([asked], SOURCE)) == expected


def test_what_a_passage_says_itself_is_no_leak() -> None:
    asked = Question(question="The mill was opened in 1871 by Anton Keller, and when closed?", answer="never")
    grams = question_ngrams([asked], SOURCE)
    assert not leaks(SOURCE, grams)
    assert leaks("It was asked: in 1871 by Anton Keller, and when closed?", grams)
