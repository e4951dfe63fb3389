"""From scores to what the teacher learns from: rewards, their reliability, groups of candidates. Plain functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from evaluation.statistics import known_mean
from pipelines.records import CandidateRecord, ReliabilityRecord, ReplicateRecord, SamplingRecord
from pipelines.trials import Key, Trials, outcome_of
from pipelines.workspace import Workspace
from teacher.config import GroupRelativeConfig, RewardConfig
from teacher.credit import Earned, earned_by_line
from teacher.rewards import (
    REFUSALS,
    Reliability,
    RewardFailure,
    RewardOutcome,
    no_reward,
    reliability,
    shrink,
)
from teacher.selection import Candidate, CandidateGroup


def judge(
    sampling: SamplingRecord, trials: Trials, base: Mapping[str, ReplicateRecord], reward: RewardConfig
) -> list[CandidateRecord]:
    """Return every sampled self-edit with its replicates and its reward, or the reason why it has none.

    Args:
        sampling: The self-edits.
        trials: What came of those that could be parsed.
        base: Scores of the student without an update, by document id, on the same questions.
        reward: How scores become rewards.
    """
    floors = {name: _base_reward(record, reward) for name, record in base.items()}
    return [
        _candidate(edit.id, CandidateRecord(edit=edit, base_reward=floors.get(edit.document_id)), trials, reward)
        for edit in sampling.edits
    ]


def _candidate(key: Key, blank: CandidateRecord, trials: Trials, reward: RewardConfig) -> CandidateRecord:
    """Return the record of one self-edit."""
    edit, mine, proxy = blank.edit, trials.replicates.get(key, ()), trials.proxies.get(key)
    if edit.edit is None:
        outcome = no_reward(edit.failure or RewardFailure.PARSE_FAILED)
    elif key in trials.refused:
        outcome = no_reward(trials.refused[key])
    elif reward.metric == "proxy":
        outcome = (
            no_reward(RewardFailure.PROXY_FAILED)
            if proxy is None
            else RewardOutcome(value=proxy, reason=None, replicates=0, standard_error=None)
        )
    else:
        outcome = outcome_of(mine, reward)
    return blank.model_copy(
        update={
            "facts": trials.facts.get(key, {}),
            "proxy": proxy,
            "proxy_probability": trials.proxy_probabilities.get(key, ()),
            "predicted": trials.predicted.get(key),
            "audited": key in trials.audited,
            "replicates": tuple(mine),
            "reward": outcome.value,
            "reason": outcome.reason,
            "standard_error": outcome.standard_error,
        }
    )


def _base_reward(record: ReplicateRecord, reward: RewardConfig) -> float | None:
    """Return what the student gets without an update: nothing forgotten, and by the proxy nothing in its context."""
    metric = "probability" if reward.metric == "proxy" else reward.metric
    plain = reward.model_copy(update={"metric": metric})
    return outcome_of([record.model_copy(update={"forgetting": 0.0})], plain.of_any).value


def replicate_values(
    candidates: Iterable[CandidateRecord], reward: RewardConfig, counts: Mapping[str, int]
) -> list[list[list[float]]]:
    """Return the reward of each single update by document and self-edit (D, E, S), as `reliability` takes them.

    Args:
        candidates: Of one round.
        reward: How scores become rewards.
        counts: How many replicates, from the first on, of each self-edit count, by document id: those that all of the
            document's self-edits had. Further ones went to the leaders alone, whose luck they would pass for noise.
    """
    groups: dict[str, list[list[float]]] = {}
    for candidate in candidates:
        first = candidate.replicates[: counts[candidate.edit.document_id]]
        values = [outcome_of([replicate], reward.of_any).value for replicate in first]
        groups.setdefault(candidate.edit.document_id, []).append([value for value in values if value is not None])
    return list(groups.values())


def reliability_record(found: Reliability | None, runs: float) -> ReliabilityRecord | None:
    """Return an estimate as a record; `runs` is the mean number of updates that a reward rests on."""
    if found is None:
        return None
    return ReliabilityRecord(
        between_variance=found.between_variance,
        within_variance=found.within_variance,
        edits=found.edits,
        of_one=found.of_mean(1),
        of_reward=found.of_mean(max(runs, 1.0)),
        runs=runs,
    )


def measured(groups: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Reliability | None:
    """Return the reliability over the documents of several rounds."""
    return reliability([group for round_groups in groups for group in round_groups])


def with_learned_rewards(
    candidates: Sequence[CandidateRecord], found: Reliability | None, reward: RewardConfig
) -> list[CandidateRecord]:
    """Return the candidates with what the teacher is to learn from, and the standard errors of that.

    Errors follow from the measured noise of one update where there is an estimate; two replicates of one self-edit tell
    too little about it.
    """
    learned: dict[str, CandidateRecord] = {}
    for members in by_document(candidates).values():
        shares = [1.0] * len(members)
        if reward.shrink and found is not None and reward.metric != "proxy":
            shares = [found.of_mean(max(len(c.replicates), 1)) for c in members]
        for candidate, share, value in zip(members, shares, shrink([c.reward for c in members], shares), strict=True):
            error = _error(candidate, found) or candidate.standard_error
            update = {"learned_reward": value, "standard_error": None if error is None else share * error}
            learned[candidate.edit.id] = candidate.model_copy(update=update)
    return [learned[candidate.edit.id] for candidate in candidates]


def _error(candidate: CandidateRecord, found: Reliability | None) -> float | None:
    known = candidate.reward is not None and found is not None and candidate.replicates
    return math.sqrt(found.within_variance / len(candidate.replicates)) if known and found is not None else None


def by_document(candidates: Iterable[CandidateRecord]) -> dict[str, list[CandidateRecord]]:
    """Return the candidates by document id, in the order given."""
    found: dict[str, list[CandidateRecord]] = {}
    for candidate in candidates:
        found.setdefault(candidate.edit.document_id, []).append(candidate)
    return found


def groups_of(
    ws: Workspace,
    prompt: str,
    candidates: Sequence[CandidateRecord],
    base: Mapping[str, ReplicateRecord],
    reward: RewardConfig,
) -> list[CandidateGroup]:
    """Return the candidates grouped by document, as the teacher's selection takes them.

    Args:
        ws: The run's workspace.
        prompt: Name of the prompt template.
        candidates: With what is to be learned from.
        base: Scores of the student without an update, by document id, on the same questions.
        reward: How scores became rewards.
    """
    learning = ws.config.teacher.learning
    by_line = isinstance(learning, GroupRelativeConfig) and learning.line_credit > 0.0
    return [
        CandidateGroup(
            id=document_id,
            prompt=ws.prompt(prompt, ws.tasks[document_id].document),
            candidates=tuple(
                Candidate(
                    c.edit.token_ids,
                    c.learned_reward,
                    standard_error=c.standard_error,
                    refused=c.reason in REFUSALS,
                    earned=_earned(ws, c, base.get(document_id), reward) if by_line else None,
                )
                for c in members
            ),
            base_reward=members[0].base_reward,
        )
        for document_id, members in by_document(candidates).items()
    ]


def _earned(
    ws: Workspace, candidate: CandidateRecord, base: ReplicateRecord | None, reward: RewardConfig
) -> Earned | None:
    """Return what each line of a candidate earned; None where its questions' scores are not known."""
    scores = _question_scores(candidate, reward)
    if not scores or base is None or base.failure is not None:
        return None
    before = base.by_question("probability" if reward.metric == "proxy" else reward.metric)
    gains = [after - first for after, first in zip(scores, before, strict=True)]
    tokenizer = ws.policy.tokenizer
    questions = ws.tasks[candidate.edit.document_id].questions

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return earned_by_line(candidate.edit.token_ids, decode, questions, gains)


def _question_scores(candidate: CandidateRecord, reward: RewardConfig) -> list[float]:
    """Return a candidate's mean score by question over its updates; empty where there is none."""
    if reward.metric == "proxy":
        return list(candidate.proxy_probability)
    known = [replicate for replicate in candidate.replicates if replicate.failure is None]
    rows = [replicate.by_question(reward.metric) for replicate in known]
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def mean_runs(candidates: Iterable[CandidateRecord]) -> float:
    """Return how many updates a reward rests on in the mean; 0 where there is none."""
    return known_mean(float(len(c.replicates)) for c in candidates if c.reward is not None) or 0.0
