"""The statistics of several students, and the page that shows them: pure, and in a real browser."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.statistics import known_mean
from pipelines.check_regression.verdict import Scores, VerdictConfig, find_verdict
from pipelines.compare_students.comparison import (
    ScoredStudent,
    StudentAnswer,
    StudentsComparison,
    SuiteComparison,
    compare_scored,
    page_of,
    tables_of,
    with_accuracy,
)
from tests.extras import BROWSER
from tests.pipelines.adapt_student.test_page import _QUIET

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\" ' & \u202e"
FEW: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}


def a_student(name: str, *seeds: Sequence[bool | None], per_document: int = 2, **fields: Any) -> ScoredStudent:
    """Return a student whose seeds answer the questions of documents of two questions each so."""
    answers = tuple(
        StudentAnswer(
            document=f"d{i // per_document:02d}", title=HOSTILE, group="north" if i % 4 < 2 else "south", edit=seed,
            question=f"Who {i}?", gold="Ada", answer="Ada" if right else HOSTILE, right=right, probability=0.25,
        )
        for seed, mine in enumerate(seeds)
        for i, right in enumerate(mine)
    )  # fmt: skip
    words = tuple(f"adapter:{name}-{seed}" for seed in range(len(seeds))) if len(seeds) > 1 else (name,)
    fields = {"label": name, "words": words, "digests": (None,) * len(seeds), "accuracy": {}, **fields}
    return ScoredStudent(name=name, answers=answers, **fields)


def a_suite(*students: ScoredStudent, reference: str = "") -> SuiteComparison:
    scored = with_accuracy(students)
    first = reference or scored[0].name
    return SuiteComparison(
        suite="small", suite_digest="d" * 64, by_text=False, students=scored, reference=first,
        found=compare_scored(scored, first, FEW), left_out=(),
    )  # fmt: skip


VERDICTS = st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 2), min_size=8, max_size=24).filter(
    lambda rows: any(None not in row for row in rows)
)


@settings(max_examples=25)
@given(VERDICTS)
def test_two_students_have_the_figures_of_check_regression(rows: list[tuple[bool | None, bool | None]]) -> None:
    rows = rows[: len(rows) // 2 * 2]
    if not any(None not in row for row in rows):
        return
    base, other = a_student("base", [b for _, b in rows]), a_student("other", [a for a, _ in rows])
    limits = VerdictConfig(resamples=200)
    places = range(len(rows) // 2)
    mine, theirs = (
        Scores(
            documents={f"d{i:02d}": tuple(known_mean([row[side]]) for row in rows[2 * i : 2 * i + 2]) for i in places},
            probability={},
            probes={},
            empty=0,
            answered=len(rows),
        )
        for side in (0, 1)
    )
    verdict = find_verdict(list(mine.documents), mine, theirs, {}, limits)
    intervals = {**FEW, "confidence": 2 * limits.confidence - 1}
    found = compare_scored(with_accuracy([base, other]), "base", intervals)
    assert found.gains["other_minus_base"].mean == pytest.approx(verdict.checks[0].estimate)
    assert found.minimum_detectable.get("other_minus_base") == pytest.approx(verdict.minimum_detectable)


def test_seeds_are_averaged_by_question_and_questions_without_a_verdict_count_for_nobody() -> None:
    one = a_student("one", [True, True, False, False])
    three = a_student("three", [True, False, False, None], [True, False, True, None], [True, True, True, None])
    assert three.shares() == [1.0, pytest.approx(1 / 3), pytest.approx(2 / 3), None]
    scored = with_accuracy([one, three])
    assert scored[1].accuracy == {"d00": pytest.approx(2 / 3), "d01": pytest.approx(2 / 3)}
    assert scored[0].accuracy == {"d00": 1.0, "d01": 0.0}  # its last answer is wrong, and left out as well


def test_all_pairs_are_compared_the_reference_first_and_corrected_together() -> None:
    rng = random.Random(0)
    names = ("a", "b", "c")
    suite = a_suite(*(a_student(n, [rng.random() < 0.3 * i for i in (1,) * 40]) for n in names), reference="b")
    assert [(pair.student, pair.other) for pair in suite.pairs] == [("a", "b"), ("c", "b"), ("c", "a")]
    tests = sorted(suite.found.tests.values(), key=lambda test: test.sign_flip)
    assert tests[0].adjusted == pytest.approx(min(1.0, 3 * tests[0].sign_flip))


def a_comparison() -> StudentsComparison:
    taught, pattern = [i >= 20 for i in range(40)], [i >= 20 and bool(i % 3) for i in range(40)]
    students = (
        a_student("base", [False] * 40),
        a_student("version:student/1", pattern, version=1, night="night-0001"),
        a_student("version:student@champion", taught, version=2, night="night-0002"),
        a_student("several", pattern, taught, label="several (2 seeds)"),
    )
    suite = a_suite(*students)
    return StudentsComparison(suites=(suite, suite), seconds=1.0, mlflow="http://127.0.0.1:5000/#/runs")


def test_page_escapes_everything_and_fetches_nothing() -> None:
    comparison = a_comparison()
    page = page_of(comparison)
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    for part in (
        "night-0002",
        "By group",
        "several (2 seeds)",
        "50 % of seeds:",
        "&lt;/td&gt;",
        "+50.0",
        "data-differ",
    ):
        assert part in page
    assert StudentsComparison.model_validate_json(comparison.model_dump_json()) == comparison
    tables = list(tables_of(comparison.suites[0]))
    assert [len(table.rows) for table in tables] == [4, 6]


@pytest.mark.browser
def test_real_browser_searches_filters_and_sorts_without_an_error(tmp_path: Path) -> None:
    assert BROWSER is not None
    steps = """<script>addEventListener("load", () => {
      const box = document.querySelector("[type=checkbox]"), search = document.querySelector("[type=search]");
      const shown = () => document.querySelector(".shown").textContent, found = [shown()];
      box.click(); found.push(shown());
      search.value = "who 3? ada"; search.dispatchEvent(new Event("input")); found.push(shown());
      const head = document.querySelector("section table").querySelectorAll("th button")[1];
      head.click(); head.click();
      found.push(document.querySelector("section table").tBodies[0].rows[0].cells[0].textContent.trim());
      document.title = found.join("|");
    });</script></body>"""
    page = tmp_path / "page.html"
    text = page_of(a_comparison())
    command = [BROWSER, *_QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,900", "--dump-dom"]
    for content in (
        text,
        text.replace("</body>", steps).replace("script-src", "script-src 'unsafe-inline'; no-script-src"),
    ):
        page.write_text(content, encoding="utf-8")
        shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        if content is text:
            assert "CONSOLE" not in shown.stderr
    title = shown.stdout.partition("<title>")[2].partition("</title>")[0]
    counts = ["40 of 40 questions", "20 of 40 questions", "2 of 40 questions"]
    assert title.split("|") == [*counts, "version:student@championversion 2, night-0002"]
