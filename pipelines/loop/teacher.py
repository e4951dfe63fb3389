"""A teacher at work: sampling self-edits, and learning from their rewards. Plain data in, a record out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.common.errors import UpdateError
from evaluation.domains import domain_of
from evaluation.tasks import KnowledgeTask
from pipelines.models import ModelRef, TeacherState, open_student
from pipelines.records import Edit, Learning, Sampling, WarmStart
from teacher.algorithms.algorithm import WeightedExample, learn, mean_loss
from teacher.parsing.parser import parse_self_edit
from teacher.rewards import RewardFailure
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long
from teacher.samplers.transformers import TransformersSampler, TransformersSampling
from teacher.self_edit import SelfEdit


class Writing(NamedTuple):
    """Self-edits to be written: plain data, whoever writes them."""

    prompts: list[str]
    tasks: list[KnowledgeTask]
    """One for each prompt; their questions are not read."""
    n: int
    """Self-edits for each task."""
    seed: int
    stop: str | None = None
    """Text at which each of them ends at the latest."""

    @property
    def content(self) -> dict[str, Any]:
        """What identifies them, beside their writer."""
        prompts = [[task.id, text] for task, text in zip(self.tasks, self.prompts, strict=True)]
        return {"prompts": prompts, "stop": self.stop, "n": self.n, "seed": self.seed}


def sample_teacher(teacher: TeacherState, writing: Writing) -> Sampling:
    """Return parsed self-edits from a teacher at a saved state; see `sample_from`."""
    opened = teacher.open()
    opened.at(teacher.directory)
    return sample_from(opened.sampler, writing)


def sample_student(student: ModelRef, sampling: TransformersSampling, writing: Writing) -> Sampling:
    """Return parsed self-edits from the student without an update; see `sample_from`."""
    return sample_from(TransformersSampler(*open_student(student), sampling), writing)


def sample_from(sampler: Sampler, writing: Writing) -> Sampling:
    """Return parsed self-edits for each task and its prompt from any engine; what fails has its reason."""
    prompts, tasks, n, seed, stop = writing
    started = time.perf_counter()
    refused = prompts_too_long(sampler, prompts)
    fitting = [i for i in range(len(tasks)) if i not in refused]
    sampled = sampler.sample([prompts[i] for i in fitting], n=n, seed=seed, stop=stop) if fitting else []
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
    if isinstance(completion, FailedCompletion):
        return Edit(
            document_id=task.id,
            index=index,
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


def learn_from(
    teacher: TeacherState, examples: Sequence[WeightedExample], seed: int, states: Path, reference: Path | None = None
) -> Learning:
    """Return the step of a teacher on a round's examples, which `seed` orders; without any it stays unchanged.

    The new state is saved in `states`, under its own digest. `reference` is the saved state that the KL divergence is
    from, and that learning began at; None is the untrained teacher. At it the optimizer starts anew: after a warm start
    its moments are those of supervised gradients, whose size and direction say nothing of the policy gradient's.

    Raises:
        UpdateError: A step had a loss or gradient that is not finite.
    """
    started, opened = time.perf_counter(), teacher.open()
    opened.policy.reference_weights = None
    if reference is not None:
        opened.policy.reference_weights = [w.detach().clone() for w in opened.at(reference).adapter_parameters()]
    policy = opened.at(teacher.directory, to_change=True)
    if teacher.directory == reference:
        policy.optimizer_state = None
    report = learn(policy, examples, teacher.config.learning, seed)
    if report.skipped_steps:
        raise UpdateError(
            f"teacher: {report.skipped_steps} learning steps had a loss or gradient that is not finite. Lower the "
            "learning_rate of teacher.learning, or of warm_start in a warm start; what was done before is kept."
        )
    place = opened.keep(states)
    took = time.perf_counter() - started
    return Learning(**report.model_dump(), policy=place.name, policy_digest=policy.digest, seconds=took)


def imitate(
    teacher: TeacherState, examples: Sequence[WeightedExample], seed: int, states: Path, reference: Path | None = None
) -> WarmStart:
    """Return the supervised steps of a teacher on targets of weight 1; see `learn_from`."""
    opened, size = teacher.open(), teacher.config.learning.micro_batch_size
    before = mean_loss(opened.at(teacher.directory), examples, size)
    learned = learn_from(teacher, examples, seed, states, reference)
    return WarmStart(**dict(learned), loss_before=before, loss_after=mean_loss(opened.policy, examples, size))
