"""Models of a process: each checkpoint, sampler and grader is opened once, when it is first needed, whoever asks.

Work is described by plain data (a `ModelRef`, configurations, paths); here a process turns it into open models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from evaluation import exact_match
from evaluation.common.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.common.errors import ModelError
from evaluation.graders import DomainGrading, Grader, build_grader
from evaluation.retention import general_questions
from pipelines.settings import Asking, GradingConfig, LoopSettings, Settings, StudentConfig
from student.config import UpdateRecipe
from teacher.config import TeacherConfig
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.samplers.sampler import LocalSampling, Sampler

if TYPE_CHECKING:
    from evaluation.engines.vllm import VllmEngine, VllmOptions
    from teacher.policy import TeacherPolicy

LEDGER = "endpoints.sqlite"
"""File of the work directory with all replies of endpoints and what they cost."""

_Open = TypeVar("_Open")
_Loop = TypeVar("_Loop", bound=LoopSettings)
_open: dict[str, Any] = {}


def _once(make: Callable[[], _Open], *key: object) -> _Open:
    """Return what is open under a key of settings, opened now if it is not."""
    if repr(key) not in _open:
        _open[repr(key)] = make()
    return cast("_Open", _open[repr(key)])


def close_models() -> None:
    """Stop engines and let go of all models; what is used again is opened anew."""
    parts = list(_open.values())
    _open.clear()
    for part in parts:
        if hasattr(part, "close"):
            part.close()


class ModelRef(NamedTuple):
    """A model to open: plain data."""

    name: str
    """Directory, hub id, or the name of a shipped model."""
    device: str
    dtype: str
    threads: int | None
    quantization: str = "none"
    """`none` or `nf4`, as in `StudentConfig`."""

    @classmethod
    def of(cls, model: str | StudentConfig, settings: Settings) -> ModelRef:
        """Return a model under a flow's settings: one by its name, or a flow's student."""
        place = settings.device, settings.dtype, settings.threads
        return cls(model, *place) if isinstance(model, str) else cls(model.model, *place, model.quantization)

    def load(self) -> Checkpoint:
        """Return the model, opened for this caller alone.

        Raises:
            ModelError: The checkpoint cannot be opened.
        """
        import torch

        torch.set_num_threads(self.threads or torch.get_num_threads())
        dtype = getattr(torch, self.dtype)
        return load_checkpoint(self.name, device=self.device, dtype=dtype, quantization=self.quantization)


def open_student(ref: ModelRef) -> Checkpoint:
    """Return the frozen student."""
    return _once(ref.load, "student", ref)


def student_for(ref: ModelRef, recipe: UpdateRecipe) -> Checkpoint:
    """Return the frozen student, tried once with a recipe's layers; ModelError as in `student.opening`."""
    from student.opening import check_model

    student, layers = open_student(ref), (recipe.target_modules, recipe.depth)
    _once(lambda: _tried("student", ref, check_model, student, *layers), "student tried", ref, *layers)
    return student


def prove_student(ref: ModelRef, directory: Path) -> None:
    """Refuse a saved adapter of the student that PEFT does not open as the same model; see `prove_adapter`."""
    from student.opening import prove_adapter

    _tried(f"adapter {str(directory)!r}", ref, prove_adapter, open_student(ref).model, directory)


def _tried(role: str, ref: ModelRef, check: Callable[..., _Open], *arguments: Any) -> _Open:
    """Return what a check of a model returns; its refusal names role and model."""
    try:
        return check(*arguments)
    except ModelError as error:
        raise ModelError(f"{role}: {ref.name!r} {error}. Nothing is trained or registered with it.") from error


def student_digest(ref: ModelRef) -> str:
    """Return the SHA-256 of the student's weights."""
    return _once(lambda: model_digest(open_student(ref).model), "student digest", ref)


def answer_format(asking: Asking, ref: ModelRef) -> exact_match.AnswerFormat:
    """Return the form in which a student is trained and asked; `auto` is decided by asking its base.

    Raises:
        ModelError: The student cannot be opened, or has no chat template and needs one.
    """
    if asking.written is not None:
        return asking.written
    if asking.format == "few-shot":
        return exact_match.few_shot_format(asking.answer_format)
    if asking.format == "chat":
        return exact_match.chat_format(open_student(ref).tokenizer)
    tried = tried_formats(ref)
    return tried[exact_match.best_format(tried)].answer_format


