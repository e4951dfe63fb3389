from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from evaluation.answers import normalize_answer
from evaluation.graders import (
    ExactGrading,
    FreeTextGrading,
    GoldTokenRecallGrading,
    Grade,
    GradeItem,
    Grader,
    JudgeGrading,
    RuleGrader,
    TokenF1Grading,
    build_grader,
    exact_match,
    flip_rate,
    gold_token_recall,
    token_f1,
)

UNUSED = Path("ledger")
RULES = [build_grader(kind(), UNUSED) for kind in (ExactGrading, GoldTokenRecallGrading, TokenF1Grading)]
words = st.sampled_from(["the", "a", "Rhine", "rivers", "river", "ran", "running", "1,914", "U.S.", "Zürich", "co-op"])
phrases = st.lists(words, min_size=1, max_size=8).map(" ".join)
texts = st.one_of(phrases, st.text(max_size=30))
answers = texts.filter(lambda text: bool(text.strip()))


def _grade(grader: Grader, answer: str, text: str) -> Grade:
    (grade,) = grader.grade([GradeItem("Which?", answer, text)])
    return grade


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


@pytest.mark.parametrize(
    ("grader", "text"),
    [
        (build_grader(ExactGrading(), UNUSED), "the Rhine!"),
        (build_grader(GoldTokenRecallGrading(threshold=1.0), UNUSED), "It is the Rhine."),
        (build_grader(TokenF1Grading(threshold=0.5), UNUSED), "It is Rhine"),  # 2 * 1 / (1 + 3)
    ],
)
def test_a_value_at_the_threshold_is_correct(grader: Grader, text: str) -> None:
    assert _grade(grader, "Rhine", text).correct
    assert not _grade(grader, "Rhine", "It is the Danube").correct


def test_stems_follow_the_language() -> None:
    assert gold_token_recall("Häuser", "ein Haus", "german") == 1.0
    assert gold_token_recall("Häuser", "ein Haus", "english") == 0.0


@pytest.mark.parametrize("measure", [exact_match, gold_token_recall, token_f1])
@given(answer=answers, text=texts)
def test_values_are_in_range(measure: Callable[[str, str], float], answer: str, text: str) -> None:
    assert 0.0 <= measure(answer, text) <= 1.0


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


@given(answer=phrases.filter(normalize_answer), text=phrases, mark=st.sampled_from([*",;:!?\"'()[]*_", " ", " the "]))
def test_case_punctuation_and_articles_change_nothing(answer: str, text: str, mark: str) -> None:
    for grader in RULES:
        assert _grade(grader, answer, f"{mark}{text.upper()}{mark}") == _grade(grader, answer, text)


@pytest.mark.parametrize("grader", RULES)
def test_empty_answers_are_wrong_by_rule_and_say_so(grader: Grader) -> None:
    assert grader.grade([GradeItem("Which?", "Rhine", text) for text in ("", " \n")]) == [Grade(False)] * 2
    assert grader.grade([]) == []


def test_configurations_are_told_apart_by_type_and_build_their_graders(tmp_path: Path) -> None:
    def read(section: dict[str, object]) -> FreeTextGrading:
        return TypeAdapter[FreeTextGrading](FreeTextGrading).validate_python(section)

    assert build_grader(read({"type": "exact"}), UNUSED) == RuleGrader(exact_match, 1.0)
    assert build_grader(read({"type": "token-f1", "threshold": 0.4}), UNUSED) == RuleGrader(token_f1, 0.4)
    judge = read({"type": "judge", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "repeats": 3})
    assert isinstance(judge, JudgeGrading)
    assert build_grader(judge, tmp_path / "ledger.sqlite")


FILES = [f"eval_{student}" for student in ("base", "iter1", "naive")]
FILES += [f"train_rank_iter0{prompt}" for prompt in ("", "_prompt-long", "_prompt-rewrite", "_prompt-self-qa")]

Verdicts = dict[GradeItem, list[bool]]


@pytest.fixture(scope="module")
def recorded(shared_data: Callable[..., Path]) -> Verdicts:
    """Return GPT-4.1's verdicts on each different answer that is not empty, as often as it was asked."""
    verdicts: Verdicts = defaultdict(list)
    for name in FILES:
        run = json.loads(gzip.decompress(shared_data("seal", "graded", f"{name}.json.gz").read_bytes()))
        rows = [row for article in run["articles"] for edit in article["completions"] for row in edit["questions"]]
        for row in rows:
            for student in ("baseline", "adapter"):
                text = row[f"{student}_answer"].strip()
                if text:
                    item = GradeItem(row["question"], row["answer"], text)
                    verdicts[item].append(row[f"{student}_correct"])
    return dict(verdicts)


@pytest.mark.parametrize(
    ("grader", "agreement", "kappa", "precision", "recall"),
    [
        # With SQuAD's normalisation 0.8642, 0.7180, 0.9027, 0.7677.
        pytest.param(GoldTokenRecallGrading(), 0.8645, 0.7186, 0.9029, 0.7681, id="recall"),
        # 0.5754, 0.0471, 0.999, 0.043
        pytest.param(ExactGrading(), 0.5929, 0.0625, 0.9973, 0.0555, id="exact"),
        # 0.6035, 0.1218, 0.833, 0.133
        pytest.param(TokenF1Grading(), 0.6203, 0.1393, 0.8457, 0.1454, id="f1"),
    ],
)
def test_agreement_with_gpt_4_1(
    recorded: Verdicts, grader: FreeTextGrading, agreement: float, kappa: float, precision: float, recall: float
) -> None:
    grades = build_grader(grader, UNUSED).grade(list(recorded))
    ours = [grade.correct for grade in grades]
    theirs = [2 * sum(verdicts) >= len(verdicts) for verdicts in recorded.values()]  # 34 answers have both verdicts
    measured = (
        sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(theirs),
        cohen_kappa_score(ours, theirs),
        precision_score(theirs, ours),
        recall_score(theirs, ours),
    )
    assert measured == pytest.approx((agreement, kappa, precision, recall), abs=5e-4)


def test_gpt_4_1_disagrees_with_itself(recorded: Verdicts) -> None:
    # All 26 published files with verdicts hold 95,126 of them on 44,132 different answers.
    assert (len(recorded), sum(map(len, recorded.values()))) == (15_223, 33_318)
    rates = [rate for verdicts in recorded.values() if (rate := flip_rate(verdicts)) is not None]
    assert len(rates) == 2_370
    # Over all published files: 6,002 answers, mean 0.0087, of which 0.0160 have both verdicts.
    assert sum(rates) / len(rates) == pytest.approx(0.0089, abs=5e-5)
    assert sum(rate > 0.0 for rate in rates) / len(rates) == pytest.approx(0.0143, abs=5e-5)
