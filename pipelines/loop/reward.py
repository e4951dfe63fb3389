"""Rewards: from the scores of a self-edit's updates to what the teacher learns from. Pure functions on records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from evaluation.tasks import KnowledgeTask
from pipelines.records import Candidate, Edit, ScoredUpdate, by_document
from teacher.algorithms.algorithm import CompletionGroup, CompletionReward
from teacher.filters import EditFacts
from teacher.rewards import LineGains, RewardConfig, RewardFailure, line_gains, reward_of


def judge(
    edits: Iterable[Edit],
    reward: RewardConfig,
    *,
    updates: Iterable[ScoredUpdate] = (),
    base: Mapping[str, ScoredUpdate] | None = None,
    facts: Mapping[str, EditFacts] | None = None,
    refused: Mapping[str, RewardFailure] | None = None,
) -> list[Candidate]:
    """Return every self-edit with its updates and its reward, or the reason why it has none.

    By `Edit.id` are measures of the texts (`facts`) and reasons of filters (`refused`); by document id `base`, the
    student without an update on the same questions.
    """
    floors = {name: _base_reward(scored, reward) for name, scored in (base or {}).items()}
    replicates: dict[str, list[ScoredUpdate]] = defaultdict(list)
    for update in updates:
        replicates[update.edit_id].append(update)
    found = []
    for edit in edits:
        mine = replicates[edit.id]
        outcome = _outcome(edit, mine, (refused or {}).get(edit.id), reward)
        known = asdict(facts[edit.id]) if facts and edit.id in facts else {}
        found.append(
            Candidate(
                edit=edit,
                facts={name: float(value) for name, value in known.items() if value is not None},
                replicates=tuple(mine),
                reward=None if isinstance(outcome, RewardFailure) else outcome,
                reason=outcome if isinstance(outcome, RewardFailure) else None,
                base_reward=floors.get(edit.document_id),
            )
        )
    return found


def _outcome(
    edit: Edit,
    updates: Sequence[ScoredUpdate],
    refused: RewardFailure | None,
    reward: RewardConfig,
) -> float | RewardFailure:
    if edit.edit is None:
        return edit.failure or RewardFailure.PARSE_FAILED
    return reward_of(updates, reward) if refused is None else refused


def _base_reward(scored: ScoredUpdate, reward: RewardConfig) -> float | None:
    """Return the reward of the student without an update, which has forgotten nothing."""
    outcome = reward_of([scored.model_copy(update={"forgetting": 0.0})], reward)
    return None if isinstance(outcome, RewardFailure) else outcome


def groups_of(
    candidates: Sequence[Candidate],
    prompts: Mapping[str, str],
    tasks: Mapping[str, KnowledgeTask],
    base: Mapping[str, ScoredUpdate],
    reward: RewardConfig,
    decode: Callable[[Sequence[int]], str] | None,
) -> list[CompletionGroup]:
    """Return a round's candidates grouped by document, as the teacher's algorithms take them.

    `prompts` that the teacher read, `tasks` and the `base` scores of the student without an update are by document id.
    `decode` is the teacher's tokenizer, for the credit of single lines; None gives none.
    """

    def gains(candidate: Candidate) -> LineGains | None:
        """Return the gain that each line earned; None where its questions' scores are not known."""
        before, scores = base.get(candidate.document_id), _question_scores(candidate, reward)
        if decode is None or not scores or before is None or before.failure is not None:
            return None
        plain = before.by_question(reward.metric)
        by_question = [after - first for after, first in zip(scores, plain, strict=True)]
        questions = tasks[candidate.document_id].questions
        return line_gains(candidate.edit.token_ids, decode, questions, by_question)

    return [
        CompletionGroup(
            id=name,
            prompt=prompts[name],
            completions=tuple(CompletionReward(c.edit.token_ids, c.reward, lines=gains(c)) for c in members),
            base_reward=members[0].base_reward,
        )
        for name, members in by_document(candidates).items()
    ]


def _question_scores(candidate: Candidate, reward: RewardConfig) -> list[float]:
    """Return a candidate's mean score by question over its updates; empty where there is none."""
    rows = [update.by_question(reward.metric) for update in candidate.replicates if update.failure is None]
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
