"""Results of `train-teacher`: variants side by side, differences, curves, transfer, and all of it for scripts."""

from __future__ import annotations

from pydantic import Field

from evaluation.engines.ledger import Spent
from evaluation.graders import JudgeNoise
from evaluation.statistics import Interval, PairedTest
from pipelines.records import Candidate, Record
from student.updates import BankUsage


class VariantScores(Record):
    """A way to adapt the student, scored on the comparison documents."""

    name: str
    """Such as `base`, `raw_passage`, `fixed_kind`, `fixed_spec`, `untrained_teacher` or `trained_teacher`."""
    label: str
    """For people, such as `best fixed kind (micro-self-qa)`."""
    candidates: tuple[Candidate, ...]
    """For `base` none: its scores are in `accuracy` alone."""
    accuracy: dict[str, float]
    """Mean accuracy by document id, over its edits that have scores, in [0, 1]; failed documents are missing."""
    verdicts: dict[str, tuple[bool | None, ...]] = Field(default_factory=dict)
    """By document id, for its first self-edit: which questions are answered right."""
    phrasings: dict[str, float] = Field(default_factory=dict)
    """Mean accuracy by question phrasing, where questions have one."""
    forgetting: dict[str, float] = Field(default_factory=dict)
    """Mean share of retention probes lost by document id, in [-1, 1]; empty where none was asked."""
    cells: float | None = None
    """Mean of the domain's partial credit, such as the share of right cells, in [0, 1]; None where it has none."""
    failures: dict[str, int] = Field(default_factory=dict)
    """Updates without scores, by reason."""
    edit_tokens: float | None = None
    """Mean tokens of an edit as the teacher wrote it; None where no teacher wrote one."""
    training_tokens: float | None = None
    """Mean training tokens of an update, without padding."""
    usage: BankUsage = BankUsage()
    """Of all its updates."""
    notes: dict[str, float] = Field(default_factory=dict)


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


class CurvePoint(Record):
    """Accuracy at one length of self-edits."""

    budget: int
    """Tokens allowed."""
    tokens: float
    """Mean tokens taken."""
    accuracy: Interval
    document_accuracy: dict[str, float] = Field(default_factory=dict)
    """By document id."""


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


class SpecOracle(Record):
    """The best specification of each of some test tasks, chosen by the tests that rewards come from."""

    tasks: int
    oracle: Interval
    """Its accuracy on the comparison's tests, in [0, 1]."""
    variants: dict[str, Interval]
    """That of each variant on the same tasks."""
    share: Interval | None
    """The trained teacher's accuracy as a share of the oracle's; None where there is no trained teacher."""
    regret: Interval | None
    """The oracle's accuracy less the trained teacher's, in [-1, 1]; None where there is no trained teacher."""
    chosen: dict[str, str] = Field(default_factory=dict)
    """By task id, the specification as JSON."""


class SpecSearch(Record):
    """Every specification of a space, tried on training tasks."""

    tasks: int
    fixed: str
    """The best one over all tasks, as JSON."""
    scores: dict[str, float | None]
    """By specification: mean accuracy, with a thousandth of the mean probability added; None where a task has none."""
    oracle: SpecOracle | None = None
    """None where the run wants none."""


class RunResult(Record):
    """The result for scripts (`--json`)."""

    variants: dict[str, Interval]
    gains: dict[str, Interval]
    rounds: tuple[dict[str, float | int | None], ...]
    """Per round: `mean_reward` and further figures."""
    seconds: dict[str, float]
    """By stage, over the whole run."""
    documents: int
    mlflow_run_id: str
    config_digest: str
    code_digest: str
    """Of the project's source files."""
    seed: int
    document_accuracy: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Accuracy in [0, 1] by variant and document id; documents without a score are missing."""
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
    forgetting: dict[str, Interval] = Field(default_factory=dict)
    """Share of retention probes lost by variant, in [-1, 1]."""
    document_forgetting: dict[str, dict[str, float]] = Field(default_factory=dict)
    """The same by variant and document id."""
    tests: dict[str, PairedTest] = Field(default_factory=dict)
    """By gain."""
    minimum_detectable: dict[str, float] = Field(default_factory=dict)
    """By gain: the smallest true difference that so many documents show with 80 % power."""
    curve: dict[str, tuple[CurvePoint, ...]] = Field(default_factory=dict)
    """Accuracy against tokens, by variant."""
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
