"""The work that a benchmark times: the demo's own self-edits, or random sequences of a chosen amount."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.errors import ConfigError, GenerationError
from pipelines.bench.records import BankBench
from pipelines.config import RunConfig, load_config
from pipelines.sampling import sample_edits
from pipelines.trials import update_requests
from pipelines.work import update_job
from pipelines.workspace import Workspace
from student.config import UpdateRecipe
from student.sequences import TrainingSequence
from student.updates import UpdateJob


class Workload(NamedTuple):
    """Jobs and the student that they are for."""

    name: str
    """Of the student."""
    student: Checkpoint
    digest: str
    """Of the student's weights."""
    jobs: tuple[UpdateJob, ...]


def run_config(bench: BankBench) -> RunConfig:
    """Return the configuration with what the benchmark sets in it.

    Raises:
        ConfigError: The file or a setting is refused.
    """
    chosen: dict[str, Any] = {"seed": bench.seed, "device": bench.device, "dtype": bench.dtype}
    # All layers, whatever the run adapts: the most work, and the same work whichever configuration is timed.
    chosen |= {"student.update.target_modules": "all-linear", "student.update.depth": [0.0, 1.0]}
    chosen["student.model"] = bench.student
    if bench.workload == "synthetic":
        chosen |= {"student.update.epochs": bench.epochs, "student.update.rank": bench.rank}
    return load_config(bench.config, [f"{key}={json.dumps(to)}" for key, to in chosen.items() if to is not None])


def load_workload(bench: BankBench, work_dir: Path) -> Workload:
    """Return the work that the benchmark asks for.

    Args:
        bench: What is asked for.
        work_dir: For what sampling leaves behind.
    """
    config = run_config(bench)
    if bench.workload == "demo":
        return demo_workload(config, bench.adapters, work_dir)
    import torch

    torch.set_num_threads(config.threads or torch.get_num_threads())
    student = load_checkpoint(config.student.model, device=config.device, dtype=getattr(torch, config.dtype))
    jobs = synthetic_jobs(
        config.student.update,
        student.model.get_input_embeddings().weight.shape[0],
        _positions(student.model),
        adapters=bench.adapters,
        lines=bench.lines,
        tokens=bench.tokens,
        seed=bench.seed,
    )
    return Workload(config.student.model, student, model_digest(student.model), jobs)


def demo_workload(config: RunConfig, adapters: int, work_dir: Path) -> Workload:
    """Return the updates of the configuration's first rounds, as a run makes them before the teacher has learned.

    Self-edits that cannot be parsed, and lines that do not fit the student, are left out as they are in a run.

    Args:
        config: Gives documents, teacher, prompt, sampling and recipe.
        adapters: Updates to return, N.
        work_dir: Of the workspace; nothing is read from it.

    Raises:
        GenerationError: A whole round brings no update.
    """
    ws = Workspace(config, work_dir)
    limit = _positions(ws.student.model)
    jobs: list[UpdateJob] = []
    number = 0
    while len(jobs) < adapters:
        purpose = f"round {number}"
        sampling = sample_edits(
            ws,
            None,
            config.teacher.prompt,
            ws.round_documents(number),
            n=config.teacher.samples,
            seed=ws.seed("sample", purpose),
        )
        made = [update_job(ws, request) for request in update_requests(ws, sampling.edits, purpose, 1)]
        usable = [job for job in made if job is not None and job.sequences and _longest(job) <= limit]
        if not usable:
            raise GenerationError(
                f"benchmark: none of {len(sampling.edits)} self-edits of {config.teacher.model!r} can be trained on. "
                "Give a configuration whose teacher writes self-edits, or use --workload synthetic."
            )
        # Late rounds come back to the documents of the first ones; keys stay apart.
        jobs += [replace(job, key=f"{job.key}@{number}") for job in usable]
        number += 1
    return Workload(config.student.model, ws.student, ws.student_digest, tuple(jobs[:adapters]))


def synthetic_jobs(
    recipe: UpdateRecipe, vocabulary: int, positions: int, *, adapters: int, lines: int, tokens: int, seed: int
) -> tuple[UpdateJob, ...]:
    """Return jobs of random tokens, all of which carry loss.

    Args:
        recipe: Of every job.
        vocabulary: Tokens are drawn from [0, vocabulary).
        positions: The student's limit for a sequence, in tokens.
        adapters: Jobs, N.
        lines: Sequences of a job.
        tokens: Mean length of a sequence; lengths are uniform within a quarter of it.
        seed: Of tokens and lengths, and so of the jobs' own seeds.

    Raises:
        ConfigError: The longest sequence would not fit the student.
    """
    low, high = tokens - tokens // 4, tokens + tokens // 4
    if high > positions:
        raise ConfigError(
            f"--tokens: got {tokens}, so up to {high} in a line, but the student has {positions} positions. Lower it."
        )
    generator = random.Random(seed)
    jobs = []
    for number in range(adapters):
        sequences = []
        for _ in range(lines):
            length = generator.randint(low, high)
            drawn = tuple(generator.randrange(vocabulary) for _ in range(length))
            sequences.append(TrainingSequence(drawn, (True,) * length))
        jobs.append(UpdateJob(f"synthetic#{number}", tuple(sequences), recipe, generator.randrange(2**31)))
    return tuple(jobs)


def spread_sample(jobs: Sequence[UpdateJob], count: int) -> tuple[UpdateJob, ...]:
    """Return `count` jobs that stand for all of them: evenly spaced in the order of their work, at most all."""
    ordered = sorted(jobs, key=_work)
    count = min(count, len(ordered))
    return tuple(ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count))


def typical_job(jobs: Sequence[UpdateJob]) -> UpdateJob:
    """Return the job whose lines are nearest to the mean in number: each costs the published loop the same."""
    mean = statistics.fmean(len(job.sequences) for job in jobs)
    return min(jobs, key=lambda job: abs(len(job.sequences) - mean))


def heaviest_job(jobs: Sequence[UpdateJob]) -> UpdateJob:
    """Return the job whose fullest step has most token places, which is the one that takes most memory."""
    return max(jobs, key=lambda job: _longest(job) * min(len(job.sequences), job.recipe.batch_size))


def _work(job: UpdateJob) -> int:
    """Return the token places of all passes; close enough to sort by where `max_steps` cuts one short."""
    return job.recipe.epochs * sum(len(sequence.tokens) - 1 for sequence in job.sequences)


def _longest(job: UpdateJob) -> int:
    return max(len(sequence.tokens) for sequence in job.sequences)


def _positions(model: Any) -> int:
    """Return how many tokens the student takes; a model without a limit takes any number."""
    return int(getattr(model.config, "max_position_embeddings", None) or 2**31)
