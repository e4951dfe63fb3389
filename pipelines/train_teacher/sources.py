"""Variants of the student that are compared: a name, a label, and where the self-edits come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evaluation.common.data import Frozen
from evaluation.tasks import specifications
from student.config import Objective
from teacher.prompts import Prompt, PromptedConfig
from teacher.samplers.openai import OpenAISampling
from teacher.self_edit import edit_of

BASELINE_TEACHER, TRAINED_TEACHER = "untrained_teacher", "trained_teacher"
"""Names of the variants that the teacher's gain is measured between."""


class BaseStudent(Frozen):
    """The student without an update."""

    type: Literal["base"] = "base"


class RawPassage(Frozen):
    """The passage itself as training text."""

    type: Literal["raw_passage"] = "raw_passage"


class BestPrompt(Frozen):
    """The untrained teacher with the prompt that is best on the development documents."""

    type: Literal["best_prompt"] = "best_prompt"
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    """The prompts that compete: names, or one's own as in `prompt`."""


class TeacherSource(Frozen):
    """A teacher of this run."""

    type: Literal["teacher"] = "teacher"
    state: Literal["untrained", "trained", "proxy"]
    """Before the first round, after the last one, or after the same rounds with the proxy reward."""


class ExternalGenerator(PromptedConfig):
    """A model behind an endpoint, which writes self-edits and is never trained."""

    type: Literal["endpoint"] = "endpoint"
    sampling: OpenAISampling
    prompt: Prompt = "implications"


class Control(Frozen):
    """Self-edits that show what a gain is made of."""

    type: Literal["control"] = "control"
    kind: Literal["null_edit", "other_document", "swapped_values", "equal_tokens", "oracle"]
    """A line that says nothing; the trained teacher's self-edits for another document; its with values bound to other
    names; the best prompt's lines at the trained teacher's tokens; all facts, where the world knows them."""


class OwnQuestions(PromptedConfig):
    """Questions with answers that the student itself writes, with the passage in its context."""

    type: Literal["own_questions"] = "own_questions"
    prompt: Prompt = "worked-self-qa"


class PassageInContext(Frozen):
    """No update: the document's text stands before each question."""

    type: Literal["in_context"] = "in_context"


class Retrieval(Frozen):
    """No update: before each question stand the passages of all test documents that fit it best, by BM25."""

    type: Literal["retrieval"] = "retrieval"
    passages: int = Field(default=1, ge=1, le=32)
    """Passages before a question, in [1, 32]."""


class FixedSpecification(Frozen):
    """The specification of a space that is best over some training tasks, for every task."""

    type: Literal["fixed_specification"] = "fixed_specification"
    space: dict[str, tuple[Any, ...]]
    """The values that each setting of a specification takes; every combination is tried."""
    tasks: int = Field(default=22, ge=1, le=10_000)
    """Training tasks that all are tried on, in [1, 10000]; the first ones."""
    oracle_tasks: int = Field(default=0, ge=0, le=10_000)
    """Test tasks, drawn at random, that all are tried on for the best one of each task, in [0, 10000]; 0 leaves this
    oracle out."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        """All specifications of the space, in order."""
        return list(specifications(self.space))

    @model_validator(mode="after")
    def _valid(self) -> FixedSpecification:
        for choice in self.choices:
            edit_of(choice)
        return self


Reading = OwnQuestions | PassageInContext | Retrieval
"""Sources of variants in which the student itself reads passages."""
Source = Annotated[
    BaseStudent | RawPassage | BestPrompt | TeacherSource | ExternalGenerator | Reading | Control | FixedSpecification,
    Field(discriminator="type"),
]
"""Where a variant's self-edits come from."""


class Labelled(Frozen):
    """A row of tables and plots."""

    label: str = Field(min_length=1, max_length=60)
    """Shown in tables and plots, at most 60 characters."""


class Variant(Labelled):
    """A way to adapt the student, which is compared with others: its name, and where its self-edits come from."""

    name: str = Field(pattern=r"^[a-z0-9_]{1,40}$")
    """Key of its scores in results; lower-case letters, digits and `_`, at most 40."""
    source: Source
    objective: Objective | None = None
    """Of the student's updates; None is that of `student.update`."""

    @model_validator(mode="after")
    def _is_updated(self) -> Variant:
        if self.objective is not None and isinstance(self.source, BaseStudent | PassageInContext | Retrieval):
            raise ValueError(f"objective: got {self.objective!r}, but {self.source.type!r} has no update; leave it out")
        return self


def _control(kind: str, label: str, name: str = "") -> Variant:
    return Variant(name=name or kind, label=label, source=Control(kind=kind))


def _distilled(name: str, label: str, source: Source) -> Variant:
    return Variant(name=name, label=label, source=source, objective="context_distillation")


STANDARD = {
    variant.name: variant
    for variant in (
        Variant(name="base", label="base student, no update", source=BaseStudent()),
        Variant(name="raw_passage", label="raw passage", source=RawPassage()),
        Variant(name=BASELINE_TEACHER, label="untrained teacher", source=TeacherSource(state="untrained")),
        Variant(name=TRAINED_TEACHER, label="trained teacher", source=TeacherSource(state="trained")),
        Variant(name="proxy_teacher", label="teacher trained on the proxy", source=TeacherSource(state="proxy")),
        _distilled("trained_teacher_distilled", "trained teacher, distilled", TeacherSource(state="trained")),
        _distilled("context_distillation", "context distillation, own questions", OwnQuestions()),
        Variant(name="passage_in_context", label="passage in context, no update", source=PassageInContext()),
        Variant(name="retrieval", label="retrieved passage in context", source=Retrieval()),
        _control("null_edit", "a self-edit that says nothing"),
        _control("other_document", "trained teacher, another document's"),
        _control("swapped_values", "trained teacher, values swapped"),
        _control("equal_tokens", "best fixed kind, equal tokens", name="fixed_kind_equal_tokens"),
        _control("oracle", "all facts"),
    )
}
"""Variants that a configuration may list by name alone."""


def _by_name(value: Any) -> Any:
    """Return the standard variant of a name; anything else is validated as it is."""
    if not isinstance(value, str):
        return value
    if value not in STANDARD:
        raise ValueError(f"got the name {value!r}, allowed are {', '.join(STANDARD)}, or name, label and source")
    return STANDARD[value]


ListedVariant = Annotated[Variant, BeforeValidator(_by_name)]
