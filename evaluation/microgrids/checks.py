"""What the micro-grids' models must be able to do, and must not, before anything is learned with them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.answers import AnswerFormat, score_answers
from evaluation.checkpoints import Checkpoint, load_checkpoint
from evaluation.grids.adaptation import as_task
from evaluation.grids.tasks import GridTask
from evaluation.microgrids.build import GRID_ROLES, GridRole
from evaluation.microgrids.recipes import READ
from evaluation.microgrids.specs import SPACE, steps_of
from evaluation.microgrids.texts import rule_name, teacher_prompt
from evaluation.microgrids.world import PRETRAINED, UNSEEN, draw_tasks
from evaluation.microworld.checks import Check

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


def _tasks(families: Sequence[str], each: int = _TASKS) -> tuple[GridTask, ...]:
    return draw_tasks("checks", families, each * len(families), _SEED, tests=8)


def _student_checks(student: Checkpoint) -> list[Check]:
    return [
        Check("grid student infers a rule of the families it saw", _solved(student, PRETRAINED), 0.8, 1.0),
        Check("grid student infers a rule of families it never saw", _solved(student, UNSEEN), 0.0, 0.15),
    ]


def _solved(student: Checkpoint, families: Sequence[str]) -> float:
    """Return the share of test outputs that a student writes with the demonstrations in its context."""
    questions = [question for task in _tasks(families) for question in as_task(task).questions]
    scores = score_answers(student.model, student.tokenizer, questions, ANSWERS)
    return sum(score.exact for score in scores) / len(scores)


def _teacher_checks(teacher: Checkpoint) -> list[Check]:
    read, unseen = _written(teacher, _tasks(READ)), _written(teacher, _tasks(UNSEEN))
    specs = [spec for _, text in (*read, *unseen) if (spec := _spec_of(text)) is not None]
    valid = len(specs) / (len(read) + len(unseen))
    return [
        Check("grid teacher names the rule, families it saw", _named(read), 0.7, 1.0),
        Check("untrained grid teacher: specifications that are of the space", valid, 0.98, 1.0),
        Check("untrained grid teacher: evenness of its choices within the budget", _evenness(specs), 0.9, 1.0),
    ]


def _written(teacher: Checkpoint, tasks: Sequence[GridTask]) -> list[tuple[str, str]]:
    """Return for each task its family and what the teacher writes at temperature 1."""
    import torch

    tokenizer: Any = teacher.tokenizer
    prompts = [teacher_prompt(list(task.demonstrations), _BUDGET) for task in tasks]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        ids = teacher.model.generate(**encoded, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=16)
    texts = tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return [(task.family, text) for task, text in zip(tasks, texts, strict=True)]


def _named(written: Sequence[tuple[str, str]]) -> float:
    return sum(text.partition("\n")[0] == rule_name(family) for family, text in written) / len(written)


def _spec_of(text: str) -> dict[str, Any] | None:
    """Return the specification on the second line of a text, or None where there is none of the space."""
    try:
        spec = json.loads(text.partition("\n")[2])
    except ValueError:
        return None
    known = isinstance(spec, dict) and list(spec) == list(SPACE.fields)
    return spec if known and all(spec[name] in values for name, values in SPACE.fields.items()) else None


def _evenness(specs: Sequence[dict[str, Any]]) -> float:
    """Return the least entropy of a field's values, as a share of that over all specifications within the budget."""
    allowed = [choice for choice in SPACE.choices() if steps_of(choice, _DEMONSTRATIONS) <= _BUDGET]
    return min(_entropy(specs, name) / _entropy(allowed, name) for name in SPACE.fields) if specs else 0.0


def _entropy(specs: Sequence[dict[str, Any]], name: str) -> float:
    counts = Counter(spec[name] for spec in specs)
    return -sum(count / counts.total() * math.log(count / counts.total()) for count in counts.values())
