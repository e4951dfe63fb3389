"""The configuration of a run: one YAML file, validated as a whole before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evaluation.answers import AnswerFormat
from evaluation.data_config import DataConfig, GridData
from evaluation.digests import digest_json
from evaluation.engines.vllm_options import VllmOptions
from evaluation.errors import ConfigError
from evaluation.grader_config import GraderConfig, GridVotesGrading
from pipelines.serving.options import ServingOptions
from student.config import UpdateRecipe
from teacher.config import OpenAISampling, PromptName, TeacherConfig
from teacher.prompts import PROMPTS
from teacher.spec_space import SpecSpace

QuestionSet = Literal["rewards", "comparison"]
"""Which questions a student is asked: those that rewards use, or the held-out phrasings."""


_Kind = TypeVar("_Kind", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudentConfig(_Frozen):
    """The student: a frozen base and the recipe by which self-edits are taken into LoRA adapters on it."""

    model: str = Field(min_length=1)
    """Directory, hub name, or `micro-student` for the one that ships with the package."""
    update: UpdateRecipe = UpdateRecipe()
    answer_format: AnswerFormat = AnswerFormat()
    unit_updates: int = Field(default=64, ge=1, le=4096)
    """Updates in one unit of work, done whole or not at all, in [1, 4096]."""
    bank_slots: int = Field(default=32, ge=1, le=1024)
    """Adapters trained at once at most, memory permitting, in [1, 1024]."""
    bank_memory_gb: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Memory for slots and activations, the model left out, in GB (10^9 bytes); None is a share of what is free."""

    @property
    def bank_memory_bytes(self) -> int | None:
        """`bank_memory_gb` in bytes."""
        return None if self.bank_memory_gb is None else int(self.bank_memory_gb * 1e9)


class HalvingStage(_Frozen):
    """One stage of successive halving: the best so far of each document are updated again."""

    keep: int = Field(ge=1, le=1024)
    """Self-edits of a document that go on, in [1, 1024]; no more than in the stage before."""
    replicates: int = Field(default=1, ge=1, le=32)
    """Further updates for each of them, with other seeds, in [1, 32]."""


class PilotConfig(_Frozen):
    """How the reliability of rewards is measured before any learning: training documents, the untrained teacher."""

    documents: int = Field(default=8, ge=1, le=1000)
    """In [1, 1000]."""
    samples: int = Field(default=5, ge=2, le=1024)
    """Self-edits of each document, in [2, 1024]."""
    replicates: int = Field(default=3, ge=2, le=32)
    """Updates for each self-edit, in [2, 32]."""


class DevelopmentConfig(_Frozen):
    """When learning is looked at on the development documents, and when it is undone or ends."""

    every: int = Field(default=3, ge=1, le=1000)
    """Rounds between two looks, in [1, 1000]; the last round is always followed by one."""
    edits: int = Field(default=2, ge=1, le=64)
    """Self-edits for each document, in [1, 64]; the same seeds at each look."""
    patience: int = Field(default=2, ge=1, le=1000)
    """Looks in a row without a better teacher after which learning ends, in [1, 1000]."""
    fall: float = Field(default=0.05, ge=0.0, le=1.0)
    """When the mean reward is below the best one by more than this, in [0, 1], learning goes on from the best teacher
    instead: the rounds since then are undone."""


