"""What units of work and rounds give back: plain JSON records under content keys, so that a resumed run reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation import statistics
from teacher.rewards import RewardFailure
from teacher.self_edit import SelfEdit

RECORDS_VERSION = 4
"""Part of every content key; raised when the meaning of a record changes."""


class Record(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Record):
    """A mean with its interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, found: statistics.Interval) -> Interval:
        """Return a statistic's interval as a record."""
        return cls(mean=found.mean, low=found.low, high=found.high)


class EditRecord(Record):
    """A self-edit as sampled and as parsed."""

    document_id: str
    index: int
    """Place among the samples of its document and prompt."""
    text: str
    token_ids: tuple[int, ...]
    """Every sampled token, the one that ended it included; empty for edits that no teacher wrote, and where an engine
    tells text alone."""
    completion_tokens: int | None = None
    """Tokens sampled as such an engine counts them."""
    finish_reason: Literal["stop", "length"]
    edit: SelfEdit | None
    """None when the text holds no self-edit."""
    rejection: str = ""
    """Why not, typed by the parser or the engine; empty when there is an edit."""
    failure: RewardFailure | None = None
    """Why nothing was scored, when there is no edit."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Lines that the parser dropped, by reason."""
    flags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Document and index."""
        return f"{self.document_id}#{self.index}"

    @property
    def tokens(self) -> int:
        """Tokens that a teacher wrote; 0 for edits that none did."""
        return len(self.token_ids) if self.completion_tokens is None else self.completion_tokens


def edits_by_document(edits: Iterable[EditRecord]) -> dict[str, list[EditRecord]]:
    """Return self-edits by document id, in the order given."""
    found: dict[str, list[EditRecord]] = {}
    for edit in edits:
        found.setdefault(edit.document_id, []).append(edit)
    return found


class SamplingRecord(Record):
    """What a teacher wrote for some documents."""

    edits: tuple[EditRecord, ...]
    """Ordered by document, then by index."""
    too_long: dict[str, str] = Field(default_factory=dict)
    """Documents that do not fit the teacher's context, with what was got and allowed."""
    seconds: float


class ReplicateRecord(Record):
    """One update of the student with one self-edit and one seed, and its scores."""

    document_id: str
    index: int
    """Of the self-edit among those of its document."""
    seed: int
    failure: RewardFailure | None = None
    """Why there are no scores."""
    detail: str = ""
    """What failed, or what was left out of a success."""
    adapter_digest: str | None = None
    retained: tuple[bool, ...] = ()
    """Per retention probe: answered as before; empty where none was asked."""
    forgetting: float | None = None
    """Share of the probes that the base answers, less that of this student, in [-1, 1]; None where none was asked."""
    exact: tuple[bool, ...] = ()
    """Per question: greedy decoding writes the gold answer."""
    probability: tuple[float, ...] = ()
    """Per question: probability of the gold answer, in [0, 1]."""
    token_probability: tuple[float, ...] = ()
    """Per question: geometric mean of the probabilities of the gold answer's tokens, in [0, 1]."""
    answers: tuple[str, ...] = ()
    """Per question: what the student wrote; none where exact match decides and no text is written."""
    correct: tuple[bool | None, ...] = ()
    """Per question: the grader's verdict on that text, None where it gave none; empty where exact match decides."""
    cells: tuple[float, ...] = ()
    """Per question: share of a grid's cells that the answer has right, in [0, 1]; empty where no grids are voted on."""
    ungraded: dict[str, int] = Field(default_factory=dict)
    """Answers without a verdict, by reason."""
    empty: int = 0
    """Questions to which the student says nothing; many of them mean that it has collapsed."""
    steps: int = 0
    tokens: int = 0
    """Training tokens computed, without padding, over all steps."""
    padded_tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None

    @property
    def edit_id(self) -> str:
        """`EditRecord.id` of the self-edit."""
        return f"{self.document_id}#{self.index}"

    @property
    def verdicts(self) -> tuple[bool | None, ...]:
        """Per question: the answer is right by the grader of the run; None where there is no verdict."""
        return self.correct if self.answers else self.exact

    @property
    def accuracy(self) -> float | None:
        """Share of the questions with a verdict that are answered right, in [0, 1]; None after a failure."""
        known = [verdict for verdict in self.verdicts if verdict is not None]
        return sum(known) / len(known) if known and self.failure is None else None

    @property
    def mean_probability(self) -> float | None:
        """Mean probability of the gold answers, in [0, 1]; None after a failure."""
        return self._mean(self.probability)

    @property
    def mean_token_probability(self) -> float | None:
        """Mean of `token_probability`, in [0, 1]; None after a failure."""
        return self._mean(self.token_probability)

    def _mean(self, values: tuple[float, ...]) -> float | None:
        return sum(values) / len(values) if values and self.failure is None else None

    def by_question(self, metric: str) -> tuple[float, ...]:
        """Return the score of each question by a metric of rewards: `accuracy` and the two probabilities."""
        scores = {"probability": self.probability, "token_probability": self.token_probability}
        return scores[metric] if metric in scores else tuple(map(float, self.exact))


def replicates_by_edit(replicates: Iterable[ReplicateRecord]) -> dict[str, tuple[ReplicateRecord, ...]]:
    """Return updates by `EditRecord.id`, each self-edit's in the order given."""
    found: dict[str, tuple[ReplicateRecord, ...]] = {}
    for replicate in replicates:
        found[replicate.edit_id] = (*found.get(replicate.edit_id, ()), replicate)
    return found


