"""What ways of adapting score on a suite, side by side. Pure: no models, no stores.

What a document's updates score is averaged over them; a self-edit that came to no score counts nowhere but in the
number of those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from evaluation.gate import PairedScore
from evaluation.statistics import known_mean
from pipelines.records import CandidateRecord, Record, ReplicateRecord
from pipelines.regression.suite import SuiteContent
from pipelines.regression.verdict import Compared, Unscored
from teacher.rewards import RewardFailure

if TYPE_CHECKING:
    from pipelines.results import VariantRecord


class WayScores(Record):
    """How the student answers the suite after a way of adapting; each document has adapters of its own."""

    digest: str
    """`Way.digest`."""
    adapter_digest: str | None
    """SHA-256 of the teacher's policy; None for a base as it is."""
    documents: dict[str, tuple[float, ...]]
    """Document id -> for each question, the share of the document's updates after which it is answered right, in
    [0, 1]; without those that have no score at all."""
    probability: dict[str, float]
    """Document id -> mean probability of the gold answers, in [0, 1]."""
    probes: dict[str, float] = Field(default_factory=dict)
    """Document id -> share of the retention probes that are answered after an update, in [0, 1]."""
    empty: int
    """Answers to questions that say nothing."""
    answered: int
    """Answers to questions."""
    written: int
    """Self-edits that were to be written."""
    unscored: dict[str, int]
    """Self-edits without a score, by reason (`RewardFailure`)."""

    def on(self, documents: Sequence[str]) -> tuple[float | None, float | None, float | None]:
        """Return accuracy, probability of the gold answers and share of probes answered, each in [0, 1] or None.

        Args:
            documents: Those that count, each the same.
        """
        right = {name: known_mean(shares) for name, shares in self.documents.items()}
        accuracy, probability, probes = (
            known_mean(found[name] for name in documents if name in found)
            for found in (right, self.probability, self.probes)
        )
        return accuracy, probability, probes


def way_scores(variant: VariantRecord, digest: str, adapter_digest: str | None, written: int) -> WayScores:
    """Return the scores of a variant of a comparison as those of a way of adapting.

    Args:
        variant: With its candidates.
        digest: `Way.digest`.
        adapter_digest: Of the teacher's policy; None for a base as it is.
        written: Self-edits that were to be written.
    """
    scored: dict[str, list[ReplicateRecord]] = {}
    for candidate in variant.candidates:
        if candidate.reward is not None:
            scored.setdefault(candidate.edit.document_id, []).extend(candidate.replicates)
    documents, probability, probes = {}, {}, {}
    for name, updates in scored.items():
        documents[name] = tuple(sum(right) / len(updates) for right in zip(*(u.exact for u in updates), strict=True))
        probability[name] = sum(sum(u.probability) / len(u.probability) for u in updates) / len(updates)
        if updates[0].retained:
            probes[name] = sum(sum(u.retained) / len(u.retained) for u in updates) / len(updates)
    every = [update for updates in scored.values() for update in updates]
    return WayScores(
        digest=digest,
        adapter_digest=adapter_digest,
        documents=documents,
        probability=probability,
        probes=probes,
        empty=sum(update.empty for update in every),
        answered=sum(len(update.exact) for update in every),
        written=written,
        unscored=_unscored(variant.candidates, written),
    )


def _unscored(candidates: Sequence[CandidateRecord], written: int) -> dict[str, int]:
    """Return how many self-edits have no score, by reason; those of documents without any were not sampled."""
    reasons = Counter(c.reason.value for c in candidates if c.reason is not None)
    reasons[RewardFailure.PROMPT_TOO_LONG.value] += written - len(candidates)
    return dict(sorted((+reasons).items()))


def paired_ways(content: SuiteContent, candidate: WayScores, baseline: WayScores) -> Compared:
    """Return the scores of two ways of adapting on the same suite, side by side.

    The document is the unit, for the probes too: they are the same few after every update, and what differs from one
    time to the next is what was written and learned. A document that one side has no score for has no pair.

    Args:
        content: Of the suite.
        candidate: To test.
        baseline: To compare it with.
    """
    names = [task.id for task in content.tasks]
    shared = [name for name in names if name in candidate.documents and name in baseline.documents]
    documents = [
        PairedScore(document=name, candidate=mine, reference=theirs)
        for name in shared
        for mine, theirs in zip(candidate.documents[name], baseline.documents[name], strict=True)
    ]
    probes = [
        PairedScore(document=name, candidate=candidate.probes[name], reference=baseline.probes[name])
        for name in shared
        if name in candidate.probes and name in baseline.probes
    ]
    unscored = Unscored(
        edits=(sum(candidate.unscored.values()), sum(baseline.unscored.values())),
        written=candidate.written,
        left_out=tuple(name for name in names if name not in shared),
        documents=len(names),
    )
    collapsed, answered = (candidate.empty, baseline.empty), (candidate.answered, baseline.answered)
    return Compared(tuple(documents), tuple(probes), collapsed, answered, unscored)