class LoopConfig(_Frozen):
    """How long the teacher learns, and on how much."""

    rounds: int = Field(default=10, ge=0, le=10_000)
    """Rounds of sampling, updating, scoring and learning, in [0, 10000]; 0 compares the untrained teacher only."""
    documents: int = Field(default=8, ge=1, le=10_000)
    """Training documents of a round, in [1, 10000]; new ones each round until all have been used."""
    replicates: int = Field(default=1, ge=1, le=32)
    """Updates of the student for each self-edit, with other seeds, in [1, 32]; their scores are averaged."""
    halving: tuple[HalvingStage, ...] = ()
    """Successive halving after these: each stage updates the best so far of each document again. Empty: no stage."""
    repeated_documents: int = Field(default=0, ge=0, le=10_000)
    """Documents of a round, the first ones, whose self-edits are all updated once more, in [0, 10000]: for the estimate
    of the rewards' reliability each round."""
    common_random_numbers: bool = True
    """All self-edits of a document start from the same adapter and order of lines, so that they differ by what they
    say alone; other seeds in each round and in the comparison. False: each self-edit has seeds of its own."""
    remember: bool = False
    """A self-edit that was updated in an earlier round keeps its scores and is not updated again: for small spaces of
    self-edits, such as specifications, on few documents. Not beside halving or repeats, which want new seeds."""
    pilot: PilotConfig | None = None
    """None measures no reliability before learning."""
    development: DevelopmentConfig | None = None
    """None: the teacher of the last round is the trained one."""

    @model_validator(mode="after")
    def _one_score_each(self) -> LoopConfig:
        if self.remember and (self.halving or self.repeated_documents or not self.common_random_numbers):
            raise ValueError(
                "remember: scores are kept over rounds, which goes with common_random_numbers and without halving and "
                "repeated_documents"
            )
        return self

    def updates_per_document(self, samples: int) -> int:
        """Return the updates of students that one document takes in a round, repeats left out."""
        return samples * self.replicates + sum(stage.keep * stage.replicates for stage in self.halving)


class ExternalGenerator(_Frozen):
    """A model that others run, which writes self-edits to compare the trained teacher's with; it is never trained."""

    sampling: OpenAISampling
    prompt: PromptName = "implications"
    """Name of the prompt template."""
    label: str = Field(default="external generator", min_length=1, max_length=60)
    """Shown in tables and plots, at most 60 characters."""


Control = Literal["null_edit", "other_document", "swapped_values", "equal_tokens", "oracle", "proxy_teacher"]
_GRID_CONTROLS: tuple[Control, ...] = ("null_edit", "other_document")
"""Those for self-edits without lines."""


class SpecsConfig(_Frozen):
    """On grid tasks: every specification of a space is tried, for the best fixed one and the best one of each task."""

    space: SpecSpace = SpecSpace()
    """The specifications."""
    fixed_tasks: int = Field(default=22, ge=1, le=10_000)
    """Training tasks on which all are tried for the best fixed one, in [1, 10000]; the first ones."""
    oracle_tasks: int = Field(default=0, ge=0, le=10_000)
    """Test tasks, drawn at random, on which all are tried for the best one of each task, in [0, 10000]; 0 leaves the
    oracle out."""


class TransferConfig(_Frozen):
    """Another student that the same self-edits are tried on; no teacher is trained on it."""

    model: str = Field(min_length=1)
    """Directory or hub name."""
    label: str = Field(default="another student", min_length=1, max_length=60)
    """Shown in tables and plots, at most 60 characters."""
    update: UpdateRecipe | None = None
    """Its recipe; None takes that of the student that rewards come from."""


class CurveConfig(_Frozen):
    """Accuracy against tokens: self-edits cut or lengthened, by more of the same teacher's lines, to given lengths."""

    tokens: tuple[Annotated[int, Field(ge=8, le=32_768)], ...] = (40, 80, 120, 160)
    """Lengths in tokens of the teacher, each in [8, 32768]."""
    samples: int = Field(default=3, ge=1, le=64)
    """Self-edits of each document whose lines are used one after another, in [1, 64]."""


