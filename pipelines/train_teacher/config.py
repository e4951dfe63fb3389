"""The configuration of `train-teacher`: how long the teacher learns, and which variants are compared at the end."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError
from evaluation.domains import DataConfig, domain_of, load_split
from evaluation.statistics import IntervalConfig
from evaluation.tasks import Split
from pipelines.settings import LoopSettings, StudentModel
from pipelines.train_teacher.sources import (
    BASELINE_TEACHER,
    STANDARD,
    TRAINED_TEACHER,
    WARM_STARTED_TEACHER,
    ActiveReading,
    AskFirst,
    BestPrompt,
    Control,
    ExternalGenerator,
    FixedSpecification,
    Labelled,
    ListedVariant,
    MixedPrompts,
    Reading,
    Source,
    TeacherSource,
    Variant,
)
from pipelines.train_teacher.warm_start import WarmStartConfig
from student.config import UpdateRecipe
from teacher.samplers.openai import OpenAISampling


class DevelopmentConfig(Frozen):
    """Checkpoint selection and early stopping on the development documents.

    When the mean reward falls by more than 0.05 below the best one, learning continues from the best teacher; after
    three checks in a row without a better teacher it ends.
    """

    every: int = Field(default=3, ge=1, le=1000)
    """Rounds between two checks, in [1, 1000]; the last round is always followed by one."""
    edits: int = Field(default=2, ge=1, le=64)
    """Self-edits for each document, in [1, 64]; the same seeds at each check."""


class LoopConfig(Frozen):
    """How long the teacher learns, and on how much."""

    rounds: int = Field(default=10, ge=0, le=10_000)
    """Rounds of sampling, updating, scoring and learning, in [0, 10000]; 0 compares teachers without any."""
    documents: int = Field(default=8, ge=1, le=10_000)
    """Training documents of a round, in [1, 10000]; new ones each round until all have been used."""
    replicates: int = Field(default=1, ge=1, le=32)
    """Updates of the student for each self-edit, with other seeds, in [1, 32]; their scores are averaged."""
    remember: bool = False
    """Updates have the same seeds in all rounds, so that a self-edit that occurs again keeps its scores: for small
    spaces of self-edits, such as specifications, on few documents."""
    development: DevelopmentConfig | None = None
    """None: the teacher of the last round is the trained one. With it, a warm-started teacher competes, too."""


class TransferConfig(StudentModel, Labelled):
    """Another student that the same self-edits are tried on; no teacher is trained on it."""

    label: str = Field(default="another student", min_length=1, max_length=60)
    update: UpdateRecipe | None = None
    """Its recipe; None takes that of the student that rewards come from."""


class ComparisonConfig(IntervalConfig):
    """How the variants are compared at the end, on documents that no training saw."""

    variants: tuple[ListedVariant, ...] = tuple(
        STANDARD[name] for name in ("base", "raw_passage", BASELINE_TEACHER, WARM_STARTED_TEACHER, TRAINED_TEACHER)
    )
    """The variants, in the order of tables: names of `STANDARD`, or a name, a label and a source."""
    edits: int = Field(default=1, ge=1, le=64)
    """Self-edits sampled for each document and variant, in [1, 64]; each is one update with a seed of its own."""
    redraws: int = Field(default=0, ge=0, le=16)
    """Further self-edits, in [0, 16], that may replace a document's refused ones (no self-edit in the text, over a
    budget); the refused ones are counted."""
    drafts: int = Field(default=1, ge=1, le=256)
    """Self-edits that a teacher writes for each document, in [1, 256], of which the most frequent ones are tried
    (self-consistency, arXiv 2203.11171); for specifications, of which the same one recurs. 1 tries the first ones."""
    keep_adapters: int = Field(default=4, ge=0, le=10_000)
    """Adapters of the last teacher's variant that are kept as artifacts, in [0, 10000]."""
    retention_probes: int = Field(default=24, ge=0, le=10_000)
    """Questions on what the student knew before, in [0, 10000], where the data has such; 0 asks none."""
    transfer: TransferConfig | None = None
    """None tries no other student."""

    @property
    def tried(self) -> int:
        """Self-edits of a document that are tried at most, replacements of refused ones included."""
        return self.edits + self.redraws

    @property
    def drawn(self) -> int:
        """Self-edits that a teacher writes for a document."""
        return max(self.drafts, self.tried)

    @model_validator(mode="after")
    def _distinct(self) -> ComparisonConfig:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"variants: {twice} are listed twice; give each variant a name of its own")
        chosen = False
        for place, variant in enumerate(self.variants):
            if variant.equal_tokens and TRAINED_TEACHER not in names[:place]:
                raise ValueError(f"variants: {variant.name} has equal_tokens, which needs {TRAINED_TEACHER} before it")
            if not isinstance(variant.source, BestPrompt):
                continue
            if not (variant.source.prompts or chosen):
                raise ValueError(
                    f"variants: {variant.name} takes the prompt that another one chose; list a variant whose source is "
                    "best_prompt, with prompts, before it"
                )
            chosen = True
        return self


