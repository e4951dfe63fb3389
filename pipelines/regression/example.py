"""An example student for a suite, trained here and now: `python -m pipelines.regression.example SUITE --out DIR`.

One adapter learns all documents of the suite together, from their reward questions with their answers; the suite asks
the held-out phrasings. A share of the facts can be left out on purpose, which plants a regression of about that size.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evaluation.digests import derive_seed
from evaluation.errors import ConfigError, UpdateError
from pipelines.regression.pins import check_pins
from pipelines.regression.suite import RegressionSuite, SuiteContent, load_content, load_suite

if TYPE_CHECKING:
    from pipelines.regression.scoring import OpenStudent
    from student.adapters import Adapter
    from student.config import UpdateRecipe
    from teacher.self_edit import SelfEdit


class Training(NamedTuple):
    """One student to train."""

    seed: int
    """Of the adapter's start, of the order of lines and of what is left out."""
    left_out: float = 0.0
    """Share of the facts that are left out, in [0, 1)."""


def example_recipe() -> UpdateRecipe:
    """Return how the example learns: the upper half's MLPs, which takes half the time of all layers."""
    from student.config import UpdateRecipe

    return UpdateRecipe(
        rank=16,
        alpha=32.0,
        learning_rate=5e-3,
        epochs=12,
        batch_size=16,
        max_steps=10_000,
        target_modules=("gate_proj", "up_proj", "down_proj"),
        depth=(0.5, 1.0),
    )


def lines_for(suite: RegressionSuite, content: SuiteContent, training: Training) -> SelfEdit:
    """Return the lines that a student learns: the reward questions on the facts that the suite asks for.

    Questions of a document with the same answer are about the same fact, and are left out together.
    """
    from teacher.self_edit import Implication, SelfEdit

    facts = {
        (task.id, question.answer): [q for q in task.questions if q.answer == question.answer]
        for task in content.tasks
        for question in content.questions[task.id]
    }
    rng = random.Random(derive_seed(training.seed, "left out"))
    dropped = set(rng.sample(sorted(facts), round(training.left_out * len(facts))))
    kept = [questions for fact, questions in facts.items() if fact not in dropped]
    lines = tuple(Implication(text=q.question, answer=q.answer) for questions in kept for q in questions)
    if not lines:
        raise ConfigError(f"suite {suite.name!r}: nothing is left to learn; lower --left-out.")
    return SelfEdit(implications=lines)


def train_students(
    suite: RegressionSuite, content: SuiteContent, student: OpenStudent, trainings: Sequence[Training]
) -> list[Adapter]:
    """Return one adapter for each training, in order; they are trained in one bank.

    Raises:
        UpdateError: A training failed.
    """
    from pipelines.regression.scoring import open_bank
    from student.updates import make_job

    jobs = [
        make_job(
            f"seed {training.seed}",
            lines_for(suite, content, training),
            content.tasks[0].document,
            student.checkpoint.tokenizer,
            example_recipe(),
            suite.answer_format,
            training.seed,
        )
        for training in trainings
    ]
    with open_bank(student) as bank:
        results = bank.train(jobs)
    adapters = []
    for result in results:
        if result.adapter is None:
            raise UpdateError(f"example student {result.key!r}: {result.outcome.value}: {result.detail}")
        adapters.append(result.adapter)
    return adapters


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one example student and write its adapter."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.regression.example", description=__doc__)
    parser.add_argument("suite", type=Path, help="YAML file of the suite.")
    parser.add_argument("--out", type=Path, required=True, help="Directory for the adapter, in PEFT's format.")
    parser.add_argument("--seed", type=int, default=0, help="Of the training [0].")
    parser.add_argument("--left-out", type=float, default=0.0, help="Share of the facts not to learn, in [0, 1) [0].")
    told = parser.parse_args(arguments)
    if not 0.0 <= told.left_out < 1.0:
        parser.error(f"--left-out: got {told.left_out}, allowed is a share in [0, 1)")
    from pipelines.process import prepare_process

    prepare_process()
    from pipelines.regression.scoring import open_student
    from student.adapters import save_adapter

    suite = load_suite(told.suite)
    content = load_content(suite)
    student = open_student(suite)
    check_pins(suite, student.pins(content))
    adapter = train_students(suite, content, student, [Training(told.seed, told.left_out)])[0]
    save_adapter(adapter, told.out, suite.student)
    sys.stdout.write(f"Wrote the adapter {adapter.digest[:12]} to {told.out}.\n")


if __name__ == "__main__":
    main()
