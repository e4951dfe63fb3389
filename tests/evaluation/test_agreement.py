from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.agreement import agreements, rule_verdicts
from evaluation.graders import ExactGrading, GradeItem, TokenF1Grading

verdicts = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=30)


@given(verdicts)
def test_a_grader_agrees_with_itself_and_its_opposite_never(given_: list[bool | None]) -> None:
    opposite = [None if verdict is None else not verdict for verdict in given_]
    found = {(a.first, a.second): a for a in agreements({"a": given_, "same": given_, "opposite": opposite})}
    known = [verdict for verdict in given_ if verdict is not None]
    if not known:
        assert found == {}
        return
    same, other = found["a", "same"], found["a", "opposite"]
    assert (same.answers, same.equal, other.equal) == (len(known), 1.0, 0.0)
    assert same.kappa == (None if len(set(known)) == 1 else pytest.approx(1.0))
    assert other.kappa is not None
    assert other.kappa <= 0.0


def test_kappa_is_that_of_a_table_worked_by_hand() -> None:
    # 20 both right, 5 and 10 by one alone, 15 both wrong: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    (found,) = agreements({"a": [a for a, _ in pairs], "b": [b for _, b in pairs]})
    assert found.equal == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_the_rules_beside_the_configured_one_grade_the_same_texts() -> None:
    items = [GradeItem("Which?", "Red Sea", text) for text in ("Red Sea", "It is the Red Sea, or the Black Sea.", "")]
    assert rule_verdicts(items, TokenF1Grading()) == {
        "exact": (True, False, False),
        "gold-token-recall": (True, True, False),
    }
    assert list(rule_verdicts(items, ExactGrading())) == ["gold-token-recall", "token-f1"]
