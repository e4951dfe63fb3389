"""Rebuilding the micro models from a seed, two at once in a process each."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

Role = Literal["student", "teacher", "small-student"]
_NOT_TEXTS = ("build", "checks", "recipes", "splits")
"""Modules of this package that have no part in the texts; what the recipe says is looked at itself."""
_WEIGHTS = "model.safetensors"
ROLES: tuple[Role, ...] = get_args(Role)
SHIPPED: tuple[Role, ...] = ("student", "teacher")
"""Those that come with the package."""


def build_one(role: Role, out: Path, seed: int) -> Path:
    """Pretrain one micro model on one thread, save it under `out / role` and return that directory.

    A stage that an earlier build of the same seed and recipe finished is not done again. The same seed gives the same
    texts and initial weights; rounding may differ between processors.
    """
    import torch

    from evaluation.microworld import recipes
    from evaluation.microworld.pretraining import new_model, pretrain, sharpen
    from evaluation.microworld.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    taught = role == "teacher"
    shape = recipes.SHAPES[role]
    stages = recipes.stages(role, seed)
    model = new_model(shape, tokenizer, seed)
    identity = hashlib.sha256(repr((role, seed, shape)).encode() + _sources())
    places = []
    for number, phases in enumerate(stages, start=1):
        identity.update(repr([(p.steps, [count for _, count in p.streams], *p[2:]) for p in phases]).encode())
        places.append(out / "stages" / f"{role}-{number}-{identity.hexdigest()[:16]}")

    def train(model: Any, number: int, report: Callable[[str], None]) -> None:
        pretrain(model, tokenizer, stages[number - 1], report=report)

    model = run_stages(model, places, train, f"{role:8s}")
    sharpen(model, recipes.TEACHER_SHARPNESS if taught else 1.0)
    directory = out / role
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _sources() -> bytes:
    """Return the text of all that makes words, texts and steps: a stage that other code made is done again."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_TEXTS)
    return b"".join(path.read_bytes() for path in files)


def run_stages(
    model: Any, places: Sequence[Path], train: Callable[[Any, int, Callable[[str], None]], None], label: str
) -> Any:
    """Return a model after all its stages; those that are in their places are opened and not done again.

    Args:
        model: New; trained in place.
        places: Where each stage is saved, named by all that it rests on.
        train: Called with the model, the stage's number from 1 and what prints a line of progress.
        label: Stands before each line that is printed.
    """
    for number, place in enumerate(places, start=1):
        if (place / _WEIGHTS).is_file():
            model = type(model).from_pretrained(place)
            print(f"{label}stage {number} of {len(places)} is in {place}", flush=True)
            continue

        def report(line: str, stage: str = f"stage {number}/{len(places)}") -> None:
            print(f"{label}{stage}  {line}", flush=True)

        train(model, number, report)
        _save(model, place)
    return model


def _save(model: Any, place: Path) -> None:
    """Save a stage so that a kill leaves it whole or not at all."""
    staging = place.with_name(f".{place.name}.{os.getpid()}")
    model.save_pretrained(staging)
    os.replace(staging, place)


def build(out: Path, seed: int, report: Callable[[str], None], roles: Sequence[Role] = SHIPPED) -> None:
    """Rebuild models under `out`, each in a directory with the name of its role; an hour for both that ship, two cores.

    Args:
        out: Gets the directories.
        seed: Of initial weights and texts.
        report: Called with a line when a model is done.
        roles: Which models.
    """
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, len(roles)), mp_context=context) as pool:
        for directory in pool.map(build_one, roles, [out] * len(roles), [seed] * len(roles)):
            report(f"saved {directory}")
