"""What counts as the registered adapter's answer, and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import ServeError
from pipelines.serving.probes import Reference, ReferenceAnswer, ServedAnswer, compare

TOLERANCE = 0.01


def reference(*rows: tuple[Sequence[int], Sequence[float], Sequence[float]]) -> Reference:
    answers = [
        ReferenceAnswer(prompt=[1], tokens=list(tokens), logprobs=list(own), base_logprobs=list(base))
        for tokens, own, base in rows
    ]
    return Reference(answers=answers, base_digests=["b" * 64])


def served(tokens: Sequence[int], *tops: Mapping[int, float]) -> ServedAnswer:
    return ServedAnswer(tokens, tops)


USUAL = reference(([5, 6], [-0.1, -0.2], [-2.0, -2.0]))


def test_same_tokens_and_log_probabilities_pass() -> None:
    record = compare(USUAL, [served([5, 6], {5: -0.101}, {6: -0.2})], tolerance=TOLERANCE)
    assert record.passed
    assert (record.prompts, record.equal, record.ties, record.told_apart, record.reason) == (1, 1, 0, 1, "")
    assert record.max_logprob_difference == pytest.approx(0.001)


@pytest.mark.parametrize(
    "answer",
    [
        served([5, 6], {5: -0.1}, {6: -0.25}),  # the right tokens, other weights
        served([5, 7], {5: -0.1}, {7: -0.1, 6: -0.2}),  # another token, likelier by more than rounding
        served([5, 7], {5: -0.1}, {7: -0.1}),  # the reference's token not even among the likeliest
        served([5], {5: -0.1}),
        served([5, 6], {5: math.nan}, {6: -0.2}),
        served([], *()),
    ],
)
def test_anything_else_fails_with_a_reason(answer: ServedAnswer) -> None:
    record = compare(USUAL, [answer], tolerance=TOLERANCE)
    assert not record.passed
    assert "not the registered adapter's" in record.reason


def test_tie_within_the_tolerance_is_no_difference() -> None:
    record = compare(USUAL, [served([5, 7], {5: -0.1}, {7: -0.199, 6: -0.201})], tolerance=TOLERANCE)
    assert record.passed
    assert (record.equal, record.ties) == (0, 1)


def test_base_in_place_of_the_adapter_is_found() -> None:
    """vLLM that ignores an adapter gives the base's log-probabilities."""
    record = compare(USUAL, [served([5, 6], {5: -2.0}, {6: -2.0})], tolerance=TOLERANCE)
    assert not record.passed


def test_adapter_that_no_probe_tells_from_its_base_fails_unless_it_is_zero() -> None:
    alike = reference(([5], [-0.1], [-0.1]))
    answers = [served([5], {5: -0.1})]
    record = compare(alike, answers, tolerance=TOLERANCE)
    assert not record.passed
    assert "tells the adapter from its base" in record.reason
    assert compare(alike, answers, tolerance=TOLERANCE, zero=True).passed


def test_missing_answers_are_an_error() -> None:
    with pytest.raises(ServeError):
        compare(USUAL, [], tolerance=TOLERANCE)


LOGPROBS = st.lists(st.floats(-20, 0), min_size=1, max_size=6)


@given(st.lists(st.tuples(LOGPROBS, st.floats(0, 0.1)), min_size=1, max_size=4))
def test_passes_exactly_when_no_difference_is_above_the_tolerance(rows: list[tuple[list[float], float]]) -> None:
    wanted = reference(*((list(range(len(own))), own, [v - 1 for v in own]) for own, _ in rows))
    answers = [served(list(range(len(own))), *({i: v - off} for i, v in enumerate(own))) for own, off in rows]
    worst = max(abs((v - off) - v) for own, off in rows for v in own)
    record = compare(wanted, answers, tolerance=TOLERANCE)
    assert record.passed == (worst <= TOLERANCE)
    assert record.max_logprob_difference == worst
