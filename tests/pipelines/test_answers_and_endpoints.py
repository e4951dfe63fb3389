"""Students' texts and who grades them, and self-edits from an endpoint, in the units of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.errors import ConfigError
from pipelines.comparison import external_variant, raw_variant
from pipelines.grading import graded, judge_record
from pipelines.records import BankRecord
from pipelines.sampling import written_edit
from pipelines.units import Units
from pipelines.work import UpdateRequest, questions_of, run_bank
from pipelines.workspace import Workspace
from teacher.self_edit import Implication, SelfEdit
from tests.faults import MODEL, FaultyServer
from tests.pipelines.small import small_config, units_of
from tests.vllm_parts import needs_vllm


def endpoint(server: FaultyServer, **settings: Any) -> dict[str, Any]:
    fast = {"retries": 2, "backoff_first": 0.01, "backoff_longest": 0.02}
    return {"base_url": server.base_url, "model": MODEL, **fast, **settings}


def external(server: FaultyServer, **settings: Any) -> str:
    sampling = {"type": "openai", "endpoint": endpoint(server, **settings), "max_new_tokens": 32}
    return "comparison.external=" + json.dumps({"sampling": sampling, "prompt": "micro-implications"})


def judged(server: FaultyServer, **settings: Any) -> str:
    grader = {"type": "judge", "endpoint": endpoint(server), **settings}
    return "grading=" + json.dumps({"grader": grader, "max_new_tokens": 12})


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        running.replies = lambda prompt: f"The passage is {len(prompt)} characters long."
        yield running


@pytest.fixture
def opened(tmp_path: Path, prefect_server: None) -> Callable[..., tuple[Workspace, Units]]:
    def open_again(*overrides: str) -> tuple[Workspace, Units]:
        ws = Workspace(
            small_config("student.update.epochs=8", "teacher.reward.metric=accuracy", *overrides), tmp_path / "work"
        )
        return ws, units_of(ws)

    return open_again


def about(answer: str) -> str:
    """Return how a judge's prompt shows a student's answer."""
    return f"Student's answer: {json.dumps(answer)}"


def taught(ws: Workspace) -> list[UpdateRequest]:
    """Return updates that teach the answers, the passage and nothing."""
    requests = []
    for task in ws.split.test:
        told = SelfEdit(implications=tuple(Implication(text=q.question, answer=q.answer) for q in task.questions))
        edits = [told, written_edit(task, task.document.text).edit, None]
        requests += [UpdateRequest(task.id, i, edit, 7 + i) for i, edit in enumerate(edits)]
    return requests


@pytest.mark.parametrize("engine", ["bank", pytest.param("vllm", marks=needs_vllm)])
def test_text_is_the_gold_answer_exactly_where_the_forced_pass_says_so(tmp_path: Path, engine: str) -> None:
    told = {"grader": {"type": "exact"}, "engine": engine, "max_new_tokens": 24}
    told |= {"vllm": {"kv_cache_gb": 0.2, "max_sequences": 64}}
    with Workspace(
        small_config("teacher.reward.metric=accuracy", "student.update.epochs=12", "grading=" + json.dumps(told)),
        tmp_path,
    ) as ws:
        record = run_bank(ws, taught(ws), "rewards")
    right = 0
    for replicate in record.replicates:
        assert replicate.failure is None, replicate.detail
        questions = questions_of(ws.tasks[replicate.document_id], "rewards")
        texts = [answer.strip() for answer in replicate.answers]
        golds = [question.answer.strip() for question in questions]
        # Greedy decoding that writes the gold answer may go on after it; one that does not write it never equals it.
        for exact, text, gold in zip(replicate.exact, texts, golds, strict=True):
            assert text.startswith(gold) if exact else text != gold
        right += sum(replicate.exact)
    assert right >= 4, "with no right answer there is nothing to see"


def test_verdicts_are_the_graders_and_make_the_accuracy(opened: Callable[..., tuple[Workspace, Units]]) -> None:
    plain, _ = opened("grading={grader: {type: exact}, max_new_tokens: 16}")
    record = run_bank(plain, taught(plain)[:3], "rewards")
    exact = graded(plain, record, "rewards")
    loose, _ = opened("grading={grader: {type: token-f1, threshold: 0.01}, max_new_tokens: 16}")
    generous = graded(loose, record, "rewards")
    for strict, kind in zip(exact.replicates, generous.replicates, strict=True):
        assert len(strict.correct) == len(strict.answers) == len(strict.exact)
        assert strict.accuracy == sum(map(bool, strict.correct)) / len(strict.correct)
        assert all(loose or not tight for tight, loose in zip(strict.correct, kind.correct, strict=True))
    assert sum(len(r.answers) for r in exact.replicates) == len(plain.grades)
    ungraded, _ = opened()
    assert graded(ungraded, record, "rewards") is record


def test_rewards_by_probability_need_no_text(opened: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, _ = opened("grading={grader: {type: exact}, max_new_tokens: 16}", "teacher.reward.metric=probability")
    request = taught(ws)[:1]
    (rewarded,) = graded(ws, run_bank(ws, request, "rewards"), "rewards").replicates
    (compared,) = graded(ws, run_bank(ws, request, "comparison"), "comparison").replicates
    assert rewarded.answers == ()
    assert rewarded.verdicts == rewarded.exact
    assert len(compared.answers) == len(compared.verdicts) > 0


def test_a_judge_that_is_unclear_or_fails_gives_no_score_and_is_asked_again(
    opened: Callable[..., tuple[Workspace, Units]], server: FaultyServer
) -> None:
    ws, _ = opened(judged(server))
    record = run_bank(ws, taught(ws)[:1], "rewards")
    said = [answer for answer in record.replicates[0].answers if answer]
    server.replies = lambda prompt: "maybe" if about(said[0]) in prompt else "Yes."
    server.always[about(said[-1])] = "500"

    def verdicts(found: BankRecord) -> tuple[bool | None, ...]:
        return found.replicates[0].correct

    first = verdicts(graded(ws, record, "rewards"))
    by_answer = dict(zip(record.replicates[0].answers, first, strict=True))
    assert by_answer[said[0]] is None
    assert by_answer[said[-1]] is None
    assert False not in [verdict for answer, verdict in by_answer.items() if answer]
    counts = graded(ws, record, "rewards").replicates[0].ungraded
    assert set(counts) == {"unclear", "failed"}
    server.always.clear()
    server.seen.clear()
    mended = dict(zip(record.replicates[0].answers, verdicts(graded(ws, record, "rewards")), strict=True))
    assert mended[said[-1]] is True, "a failed call is made again"
    assert {about(said[-1]) in prompt for prompt in server.prompts} == {True}, "what was answered is not"
    assert ws.spent()["judge"].failures > 0


def test_noise_of_a_judge_that_flips_is_measured(
    opened: Callable[..., tuple[Workspace, Units]], server: FaultyServer
) -> None:
    ws, _ = opened(judged(server, repeats=3, temperature=1.0))
    record = run_bank(ws, taught(ws)[:2], "rewards")
    said = sorted({answer for r in record.replicates for answer in r.answers if answer})
    turns: dict[str, int] = {}

    def flipping(prompt: str) -> str:
        turns[prompt] = turns.get(prompt, 0) + 1
        return "No" if about(said[0]) in prompt and turns[prompt] == 2 else "Yes"

    server.replies = flipping
    graded(ws, record, "rewards")
    noise = judge_record(ws)
    assert noise is not None
    assert noise.flips is not None
    assert noise.disagreeing is not None
    assert noise.repeated == sum(bool(answer) for r in record.replicates for answer in r.answers)
    assert noise.verdicts == 3 * noise.repeated
    flipped = sum(answer == said[0] for r in record.replicates for answer in r.answers)
    assert noise.disagreeing.mean == pytest.approx(flipped / noise.repeated)
    assert noise.disagreeing.mean == pytest.approx(noise.flips.mean * 1.5), "one of three: two of three pairs differ"


def test_what_an_external_generator_does_not_deliver_has_a_reason_and_no_score(
    opened: Callable[..., tuple[Workspace, Units]], server: FaultyServer
) -> None:
    ws, units = opened(external(server))
    lost, kept = ws.split.test[0], ws.split.test[1]
    server.always[kept.document.text[:40]] = "429"
    server.always[lost.document.text[:40]] = "500"
    nothing = external_variant(ws, units, ws.split.test)
    assert nothing is not None
    assert nothing.accuracy == {}
    assert nothing.failures == {"generation_failed": 2 * ws.config.comparison.edits}
    assert all(c.reward is None and c.reason is not None for c in nothing.candidates)
    del server.always[kept.document.text[:40]]
    ws.close()
    ws, units = opened(external(server))
    half = external_variant(ws, units, ws.split.test)
    assert half is not None
    assert set(half.accuracy) == {kept.id}, "a failed request is asked again, and the other stays without a score"
    server.seen.clear()
    server.always.clear()
    ws, units = opened(external(server))
    whole = external_variant(ws, units, ws.split.test)
    assert whole is not None
    assert set(whole.accuracy) == {lost.id, kept.id}
    assert whole.accuracy[kept.id] == half.accuracy[kept.id]
    assert len(server.seen) == ws.config.comparison.edits, "what the ledger holds is not asked for again"
    assert whole.label == "external generator"
    assert whole.edit_tokens is not None


def test_runs_without_endpoints_ask_nobody(opened: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, units = opened()
    assert external_variant(ws, units, ws.split.test) is None
    assert ws.spent() == {}
    ws.check_endpoints()
    assert not ws.ledger_path.exists()
    with pytest.raises(ConfigError, match=r"comparison\.external"):
        _ = ws.external
    assert raw_variant(ws, units, ws.split.test).accuracy
