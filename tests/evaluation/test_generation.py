from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from evaluation.generation import have_stopped, up_to_end

TOKENS = ("a", "b", "\n", "Q:", "\n\n", "é".encode()[:1], "é".encode()[1:])
"""Tokens of letters, of stop strings in part and whole, and of half a character."""
STOPS = st.lists(st.sampled_from(["\n\n", "Q:", "a\n", "éb"]), max_size=2)


def decode(tokens: Sequence[int]) -> str:
    pieces = (TOKENS[token] for token in tokens)
    return b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces).decode(errors="replace")


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12), STOPS, st.sets(st.integers(0, 1), max_size=1))
def test_completion_ends_with_the_first_token_that_ends_it(tokens: list[int], stops: list[str], ends: set[int]) -> None:
    ended = up_to_end(tokens, ends, stops, decode)
    assert list(ended.tokens) == tokens[: len(ended.tokens)]
    assert not any(stop in ended.text for stop in stops)
    assert not ends.intersection(ended.tokens[:-1])
    at_stop = any(stop in decode(ended.tokens) for stop in stops)
    assert not any(stop in decode(ended.tokens[:-1]) for stop in stops)
    assert ended.reason == ("stop" if at_stop or ends.intersection(ended.tokens) else "length")
    assert ended.reason == "stop" or len(ended.tokens) == len(tokens)


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12), STOPS)
def test_row_stops_at_the_token_that_completes_a_stop_string(tokens: list[int], stops: list[str]) -> None:
    steps = [have_stopped([tokens[:count]], stops, decode)[0] for count in range(1, len(tokens) + 1)]
    whole = [any(stop in decode(tokens[:count]) for stop in stops) for count in range(1, len(tokens) + 1)]
    assert True in steps or True not in whole
    assert [*steps, True].index(True) == [*whole, True].index(True)
