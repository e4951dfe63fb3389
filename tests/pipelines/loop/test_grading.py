"""Students' texts and their graders, and self-edits from endpoints, with real updates and a faulty server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from evaluation.graders import judge_noise
from pipelines.loop.loop import Loop
from pipelines.loop.update import Trial, grade_updates, questions_of
from pipelines.models import LEDGER
from pipelines.records import raw_passage
from teacher.self_edit import Implication, SelfEdit
from tests.faults import MODEL, FaultyServer
from tests.pipelines.loop.conftest import Open
from tests.vllm_parts import needs_vllm

ACCURACY = ("student.update.epochs=8", "teacher.reward.metric=accuracy")


def judged(server: FaultyServer, **settings: Any) -> str:
    endpoint = {"base_url": server.base_url, "model": MODEL}
    grader = {"type": "judge", "endpoint": endpoint, **settings}
    return "grading=" + json.dumps({"grader": grader, "max_new_tokens": 12})


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


def about(answer: str) -> str:
    """Return how a judge's prompt shows a student's answer."""
    return f"Student's answer: {json.dumps(answer)}"


def trials(loop: Loop, documents: int = 2) -> list[Trial]:
    """Return updates that teach the answers, the passage and nothing."""
    found = []
    for task in list(loop.tasks.values())[:documents]:
        lines = SelfEdit(implications=tuple(Implication(text=q.question, answer=q.answer) for q in task.questions))
        edits = [lines, raw_passage(task.id, task.document.text).edit, None]
        found += [Trial(task.id, i, edit, 7 + i) for i, edit in enumerate(edits)]
    return found


@pytest.mark.parametrize("engine", ["bank", pytest.param("vllm", marks=needs_vllm)])
def test_text_is_the_gold_answer_exactly_where_the_forced_pass_says_so(opened: Open, engine: str) -> None:
    grading = {"grader": {"type": "exact"}, "engine": engine, "max_new_tokens": 24}
    grading |= {"vllm": {"kv_cache_gb": 0.2}}
    settings = "teacher.reward.metric=accuracy", "student.update.epochs=12", "grading=" + json.dumps(grading)
    right = 0
    with opened(*settings) as loop:
        for update in loop.update(trials(loop), "rewards"):
            assert update.failure is None, update.detail
            golds = [q.answer.strip() for q in questions_of(loop.tasks[update.document_id], "rewards")]
            # Greedy decoding that writes the gold answer may go on after it; otherwise it never equals it.
            for exact, text, gold in zip(update.exact, update.answers, golds, strict=True):
                assert text.strip().startswith(gold) if exact else text.strip() != gold
            right += sum(update.exact)
    assert right >= 4, "with no right answer there is nothing to see"


def test_verdicts_are_the_graders_and_make_the_accuracy(opened: Open) -> None:
    strict = opened(*ACCURACY, "grading={grader: {type: exact}, max_new_tokens: 16}")
    loose = opened(*ACCURACY, "grading={grader: {type: token-f1, threshold: 0.01}, max_new_tokens: 16}")
    exact = strict.update(trials(strict, 1), "rewards")
    generous = loose.update(trials(loose, 1), "rewards")
    for mine, kind in zip(exact, generous, strict=True):
        assert len(mine.correct) == len(mine.answers) == len(mine.exact)
        assert mine.accuracy == sum(map(bool, mine.correct)) / len(mine.correct)
        assert all(generous or not tight for tight, generous in zip(mine.correct, kind.correct, strict=True))
    assert sum(len(update.answers) for update in exact) == len(strict.verdicts)


def test_rewards_by_probability_need_no_text(opened: Open) -> None:
    loop = opened("grading={grader: {type: exact}, max_new_tokens: 16}", "teacher.reward.metric=probability")
    (rewarded,) = loop.update(trials(loop)[:1], "rewards")
    (compared,) = loop.update(trials(loop)[:1], "comparison")
    assert rewarded.answers == ()
    assert rewarded.verdicts == rewarded.exact
    assert len(compared.answers) == len(compared.verdicts) > 0


def test_a_judge_that_is_unclear_or_fails_gives_no_score_and_is_asked_again(opened: Open, server: FaultyServer) -> None:
    loop = opened(*ACCURACY, judged(server))
    update = opened(*ACCURACY, "grading={grader: {type: exact}, max_new_tokens: 12}").update(
        trials(loop)[:1], "rewards"
    )
    plain = update[0].model_copy(update={"correct": ()})
    answers = [answer for answer in plain.answers if answer]
    server.replies = lambda prompt: "maybe" if about(answers[0]) in prompt else "Yes."
    server.always[about(answers[-1])] = "500"

    def graded() -> tuple[dict[str, bool | None], dict[str, int]]:
        (found,) = grade_updates([plain], loop.tasks, "rewards", loop.settings, loop.grader, loop.verdicts)
        return dict(zip(found.answers, found.correct, strict=True)), found.ungraded

    verdicts, ungraded = graded()
    assert (verdicts[answers[0]], verdicts[answers[-1]]) == (None, None)
    assert False not in [verdict for answer, verdict in verdicts.items() if answer]
    assert set(ungraded) == {"unclear", "failed"}
    server.always.clear()
    server.seen.clear()
    assert graded()[0][answers[-1]] is True, "a failed call is made again"
    assert {about(answers[-1]) in prompt for prompt in server.prompts} == {True}, "an answered one is not"
    assert loop.spent()["judge"].failures > 0


def test_noise_of_a_judge_that_flips_is_measured(opened: Open, server: FaultyServer) -> None:
    loop = opened(*ACCURACY, judged(server, repeats=3, temperature=1.0))
    turns: dict[str, int] = {}
    first: list[str] = []

    def flipping(prompt: str) -> str:
        turns[prompt] = turns.get(prompt, 0) + 1
        first.append(prompt)
        return "No" if prompt == first[0] and turns[prompt] == 2 else "Yes"

    server.replies = flipping
    updates = loop.update(trials(loop)[:2], "rewards")
    noise = judge_noise(loop.verdicts, confidence=0.95, resamples=200, seed=0)
    assert noise.repeated == sum(bool(answer) for update in updates for answer in update.answers)
    assert noise.verdicts == 3 * noise.repeated
    assert noise.flips is not None
    assert noise.disagreeing is not None
    assert noise.disagreeing.mean > 0.0
    assert noise.disagreeing.mean == pytest.approx(noise.flips.mean * 1.5), "one of three: two of three pairs differ"


def test_what_an_endpoint_does_not_deliver_has_a_reason_and_is_asked_for_again(
    opened: Open, server: FaultyServer
) -> None:
    from teacher.samplers.openai import OpenAISampling

    endpoint = {"base_url": server.base_url, "model": MODEL}
    sampling = OpenAISampling.model_validate({"type": "openai", "endpoint": endpoint, "max_new_tokens": 32})
    loop = opened()
    lost, kept = list(loop.tasks.values())[:2]
    server.replies = lambda prompt: f"The passage is {len(prompt)} characters long."
    server.always[lost.document.text[:40]] = "500"
    half = loop.ask(sampling, "external", "micro-implications", [lost, kept], n=1, seed=1)
    assert [(edit.edit is None, edit.failure is None) for edit in half.edits] == [(True, False), (False, True)]
    server.seen.clear()
    server.always.clear()
    whole = loop.ask(sampling, "external", "micro-implications", [lost, kept], n=1, seed=1)
    assert all(edit.edit is not None for edit in whole.edits)
    assert len(server.seen) == 1, "what the ledger holds is not asked for again"
    assert loop.spent(external=sampling)["external"].failures > 0


def test_loops_without_endpoints_ask_nobody(opened: Open) -> None:
    loop = opened()
    loop.check_endpoints(external=None)
    assert loop.spent() == {}
    assert not (loop.work_dir / LEDGER).exists()
