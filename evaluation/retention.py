"""Retention probes: questions on what a student knew before an update and must not forget."""

from __future__ import annotations

import codecs
import itertools
import random
from pathlib import Path

from pydantic import TypeAdapter

from evaluation.data_config import DataConfig, MicrogridsData, MicroworldData
from evaluation.errors import InputError
from evaluation.loaders.files import JsonSyntaxError, parse_json
from evaluation.loaders.intake import Intake
from evaluation.loaders.rows import QuestionRow
from evaluation.tasks import Question


def retention_probes(data: DataConfig, count: int, seed: int) -> tuple[Question, ...]:
    """Return at most `count` questions that no document of the run is about.

    In the micro-world they are about the facts that the student was pretrained on, the kinds of entities and the two
    sides of `known_facts` in turn; elsewhere they come from the JSON Lines file at `data.retention_path`.

    Args:
        data: Of the run.
        count: Most questions, at least 0; 0 gives none and opens no file.
        seed: Of the choice. The questions of a smaller count are the first ones of a larger count.

    Raises:
        InputError: The file cannot be read, holds no question or has bad lines; the message lists all bad lines.
    """
    if count == 0:
        return ()
    if isinstance(data, MicroworldData):
        return _known_to_the_micro_student(count, seed)
    if isinstance(data, MicrogridsData) or data.retention_path is None:
        return ()
    questions = _read(data.retention_path)
    random.Random(seed).shuffle(questions)
    return tuple(questions[:count])


def rehearsal_questions(data: DataConfig, count: int, seed: int, *, probes: int) -> tuple[Question, ...]:
    """Return at most `count` questions that training repeats, so that what a student knew before is not forgotten.

    None of them is a probe. In the micro-world they are about the same known facts, in other words than the probes';
    a file has its probes first, and the rest of its questions are rehearsed.

    Args:
        data: As for `retention_probes`.
        count: Most questions, at least 0.
        seed: The one that the probes are chosen with.
        probes: How many of the first questions of a file are probes.

    Raises:
        InputError: As for `retention_probes`.
    """
    if isinstance(data, MicroworldData):
        return _known_to_the_micro_student(count, seed, wording=1)
    return retention_probes(data, probes + count, seed)[probes:] if count else ()


def _known_to_the_micro_student(count: int, seed: int, wording: int = 0) -> tuple[Question, ...]:
    from evaluation.microworld.corpora import known_facts
    from evaluation.microworld.templates import PHRASINGS
    from evaluation.microworld.vocabulary import ENTITY_KINDS
    from evaluation.microworld.world import ask

    strata = [[fact for fact in side if fact.kind == kind] for side in known_facts() for kind in ENTITY_KINDS]
    rng = random.Random(seed)
    for stratum in strata:
        rng.shuffle(stratum)
    dealt = (fact for turn in itertools.zip_longest(*strata) for fact in turn if fact is not None)
    return tuple(ask(fact, PHRASINGS[wording]) for fact in itertools.islice(dealt, count))


def _read(path: Path) -> list[Question]:
    """Return the questions of a JSON Lines file, in its order; lines end as in `evaluation.loaders.json_lines`."""
    try:
        content = path.expanduser().read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(
            f"retention probes: file '{path}' cannot be read: {error.strerror} (current directory: '{Path.cwd()}'). "
            "Correct data.retention_path in the config, or leave it out to ask none."
        ) from error
    intake, adapter = Intake(str(path)), TypeAdapter(dict[str, QuestionRow])
    questions: list[Question] = []
    refused = False
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        found: dict[str, QuestionRow] | None = None
        try:
            found = intake.parse_whole(adapter, {place: parse_json(line)})
        except JsonSyntaxError as error:
            intake.refuse(place, str(error))
        refused |= found is None
        questions += [Question(question=row.question, answer=row.answer) for row in (found or {}).values()]
    if refused:
        intake.tasks()  # Raises: it lists what was refused.
    if not questions:
        raise InputError(
            f"retention probes: file '{path}' holds no question. Give at least one line "
            '{"question": ..., "answer": ...}, or leave data.retention_path out of the config to ask none.'
        )
    return questions