class UsageRecord(Record):
    """What training students in banks took."""

    slots: int = 0
    """Most adapters trained at once."""
    tokens: int = 0
    """Training tokens computed, without padding, over all steps."""
    places: int = 0
    """Token places computed, padding included."""
    peak_bytes: int | None = None
    """Most by which memory grew, in bytes; None where it cannot be measured."""

    @property
    def padding_share(self) -> float | None:
        """Share of the places that were padding, in [0, 1); None when nothing was trained."""
        return 1.0 - self.tokens / self.places if self.places else None

    @classmethod
    def merged(cls, parts: Iterable[UsageRecord]) -> UsageRecord:
        """Return what several banks took, one after another."""
        usages = tuple(parts)
        return cls(
            slots=max((usage.slots for usage in usages), default=0),
            tokens=sum(usage.tokens for usage in usages),
            places=sum(usage.places for usage in usages),
            peak_bytes=max((usage.peak_bytes for usage in usages if usage.peak_bytes is not None), default=None),
        )


class SpentRecord(Record):
    """What was spent at an endpoint, killed runs included."""

    calls: int
    failures: int
    """Calls that brought no reply."""
    tokens: int
    """Prompts and completions; an upper bound where a server did not tell."""
    cost: float | None
    """In `currency`; None without prices."""
    currency: str


class BankRecord(Record):
    """Some candidates, trained and scored in one piece."""

    replicates: tuple[ReplicateRecord, ...]
    """In the order asked for."""
    seconds: float
    usage: UsageRecord = UsageRecord()


class ProxyRecord(Record):
    """Self-edits in the student's context, which is not updated."""

    probabilities: tuple[tuple[float, ...] | None, ...]
    """By question the probability of the gold answer, in [0, 1], in the order asked for; None where it could not be
    scored."""
    seconds: float

    @property
    def means(self) -> tuple[float | None, ...]:
        """The proxy rewards."""
        return tuple(statistics.known_mean(found) if found else None for found in self.probabilities)


class CandidateRecord(Record):
    """A self-edit with everything that came of it."""

    edit: EditRecord
    facts: dict[str, float] = Field(default_factory=dict)
    """What can be told without an update: coverage, leakage, repetition ... (`teacher.gates.EditFacts`)."""
    proxy: float | None = None
    """Mean gold-answer probability with the self-edit in context, in [0, 1]; None where it was not asked for."""
    proxy_probability: tuple[float, ...] = ()
    """The same by question."""
    predicted: float | None = None
    """The cheap score that screening used."""
    audited: bool = False
    """It was to be skipped, and was updated as a check of the cheap score."""
    replicates: tuple[ReplicateRecord, ...] = ()
    reward: float | None = None
    """None when there is none, with a reason."""
    reason: RewardFailure | None = None
    standard_error: float | None = None
    """Of what was learned from, by the measured noise of one update or else by its own spread; None where unknown."""
    learned_reward: float | None = None
    """What the teacher learned from: the reward, shrunk where the run does so."""
    base_reward: float | None = None
    """The student's reward on the same questions without an update."""
    weight: float | None = None
    """Its weight in the teacher's learning step; None when it was not learned from."""


class LearningRecord(Record):
    """A step of the teacher."""

    policy: str
    """Name of the new policy's directory in the work directory."""
    policy_digest: str
    examples: int
    tokens: int
    loss: float | None = None
    kl: float | None = None
    """From the base teacher, nats per token."""
    entropy: float | None = None
    """Nats per token."""
    clip_fraction: float | None = None
    gradient_norm: float | None = None
    seconds: float


class ReliabilityRecord(Record):
    """How much of the spread of rewards between the self-edits of a document is not noise (`teacher.rewards`)."""

    between_variance: float
    """Of true rewards."""
    within_variance: float
    """Of rewards between the seeds of one self-edit."""
    edits: int
    """Self-edits with at least two updates that it rests on."""
    of_one: float
    """Reliability of a reward from one update, in [0, 1]."""
    of_reward: float
    """Of the rewards that the teacher learned from, in [0, 1]: of the mean number of updates that they rest on."""
    runs: float
    """That mean number."""


class ScreeningRecord(Record):
    """What a cheap score left out in a round, and how well it told."""

    skipped: int
    audited: int
    """Candidates that were to be skipped and were updated all the same."""
    rank_correlation: float | None = None
    """Spearman's, within documents, of cheap scores and rewards where both are known, in [-1, 1]."""
    audited_gap: float | None = None
    """Mean reward of the others less that of the audited ones of the same documents; above 0 where the score tells."""


class DevelopmentRecord(Record):
    """A look at the teacher on the development documents."""

    mean: float
    """Mean reward."""
    best: float
    """Of the best teacher so far, this one included."""
    decision: Literal["best", "go on", "back to the best", "stop"]


class RoundRecord(Record):
    """A round of the loop."""

    round: int
    """Counted from 0."""
    document_ids: tuple[str, ...]
    candidates: tuple[CandidateRecord, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    """Documents that nothing was learned from, with the reason."""
    mean_reward: float | None
    """Mean over the candidates that have a reward; None when none has."""
    base_reward: float | None
    """Mean reward of the student without an update on the round's documents."""
    learning: LearningRecord
    seconds: dict[str, float]
    """By stage: sample, update, learn."""
    usage: UsageRecord = UsageRecord()
    """Of the round's updates."""
    inner_runs: int = 0
    """Updates of students."""
    reliability: ReliabilityRecord | None = None
    """Of rewards, as measured up to this round; None where no self-edit was updated twice."""
    screening: ScreeningRecord | None = None
    """None where nothing is screened."""
    development: DevelopmentRecord | None = None
    """None where the teacher was not looked at after this round."""
    notes: dict[str, float] = Field(default_factory=dict)
    """Further figures about the edits, such as the share of each kind of line where the world can tell."""
