"""Results of tasks, rounds and runs: frozen and JSON-serialisable; those of tasks are stored by content hash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeVar

from pydantic import Field

from evaluation.agreement import GraderAgreement
from evaluation.common.data import Frozen
from evaluation.engines.ledger import Spent
from evaluation.graders import JudgeNoise
from evaluation.statistics import Interval, PairedTest, known_mean
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
    text: str = ""
    token_ids: tuple[int, ...] = ()
    """Every sampled token, the end token included; empty where no teacher wrote it, or the engine returns text only."""
    completion_tokens: int | None = None
    """Tokens sampled, as counted by an engine that returns text only."""
    finish_reason: Literal["stop", "length"] = "stop"
    edit: SelfEdit | None = None
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
        return cls(document_id=document_id, index=index, text=text, completion_tokens=tokens, edit=edit)

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
    said: tuple[str, ...] = ()
    """Per question: what greedy decoding writes, up to its first token that is not the gold answer's; only of
    comparison questions without `answers`."""
    correct: tuple[bool | None, ...] = ()
    """Per question: the grader's verdict on that text, None where it gave none; empty where exact match decides."""
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
        return known_mean(self.verdicts) if self.failure is None else None

    @property
    def mean_probability(self) -> float | None:
        """Mean probability of the gold answers, in [0, 1]; None after a failure."""
        return known_mean(self.probability) if self.failure is None else None

    @property
    def mean_token_probability(self) -> float | None:
        """Mean of `token_probability`, in [0, 1]; None after a failure."""
        return known_mean(self.token_probability) if self.failure is None else None

    def by_question(self, metric: str) -> tuple[float, ...]:
        """Return the score of each question by a metric of rewards: `accuracy` or one of the two probabilities."""
        scores = {"probability": self.probability, "token_probability": self.token_probability}
        return scores[metric] if metric in scores else tuple(map(float, self.exact))


def usage_of(updates: Iterable[ScoredUpdate]) -> BankUsage:
    """Return what training some students took."""
    return BankUsage.merged(
        BankUsage(slots=u.slots, tokens=u.tokens, places=u.padded_tokens, peak_bytes=u.peak_bytes) for u in updates
    )


class Known(Record):
    """What the student answers without an update and without a passage."""

    exact: tuple[bool, ...]
    """Per question: greedy decoding writes the gold answer; False where it could not be asked."""


class Candidate(Record):
    """A self-edit with its updates, scores and reward."""

    edit: Edit
    facts: dict[str, float] = Field(default_factory=dict)
    """Measures of the text: coverage, leakage, repetition ... (`teacher.filters.EditFacts`)."""
    replicates: tuple[ScoredUpdate, ...] = ()
    reward: float | None = None
    """None when there is none, with a reason."""
    reason: RewardFailure | None = None
    base_reward: float | None = None
    """The student's reward on the same questions without an update."""
    weight: float | None = None
    """Its weight in the teacher's learning step; None when it was not learned from."""

    @property
    def document_id(self) -> str:
        """Of its self-edit."""
        return self.edit.document_id


_Item = TypeVar("_Item", Edit, Candidate)


def by_document(items: Iterable[_Item]) -> dict[str, list[_Item]]:
    """Return records by the id of their document, in the order given."""
    found: dict[str, list[_Item]] = {}
    for item in items:
        found.setdefault(item.document_id, []).append(item)
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


class WarmStart(Learning):
    """Supervised steps of the untrained teacher, before the first round, on lines to imitate."""

    loss_before: float
    """Mean of -log p over the tokens of the targets, in nats, of the untrained teacher."""
    loss_after: float
    """The same of the warm-started teacher."""
    document_ids: tuple[str, ...] = ()
    """Training documents whose lines were imitated."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Documents without a target, with the reason."""
    development: DevelopmentCheck | None = None
    """None where checkpoints are not selected."""


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


class Answered(Record):
    """A question that a student was asked after an update, and what it answered."""

    document: str
    """Its id."""
    edit: int
    """Index of the self-edit among those of its document."""
    question: str
    gold: str
    answer: str
    """The student's text; without a grader it ends with `...` at the first token that is not the gold answer's."""
    right: bool | None
    """None where the grader gave no verdict."""


class VariantScores(Record):
    """A way to adapt the student, scored on the comparison documents."""

    name: str
    """Such as `base`, `raw_passage`, `fixed_kind`, `fixed_spec`, `untrained_teacher` or `trained_teacher`."""
    label: str
    """For people, such as `best fixed kind (micro-self-qa)`."""
    candidates: tuple[Candidate, ...] = ()
    """For `base` none: its scores are in `accuracy` alone."""
    accuracy: dict[str, float]
    """Mean accuracy by document id, over its edits that have scores, in [0, 1]; failed documents are missing."""
    answers: tuple[Answered, ...] = ()
    """To all questions, after each update."""
    seconds: float = 0.0
    """What sampling, training and scoring took when they were done."""
    verdicts: dict[str, tuple[bool | None, ...]] = Field(default_factory=dict)
    """By document id, for its first self-edit: which questions are answered right."""
    unknown: dict[str, float] = Field(default_factory=dict)
    """Mean accuracy by document id on the questions that the base fails in every phrasing, where there are any."""
    token_probability: dict[str, float] = Field(default_factory=dict)
    """Mean gold probability per token (`ScoredUpdate.token_probability`) by document id, to four decimals."""
    grades: dict[str, tuple[bool | None, ...]] = Field(default_factory=dict)
    """By grader its verdicts on all texts of the students, in the same order; empty without such texts."""
    phrasings: dict[str, float] = Field(default_factory=dict)
    """Mean accuracy by question phrasing, where questions have one."""
    forgetting: dict[str, float] = Field(default_factory=dict)
    """Mean share of retention probes lost by document id, in [-1, 1]; empty where none was asked."""
    failures: dict[str, int] = Field(default_factory=dict)
    """Updates without scores, by reason."""
    edit_tokens: float | None = None
    """Mean tokens of an edit as the teacher wrote it; None where no teacher wrote one."""
    training_tokens: float | None = None
    """Mean training tokens of an update, without padding."""
    notes: dict[str, float] = Field(default_factory=dict)
    """Figures about its self-edits: lines, coverage, leakage, distinct n-grams ..."""


