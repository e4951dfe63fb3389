"""What the units of a run work with: configuration, documents, open models, directories. One for each process."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.data_config import MicroworldData
from evaluation.digests import derive_seed, digest_json
from evaluation.endpoints.records import Spent
from evaluation.errors import ConfigError
from evaluation.grader_config import GridVotesGrading
from evaluation.graders import Graded, Grader, build_grader
from evaluation.judge import JudgeGrader
from evaluation.microworld.splits import microworld_sheets
from evaluation.microworld.world import Sheet
from evaluation.retention import retention_probes
from evaluation.tasks import Document, KnowledgeTask, Question, Split
from pipelines.config import QuestionSet, RunConfig
from pipelines.documents import load_documents
from pipelines.records import RECORDS_VERSION
from teacher.config import OpenAISampling
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_template
from teacher.samplers import Sampler, build_sampler
from teacher.samplers.openai_engine import OpenAISampler

if TYPE_CHECKING:
    from evaluation.engines.vllm_engine import VllmEngine

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_CODE = ("evaluation", "teacher", "student", "pipelines")
_NO_PART = (
    "pipelines/bench",
    "pipelines/doctor",
    "pipelines/evidence",
    "pipelines/inbox/readers",
    "pipelines/inbox/command",
    "pipelines/nights/ahead",
    "pipelines/nights/cost",
    "pipelines/nights/page",
    "pipelines/nights/simulat",
    "pipelines/nights/workload",
    "pipelines/regression",
    "pipelines/run_or_night",
)
"""Packages that run or describe runs and have no part in any result."""


def code_digest() -> str:
    """Return the SHA-256 of the project's Python files: units made by other code are never reused."""
    whole = sorted(path for package in _CODE for path in (PACKAGE_ROOT / package).rglob("*.py"))
    files = [path for path in whole if not path.relative_to(PACKAGE_ROOT).as_posix().startswith(_NO_PART)]
    return digest_json([[str(path.relative_to(PACKAGE_ROOT)), path.read_text(encoding="utf-8")] for path in files])


