"""How a night learns: the best self-edits of each new document, and one update of the student from all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from evaluation.retention import rehearsal_questions
from evaluation.tasks import Document, KnowledgeTask
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.plan import SELF_EDITS, UPDATE, NightPlan
from pipelines.adapt_student.state import HeldDocument, StudentState, StudentVersion
from pipelines.inbox.corrections import clients_in
from pipelines.lineage.registry import Registry
from pipelines.loop.loop import Loop
from pipelines.loop.reward import judge
from pipelines.loop.update import adapter_dir, bank_of
from pipelines.models import ModelRef, open_student
from pipelines.plan import Stage
from pipelines.records import Candidate, Edit, Record, by_document
from pipelines.train_teacher.edits import made_edit
from student.adapters import load_adapter, save_adapter
from student.updates import UpdateOutcome, make_request
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit


class NightUpdate(Record):
    """The one update of a night."""

    adapter_digest: str | None
    """None if it failed, with the reason in `detail`."""
    detail: str = ""
    lines: int
    """Of new documents, replayed ones and general knowledge."""
    steps: int = 0
    tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0


class Night(NamedTuple):
    """A night in progress."""

    config: NightConfig
    loop: Loop
    plan: NightPlan
    parent: StudentVersion
    waiting: Mapping[str, str] = MappingProxyType({})
    """By id of a document that is not in the plan: why it waits."""


class Learned(NamedTuple):
    """What a night learned."""

    student: StudentVersion
    """Not registered yet."""
    candidates: Sequence[Candidate]
    edits: tuple[str, ...]
    """`Edit.id` of those that it was trained on."""
    update: NightUpdate | None
    """None if no self-edit was learned."""
    replayed: int
    """Earlier documents that were trained on again."""
    missing: dict[str, str]
    """Id of a document that the weights should have learned and did not -> reason."""


def champion_teacher(loop: Loop, registry: Registry) -> tuple[str | None, str, int | None]:
    """Return the champion teacher's state in the work directory (None: untrained), its label, and its number."""
    number = registry.champion("teacher") if loop.learns_here else None
    if number is None:
        return None, f"{loop.settings.teacher.model}, untrained", None
    name = registry.state_name(number)
    registry.fetch("teacher", number, loop.state_dir(name))
    return name, f"version {number} of the teacher", number


def learn(night: Night, state: str | None, stages: Mapping[str, Stage]) -> Learned:
    """Return the student that has learned the night's documents from a teacher's state; None is the untrained one."""
    config, loop, plan, parent = night.config, night.loop, night.plan, night.parent
    candidates = best_edits(night, state, stages[SELF_EDITS]) if SELF_EDITS in stages else []
    best = best_of_each(candidates, config.writing.learned)
    edits = {
        name: tuple(each.edit.edit for each in mine if each.edit.edit is not None)
        for name, mine in by_document(best).items()
    }
    replay = replayed(parent.state.after((), plan.superseded), config.replay.documents, loop.seed("replay", plan.night))
    update, directory = None, parent.directory
    if edits:
        (step,) = stages[UPDATE].steps
        with loop.reporter.step(step, UPDATE):
            update = update_night(night, [*edits.values(), *(held.edits for held in replay)])
        if update.adapter_digest is not None:
            directory = loop.adapter_dir(update.adapter_digest)
    if directory is None:  # a first night without an update
        with bank_of(config, config.update) as bank:
            unchanged = bank.no_change(config.update, loop.seed("night", "unchanged"))
        directory = save_adapter(unchanged, loop.adapter_dir(unchanged.digest), config.student.model)
    failed = update.detail if update is not None and update.adapter_digest is None else ""
    missing: dict[str, str] = {}
    for task in plan.to_weights:
        if failed or task.id not in edits:
            reasons = {c.reason.value for c in candidates if c.edit.document_id == task.id and c.reason is not None}
            missing[task.id] = failed or ", ".join(sorted(reasons)) or RewardFailure.GENERATION_FAILED.value
    new = [
        planned.model_copy(update={"night": plan.night, "edits": edits.get(planned.task.id, ())})
        for planned in plan.documents
        if planned.task.id not in missing
    ]
    held = parent.state.after(new, plan.superseded).model_copy(update={"parent": parent.number})
    student = StudentVersion(None, directory, load_adapter(directory), held)
    return Learned(student, candidates, tuple(each.edit.id for each in best), update, len(replay), missing)


