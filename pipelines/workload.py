"""How much a run does, counted from its configuration: samples, updates, documents, what the teacher learns from."""

from __future__ import annotations

import math
from typing import NamedTuple

from evaluation.data_config import MicrogridsData, MicroworldData
from pipelines.config import RunConfig
from student.augmentations import most_examples
from teacher.config import PreferenceConfig, RestEmConfig
from teacher.self_edit import AugmentationSpec

_DEMONSTRATIONS = 4
"""Assumed pairs of a grid task of ARC; most have 2 to 5."""

_Embedded = MicroworldData | MicrogridsData


class Work(NamedTuple):
    """Units of work of a run."""

    samples: int
    edit_updates: int
    passage_updates: int
    reward_updates: int
    """Of the updates, those in rounds."""
    documents: int
    """On which the student is scored without an update, at most."""
    reward_documents: int
    """Of these, those in rounds."""
    round_examples: int
    """Completions that the teacher learns from in a round."""
    examples: int
    """In all rounds."""


def count_work(config: RunConfig) -> Work:
    """Return the counts over pilot, rounds, looks, the choice of the fixed prompt, and the comparison."""
    loop, data, teacher = config.loop, config.data, config.teacher
    documents = min(loop.documents, data.train_documents) if isinstance(data, _Embedded) else loop.documents
    sampled = loop.rounds * documents * teacher.samples
    repeated = min(loop.repeated_documents, documents) * teacher.samples
    rewarded = loop.rounds * (documents * loop.updates_per_document(teacher.samples) + repeated)
    pilot, look = loop.pilot, loop.development
    pilot_edits = 0 if pilot is None else pilot.documents * pilot.samples
    pilot_updates = 0 if pilot is None else pilot_edits * pilot.replicates
    looks = 0 if look is None else -(-loop.rounds // look.every) * data.development_documents * look.edits
    proxied = loop.rounds > 0 and "proxy_teacher" in config.comparison.controls
    compared = _count_compared(config)
    kept = _kept(config)
    return Work(
        samples=(1 + proxied) * (sampled + looks) + pilot_edits + compared.samples,
        edit_updates=rewarded + pilot_updates + looks + compared.updates,
        passage_updates=data.test_documents * (1 + (config.comparison.transfer is not None)),
        reward_updates=rewarded + pilot_updates + looks,
        documents=loop.rounds * documents + data.development_documents + data.test_documents,
        reward_documents=loop.rounds * documents,
        round_examples=documents * kept,
        examples=(1 + proxied) * loop.rounds * documents * kept,
    )


class _Compared(NamedTuple):
    samples: int
    updates: int
    """Those of raw passages left out."""


def _count_compared(config: RunConfig) -> _Compared:
    """Return the counts of the choice of the fixed prompt and of the comparison.

    The fixed prompts compete on the development documents; then one of them, the untrained teacher and, after any
    round, the trained one write for the test documents, and so do the controls that need a text of their own.
    """
    after, tests, trained = config.comparison, config.data.test_documents, config.loop.rounds > 0
    prompts = len(after.fixed_prompts)
    teachers = 1 + trained + (prompts > 0)
    writing = prompts * config.data.development_documents + teachers * tests
    samples, updates = after.drawn * writing, after.edits * writing
    updates += after.edits * tests * (after.external is not None)
    if trained:
        samples += after.drawn * tests * ("proxy_teacher" in after.controls)
        samples += 3 * after.edits * tests * ("equal_tokens" in after.controls and prompts > 0)
        own_length = {"null_edit", "oracle"}
        updates += sum(tests * (1 if name in own_length else after.edits) for name in after.controls)
    if after.curve is not None:
        samples += teachers * tests * after.curve.samples
        updates += teachers * tests * len(after.curve.tokens)
    if after.transfer is not None:
        updates += teachers * tests * after.edits + tests * ("oracle" in after.controls and trained)
    if after.specs is not None:
        space = len(list(after.specs.space.choices()))
        updates += after.specs.fixed_tasks * space + tests + after.specs.oracle_tasks * (space + 1)
    return _Compared(samples, updates)


class Tried(NamedTuple):
    """Updates with every specification of a space."""

    updates: int
    steps: int
    """Of all of them together."""


def tried_steps(config: RunConfig) -> Tried:
    """Return the updates with every specification of the space, whose steps are known; those over budget take none."""
    plan, recipe = config.comparison.specs, config.student.update
    if plan is None:
        return Tried(0, 0)
    edits, tasks = plan.space.edits(), plan.fixed_tasks + plan.oracle_tasks
    shown = config.data.demonstrations if isinstance(config.data, MicrogridsData) else _DEMONSTRATIONS
    asked = [
        recipe.with_spec(edit.training).asked_steps(most_examples(edit.augmentations or AugmentationSpec(), shown))
        for edit in edits
    ]
    limit = recipe.step_budget
    steps = sum(min(steps, recipe.max_steps) for steps in asked if limit is None or steps <= limit)
    return Tried(tasks * len(edits), tasks * steps)


def _kept(config: RunConfig) -> int:
    """Return how many completions of a document the teacher learns from, at most; in pairs they may repeat."""
    learning = config.teacher.learning
    if isinstance(learning, RestEmConfig):
        return min(learning.keep, config.teacher.samples)
    if isinstance(learning, PreferenceConfig):
        return 2 * min(learning.max_pairs, math.comb(config.teacher.samples, 2))
    return config.teacher.samples
