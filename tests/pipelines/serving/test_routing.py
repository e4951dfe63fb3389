"""What reaches vLLM, and what is written over on the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving.routing import Refused, Renamer, model_list, read_request, route

INTERNAL = "student-v3-deadbeef-2"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def routed(content: dict[str, Any], base_internal: str | None = None) -> Any:
    return route(content, champion=INTERNAL, base="micro-student", base_internal=base_internal)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_only_the_model_of_a_request_changes(content: dict[str, Any]) -> None:
    sent = json.loads(routed({**content, "model": "champion"}).body)
    assert sent == {**content, "model": INTERNAL}


def test_stream_is_seen() -> None:
    assert routed({"model": "champion", "stream": True}).stream
    assert not routed({"model": "champion", "stream": None}).stream


def test_base_is_refused_with_the_reason_unless_it_is_offered() -> None:
    with pytest.raises(Refused, match="mixes up") as caught:
        routed({"model": "micro-student"})
    assert caught.value.status == 404
    assert routed({"model": "micro-student"}, "base-1").internal == "base-1"


@pytest.mark.parametrize("name", [INTERNAL, "preceptor-base", "", "base-1", "x" * 10_000])
def test_internal_and_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        routed({"model": name}, "base-1")
    assert caught.value.status == 404
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{}", b'{"model": 1}', b"\xff", b'{"model": "champion"', b"[" * 100_000]
)
def test_requests_that_are_no_object_with_a_model_are_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_request(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("value", ['"\\ud800"', "NaN", "Infinity"])
def test_what_json_does_not_hold_is_refused(value: str) -> None:
    content = read_request(b'{"model": "champion", "prompt": %s}' % value.encode())
    with pytest.raises(Refused) as caught:
        routed(content)
    assert caught.value.status == 400


@given(text=st.text(), pieces=st.lists(st.integers(1, 40), min_size=1), spaced=st.booleans())
def test_streams_are_renamed_however_they_are_cut_and_texts_are_left(
    text: str, pieces: list[int], spaced: bool
) -> None:
    said = f'{text}"model":"{INTERNAL}"'  # a text that looks like a member
    separators = (", ", ": ") if spaced else (",", ":")
    lines = [{"model": INTERNAL, "choices": [{"text": said}]}, {"model": "other", "id": INTERNAL}]
    stream = b"".join(b"data: " + json.dumps(x, separators=separators).encode() + b"\n\n" for x in lines)
    stream += b"data: [DONE]"
    renamer, out, at = Renamer(INTERNAL, 'cham"pion'), b"", 0
    for number in range(len(stream)):
        size = pieces[number % len(pieces)]
        out += renamer.piece(stream[at : at + size])
        at += size
    out += renamer.end()
    first, second, end = [line.removeprefix(b"data: ") for line in out.split(b"\n") if line]
    assert json.loads(first) == {"model": 'cham"pion', "choices": [{"text": said}]}
    assert json.loads(second) == lines[1]
    assert end == b"[DONE]"


def test_list_names_the_base_only_where_it_is_offered() -> None:
    names = [[x["id"] for x in model_list("micro-student", 5, with_base=b)["data"]] for b in (False, True)]
    assert names == [["champion"], ["champion", "micro-student"]]