class ComparisonConfig(_Frozen):
    """How the variants are compared at the end, on documents that no training saw."""

    edits: int = Field(default=1, ge=1, le=64)
    """Self-edits sampled for each document and variant, in [1, 64]; each is one update with a seed of its own."""
    redraws: int = Field(default=0, ge=0, le=16)
    """Further self-edits, in [0, 16], that a teacher may write for a document in place of ones that are refused for
    what they say (no self-edit in them, over a budget); the refused ones are counted."""
    drafts: int = Field(default=1, ge=1, le=256)
    """Self-edits that a teacher writes for each document, in [1, 256], of which the ones that it writes most often are
    tried (self-consistency, arXiv 2203.11171); for specifications, of which the same one comes again. 1 tries the
    first ones. An external generator writes no more than are tried."""
    fixed_prompts: tuple[str, ...] = ()
    """Prompts of the untrained teacher that compete as the best fixed kind; the one that is best on the development
    documents enters the comparison. Empty: no such variant."""
    external: ExternalGenerator | None = None
    """A generator behind an endpoint that competes as one more variant; None makes none."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Level of the intervals, in (0.5, 1)."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Bootstrap resamples of the documents, in [100, 1000000]."""
    joint_update: UpdateRecipe | None = None
    """Recipe of one more student, a single adapter trained on the trained teacher's self-edits of all comparison
    documents together, which is registered; None makes none."""
    keep_adapters: int = Field(default=4, ge=0, le=10_000)
    """Adapters of the trained teacher's variant that are kept as artifacts, in [0, 10000]."""
    controls: tuple[Control, ...] = ()
    """Further variants that show what a gain is made of: a self-edit that says nothing; the trained teacher's for
    another document; its with values bound to other names; the best fixed kind at the trained teacher's tokens; all
    facts (where the world knows them); a teacher trained on the proxy reward."""
    retention_probes: int = Field(default=24, ge=0, le=10_000)
    """Questions on what the student knew before, in [0, 10000], where the data has such; 0 asks none."""
    curve: CurveConfig | None = None
    """None draws no curve."""
    transfer: TransferConfig | None = None
    """None tries no other student."""
    specs: SpecsConfig | None = None
    """None tries no fixed specification and no oracle."""
    correction: Literal["holm", "fdr_bh"] = "holm"
    """Correction of p-values for the number of differences: Holm (1979), or Benjamini and Hochberg (1995)."""

    @property
    def tried(self) -> int:
        """Self-edits of a document that are tried at most, those with them that stand in for refused ones."""
        return self.edits + self.redraws

    @property
    def drawn(self) -> int:
        """Self-edits that a teacher writes for a document."""
        return max(self.drafts, self.tried)


class GradingConfig(_Frozen):
    """Free-text answers and who grades them, in place of exact match by one teacher-forced pass.

    Rewards by the probability of the gold answer need no text: then the comparison alone is graded.
    """

    grader: GraderConfig
    """Decides whether an answer is right; what it cannot decide counts for nothing, neither right nor wrong."""
    engine: Literal["bank", "vllm"] = "bank"
    """What writes the answers: the bank that trained the adapters, or vLLM with an adapter for each request."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest answer in tokens, in [1, 4096]; of the text, the first line that is not blank is the answer."""
    vllm: VllmOptions = VllmOptions()
    """For the engine `vllm`."""
    max_rank: int | None = Field(default=None, ge=1, le=512)
    """Largest LoRA rank that the engine `vllm` takes, in [1, 512]; a self-edit that asks for more has no score. None is
    the recipe's."""


class TrackingConfig(_Frozen):
    """Where the lineage goes."""

    uri: str | None = None
    """MLflow tracking URI; None is an SQLite file in the work directory."""
    experiment: str = Field(default="preceptor/train-teacher", min_length=1)
    """MLflow experiment."""
    registry_prefix: str = Field(default="preceptor", pattern=r"^[A-Za-z0-9_-]+$")
    """Registered models are called `<prefix>-teacher` and `<prefix>-student`."""


