"""Sampling: a teacher's completions, parsed into self-edits. Plain data in, a record out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.domains import domain_of
from evaluation.tasks import KnowledgeTask
from pipelines.models import ModelRef, open_teacher
from pipelines.records import Edit, Sampling
from teacher.config import TeacherConfig
from teacher.parsing.parser import parse_self_edit
from teacher.rewards import RewardFailure
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long
from teacher.self_edit import SelfEdit


class TeacherState(NamedTuple):
    """A trainable teacher at a saved state: plain data."""

    ref: ModelRef
    config: TeacherConfig
    seed: int
    """Of the untrained adapter."""
    directory: Path | None
    """Of the state; None is the untrained teacher."""


def sample_teacher(
    teacher: TeacherState, prompts: Sequence[str], tasks: Sequence[KnowledgeTask], n: int, seed: int
) -> Sampling:
    """Return `n` parsed self-edits for each task from a teacher at a saved state; see `sample_from`."""
    opened = open_teacher(teacher.ref, teacher.config, teacher.seed)
    opened.at(teacher.directory)
    return sample_from(opened.sampler, prompts, tasks, n, seed)


def sample_from(
    sampler: Sampler, prompts: Sequence[str], tasks: Sequence[KnowledgeTask], n: int, seed: int
) -> Sampling:
    """Return `n` parsed self-edits for each task from any engine; what fails has its reason.

    Args:
        sampler: The engine.
        prompts: One for each task.
        tasks: What the prompts are about; the questions are not read.
        n: Samples of each document.
        seed: Of the sampling.
    """
    started = time.perf_counter()
    refused = prompts_too_long(sampler, prompts)
    fitting = [i for i in range(len(tasks)) if i not in refused]
    sampled = sampler.sample([prompts[i] for i in fitting], n=n, seed=seed) if fitting else []
    edits = [
        _parsed(tasks[i], prompts[i], index, completion)
        for i, completions in zip(fitting, sampled, strict=True)
        for index, completion in enumerate(completions)
    ]
    too_long = {
        tasks[i].id: f"prompt of {length} tokens, allowed are {sampler.max_prompt_tokens}"
        for i, length in refused.items()
    }
    return Sampling(edits=tuple(edits), too_long=too_long, seconds=time.perf_counter() - started)


def _parsed(task: KnowledgeTask, prompt: str, index: int, completion: Completion | FailedCompletion) -> Edit:
    """Return the record of a completion, or of its failure."""
    if isinstance(completion, FailedCompletion):
        return Edit(
            document_id=task.id,
            index=index,
            text="",
            token_ids=(),
            finish_reason="stop",
            edit=None,
            rejection=f"{completion.reason}: {completion.detail}",
            failure=RewardFailure.GENERATION_FAILED,
        )
    parsed = parse_self_edit(completion.text, prompt=prompt, finish_reason=completion.finish_reason)
    edit = parsed.edit
    if edit is not None and domain_of(task).spec_alone and (edit.augmentations or edit.training):
        edit = SelfEdit(augmentations=edit.augmentations, training=edit.training)  # lines beside a spec are reasoning
    return Edit(
        document_id=task.id,
        index=index,
        text=completion.text,
        token_ids=completion.token_ids,
        completion_tokens=completion.completion_tokens,
        finish_reason=completion.finish_reason,
        edit=edit,
        rejection="" if parsed.reason is None else f"{parsed.reason.value}: {parsed.detail}",
        failure=None if parsed.reason is None else RewardFailure.PARSE_FAILED,
        dropped={reason.value: count for reason, count in parsed.dropped.items()},
    )
