from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.data import derive_seed, digest_files, digest_json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_digest_json_of_known_value_is_sha256_of_canonical_text() -> None:
    canonical = '{"a":[1,"é"],"b":null}'
    assert digest_json({"b": None, "a": [1, "é"]}) == hashlib.sha256(canonical.encode()).hexdigest()


@given(JSON_VALUES, JSON_VALUES)
def test_digest_json_differs_exactly_when_the_json_differs(left: object, right: object) -> None:
    same_json = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (digest_json(left) == digest_json(right)) == same_json


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), b"bytes"], ids=["set", "object", "path", "bytes"])
def test_digest_json_refuses_what_is_not_plain_json(value: object) -> None:
    with pytest.raises(TypeError):
        digest_json(value)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "deep.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda place: (place / "a.bin").write_bytes(b"\0\2"),
        lambda place: (place / "a.bin").rename(place / "aa.bin"),  # still the first in order
        lambda place: (place / "empty").touch(),
        lambda place: ((place / "a.bin").write_bytes(b"{}"), (place / "b.json").write_bytes(b"\0\1")),
    ],
    ids=["rewrite", "rename", "add", "swap"],
)
def test_digest_files_changes_with_content_and_names(directory: Path, change: Callable[[Path], object]) -> None:
    before = digest_files(directory)
    change(directory)
    assert digest_files(directory) != before


def test_digest_files_ignores_inner_directories_and_files_outside_the_patterns(directory: Path) -> None:
    everything, only_json = digest_files(directory), digest_files(directory, ["*.json"])
    (directory / "inner" / "deep.json").write_text("[1]")
    assert digest_files(directory) == everything
    (directory / "a.bin").write_bytes(b"other")
    assert digest_files(directory, ["*.json"]) == only_json
    assert everything != only_json


@given(st.lists(st.text() | st.integers(), max_size=4))
def test_derive_seed_is_a_31_bit_number_that_the_parts_alone_decide(parts: list[str | int]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**31
    assert derive_seed(*parts) == seed


def test_derive_seed_depends_on_every_part_its_type_and_its_place() -> None:
    parts: list[tuple[str | int, ...]] = [(), ("a",), ("a", 1), (1, "a"), ("a", "1"), ("a1",), ("a", 2), ("b", 1)]
    assert len({derive_seed(*each) for each in parts}) == len(parts)
