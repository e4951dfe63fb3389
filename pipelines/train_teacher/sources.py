"""Variants of the student that are compared: a name, a label, and where the self-edits come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evaluation.common.data import Frozen
from evaluation.tasks import specifications
from student.config import Objective
from teacher.kinds import SPA
from teacher.prompts import Prompt, PromptedConfig
from teacher.samplers.openai import OpenAISampling
from teacher.self_edit import edit_of

BASELINE_TEACHER, WARM_STARTED_TEACHER, TRAINED_TEACHER = "untrained_teacher", "warm_started_teacher", "trained_teacher"
"""Names of the variants that the teacher's gains are measured between."""


class BaseStudent(Frozen):
    """The student without an update."""

    type: Literal["base"] = "base"


class RawPassage(Frozen):
    """The passage itself as training text."""

    type: Literal["raw_passage"] = "raw_passage"


class BestPrompt(Frozen):
    """The untrained teacher with the prompt that is best on the development documents."""

    type: Literal["best_prompt"] = "best_prompt"
    prompts: tuple[Prompt, ...] = ()
    """The prompts that compete: names, or one's own as in `prompt`; none takes what an earlier variant chose."""


class FixedPrompt(PromptedConfig):
    """The untrained teacher with one prompt."""

    type: Literal["prompt"] = "prompt"


class MixedPrompts(Frozen):
    """The untrained teacher with several prompts; a self-edit has the lines of a completion of each, in turn."""

    type: Literal["mixed_prompts"] = "mixed_prompts"
    prompts: tuple[Prompt, ...] = Field(default=tuple(SPA), min_length=1)
    """The prompts: names, or one's own as in `prompt`. The default is SPA's seven kinds (arXiv 2603.22213)."""


class ActiveReading(Frozen):
    """The untrained teacher, which writes strategies for learning a passage and then applies them."""

    type: Literal["active_reading"] = "active_reading"


class AskFirst(PromptedConfig):
    """The untrained teacher's questions with answers, without those that the base student answers closed-book."""

    type: Literal["ask_first"] = "ask_first"
    prompt: Prompt = "worked-self-qa"


class TeacherSource(Frozen):
    """A teacher of this run."""

    type: Literal["teacher"] = "teacher"
    state: Literal["untrained", "warm_started", "trained"]
    """As it came, after the warm start, or after the last round."""


class ExternalGenerator(PromptedConfig):
    """A model behind an endpoint, which writes self-edits and is never trained."""

    type: Literal["endpoint"] = "endpoint"
    sampling: OpenAISampling
    prompt: Prompt = "implications"


class Control(Frozen):
    """Self-edits that show what a gain is made of."""

    type: Literal["control"] = "control"
    kind: Literal["null_edit", "other_document", "oracle"]
    """A line that says nothing; the trained teacher's self-edits for another document; all facts, where the world knows
    them."""


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

    @property
    def choices(self) -> list[dict[str, Any]]:
        """All specifications of the space, in order."""
        return list(specifications(self.space))

    @model_validator(mode="after")
    def _valid(self) -> FixedSpecification:
        for choice in self.choices:
            edit_of(choice)
        return self


PromptedSource = FixedPrompt | MixedPrompts | ActiveReading | AskFirst
"""Sources in which the untrained teacher writes with given prompts."""
Sampled = BestPrompt | TeacherSource | ExternalGenerator | OwnQuestions | PromptedSource
"""Sources in which a model writes."""
Reading = OwnQuestions | PassageInContext | Retrieval
"""Sources of variants in which the student itself reads passages."""
Source = Annotated[
    BaseStudent | RawPassage | Sampled | PassageInContext | Retrieval | Control | FixedSpecification,
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
    equal_tokens: bool = False
    """Cut or lengthen each self-edit, by more lines of the same writer, to the tokens of the trained teacher's for its
    document; for sources in which a model writes."""
    objective: Objective | None = None
    """Of the student's updates; None is that of `student.update`."""

    @model_validator(mode="after")
    def _fits_its_source(self) -> Variant:
        if self.equal_tokens and not isinstance(self.source, Sampled):
            raise ValueError(f"equal_tokens: got a source of type {self.source.type}, in which no model writes")
        if self.objective is not None and isinstance(self.source, BaseStudent | PassageInContext | Retrieval):
            raise ValueError(f"objective: got {self.objective!r}, but {self.source.type!r} has no update; leave it out")
        return self


def _control(kind: str, label: str) -> Variant:
    return Variant(name=kind, label=label, source=Control(kind=kind))


def _at_equal_tokens(variant: Variant) -> Variant:
    changes = {"name": f"{variant.name}_equal_tokens", "label": f"{variant.label}, equal tokens", "equal_tokens": True}
    return variant.model_copy(update=changes)


_PROMPTED = (
    Variant(name="mixed_prompts", label="seven kinds mixed (SPA)", source=MixedPrompts()),
    Variant(name="active_reading", label="strategies, then applied (Active Reading)", source=ActiveReading()),
    Variant(name="ask_first", label="only what the student misses", source=AskFirst()),
)


def _distilled(name: str, label: str, source: Source) -> Variant:
    return Variant(name=name, label=label, source=source, objective="context_distillation")


STANDARD = {
    variant.name: variant
    for variant in (
        Variant(name="base", label="base student, no update", source=BaseStudent()),
        Variant(name="raw_passage", label="raw passage", source=RawPassage()),
        Variant(name=BASELINE_TEACHER, label="untrained teacher", source=TeacherSource(state="untrained")),
        Variant(name=WARM_STARTED_TEACHER, label="warm-started teacher", source=TeacherSource(state="warm_started")),
        Variant(name=TRAINED_TEACHER, label="trained teacher", source=TeacherSource(state="trained")),
        _distilled("trained_teacher_distilled", "trained teacher, distilled", TeacherSource(state="trained")),
        _distilled("context_distillation", "context distillation, own questions", OwnQuestions()),
        Variant(name="passage_in_context", label="passage in context, no update", source=PassageInContext()),
        Variant(name="retrieval", label="retrieved passage in context", source=Retrieval()),
        _control("null_edit", "a self-edit that says nothing"),
        _control("other_document", "trained teacher, another document's"),
        _at_equal_tokens(Variant(name="fixed_kind", label="best fixed kind", source=BestPrompt())),
        _control("oracle", "all facts"),
        *_PROMPTED,
        *map(_at_equal_tokens, _PROMPTED),
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
