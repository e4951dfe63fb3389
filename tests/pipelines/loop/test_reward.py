"""From scores to rewards and to groups that a teacher learns from: pure functions on records."""

from __future__ import annotations

import pytest

from pipelines.loop.reward import groups_of, judge
from pipelines.records import Candidate, ScoredUpdate
from teacher.rewards import RewardConfig, RewardFailure
from tests.pipelines.factories import make_edit, make_replicate, make_task


def test_judgement_gives_a_reward_or_a_reason_and_never_both() -> None:
    edits = (
        make_edit("a", 0),
        make_edit("a", 1, text="?", edit=None),
        make_edit("a", 2),
        make_edit("b", 0),
        make_edit("b", 1),
    )
    failed = ScoredUpdate(document_id="a", index=2, seed=1, failure=RewardFailure.NON_FINITE, detail="loss")
    updates = [make_replicate("b", 0, probability=(0.5, 0.5)), failed, make_replicate("a", 0)]
    base = {"a": make_replicate("a", 0, adapter_digest=None, probability=(0.1, 0.3))}
    refused = {"b#1": RewardFailure.LEAKED}
    judged = judge(edits, RewardConfig(metric="probability"), updates=updates, base=base, refused=refused)
    assert [(c.edit.id, c.reward, c.reason) for c in judged] == [
        ("a#0", 0.5, None),
        ("a#1", None, RewardFailure.PARSE_FAILED),
        ("a#2", None, RewardFailure.NON_FINITE),
        ("b#0", 0.5, None),
        ("b#1", None, RewardFailure.LEAKED),
    ]
    assert [c.base_reward for c in judged] == [pytest.approx(0.2)] * 3 + [None] * 2
    assert [len(c.replicates) for c in judged] == [1, 0, 1, 1, 0]


def test_groups_hold_a_documents_candidates_with_the_prompt_that_the_teacher_read() -> None:
    task = make_task("a")
    edits = [make_edit("a", index) for index in range(3)]
    candidates = [Candidate(edit=edit, reward=0.1 * edit.index, base_reward=0.05) for edit in edits]
    (group,) = groups_of(candidates, {"a": "Read this."}, {"a": task}, {}, RewardConfig(), None)
    assert (group.id, group.prompt, group.base_reward) == ("a", "Read this.", 0.05)
    assert [completion.reward for completion in group.completions] == [0.0, 0.1, 0.2]
    assert all(completion.lines is None for completion in group.completions)
