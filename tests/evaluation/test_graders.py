from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from evaluation.errors import ConfigError, InputError
from evaluation.grader_config import (
    ExactGrading,
    FreeTextGrading,
    GoldTokenRecallGrading,
    JudgeGrading,
    TokenF1Grading,
)
from evaluation.graders import (
    EMPTY,
    ExactGrader,
    GoldTokenRecallGrader,
    Grade,
    GradeItem,
    Grader,
    TokenF1Grader,
    build_grader,
    exact_match,
    gold_token_recall,
    normalize_answer,
    token_f1,
)

RULES: list[Grader] = [
    ExactGrader(),
    GoldTokenRecallGrader(GoldTokenRecallGrading()),
    TokenF1Grader(TokenF1Grading()),
]
words = st.sampled_from(["the", "a", "Rhine", "rivers", "river", "ran", "running", "1,914", "U.S.", "Zürich", "co-op"])
phrases = st.lists(words, min_size=1, max_size=8).map(" ".join)
texts = st.one_of(phrases, st.text(max_size=30))
answers = texts.filter(lambda text: bool(text.strip()))


def _grade(grader: Grader, answers: tuple[str, ...], text: str) -> Grade:
    (grade,) = grader.grade([GradeItem("Which?", answers, text)])
    assert isinstance(grade, Grade)
    return grade


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Black Sea.", "black sea"),
        ("an Apple a day", "apple day"),
        ("U.S.", "us"),
        ("1,914", "1914"),
        ("theatre", "theatre"),
        ("A %", ""),
    ],
)
def test_normalization(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@given(texts)
def test_normalization_is_idempotent(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once) == once


@pytest.mark.parametrize(
    ("answer", "text", "f1", "recall"),
    [
        ("Denver Broncos", "the Denver Broncos", 1.0, 1.0),
        # Worked by hand: 2 common words of 2 and 5.
        ("Denver Broncos", "Denver Broncos won the 2015 final", 2 * 2 / (2 + 5), 1.0),
        ("fragmentation", "it was fragmented", 0.0, 1.0),
        ("two runs", "two two two", 2 * 1 / (2 + 3), 0.5),
        ("Black Sea coast", "Red Sea coast", 2 / 3, 2 / 3),
        ("Zürich", "Zurich", 0.0, 1.0),
        ("Rhine", "Danube", 0.0, 0.0),
        # Normalization leaves nothing of these answers.
        ("A", "vitamin A!", 2 * 1 / (1 + 2), 1.0),
        ("A", "the", 0.0, 0.0),
        ("%", "the % sign", 2 * 1 / (1 + 3), 1.0),
        ("%", "$", 0.0, 0.0),
    ],
)
def test_values_worked_by_hand(answer: str, text: str, f1: float, recall: float) -> None:
    assert token_f1(answer, text) == pytest.approx(f1)
    assert gold_token_recall(answer, text) == pytest.approx(recall)


def test_two_words_of_three_are_not_correct_by_recall_and_more_are() -> None:
    grader = build_grader(GoldTokenRecallGrading())
    assert not _grade(grader, ("Black Sea coast",), "the Red Sea coast").correct
    assert _grade(grader, ("cold Black Sea coast",), "the Black Sea coast").correct  # 3 of 4


@pytest.mark.parametrize(
    ("grader", "text"),
    [
        (ExactGrader(), "the Rhine!"),
        (GoldTokenRecallGrader(GoldTokenRecallGrading(threshold=1.0)), "It is the Rhine."),
        (TokenF1Grader(TokenF1Grading(threshold=0.5)), "It is Rhine"),  # 2 * 1 / (1 + 3)
    ],
)
def test_a_value_at_the_threshold_is_correct(grader: Grader, text: str) -> None:
    assert _grade(grader, ("Rhine",), text).correct
    assert not _grade(grader, ("Rhine",), "It is the Danube").correct


def test_stems_follow_the_language() -> None:
    assert gold_token_recall("Häuser", "ein Haus", "german") == 1.0
    assert gold_token_recall("Häuser", "ein Haus", "english") == 0.0


@pytest.mark.parametrize("grader", RULES)
@given(answer=answers, text=texts)
def test_grades_are_in_range_and_correct_follows_the_value(grader: Grader, answer: str, text: str) -> None:
    grade = _grade(grader, (answer,), text)
    assert 0.0 <= grade.value <= 1.0
    assert not grade.correct or grade.value > 0.0
    assert grade.empty == (not text.strip())
    assert grade.opinions == ()


@pytest.mark.parametrize("grader", RULES)
@given(golds=st.lists(answers, min_size=1, max_size=4), text=texts)
def test_best_gold_answer_counts_whatever_their_order(grader: Grader, golds: list[str], text: str) -> None:
    grade = _grade(grader, tuple(golds), text)
    assert grade == _grade(grader, tuple(reversed(golds)), text)
    assert grade.value == max(_grade(grader, (gold,), text).value for gold in golds)


@given(answer=answers, text=answers)
def test_exact_match_implies_all_else_and_is_symmetric_like_f1(answer: str, text: str) -> None:
    assert exact_match(answer, answer) == token_f1(answer, answer) == gold_token_recall(answer, answer) == 1.0
    assert exact_match(answer, text) == exact_match(text, answer)
    if normalize_answer(answer) and normalize_answer(text):
        assert token_f1(answer, text) == token_f1(text, answer)
    if exact_match(answer, text):
        assert token_f1(answer, text) == gold_token_recall(answer, text) == 1.0
    assert (token_f1(answer, text) == 0.0) or gold_token_recall(answer, text) > 0.0


@given(answer=phrases, text=phrases, before=phrases, after=phrases)
def test_saying_more_never_costs_recall(answer: str, text: str, before: str, after: str) -> None:
    assert gold_token_recall(answer, f"{before} {answer} {after}") == 1.0
    assert gold_token_recall(answer, f"{before} {text} {after}") >= gold_token_recall(answer, text)


@given(answer=phrases.filter(normalize_answer), text=phrases, mark=st.sampled_from([*string.punctuation, " ", " the "]))
def test_case_punctuation_and_articles_change_nothing(answer: str, text: str, mark: str) -> None:
    for grader in RULES:
        assert _grade(grader, (answer,), f"{mark}{text.upper()}{mark}") == _grade(grader, (answer,), text)


@pytest.mark.parametrize("grader", RULES)
def test_empty_answers_are_wrong_by_rule_and_say_so(grader: Grader) -> None:
    assert grader.grade([GradeItem("Which?", ("Rhine",), text) for text in ("", " \n")]) == [EMPTY, EMPTY]
    assert not _grade(grader, ("Rhine",), "Danube").empty
    assert grader.grade([]) == []


@pytest.mark.parametrize("golds", [(), ("",), ("Rhine", " ")])
def test_a_question_without_gold_answer_is_refused(golds: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"'Which river\?'.*at least one"):
        GradeItem("Which river?", golds, "Rhine")


def test_configurations_are_told_apart_by_type_and_build_their_graders(tmp_path: Path) -> None:
    def read(section: dict[str, object]) -> FreeTextGrading:
        return TypeAdapter[FreeTextGrading](FreeTextGrading).validate_python(section)

    assert isinstance(build_grader(read({"type": "exact"})), ExactGrader)
    assert isinstance(build_grader(read({"type": "gold-token-recall", "threshold": 0.5})), GoldTokenRecallGrader)
    assert isinstance(build_grader(read({"type": "token-f1"})), TokenF1Grader)
    judge = read({"type": "judge", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "repeats": 3})
    assert isinstance(judge, JudgeGrading)
    with pytest.raises(ConfigError, match="judge without a ledger"):
        build_grader(judge)
    assert build_grader(judge, tmp_path / "ledger.sqlite")


@pytest.mark.parametrize(
    ("kind", "section", "place"),
    [
        (ExactGrading, {"threshold": 0.5}, "threshold"),
        (GoldTokenRecallGrading, {"threshold": 0.0}, "threshold"),
        (GoldTokenRecallGrading, {"language": "klingon"}, "english"),
        (TokenF1Grading, {"threshold": 1.1}, "threshold"),
        (JudgeGrading, {"repeats": 0}, "repeats"),
        (JudgeGrading, {}, "endpoint"),
    ],
)
def test_bad_settings_are_refused(kind: type[BaseModel], section: dict[str, object], place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        kind.model_validate(section)
