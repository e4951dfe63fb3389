"""Self-edits from any engine, parsed, as plain functions. No Prefect, no MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence

from evaluation.tasks import KnowledgeTask
from pipelines.records import EditRecord, SamplingRecord
from pipelines.workspace import Workspace
from teacher.parser import parse_self_edit
from teacher.rewards import RewardFailure
from teacher.samplers import Completion, FailedCompletion, Sampler, prompts_too_long
from teacher.self_edit import Implication, SelfEdit


def sample_edits(
    ws: Workspace, policy: str | None, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int
) -> SamplingRecord:
    """Return `n` parsed self-edits for each task from the teacher at a saved state.

    Args:
        ws: The run's workspace.
        policy: Name of the teacher's state; None is the untrained teacher.
        prompt: Name of the prompt template.
        tasks: What to write about; the questions are not read.
        n: Samples of each document.
        seed: Of the sampling.
    """
    if ws.taught_locally:
        ws.at_policy(policy)
    return sample_with(ws.sampler, [ws.prompt(prompt, task.document) for task in tasks], tasks, n=n, seed=seed)


def sample_with(
    sampler: Sampler, prompts: Sequence[str], tasks: Sequence[KnowledgeTask], *, n: int, seed: int
) -> SamplingRecord:
    """Return `n` parsed self-edits for each task from any engine; what fails has its reason.

    Args:
        sampler: The engine.
        prompts: One for each task.
        tasks: What the prompts are about; the questions are not read.
        n: Samples of each document.
        seed: Of the sampling.
    """
    started = time.perf_counter()
    refused = {record.index: record for record in prompts_too_long(sampler, prompts)}
    fitting = [i for i in range(len(tasks)) if i not in refused]
    sampled = sampler.sample([prompts[i] for i in fitting], n=n, seed=seed) if fitting else []
    edits = [
        _parsed(tasks[i], prompts[i], index, completion)
        for i, completions in zip(fitting, sampled, strict=True)
        for index, completion in enumerate(completions)
    ]
    too_long = {tasks[i].id: f"prompt of {r.tokens} tokens, allowed are {r.limit}" for i, r in refused.items()}
    return SamplingRecord(edits=tuple(edits), too_long=too_long, seconds=time.perf_counter() - started)


def _parsed(task: KnowledgeTask, prompt: str, index: int, completion: Completion | FailedCompletion) -> EditRecord:
    """Return the record of what an engine wrote, or did not."""
    if isinstance(completion, FailedCompletion):
        return EditRecord(
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
    edit = parsed.edit if task.puzzle is None or parsed.edit is None else _specification(parsed.edit)
    return EditRecord(
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
        flags=tuple(flag.value for flag in parsed.flags),
    )


def _specification(edit: SelfEdit) -> SelfEdit:
    """Return a grid task's self-edit without lines beside a specification: they are reasoning, not training data."""
    if edit.augmentations is None and edit.training is None:
        return edit
    return SelfEdit(augmentations=edit.augmentations, training=edit.training)


def written_edit(task: KnowledgeTask, text: str) -> EditRecord:
    """Return a self-edit that no teacher wrote: one line of text, such as the raw passage."""
    return EditRecord(
        document_id=task.id,
        index=0,
        text=text,
        token_ids=(),
        finish_reason="stop",
        edit=SelfEdit(implications=(Implication(text=text),)),
    )
