"""Train an example student for a suite: `python -m pipelines.experiments.example_student SUITE --out DIR`.

One adapter learns the reward questions of all documents; the suite asks the held-out phrasings. `--left-out` plants a
regression: a share of the facts is not learned.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.common.data import derive_seed
from evaluation.common.errors import ConfigError, UpdateError
from pipelines.check_regression.suite import RegressionSuite, SuiteContent, check_pins, load_content
from pipelines.process import prepare_process
from pipelines.settings import load
from pipelines.terminal import plain_errors

if TYPE_CHECKING:
    from student.adapters import Adapter
    from teacher.self_edit import SelfEdit

# The upper half's MLPs take half the time of all layers.
LAYERS: dict[str, Any] = {"target_modules": ("gate_proj", "up_proj", "down_proj"), "depth": (0.5, 1.0)}
RECIPE = {"rank": 16, "alpha": 32.0, "learning_rate": 5e-3, "epochs": 12, "batch_size": 16, "max_steps": 10_000}


def lines_for(suite: RegressionSuite, content: SuiteContent, seed: int, left_out: float = 0.0) -> SelfEdit:
    """Return the reward questions on the facts of the suite, less a share in [0, 1) of the facts drawn by `seed`.

    Questions of a document with the same answer are about the same fact, and are left out together.
    """
    from teacher.self_edit import Implication, SelfEdit

    facts = {
        (task.id, question.answer): [q for q in task.questions if q.answer == question.answer]
        for task in content.tasks
        for question in task.comparison_questions
    }
    rng = random.Random(derive_seed(seed, "left out"))
    dropped = set(rng.sample(sorted(facts), round(left_out * len(facts))))
    kept = [questions for fact, questions in facts.items() if fact not in dropped]
    lines = tuple(Implication(text=q.question, answer=q.answer) for questions in kept for q in questions)
    if not lines:
        raise ConfigError(f"suite {suite.name!r}: no facts are left to learn; lower --left-out.")
    return SelfEdit(implications=lines)


def train_student(suite: RegressionSuite, content: SuiteContent, seed: int, left_out: float) -> Adapter:
    """Return the adapter of one update; raises UpdateError if it failed."""
    from pipelines.models import ModelRef, answer_format, open_student, student_digest
    from student.bank.bank import LoraBank
    from student.config import UpdateRecipe
    from student.updates import make_request

    recipe = UpdateRecipe.model_validate(RECIPE | LAYERS)
    ref = ModelRef.of(suite.student, suite)
    student, edit = open_student(ref), lines_for(suite, content, seed, left_out)
    document, form = content.tasks[0].document, answer_format(suite, ref)
    request = make_request(f"seed {seed}", edit, document, student.tokenizer, recipe, form, seed)
    with LoraBank(student.model, base_digest=student_digest(ref)) as bank:
        (result,) = bank.train([request])
    if result.adapter is None:
        raise UpdateError(f"example student {result.key!r}: {result.outcome.value}: {result.detail}")
    return result.adapter


@plain_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train an example student and save its adapter."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.experiments.example_student", description=__doc__)
    parser.add_argument("suite", type=Path, help="YAML file of the suite.")
    parser.add_argument("--out", type=Path, required=True, help="Directory for the adapter, in PEFT's format.")
    parser.add_argument("--seed", type=int, default=0, help="Of the training [0].")
    parser.add_argument("--left-out", type=float, default=0.0, help="Share of the facts to leave out, in [0, 1) [0].")
    given = parser.parse_args(arguments)
    if not 0.0 <= given.left_out < 1.0:
        parser.error(f"--left-out: got {given.left_out}, allowed is a share in [0, 1)")
    prepare_process()
    from pipelines.check_regression.compare import current_pins
    from student.adapters import save_adapter

    suite = load(given.suite, RegressionSuite)
    content = load_content(suite)
    check_pins(suite, current_pins(suite, content))
    adapter = train_student(suite, content, given.seed, given.left_out)
    save_adapter(adapter, given.out, suite.student)
    sys.stdout.write(f"Wrote the adapter {adapter.digest[:12]} to {given.out}.\n")


if __name__ == "__main__":
    main()
