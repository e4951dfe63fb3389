"""How far the rules agree with GPT-4.1 on real answers: SEAL's recorded runs (arXiv 2506.10943, MIT licence)."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score

from evaluation.grader_config import GoldTokenRecallGrading, TokenF1Grading
from evaluation.graders import ExactGrader, GoldTokenRecallGrader, Grade, GradeItem, Grader, TokenF1Grader
from evaluation.judge import flip_rate

FILES = (
    "eval_base",
    "eval_iter1",
    "eval_naive",
    "train_rank_iter0",
    "train_rank_iter0_prompt-long",
    "train_rank_iter0_prompt-rewrite",
    "train_rank_iter0_prompt-self-qa",
)

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
                    item = GradeItem(row["question"], (row["answer"],), text)
                    verdicts[item].append(row[f"{student}_correct"])
    return dict(verdicts)


def test_the_records_are_those_that_were_measured(recorded: Verdicts) -> None:
    # All 26 published files with verdicts hold 95,126 of them on 44,132 different answers.
    assert (len(recorded), sum(map(len, recorded.values()))) == (15_223, 33_318)


@pytest.mark.parametrize(
    ("grader", "agreement", "kappa", "precision", "recall"),
    [
        # Over all published files: agreement 0.8661, kappa 0.7247, precision 0.908, recall 0.777.
        pytest.param(GoldTokenRecallGrader(GoldTokenRecallGrading()), 0.8642, 0.7180, 0.9027, 0.7677, id="recall"),
        # 0.5754, 0.0471, 0.999, 0.043
        pytest.param(ExactGrader(), 0.5929, 0.0625, 0.9973, 0.0555, id="exact"),
        # 0.6035, 0.1218, 0.833, 0.133
        pytest.param(TokenF1Grader(TokenF1Grading()), 0.6203, 0.1393, 0.8457, 0.1454, id="f1"),
    ],
)
def test_agreement_with_gpt_4_1(
    recorded: Verdicts, grader: Grader, agreement: float, kappa: float, precision: float, recall: float
) -> None:
    grades = grader.grade(list(recorded))
    ours = [isinstance(grade, Grade) and grade.correct for grade in grades]
    theirs = [2 * sum(verdicts) >= len(verdicts) for verdicts in recorded.values()]  # 34 answers have both verdicts
    measured = (
        sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(theirs),
        cohen_kappa_score(ours, theirs),
        precision_score(theirs, ours),
        recall_score(theirs, ours),
    )
    assert measured == pytest.approx((agreement, kappa, precision, recall), abs=5e-4)


def test_gpt_4_1_disagrees_with_itself(recorded: Verdicts) -> None:
    rates = [rate for verdicts in recorded.values() if (rate := flip_rate(verdicts)) is not None]
    assert len(rates) == 2_370
    # Over all published files: 6,002 answers, mean 0.0087, of which 0.0160 have both verdicts.
    assert sum(rates) / len(rates) == pytest.approx(0.0089, abs=5e-5)
    assert sum(rate > 0.0 for rate in rates) / len(rates) == pytest.approx(0.0143, abs=5e-5)
