"""Rebuilding the micro models from a seed, both at once in a process each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, get_args

Role = Literal["student", "teacher"]
ROLES: tuple[Role, ...] = get_args(Role)


def build_one(role: Role, out: Path, seed: int) -> Path:
    """Pretrain one micro model on one thread, save it under `out / role` and return that directory.

    The same seed gives the same texts and initial weights; rounding may differ between processors.
    """
    import torch

    from evaluation.microworld import recipes
    from evaluation.microworld.pretraining import new_model, pretrain
    from evaluation.microworld.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    student = role == "student"
    shape = recipes.STUDENT_SHAPE if student else recipes.TEACHER_SHAPE
    phases = recipes.student_phases(seed) if student else recipes.teacher_phases(seed)
    model = new_model(shape, tokenizer, seed)
    directory = out / role

    def report(line: str) -> None:
        print(f"{role:8s}{line}", flush=True)
        model.save_pretrained(directory)

    pretrain(model, tokenizer, phases, report=report)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def build(out: Path, seed: int, report: Callable[[str], None]) -> None:
    """Rebuild both models under `out`; takes a quarter of an hour on two free cores.

    Args:
        out: Gets the directories `student` and `teacher`.
        seed: Of initial weights and texts.
        report: Called with a line when a model is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(ROLES), mp_context=context) as pool:
        for directory in pool.map(build_one, ROLES, [out] * len(ROLES), [seed] * len(ROLES)):
            report(f"saved {directory}")