def best_edits(night: Night, state: str | None, stage: Stage) -> list[Candidate]:
    """Return every self-edit sampled for the night's documents, with its reward or the reason for having none."""
    config, loop, plan = night.config, night.loop, night.plan
    sample, update = stage.steps
    with loop.reporter.step(sample, stage.name):
        seed = loop.seed("sample", plan.night)
        sampling = loop.sample(state, config.teacher.prompt, plan.to_weights, n=sample.each, seed=seed)
    edits = (*sampling.edits, *as_said(plan.to_weights, sample.each))
    with loop.reporter.step(update, stage.name):
        updates = loop.update(loop.trials(edits, plan.night), "rewards")
    # Sentences of the passage have a probability and no right answer.
    by_sentence = {task.id for task in plan.to_weights if task.questions[0].is_continuation}
    reward = config.teacher.reward
    found = judge((e for e in edits if e.document_id not in by_sentence), reward, updates=updates)
    reward = reward.model_copy(update={"metric": "token_probability"})
    return found + judge((e for e in edits if e.document_id in by_sentence), reward, updates=updates)


def as_said(tasks: Sequence[KnowledgeTask], index: int) -> list[Edit]:
    """Return a self-edit, of the given index, for each document that clients' chats became: what these say themselves.

    Two clients have confirmed its questions with their answers, in their own words; a teacher that reads a line of a
    chat badly must not stand between the two.
    """
    found = []
    for task in tasks:
        if clients_in(task.document.source):
            lines = tuple(Implication(text=q.question, answer=q.answer) for q in task.questions)
            found.append(made_edit(task.id, lines, index=index))
    return found


def best_of_each(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the self-edits of each document with the highest rewards, best first; without a reward, none."""
    rewarded = [each for each in candidates if each.reward is not None and each.edit.edit is not None]
    return [
        candidate
        for mine in by_document(rewarded).values()
        for candidate in sorted(mine, key=lambda each: (-(each.reward or 0.0), each.edit.index))[:count]
    ]


def replayed(state: StudentState, most: int, seed: int) -> tuple[HeldDocument, ...]:
    """Return the earlier documents, at most `most`, whose self-edits are trained on again."""
    known = [held for held in state.active if held.edits]
    chosen = set(random.Random(seed).sample(range(len(known)), min(most, len(known))))
    return tuple(held for place, held in enumerate(known) if place in chosen)


def update_night(night: Night, edits: Sequence[Sequence[SelfEdit]]) -> NightUpdate:
    """Return the night's update of the champion, from self-edits by document and general knowledge."""
    config, loop, parent = night.config, night.loop, night.parent
    retention, probes = loop.seed("retention"), len(loop.probes)
    general = rehearsal_questions(config.general, config.replay.general, retention, probes=probes)
    known = [line for mine in edits for edit in mine for line in edit.implications]
    rehearsed = [Implication(text=question.question, answer=question.answer) for question in general]
    lines = SelfEdit(implications=(*known, *rehearsed))
    seed, document = loop.seed("night", night.plan.night), night.plan.documents[0].task.document
    content = {
        "student": loop.student_digest,
        "parent": None if parent.adapter is None else parent.adapter.digest,
        "recipe": config.update.model_dump(mode="json"),
        "format": config.student.answer_format.model_dump(mode="json"),
        "document": document.digest,
        "lines": lines.digest,
        "seed": seed,
    }
    arguments = (config, parent.directory, lines, document, seed, loop.work_dir)
    return loop.execution.run(
        "night-update",
        content,
        update_student,
        *arguments,
        describe=f"training the student on {len(lines.implications)} lines",
        complete=lambda update: update.adapter_digest is None or loop.has_adapter(update.adapter_digest),
    )


def update_student(
    config: NightConfig, parent: Path | None, lines: SelfEdit, document: Document, seed: int, work_dir: Path
) -> NightUpdate:
    """Return the update of a student by a night's recipe; the adapter is left in the work directory.

    `parent` is the directory of the champion's adapter, None the base student; recipes may train on the title or
    passage of `document`, the night's first one; `seed` decides the adapter's initialisation and the order of lines.
    """
    started = time.perf_counter()
    tokenizer = open_student(ModelRef.of(config.student, config)).tokenizer
    before = None if parent is None else load_adapter(parent)
    request = make_request(
        "night", lines, document, tokenizer, config.update, config.student.answer_format, seed, initial=before
    )
    with bank_of(config, config.update) as bank:
        (result,) = bank.train([request])
    made = result.adapter
    if made is not None:
        save_adapter(made, adapter_dir(work_dir, made.digest), config.student.model)
    failed = result.outcome is not UpdateOutcome.OK
    losses = () if failed else result.losses
    return NightUpdate(
        adapter_digest=None if made is None else made.digest,
        detail=f"{result.outcome.value}: {result.detail}" if failed else result.detail,
        lines=len(lines.implications),
        steps=result.steps,
        tokens=result.tokens,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        seconds=time.perf_counter() - started,
    )
