"""Self-edits that are refused for what they say, and those that take their place: real updates of a tiny student."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.comparison import scored_variant
from pipelines.control_variants import edits_of
from pipelines.records import EditRecord, SamplingRecord
from pipelines.workspace import Workspace
from teacher.rewards import RewardFailure
from teacher.spec_space import edit_of
from tests.pipelines.small import units_of
from tests.pipelines.test_spec_search import config

WITHIN = {"orientations": "none", "colourings": 0, "epochs": 2}
OVER = {"orientations": "all", "colourings": 0, "epochs": 9}


def written(document: str, index: int, choice: dict[str, object] | None) -> EditRecord:
    failed = {} if choice is not None else {"failure": RewardFailure.PARSE_FAILED, "rejection": "empty: nothing"}
    return EditRecord(
        document_id=document,
        index=index,
        text="" if choice is None else json.dumps(choice),
        token_ids=(),
        finish_reason="stop",
        edit=None if choice is None else edit_of(choice),
        **failed,
    )


def test_refused_self_edits_give_their_place_to_the_next_ones(tmp_path: Path, prefect_server: None) -> None:
    ws = Workspace(config(tmp_path, "comparison.redraws=2"), tmp_path / "work")
    tasks = ws.split.test[:4]
    names = [task.id for task in tasks]
    drawn: dict[str, list[dict[str, object] | None]] = {
        names[0]: [WITHIN, OVER, OVER],  # the first one is taken, and no other is looked at
        names[1]: [OVER, None, WITHIN],  # both ahead of the last one are refused
        names[2]: [None, WITHIN, OVER],
        names[3]: [OVER, None, OVER],  # nothing is left to draw
    }
    edits = tuple(written(name, i, choice) for name, choices in drawn.items() for i, choice in enumerate(choices))
    variant = scored_variant(
        ws, units_of(ws), "trained_teacher", "trained", SamplingRecord(edits=edits, seconds=0.0), tasks, keep=4
    )
    assert list(variant.accuracy) == names[:3]
    assert variant.failures == {"over_budget": 3, "parse_failed": 3}
    assert variant.notes["redrawn"] == 5
    made = {(c.edit.document_id, c.edit.index): c for c in variant.candidates}
    assert len(made) == len(variant.candidates) == 9
    assert [made[name, 0].edit.text for name in names[:3]] == [json.dumps(WITHIN)] * 3
    assert all(made[name, 0].replicates[0].failure is None for name in names[:3])
    assert made[names[3], 0].reason is not None
    # What a variant is made of, for controls and adapters, is one self-edit a task, in the order of the tasks.
    assert [(e.document_id, e.index) for e in edits_of(ws, variant)] == [(name, 0) for name in names]
    kept = [made[name, 0].replicates[0].adapter_digest for name in names[:3]]
    assert all(digest is not None and ws.adapter_dir(digest).is_dir() for digest in kept)


def test_without_redraws_a_refused_one_stays_without_a_score(tmp_path: Path, prefect_server: None) -> None:
    ws = Workspace(config(tmp_path), tmp_path / "work")
    task = ws.split.test[0]
    sampling = SamplingRecord(edits=(written(task.id, 0, OVER),), seconds=0.0)
    variant = scored_variant(ws, units_of(ws), "trained_teacher", "trained", sampling, [task])
    assert variant.accuracy == {}
    assert variant.failures == {"over_budget": 1}
    assert "redrawn" not in variant.notes