class TrainTeacherConfig(LoopSettings):
    """Everything about one run of `train-teacher`."""

    command: ClassVar[str] = "train-teacher"
    data: DataConfig
    warm_start: WarmStartConfig | None = None
    """None: the first round begins with the untrained teacher."""
    loop: LoopConfig = LoopConfig()
    comparison: ComparisonConfig = ComparisonConfig()

    def sources(self, kind: type[Source]) -> list[Any]:
        """Return the sources of one kind among the variants."""
        return [v.source for v in self.comparison.variants if isinstance(v.source, kind)]

    @property
    def listed(self) -> list[Variant]:
        """The variants of the run, without those of a teacher that it does not have.

        Beside a warm start, which trains, too, the standard label of the trained teacher says by what it was trained.
        """

        def is_possible(variant: Variant) -> bool:
            source = variant.source
            if isinstance(source, TeacherSource) and source.state == "warm_started" and self.warm_start is None:
                return False
            trained = isinstance(source, TeacherSource) and source.state == "trained"
            return bool(self.loop.rounds) or not (trained or variant.equal_tokens or isinstance(source, Control))

        standard = STANDARD[TRAINED_TEACHER]
        trained = standard.model_copy(update={"label": "RL-trained teacher"}) if self.warm_start else standard
        return [trained if v == standard else v for v in self.comparison.variants if is_possible(v)]

    @property
    def last_state(self) -> str:
        """`TeacherSource.state` of the teacher that the run ends with."""
        return "trained" if self.loop.rounds else "untrained" if self.warm_start is None else "warm_started"

    @property
    def external_sampling(self) -> OpenAISampling | None:
        """How the external generator is sampled; None where there is none."""
        return next((source.sampling for source in self.sources(ExternalGenerator)), None)

    def load_documents(self) -> Split:
        """Return the documents of the run.

        Raises:
            InputError: The source was refused.
            ConfigError: A round, or the warm start, takes more documents than there are to learn from.
        """
        split = load_split(self.data)
        if self.warm_start is not None:
            self.warm_start.targets(split)
        wanted, there = self.loop.documents, len(split.train)
        if self.loop.rounds and wanted > there:
            raise ConfigError(
                f"loop.documents: got {wanted}, but there are only {there} training documents. Lower it, or give more "
                "documents."
            )
        return split

    def read_data(self) -> object:
        """See `load_documents`."""
        return self.load_documents()

    @model_validator(mode="after")
    def _consistent(self) -> TrainTeacherConfig:
        rounds, samples, learning = self.loop.rounds, self.teacher.samples, self.teacher.learning
        if isinstance(self.teacher.sampling, OpenAISampling) and rounds:
            raise ValueError(f"loop.rounds: a teacher behind an endpoint does not learn, got {rounds}, allowed is 0")
        self._check_warm_start()
        if rounds and samples < learning.min_samples:
            raise ValueError(
                f"teacher.samples: {learning.algorithm} compares the samples of a document, got {samples}, allowed is "
                f"at least {learning.min_samples}"
            )
        if self.sources(BestPrompt) and not self.data.development_documents:
            raise ValueError(
                "data.development_documents: the best prompt is chosen on development documents, got 0, allowed is at "
                "least 1 (or leave best_prompt out of comparison.variants)"
            )
        baselines: set[str] = {control.kind for control in self.sources(Control)}
        baselines |= {"equal_tokens" for variant in self.comparison.variants if variant.equal_tokens}
        baselines |= {s.type for kind in (MixedPrompts, ActiveReading, AskFirst) for s in self.sources(kind)}
        baselines |= {"specs" for _ in self.sources(FixedSpecification)}
        baselines |= {v.source.type for v in self.comparison.variants if isinstance(v.source, Reading)}
        objectives = {self.student.update.objective, *(v.objective for v in self.comparison.variants)}
        baselines |= {"context_distillation"} & objectives
        grader = None if self.grading is None else self.grading.grader.type
        domain_of(self.data).check(self.data, grader, baselines)
        return self

    def _check_warm_start(self) -> None:
        if self.warm_start is None:
            return
        if isinstance(self.teacher.sampling, OpenAISampling):
            raise ValueError("warm_start: a teacher behind an endpoint does not learn; leave the section out")
        if domain_of(self.data).spec_alone:
            raise ValueError(
                f"warm_start: imitates lines, and teachers of {domain_of(self.data).name} write specifications; leave "
                "the section out"
            )
