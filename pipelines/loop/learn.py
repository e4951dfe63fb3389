"""Learning: one step of the teacher from a saved state. Plain data in, a record out; the new state is saved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from evaluation.common.errors import UpdateError
from pipelines.loop.sample import TeacherState
from pipelines.models import open_teacher
from pipelines.records import Learning
from teacher.algorithms.algorithm import WeightedExample, learn


def learn_from(teacher: TeacherState, examples: Sequence[WeightedExample], seed: int, states: Path) -> Learning:
    """Return the step of a teacher on a round's examples.

    Args:
        teacher: The state to start from.
        examples: With their weights; none leaves the teacher unchanged.
        seed: Of the order of the examples.
        states: Directory that gets the new state, under its own digest.

    Raises:
        UpdateError: A step had a loss or gradient that is not finite.
    """
    started = time.perf_counter()
    opened = open_teacher(teacher.ref, teacher.config, teacher.seed)
    opened.at(teacher.directory)
    policy = opened.changed()
    report = learn(policy, examples, teacher.config.learning, seed)
    if report.skipped_steps:
        raise UpdateError(
            f"teacher: {report.skipped_steps} learning steps had a loss or gradient that is not "
            "finite. Lower teacher.learning.learning_rate; the rounds before this one are kept."
        )
    place = opened.keep(states)
    took = time.perf_counter() - started
    return Learning(**report.model_dump(), policy=place.name, policy_digest=policy.digest, seconds=took)