class RunConfig(_Frozen):
    """Everything about one run of `train-teacher`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Shown in MLflow and Prefect; letters, digits, `_`, `.` and `-`, at most 64."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is random, in [0, 2^31)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the models run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen bases."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of torch, in [1, 1024]; None is one for each core."""
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    grading: GradingConfig | None = None
    """None: an answer is right if greedy decoding writes the gold answer, token by token."""
    loop: LoopConfig = LoopConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    tracking: TrackingConfig = TrackingConfig()
    serving: ServingOptions = ServingOptions()
    """For `preceptor serve`; changes nothing in a run."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        unknown = [name for name in self.comparison.fixed_prompts if name not in PROMPTS]
        if unknown:
            raise ValueError(f"comparison.fixed_prompts: got {unknown}, allowed are {sorted(PROMPTS)}")
        if isinstance(self.teacher.sampling, OpenAISampling) and self.loop.rounds:
            raise ValueError(
                f"loop.rounds: a teacher behind an endpoint does not learn, got {self.loop.rounds}, allowed is 0"
            )
        if self.teacher.learning.algorithm != "rest_em" and self.loop.rounds and self.teacher.samples < 2:
            raise ValueError(
                f"teacher.samples: {self.teacher.learning.algorithm} compares the samples of a document, got "
                f"{self.teacher.samples}, allowed is at least 2"
            )
        self._check_grids()
        if self.comparison.fixed_prompts and self.data.development_documents < 1:
            raise ValueError(
                "data.development_documents: the best fixed prompt is chosen on development documents, got "
                f"{self.data.development_documents}, allowed is at least 1 (or empty comparison.fixed_prompts)"
            )
        return self

    def _check_grids(self) -> None:
        """See that grid tasks have what they need, and that nothing is asked of them, or of others, that cannot be.

        Raises:
            ValueError: Something does not fit together.
        """
        votes = self.grading is not None and isinstance(self.grading.grader, GridVotesGrading)
        if not isinstance(self.data, GridData):
            if votes:
                raise ValueError(f"grading.grader: grid-votes are for grid tasks, got data.type {self.data.type!r}")
            if self.comparison.specs is not None:
                raise ValueError(f"comparison.specs: for grid tasks, got data.type {self.data.type!r}")
            return
        if len(self.data.views) > 1 and not votes:
            raise ValueError(
                f"data.views: got {len(self.data.views)} views, which only the grader grid-votes puts together; set "
                "grading.grader.type to it, or leave one view"
            )
        needless: list[str] = sorted(set(self.comparison.controls) - set(_GRID_CONTROLS))
        needless += [] if self.comparison.joint_update is None else ["joint_update"]
        if needless:
            raise ValueError(
                f"comparison: got {needless}, which work on the lines of self-edits, but those of grid tasks are "
                f"specifications; allowed are the controls {sorted(_GRID_CONTROLS)}, and joint_update: null"
            )

    def grading_for(self, questions: QuestionSet) -> GradingConfig | None:
        """Return how the answers to some questions are graded; None where no text is needed."""
        needless = questions == "rewards" and self.teacher.reward.metric in ("probability", "token_probability")
        return None if needless else self.grading

    @property
    def digest(self) -> str:
        """SHA-256 of what may change the result; where the lineage goes and how students are served is left out."""
        return digest_json(self.model_dump(mode="json", exclude={"tracking", "serving"}))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a run of `train-teacher`; see `read_config`."""
    return read_config(path, RunConfig, overrides)


def read_config(path: Path, kind: type[_Kind], overrides: Sequence[str] = ()) -> _Kind:
    """Return the configuration in a YAML file with `overrides` applied.

    Args:
        path: The file.
        kind: What it is the configuration of.
        overrides: Settings such as `loop.rounds=3`; the value is read as YAML.

    Raises:
        ConfigError: The file cannot be read, or is refused; all mistakes are listed at once.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}. Give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config {str(path)!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {str(path)!r}: got {type(content).__name__}, allowed is a mapping of sections.")
    for override in overrides:
        _apply_override(content, override)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Set one dotted key of `content` in place."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r}: allowed is a dotted key, `=` and a value, such as loop.rounds=3.")
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is not a section of the configuration.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error


def _explain(path: Path, error: ValidationError) -> str:
    """Return one message that lists every mistake by its dotted key."""
    lines = []
    for mistake in error.errors(include_url=False):
        place = ".".join(str(part) for part in mistake["loc"]) or "(whole file)"
        got = f", got {mistake['input']!r}" if not isinstance(mistake["input"], Mapping) else ""
        lines.append(f"  - {place}: {mistake['msg']}{got}")
    count = f"{len(lines)} mistake" + ("s" if len(lines) > 1 else "")
    return f"config {str(path)!r} has {count}:\n" + "\n".join(lines) + "\nNothing was started."


def to_yaml(config: BaseModel) -> str:
    """Return the resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
