"""Questions on a student's prior knowledge: retention probes and rehearsal."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from evaluation.microworld.world import ENTITY_KINDS, PHRASINGS, MicroworldData, ask, known_facts
from evaluation.sources.files import json_lines, read_data_file
from evaluation.sources.rows import FileSplit, QuestionRow, Refusals, as_questions
from evaluation.tasks import DataSplit, Question

GENERAL_KNOWLEDGE = Path(__file__).with_name("general_knowledge.jsonl")
"""Questions on general knowledge, language and arithmetic, for students that no probes are given for."""


def general_questions(count: int | None = None) -> tuple[Question, ...]:
    """Return the shipped general questions, or `count` of them spread evenly over all subjects."""
    questions = _questions_in(GENERAL_KNOWLEDGE, str(GENERAL_KNOWLEDGE))
    return tuple(questions if count is None else questions[:: max(1, len(questions) // count)][:count])


def _questions_in(path: Path, setting: str) -> list[Question]:
    refusals = Refusals(str(path))
    lines = json_lines(read_data_file(path, setting), refusals.refuse)
    rows = [refusals.parse(place, raw, QuestionRow) for place, raw in lines]
    refusals.check()
    return list(as_questions(row for row in rows if row is not None))


def retention_probes(data: DataSplit | None, count: int, seed: int) -> tuple[Question, ...]:
    """Return at most `count` probes; a smaller count is a prefix of a larger one, and 0 opens no file.

    Without data they are general questions that ship with the package. In the micro-world they are about the student's
    pretraining facts, stratified by kind and side of `known_facts`; otherwise they come from the JSON Lines file
    `data.retention_path` (InputError if it is invalid).
    """
    if isinstance(data, MicroworldData):
        return _known_to_the_micro_student(count, seed)
    path = data.retention_path if isinstance(data, FileSplit) else GENERAL_KNOWLEDGE if data is None else None
    if not count or path is None:
        return ()
    questions = _questions_in(path, "data.retention_path")
    random.Random(seed).shuffle(questions)
    return tuple(questions[:count])


def rehearsal_questions(data: DataSplit | None, count: int, seed: int, *, probes: int) -> tuple[Question, ...]:
    """Return at most `count` questions for rehearsal, none of which is a probe; see `retention_probes`.

    In the micro-world: the probes' facts in another phrasing; else the questions after the first `probes`.
    """
    if isinstance(data, MicroworldData):
        return _known_to_the_micro_student(count, seed, wording=1)
    return retention_probes(data, probes + count, seed)[probes:] if count else ()


def _known_to_the_micro_student(count: int, seed: int, wording: int = 0) -> tuple[Question, ...]:
    strata = [[fact for fact in side if fact.kind == kind] for side in known_facts() for kind in ENTITY_KINDS]
    rng = random.Random(seed)
    for stratum in strata:
        rng.shuffle(stratum)
    dealt = (fact for turn in itertools.zip_longest(*strata) for fact in turn if fact is not None)
    return tuple(ask(fact, PHRASINGS[wording]) for fact in itertools.islice(dealt, count))