class Workspace:
    """Opens models when they are first needed; everything that is random gets its seed here."""

    def __init__(self, config: RunConfig, work_dir: Path, split: Split | None = None) -> None:
        """Load and check the documents; models wait until they are used.

        Args:
            config: Of the run.
            work_dir: For records, adapters and the embedded stores.
            split: The documents, where they do not come from `config.data`.

        Raises:
            InputError: The documents were refused.
            ConfigError: They are too few for a round.
        """
        self.config = config
        self.work_dir = work_dir
        self.split: Split = load_documents(config) if split is None else split
        self.tasks: dict[str, KnowledgeTask] = {task.id: task for side in self.split for task in side}
        self.code_digest = code_digest()
        self.grades: list[Graded] = []
        """Every verdict of the run's grader so far."""
        self._policy_name: str | None = None

    def key(self, kind: str, content: Any) -> str:
        """Return the content key of a unit of work: kind, schema version and a digest of all that decides its result.

        Models, recipes and code are part of it; run ids, paths, dates and the device's speed are not.
        """
        whole = {"code": self.code_digest, "dtype": self.config.dtype, "device": self.config.device, "content": content}
        digest = digest_json(whole)
        return f"{kind}/v{RECORDS_VERSION}/{digest[:2]}/{digest}"

    def seed(self, *parts: str | int) -> int:
        """Return the seed of one purpose in this run."""
        return derive_seed(self.config.seed, *parts)

    @property
    def intervals(self) -> dict[str, Any]:
        """Settings of all bootstrap intervals: `confidence`, `resamples` and `seed`."""
        settings = self.config.comparison
        return {
            "confidence": settings.confidence,
            "resamples": settings.resamples,
            "seed": self.seed("bootstrap"),
        }

    @cached_property
    def student(self) -> Checkpoint:
        """The frozen student."""
        return self._open(self.config.student.model)

    @cached_property
    def student_digest(self) -> str:
        """SHA-256 of the student's weights."""
        return model_digest(self.student.model)

    @cached_property
    def sheets(self) -> dict[str, Sheet] | None:
        """The fact tables behind the documents, by id; None outside the micro-world."""
        return microworld_sheets(self.config.data) if isinstance(self.config.data, MicroworldData) else None

    @cached_property
    def retention_probes(self) -> tuple[Question, ...]:
        """Questions on what the student knew before any update; empty where the data has none."""
        return retention_probes(self.config.data, self.config.comparison.retention_probes, self.seed("retention"))

    def probes_beside(self, questions: QuestionSet) -> tuple[Question, ...]:
        """Return the retention probes asked beside some questions: in comparisons always, for rewards if they count."""
        counts = questions == "comparison" or self.config.teacher.reward.retention_weight > 0.0
        return self.retention_probes if counts else ()

    @cached_property
    def policy(self) -> TeacherPolicy:
        """The teacher, at the state that `at_policy` put it in last."""
        base = self._open(self.config.teacher.model)
        return TeacherPolicy.create(base, self.config.teacher.policy, self.seed("policy"))

    @cached_property
    def sampler(self) -> Sampler:
        """The engine that samples from `policy`, or asks the endpoint that the teacher is behind."""
        teacher = self.config.teacher
        if isinstance(teacher.sampling, OpenAISampling):
            return self._endpoint_sampler(teacher.sampling, "teacher")
        return build_sampler(teacher.sampling, self.policy, teacher.model, self.config.dtype)

    @cached_property
    def external(self) -> OpenAISampler:
        """The generator of the comparison that is not ours.

        Raises:
            ConfigError: The run has none.
        """
        external = self.config.comparison.external
        if external is None:
            raise ConfigError("comparison.external: got none, but a variant of it was asked for. Set it.")
        return self._endpoint_sampler(external.sampling, "external")

    @cached_property
    def grader(self) -> Grader | None:
        """Who grades the students' texts; None where exact match or a vote decides."""
        grading = self.config.grading
        if grading is None or isinstance(grading.grader, GridVotesGrading):
            return None  # All views of an output decide together.
        return build_grader(grading.grader, self.ledger_path, f"{self.config.name}/judge")

    @cached_property
    def answer_engine(self) -> VllmEngine:
        """VLLM on the student, for its text."""
        from evaluation.engines.vllm_engine import VllmEngine

        grading, student = self.config.grading, self.config.student
        assert grading is not None
        return VllmEngine(
            student.model,
            grading.vllm,
            device=self.config.device,
            dtype=self.config.dtype,
            max_rank=grading.max_rank or student.update.rank,
        )

    @property
    def ledger_path(self) -> Path:
        """Where replies of endpoints are kept, with what they cost."""
        return self.work_dir / "endpoints.sqlite"

    @property
    def taught_locally(self) -> bool:
        """Whether the teacher is a policy of this process, not a model behind an endpoint."""
        return not isinstance(self.config.teacher.sampling, OpenAISampling)

    def check_endpoints(self) -> None:
        """See that every endpoint of the run can be asked, before anything expensive starts.

        Raises:
            ConfigError: A key is missing.
            EndpointError: An endpoint refuses, or does not have the model.
        """
        for part in self._endpoints().values():
            part.check()

    def spent(self) -> dict[str, Spent]:
        """Return what was spent at endpoints, by role: `teacher`, `external`, `judge`; killed runs included."""
        return {role: part.spent for role, part in self._endpoints().items()}

    def _endpoints(self) -> dict[str, OpenAISampler | JudgeGrader]:
        """Return what asks an endpoint, by role."""
        parts = {
            "teacher": None if self.taught_locally else self.sampler,
            "external": None if self.config.comparison.external is None else self.external,
            "judge": self.grader,
        }
        return {role: part for role, part in parts.items() if isinstance(part, OpenAISampler | JudgeGrader)}

    def close(self) -> None:
        """Stop engines and close files; what is used again is opened anew."""
        for name in ("sampler", "external", "answer_engine", "grader"):
            part = self.__dict__.pop(name, None)
            if hasattr(part, "close"):
                part.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _endpoint_sampler(self, sampling: OpenAISampling, role: str) -> OpenAISampler:
        # Budgets count by the run's name: one that is raised after it was spent goes on from what was spent.
        return OpenAISampler(sampling, self.ledger_path, scope=f"{self.config.name}/{role}")

    def at_policy(self, name: str | None) -> TeacherPolicy:
        """Return the teacher at a saved state.

        Args:
            name: Directory under `teachers` in the work directory; None is the untrained teacher.
        """
        policy = self.policy
        if name != self._policy_name:
            if name is None:
                policy.reset(self.seed("policy"))
            else:
                policy.restore(self.policy_dir(name))
            self._policy_name = name
        return policy

    def keep_policy(self) -> str:
        """Save the teacher as it is now under its own digest, and return the directory's name."""
        name = self.policy.digest[:20]
        if not self.policy_dir(name).exists():
            self.policy.save(self.policy_dir(name))
        self._policy_name = name
        return name

    def forget_policy(self) -> None:
        """Note that the teacher's weights are being changed, so that the next use restores a saved state."""
        self._policy_name = "(changed)"

    def policy_dir(self, name: str) -> Path:
        """Return where a teacher's adapter is."""
        return self.work_dir / "teachers" / name

    def adapter_dir(self, digest: str) -> Path:
        """Return where a student's adapter is, if it was kept."""
        return self.work_dir / "adapters" / digest[:20]

    def prompt(self, template: str, document: Document) -> str:
        """Return what the teacher reads about a document."""
        chosen = prompt_template(template)
        if self.config.teacher.chat:
            return chosen.render_chat(document, self.policy.tokenizer, self.step_budget)
        return chosen.render(document, self.step_budget)

    @property
    def step_budget(self) -> int | None:
        """Optimizer steps that a self-edit may ask for, which prompts tell the teacher; None limits none."""
        return self.config.student.update.step_budget

    def round_documents(self, number: int) -> list[KnowledgeTask]:
        """Return the training documents of a round: a fresh shuffle each time all of them have been used."""
        import random

        train, size = self.split.train, self.config.loop.documents
        rounds_in_pass = len(train) // size
        order = list(train)
        random.Random(self.seed("documents", number // rounds_in_pass)).shuffle(order)
        start = number % rounds_in_pass * size
        return order[start : start + size]

    def _open(self, name: str) -> Checkpoint:
        import torch

        torch.set_num_threads(self.config.threads or torch.get_num_threads())
        return load_checkpoint(name, device=self.config.device, dtype=getattr(torch, self.config.dtype))