class UnknownComparison(Record):
    """The variants on the questions that the base student fails in every phrasing."""

    phrasings: int
    """Phrasings of a question at most, as it is included."""
    questions: int
    """Questions on the documents that every variant has a score on."""
    unknown: int
    """Of them those that the base fails in every phrasing."""
    documents: int
    """Documents with such questions, the basis of the figures."""
    variants: dict[str, Interval]
    """Accuracy by variant, in [0, 1]; 0 for the base."""
    gains: dict[str, Interval]
    """Paired differences, in [-1, 1]."""


class GraderComparison(Record):
    """Graders on the same answers of all variants."""

    configured: str
    """The one that accuracies come from."""
    accuracy: dict[str, dict[str, float]]
    """By grader and variant: share of the answers with a verdict that are right, in [0, 1]."""
    agreement: tuple[GraderAgreement, ...]
    """Of each pair of graders."""


class VariantComparison(Record):
    """The variants side by side."""

    documents: int
    """Documents on which every variant has a score; intervals and gains are over these."""
    variants: dict[str, Interval]
    """Accuracy by variant, in [0, 1]."""
    gains: dict[str, Interval]
    """Paired differences, such as `trained_minus_untrained`, in [-1, 1]."""
    confidence: float
    minimum_detectable: dict[str, float]
    """By gain: the smallest true difference that this many documents show with 80 % power."""
    tests: dict[str, PairedTest] = Field(default_factory=dict)
    """By gain."""
    forgetting: dict[str, Interval] = Field(default_factory=dict)
    """Share of retention probes lost by variant, in [-1, 1]."""
    token_probability: dict[str, Interval] = Field(default_factory=dict)
    """Gold probability per token by variant: the mean over questions of `ScoredUpdate.token_probability`."""
    unknown: UnknownComparison | None = None
    """None where the base fails no question in every phrasing, or was not asked so."""
    graders: GraderComparison | None = None
    """None without answers as texts, or where the domain grades them."""


class Transfer(Record):
    """The same self-edits on another student."""

    label: str
    model: str
    variants: dict[str, Interval]
    """Accuracy by variant, in [0, 1]."""
    gains: dict[str, Interval]
    kept: Interval | None = None
    """Trained less untrained on this student, as a share of the same difference on the rewarding student; None where
    that is not above 0."""
    document_accuracy: dict[str, dict[str, float]]
    """By variant and document id."""


class GroupAccuracy(Record):
    """The variants on the test tasks of one group, such as a family of rules."""

    tasks: int
    held_out: bool
    """No training task is of this group."""
    accuracy: dict[str, float]
    """Mean accuracy by variant, in [0, 1], over the tasks that it has scores on."""


class SpecSearch(Record):
    """Every specification of a space, tried on training tasks."""

    tasks: int
    fixed: str
    """The best one over all tasks, as JSON."""
    scores: dict[str, float | None]
    """By specification: mean accuracy, with a thousandth of the mean probability added; None where a task has none."""


class RunResult(VariantComparison):
    """The result for scripts (`--json`): the comparison, and what led to it."""

    rounds: tuple[dict[str, float | int | None], ...]
    """Per round: `mean_reward` and further figures."""
    warm_start: WarmStart | None = None
    """None where the first round began with the untrained teacher."""
    seconds: dict[str, float]
    """By stage, over the whole run."""
    mlflow_run_id: str
    config_digest: str
    code_digest: str
    """Of the project's source files."""
    seed: int
    document_accuracy: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy in [0, 1] by variant and document id; documents without a score are missing."""
    document_unknown: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy on the questions that the base fails in every phrasing, by variant and document id."""
    edit_tokens: dict[str, float] = Field(default_factory=dict)
    """Mean tokens of a self-edit by variant, where a teacher wrote it."""
    spent: dict[str, Spent] = Field(default_factory=dict)
    """What was spent at endpoints, by role: `teacher`, `external`, `judge`."""
    judge: JudgeNoise | None = None
    """None where no judge grades."""
    padding_share: float | None = None
    """Share of padding in the token places that training students took, over rounds and comparison, in [0, 1); None
    when no student was trained."""
    inner_runs: int = 0
    """Updates of students that the rewards of all rounds took."""
    document_forgetting: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Share of retention probes lost by variant and document id, in [-1, 1]."""
    transfer: Transfer | None = None
    specs: SpecSearch | None = None
    """None without a fixed specification among the variants."""
    groups: dict[str, GroupAccuracy] = Field(default_factory=dict)
    """By group of tasks, such as a family of rules, where the data has groups."""
    edit_notes: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Figures about the self-edits of each variant: lines, coverage, leakage, distinct n-grams ..."""
    phrasings: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy by variant and phrasing of the questions."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the figures: failures, scores near zero, a gain within noise."""
