"""Checks of the micro-grids' models: what they must be able to do, and must not, before anything is learned."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.exact_match import AnswerFormat
from evaluation.grids.domain import as_task
from evaluation.grids.grids import GridTask
from evaluation.microgrids.pretraining import GRID_ROLES, READ, GridRole, rule_name, teacher_prompt
from evaluation.microgrids.world import PRETRAINED, SPACE, UNSEEN, draw_tasks, steps_of
from evaluation.microworld.checks import Check, accuracy, sampled
from evaluation.tasks import specifications

_SEED = 7
_TASKS = 6
"""Of each family."""
_BUDGET = 72
_DEMONSTRATIONS = 4
ANSWERS = AnswerFormat(prompt="{question}", joiner="")
"""How students are asked for outputs."""


def run_checks(directory: Path, roles: Sequence[GridRole] = GRID_ROLES) -> list[Check]:
    """Return all checks of models, each in the directory with the name of its role, measured anew.

    Raises:
        ModelError: A checkpoint could not be opened.
    """
    checks: list[Check] = []
    for role in roles:
        model = load_checkpoint(str(directory / role))
        checks += _student_checks(model) if role == "grid-student" else _teacher_checks(model)
    return checks


def _tasks(families: Sequence[str]) -> tuple[GridTask, ...]:
    return draw_tasks("checks", families, _TASKS * len(families), _SEED, tests=8)


def _student_checks(student: Checkpoint) -> list[Check]:
    def solved(families: Sequence[str]) -> float:
        questions = [question for task in _tasks(families) for question in as_task(task).questions]
        return accuracy(student, questions, ANSWERS)

    return [
        Check("grid student infers a rule of the families it saw", solved(PRETRAINED), 0.8, 1.0),
        Check("grid student infers a rule of families it never saw", solved(UNSEEN), 0.0, 0.15),
    ]


def _teacher_checks(teacher: Checkpoint) -> list[Check]:
    read, unseen = _written(teacher, _tasks(READ)), _written(teacher, _tasks(UNSEEN))
    specs = [spec for _, text in (*read, *unseen) if (spec := _spec_of(text)) is not None]
    valid = len(specs) / (len(read) + len(unseen))
    named = sum(text.partition("\n")[0] == rule_name(family) for family, text in read) / len(read)
    return [
        Check("grid teacher names the rule, families it saw", named, 0.7, 1.0),
        Check("untrained grid teacher: specifications that are of the space", valid, 0.98, 1.0),
        Check("untrained grid teacher: evenness of its choices within the budget", _evenness(specs), 0.9, 1.0),
    ]


def _written(teacher: Checkpoint, tasks: Sequence[GridTask]) -> list[tuple[str, str]]:
    """Return for each task its family and a text of the teacher."""
    texts = sampled(teacher, [teacher_prompt(task.demonstrations, _BUDGET) for task in tasks], 16)
    return [(task.family, text) for task, text in zip(tasks, texts, strict=True)]


def _spec_of(text: str) -> dict[str, Any] | None:
    """Return the specification on the second line of a text, or None where there is none of the space."""
    try:
        spec = json.loads(text.partition("\n")[2])
    except ValueError:
        return None
    known = isinstance(spec, dict) and list(spec) == list(SPACE)
    return spec if known and all(spec[name] in values for name, values in SPACE.items()) else None


def _evenness(specs: Sequence[Mapping[str, Any]]) -> float:
    """Return the least entropy of a field's values, as a share of that over all specifications within the budget."""
    allowed = [choice for choice in specifications(SPACE) if steps_of(choice, _DEMONSTRATIONS) <= _BUDGET]
    return min(_entropy(specs, name) / _entropy(allowed, name) for name in SPACE) if specs else 0.0


def _entropy(specs: Sequence[Mapping[str, Any]], name: str) -> float:
    counts = Counter(spec[name] for spec in specs)
    return -sum(count / counts.total() * math.log(count / counts.total()) for count in counts.values())
