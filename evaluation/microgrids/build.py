"""Rebuilding the micro-grids' models from a seed; the teacher goes on from stages that it shares with the student."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from evaluation.microworld.build import run_stages

GridRole = Literal["grid-student", "grid-teacher"]
GRID_ROLES: tuple[GridRole, ...] = get_args(GridRole)
"""Both come with the package."""
_NOT_TEXTS = ("build", "checks", "recipes", "splits")
"""Modules of this package that have no part in the texts; what the recipe says is looked at itself."""


def build(out: Path, seed: int, report: Callable[[str], None], roles: Sequence[GridRole] = GRID_ROLES) -> None:
    """Rebuild models under `out`, each in a directory with the name of its role, on one thread.

    Args:
        out: Gets the directories.
        seed: Of initial weights and texts.
        report: Called with a line when a model is done.
        roles: Which models.
    """
    for role in roles:
        report(f"saved {build_one(role, out, seed)}")


def build_one(role: GridRole, out: Path, seed: int) -> Path:
    """Pretrain one model, save it under `out / role` and return that directory.

    A stage that an earlier build of the same seed and recipe finished, for either model, is not done again. The same
    seed gives the same texts and initial weights; rounding may differ between processors.
    """
    import torch

    from evaluation.microgrids import recipes
    from evaluation.microgrids.pretraining import pretrain, renew_unseen
    from evaluation.microgrids.tokenizer import build_tokenizer
    from evaluation.microworld.pretraining import new_model

    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = new_model(recipes.SHAPE, tokenizer, seed)
    stages = recipes.teacher_stages() if role == "grid-teacher" else recipes.student_stages()
    identity = hashlib.sha256(repr((seed, recipes.SHAPE)).encode() + _sources())
    places = []
    for number, phases in enumerate(stages, start=1):
        identity.update(repr(phases).encode())
        places.append(out / "stages" / f"grids-{number}-{identity.hexdigest()[:16]}")

    def train(model: Any, number: int, report: Callable[[str], None]) -> None:
        phases = stages[number - 1]
        if number > 1 and any("named" in phase.exercises for phase in phases):
            renew_unseen(model, tokenizer, itertools.chain(*stages[: number - 1]), seed)
        pretrain(model, tokenizer, phases, seed * 1000 + number, report=report)

    model = run_stages(model, places, train, f"{role:14s}")
    directory = out / role
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _sources() -> bytes:
    """Return the text of all that makes grids, texts and steps: a stage that other code made is done again."""
    package = Path(__file__).parent
    own = [path for path in package.glob("*.py") if path.stem not in _NOT_TEXTS]
    grids = [package.parent / "grids" / f"{name}.py" for name in ("tasks", "text", "transformations")]
    return b"".join(path.read_bytes() for path in sorted([*own, *grids]))
