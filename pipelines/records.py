"""Results of the loop's tasks and rounds: frozen, JSON-serialisable, stored by content hash as they are returned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.statistics import known_mean
from student.updates import BankUsage
from teacher.algorithms.algorithm import LearningReport
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit

RECORDS_VERSION = 5
"""Part of every content key; raised when the meaning of a record changes."""


class Record(Frozen):
    """A frozen record without unknown fields."""


class Edit(Record):
    """A self-edit as sampled and as parsed."""

    document_id: str
    index: int
    """Place among the samples of its document and prompt."""
    text: str
    token_ids: tuple[int, ...]
    """Every sampled token, the end token included; empty where no teacher wrote it, or the engine returns text only."""
    completion_tokens: int | None = None
    """Tokens sampled, as counted by an engine that returns text only."""
    finish_reason: Literal["stop", "length"]
    edit: SelfEdit | None
    """None when the text holds no self-edit."""
    rejection: str = ""
    """Why not, typed by the parser or the engine; empty when there is an edit."""
    failure: RewardFailure | None = None
    """Why nothing was scored, when there is no edit."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Lines that the parser dropped, by reason."""

    @classmethod
    def written(cls, document_id: str, edit: SelfEdit, text: str, *, index: int = 0, tokens: int | None = None) -> Edit:
        """Return a self-edit that was not sampled, such as a control or the raw passage."""
        return cls(
            document_id=document_id,
            index=index,
            text=text,
            token_ids=(),
            completion_tokens=tokens,
            finish_reason="stop",
            edit=edit,
        )

    @property
    def id(self) -> str:
        """Document and index."""
        return f"{self.document_id}#{self.index}"

    @property
    def tokens(self) -> int:
        """Tokens that a teacher wrote; 0 for edits that none did."""
        return len(self.token_ids) if self.completion_tokens is None else self.completion_tokens


def raw_passage(document_id: str, text: str) -> Edit:
    """Return the passage itself as a self-edit of one line."""
    return Edit.written(document_id, SelfEdit(implications=(Implication(text=text),)), text)


