"""Figures, tables and names that are made of records."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from pipelines.lineage.run import _file_name
from pipelines.lineage.tables import TOP_CANDIDATES, best_candidates, metric_part, round_metrics
from tests.pipelines.factories import make_candidate, make_replicate, make_round, make_unparsable


def test_round_metrics_figures() -> None:
    # Of 0.0, 0.25, 0.5, 1.0 with base 0.25: two are above; numpy's linear p10 is 0.075 and p90 is 0.85.
    rewards = (0.0, 0.25, 0.5, 1.0)
    record = make_round(
        candidates=(*(make_candidate(index=i, reward=r) for i, r in enumerate(rewards)), make_unparsable())
    )
    metrics = round_metrics(record)
    assert metrics["candidate/positive_fraction"] == 0.5
    assert metrics["candidate/reward_p10"] == pytest.approx(0.075)
    assert metrics["candidate/reward_p50"] == pytest.approx(0.375)
    assert metrics["candidate/reward_p90"] == pytest.approx(0.85)
    assert metrics["candidate/reward_max"] == 1.0
    assert (metrics["candidate/ok_count"], metrics["candidate/failed_count"]) == (4.0, 1.0)
    assert metrics["time/update_s"] == 2.0


def test_round_metrics_include_the_banks_usage() -> None:
    updates = (
        make_replicate(slots=32, tokens=60, padded_tokens=70, peak_bytes=5),
        make_replicate(slots=8, tokens=30, padded_tokens=30),
    )
    metrics = round_metrics(make_round(candidates=(make_candidate(replicates=updates),)))
    assert (metrics["bank/slots"], metrics["memory/bank_peak_bytes"]) == (32.0, 5.0)
    assert metrics["bank/padding_share"] == pytest.approx(0.1)
    unknown = round_metrics(make_round(candidates=(make_unparsable(),)))
    assert not {"bank/padding_share", "memory/bank_peak_bytes"} & set(unknown)


@given(rewards=st.lists(st.floats(0.0, 1.0), max_size=130))
def test_best_candidates_are_the_highest_rewards_in_order(rewards: list[float]) -> None:
    table = best_candidates([*(make_candidate(index=i, reward=r) for i, r in enumerate(rewards)), make_unparsable()])
    assert [row[table["columns"].index("reward")] for row in table["data"]] == sorted(rewards, reverse=True)[
        :TOP_CANDIDATES
    ]


@given(name=st.text(max_size=130))
def test_part_of_any_text_is_a_metric_name_that_mlflow_takes(name: str) -> None:
    part = metric_part(name)
    assert 1 <= len(part) <= 100
    _validate_metric_name(f"notes/{part}")  # raises where MLflow refuses it


@given(ids=st.sets(st.text(min_size=1, max_size=100), min_size=2, max_size=20))
def test_file_name_is_one_plain_part_and_keeps_ids_apart(ids: set[str]) -> None:
    names = {_file_name(document_id) for document_id in ids}
    assert len(names) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
