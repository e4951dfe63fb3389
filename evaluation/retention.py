"""Retention probes: questions on what a student knew before an update and must not forget."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pydantic import ValidationError

from evaluation.data_config import DataConfig, MicroworldData
from evaluation.errors import InputError
from evaluation.tasks import Question


def retention_probes(data: DataConfig, count: int, seed: int) -> tuple[Question, ...]:
    """Return up to `count` questions that no document of the run is about.

    In the micro-world they are about the facts that the student was pretrained on; elsewhere they come from the JSON
    Lines file at `data.retention_path`, a question with its answer on each line.

    Args:
        data: Of the run.
        count: Most questions; 0 gives none.
        seed: Of the choice.

    Raises:
        InputError: The file cannot be read or has bad lines; all are listed.
    """
    if count == 0:
        return ()
    if isinstance(data, MicroworldData):
        from evaluation.microworld.corpora import known_facts
        from evaluation.microworld.templates import PHRASINGS
        from evaluation.microworld.world import ask

        known = [ask(fact, PHRASINGS[0]) for side in known_facts() for fact in side]
    elif data.retention_path is not None:
        known = _read(data.retention_path)
    else:
        return ()
    return tuple(random.Random(seed).sample(known, min(count, len(known))))


def _read(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"retention probes: {str(path)!r} cannot be read: {error}. Set data.retention_path."
        ) from error
    found, mistakes = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Question.model_validate(json.loads(line)))
        except (ValidationError, ValueError) as error:
            mistakes.append(f"line {number}: {str(error).splitlines()[-1].strip()}")
    if mistakes or not found:
        told = "; ".join(mistakes) or "it holds no question"
        raise InputError(
            f'retention probes: {str(path)!r}: {told}. Allowed is {{"question": ..., "answer": ...}} on each line.'
        )
    return found