def edits_by_document(edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    """Return self-edits by document id, in the order given."""
    found: dict[str, list[Edit]] = {}
    for edit in edits:
        found.setdefault(edit.document_id, []).append(edit)
    return found


class Sampling(Record):
    """What a teacher wrote for some documents."""

    edits: tuple[Edit, ...]
    """Ordered by document, then by index."""
    too_long: dict[str, str] = Field(default_factory=dict)
    """Documents that do not fit the teacher's context, with the lengths."""
    seconds: float = 0.0


class ScoredUpdate(Record):
    """One update of the student with one self-edit and one seed, and the student's scores after it."""

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
    """Per retention probe: answered right; empty where none was asked."""
    forgetting: float | None = None
    """Share of the probes that the base answers, less that of this student, in [-1, 1]; None where none was asked."""
    exact: tuple[bool, ...] = ()
    """Per question: greedy decoding writes the gold answer."""
    probability: tuple[float, ...] = ()
    """Per question: probability of the gold answer, in [0, 1]."""
    token_probability: tuple[float, ...] = ()
    """Per question: geometric mean of the probabilities of the gold answer's tokens, in [0, 1]."""
    answers: tuple[str, ...] = ()
    """Per question: the student's text; empty where exact match needs none."""
    correct: tuple[bool | None, ...] = ()
    """Per question: the grader's verdict on that text, None where it gave none; empty where exact match decides."""
    cells: tuple[float, ...] = ()
    """Per question: the domain's partial credit, in [0, 1]; empty where it has none."""
    ungraded: dict[str, int] = Field(default_factory=dict)
    """Answers without a verdict, by reason."""
    empty: int = 0
    """Questions with an empty answer; many of them mean that the student has collapsed."""
    steps: int = 0
    tokens: int = 0
    """Training tokens computed, without padding, over all steps."""
    padded_tokens: int = 0
    slots: int = 0
    """Most adapters trained at once in its bank."""
    peak_bytes: int | None = None
    """Most by which memory grew while its bank trained, in bytes; None where it cannot be measured."""
    seconds: float = 0.0
    """Its share of the time that its bank took."""
    first_loss: float | None = None
    last_loss: float | None = None

    @property
    def edit_id(self) -> str:
        """`Edit.id` of the self-edit."""
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
        """Return the score of each question by a metric of rewards: `accuracy` or one of the two probabilities."""
        scores = {"probability": self.probability, "token_probability": self.token_probability}
        return scores[metric] if metric in scores else tuple(map(float, self.exact))


def by_edit(updates: Iterable[ScoredUpdate]) -> dict[str, tuple[ScoredUpdate, ...]]:
    """Return updates by `Edit.id`, each self-edit's in the order given."""
    found: dict[str, tuple[ScoredUpdate, ...]] = {}
    for update in updates:
        found[update.edit_id] = (*found.get(update.edit_id, ()), update)
    return found


class Updates(Record):
    """Updates of students with their scores."""

    replicates: tuple[ScoredUpdate, ...]
    """In the order asked for."""

    @property
    def seconds(self) -> float:
        """Time that they took when they were computed, in seconds."""
        return sum(update.seconds for update in self.replicates)


def usage_of(updates: Iterable[ScoredUpdate]) -> BankUsage:
    """Return what training some students took."""
    known = tuple(updates)
    return BankUsage(
        slots=max((update.slots for update in known), default=0),
        tokens=sum(update.tokens for update in known),
        places=sum(update.padded_tokens for update in known),
        peak_bytes=max((update.peak_bytes for update in known if update.peak_bytes is not None), default=None),
    )


class InContext(Record):
    """Self-edits in the context of a student that is not updated."""

    probabilities: tuple[tuple[float, ...] | None, ...]
    """By question the probability of the gold answer, in [0, 1], in the order asked for; None where it could not be
    scored."""
    seconds: float


class Candidate(Record):
    """A self-edit with its updates, scores and reward."""

    edit: Edit
    facts: dict[str, float] = Field(default_factory=dict)
    """Measures of the text: coverage, leakage, repetition ... (`teacher.filters.EditFacts`)."""
    proxy: float | None = None
    """Mean gold-answer probability with the self-edit in context, in [0, 1]; None where it was not asked for."""
    proxy_probability: tuple[float, ...] = ()
    """The same by question."""
    replicates: tuple[ScoredUpdate, ...] = ()
    reward: float | None = None
    """None when there is none, with a reason."""
    reason: RewardFailure | None = None
    base_reward: float | None = None
    """The student's reward on the same questions without an update."""
    weight: float | None = None
    """Its weight in the teacher's learning step; None when it was not learned from."""


def by_document(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Return the candidates by document id, in the order given."""
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(candidate.edit.document_id, []).append(candidate)
    return found


class Learning(LearningReport):
    """A step of the teacher, and the state that it led to."""

    policy: str
    """Name of the new state's directory in the work directory."""
    policy_digest: str
    seconds: float


class DevelopmentCheck(Record):
    """The teacher's reward on the development documents, and the decision that follows."""

    mean: float
    """Mean reward."""
    best: float
    """Of the best teacher so far, this one included."""
    decision: Literal["best", "continue", "back to the best", "stop"]


class Round(Record):
    """A round of the loop."""

    round: int
    """Counted from 0."""
    document_ids: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    """Documents that nothing was learned from, with the reason."""
    mean_reward: float | None
    """Mean over the candidates that have a reward; None when none has."""
    base_reward: float | None
    """Mean reward of the student without an update on the round's documents."""
    learning: Learning
    seconds: dict[str, float]
    """By stage: sample, update, learn."""
    inner_runs: int = 0
    """Updates of students."""
    development: DevelopmentCheck | None = None
    """None where the teacher was not checked after this round."""
    notes: dict[str, float] = Field(default_factory=dict)
    """Further figures about the edits, such as the share of each kind of line where the world knows it."""


def mean_proxy(found: tuple[float, ...] | None) -> float | None:
    """Return the proxy reward of one self-edit from its questions' probabilities."""
    return known_mean(found) if found else None
