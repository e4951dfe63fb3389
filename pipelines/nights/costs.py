"""What a night will cost, told before it starts: its work, and what follows from the sizes of the models.

No model is opened: sizes come from the headers of checkpoints on disk.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipelines.costs import (
    PROMPT_TOKENS,
    EndpointCost,
    FlopEstimate,
    endpoint_cost,
    forward_flops,
    minutes_of,
)
from pipelines.model_sizes import model_size, training_flops
from pipelines.nights.ahead import Ahead
from pipelines.nights.config import NightConfig
from pipelines.nights.workload import count_work, most_questions, to_weights, tokens_of
from teacher.config import OpenAISampling

_FACTOR_BYTES = 4
"""Of a number in an adapter: it is trained and saved in float32 whatever the base's format."""


class NightCost(BaseModel):
    """What a night will do, at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to_weights: int
    """New documents that the weights take."""
    to_memory: int
    """New documents that are looked up instead."""
    waiting: int
    """New documents that wait, because they have no questions and none are written."""
    aside: int
    """Documents that are set aside."""
    unasked: int
    """Documents for which questions are written first; those of the night are among the new ones."""
    questions: int
    """Questions written for them."""
    teacher_parameters: int | None
    """None where it cannot be told without a download or an import."""
    student_parameters: int | None
    self_edits: int
    """Written for documents that the weights take; as many are tried, each on a student of its own."""
    try_steps: int
    """Optimizer steps of all tries."""
    lines: int
    """That the night's one update trains on: of new documents, replayed ones and general questions; 0 without it."""
    night_steps: int
    """Optimizer steps of the night's update."""
    training_tokens: int
    """Of tries and the night's update, over all epochs, without padding."""
    question_answers: int
    """Scored to prove written questions, each with its passage and without."""
    try_answers: int
    """Scored for rewards."""
    night_answers: int
    """Scored of the night's student, the champion and the base."""
    endpoints: tuple[EndpointCost, ...]
    """What endpoints are asked for; empty where none is."""
    flops: FlopEstimate | None
    """None where a model's size is not known."""
    minutes: float | None
    """At `CPU_FLOPS_PER_SECOND`; None on another device or where a model's size is not known."""
    bytes_on_disk: int | None
    """Of adapters and of what versions hold; None where the student's size is not known."""

    @property
    def night_updates(self) -> int:
        """Updates of the student itself: 1, or 0 where all new documents stay in memory."""
        return int(self.lines > 0)


def estimate_night(config: NightConfig, ahead: Ahead) -> NightCost:
    """Return what a night will do, at most; reads headers of local checkpoints and loads nothing.

    Args:
        config: Of the night.
        ahead: What it would find.

    Raises:
        InputError: The file of questions on general knowledge cannot be read.
    """
    work, recipe, night, model = count_work(config, ahead), config.student.update, config.update, config.student.model
    teacher = model_size(config.teacher.model, config.teacher.policy.rank, "all-linear")
    tried = model_size(model, recipe.rank, recipe.target_modules, recipe.depth)
    grown = model_size(model, night.rank, night.target_modules, night.depth)
    flops = None
    if teacher is not None and tried is not None and grown is not None:
        flops = FlopEstimate(
            sampling=_teacher_tokens(config, ahead) * forward_flops(teacher),
            updates=work.tries.tokens * training_flops(tried) + work.update.tokens * training_flops(grown),
            scoring=work.answer_tokens * forward_flops(grown),
            learning=0.0,
        )
    return NightCost(
        to_weights=len(to_weights(ahead)),
        to_memory=len(ahead.documents) - len(to_weights(ahead)),
        waiting=ahead.waiting,
        aside=ahead.aside,
        unasked=len(ahead.unasked),
        questions=len(ahead.unasked) * most_questions(config),
        teacher_parameters=teacher.parameters if teacher else None,
        student_parameters=grown.parameters if grown else None,
        self_edits=work.self_edits,
        try_steps=work.tries.steps,
        lines=work.lines,
        night_steps=work.update.steps,
        training_tokens=work.tries.tokens + work.update.tokens,
        question_answers=work.question_answers,
        try_answers=work.try_answers,
        night_answers=work.night_answers,
        endpoints=_endpoints(config, ahead, work.self_edits),
        flops=flops,
        minutes=minutes_of(flops, config.device),
        bytes_on_disk=_bytes(ahead, grown.adapter) if grown else None,
    )


def _teacher_tokens(config: NightConfig, ahead: Ahead) -> int:
    """Return the tokens that the teacher reads and writes for self-edits and for questions."""
    around = PROMPT_TOKENS + config.teacher.sampling.max_new_tokens
    samples = 0 if config.questions is None else config.questions.samples
    edits = config.writing.edits * sum(tokens_of(task.document.text) + around for task in to_weights(ahead))
    return edits + samples * sum(tokens_of(document.text) + around for document in ahead.unasked)


def _endpoints(config: NightConfig, ahead: Ahead, edits: int) -> tuple[EndpointCost, ...]:
    """Return what the teacher's endpoint is asked for, where it is behind one."""
    sampling = config.teacher.sampling
    if not isinstance(sampling, OpenAISampling):
        return ()
    calls = edits + (0 if config.questions is None else config.questions.samples * len(ahead.unasked))
    texts = [task.document.text for task in to_weights(ahead)] + [document.text for document in ahead.unasked]
    read = PROMPT_TOKENS + max(map(tokens_of, texts), default=0)
    return (endpoint_cost("teacher", sampling.endpoint, calls, read, sampling.max_new_tokens),)


def _bytes(ahead: Ahead, factors: int) -> int:
    """Return the bytes of what a night leaves: its adapter and its version's copy, texts, and the champion's copy."""
    if not ahead.documents:
        return 0
    new = sum(len(planned.model_dump_json().encode()) for planned in ahead.documents)
    held = len(ahead.state.model_dump_json().encode())
    return 2 * factors * _FACTOR_BYTES + held + 3 * new + ahead.to_copy  # new: in the version, and in the plan twice