def tried_formats(ref: ModelRef) -> dict[exact_match.FormatName, exact_match.Tried]:
    """Return how the base answers general questions in each form."""
    questions = general_questions(exact_match.FORMAT_QUESTIONS)
    return _once(
        lambda: exact_match.try_formats(open_student(ref), exact_match.AnswerFormat(), questions), "formats", ref
    )


def with_answer_format(settings: _Loop) -> _Loop:
    """Return settings in which the form of the student's questions is resolved; the same once it is."""
    student = settings.student
    form = answer_format(student, ModelRef.of(student, settings))
    resolved = student.model_copy(update={"format": "plain", "answer_format": form})
    return settings.model_copy(update={"student": resolved})


def chat_of(ref: ModelRef, form: exact_match.AnswerFormat) -> Any:
    """Return the student's tokenizer where `form` is its chat template, else None."""
    tokenizer = open_student(ref).tokenizer
    return tokenizer if exact_match.is_chat(tokenizer, form) else None


class Teacher:
    """A trainable teacher at one of its saved states, with the engine that samples from it."""

    def __init__(self, ref: ModelRef, config: TeacherConfig, seed: int) -> None:
        """Open the base; `seed` makes the untrained adapter."""
        from student.opening import check_model
        from teacher.policy import TeacherPolicy

        base = ref.load()
        _tried("teacher", ref, partial(check_model, banked=False), base)
        self.policy: TeacherPolicy = TeacherPolicy(base, config.policy, seed)
        self._ref, self._sampling, self._seed = ref, config.sampling, seed
        self._state: str | None = None
        self._sampler: Sampler | None = None

    def at(self, state: Path | None, *, to_change: bool = False) -> TeacherPolicy:
        """Return the policy at a saved state; None is the untrained teacher.

        A caller that changes its weights says so with `to_change`: the next use restores a saved state.
        """
        wanted = "" if state is None else str(state)
        found, self._state = self._state, None
        if found != wanted:
            if state is None:
                self.policy.reset(self._seed)
            else:
                self.policy.restore(state)
        self._state = None if to_change else wanted
        return self.policy

    def keep(self, states: Path) -> Path:
        """Save the policy as it is under its own digest, and return its directory under `states`."""
        place = states / self.policy.digest[:20]
        if not place.exists():
            self.policy.save(place)
        self._state = str(place)
        return place

    @property
    def sampler(self) -> Sampler:
        """The engine that samples from the policy."""
        assert isinstance(self._sampling, LocalSampling)
        if self._sampler is None:
            self._sampler = self._sampling.build(self.policy, self._ref.name, cast("Any", self._ref.dtype))
        return self._sampler

    def close(self) -> None:
        """Stop the engine."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None


class TeacherState(NamedTuple):
    """A trainable teacher at a saved state, to be opened: plain data."""

    ref: ModelRef
    config: TeacherConfig
    seed: int
    """Of the untrained adapter."""
    directory: Path | None
    """Of the state; None is the untrained teacher."""

    def open(self) -> Teacher:
        """Return the teacher, at whatever state it was used last."""
        ref, config, seed = self.ref, self.config, self.seed
        return _once(lambda: Teacher(ref, config, seed), "teacher", ref, config.policy, config.sampling, seed)


def open_endpoint(sampling: OpenAISampling, work_dir: Path, scope: str) -> OpenAISampler:
    """Return a sampler behind an endpoint, with the ledger in the work directory.

    Budgets count by `scope`, which is of the run's name, so that a raised one continues from what was spent.
    """
    return _once(lambda: OpenAISampler(sampling, work_dir / LEDGER, scope=scope), "endpoint", sampling, work_dir, scope)


def open_grader(grading: GradingConfig | None, work_dir: Path, name: str) -> Grader | None:
    """Return the grader of the students' texts in a run of a name; None where exact match or the domain decides."""
    if grading is None or isinstance(grading.grader, DomainGrading):
        return None
    grader, scope = grading.grader, f"{name}/judge"
    return _once(lambda: build_grader(grader, work_dir / LEDGER, scope), "grader", grader, work_dir, scope)


def open_answer_engine(student: ModelRef, options: VllmOptions, rank: int) -> VllmEngine:
    """Return vLLM on the student with adapters up to a rank, for its text."""

    def make() -> VllmEngine:
        from evaluation.engines.vllm import VllmEngine

        device, dtype = cast("Any", student.device), cast("Any", student.dtype)
        return VllmEngine(student.name, options, device=device, dtype=dtype, max_rank=rank)

    return _once(make, "answers", student, options, rank)
