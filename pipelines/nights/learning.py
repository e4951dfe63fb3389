"""Learning of a night: the best self-edits of each new document, and one update of the student from all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.tasks import KnowledgeTask, Question
from pipelines.nights.config import Composition, NightConfig
from pipelines.nights.state import HeldDocument, StudentState
from pipelines.records import CandidateRecord, Record, replicates_by_edit
from pipelines.rewarding import judge
from pipelines.trials import Trials, update_requests
from pipelines.units import Units
from pipelines.work import bank_of
from pipelines.workspace import Workspace
from student.adapters import Adapter, load_adapter, save_adapter
from student.composition import merge_adapters
from student.config import UpdateRecipe
from student.updates import UpdateOutcome, make_job
from teacher.self_edit import Implication, SelfEdit


class NightUpdateRecord(Record):
    """The one update of a night."""

    adapter_digest: str | None
    """None when nothing could be learned, with the reason in `detail`."""
    detail: str = ""
    lines: int
    """Trained on: of new documents, replayed ones and general questions."""
    steps: int = 0
    tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0


def best_edits(
    ws: Workspace, units: Units, policy: str | None, tasks: Sequence[KnowledgeTask], config: NightConfig, night: str
) -> list[CandidateRecord]:
    """Return every self-edit that a teacher wrote for a night's documents, with its reward or the reason why not.

    Args:
        ws: The night's workspace.
        units: Where units run.
        policy: Name of the teacher's state; None is the untrained teacher.
        tasks: New documents for the weights.
        config: Of the night.
        night: Name of the night: part of the seeds.
    """
    if not tasks:
        return []
    seed = ws.seed("sample", night)
    sampling = units.sample(policy, config.teacher.prompt, tasks, n=config.writing.edits, seed=seed)
    updates = units.banks(update_requests(ws, sampling.edits, night, 1), "rewards")
    trials = Trials(replicates=replicates_by_edit(updates.replicates))
    return judge(sampling, trials, {}, config.teacher.reward)


def learned_edits(candidates: Sequence[CandidateRecord], count: int) -> dict[str, tuple[SelfEdit, ...]]:
    """Return by document id the self-edits with the best rewards, the best first; without a reward none is learned."""
    found: dict[str, list[CandidateRecord]] = {}
    for candidate in candidates:
        if candidate.reward is not None and candidate.edit.edit is not None:
            found.setdefault(candidate.edit.document_id, []).append(candidate)
    best = {
        name: sorted(mine, key=lambda c: (-(c.reward or 0.0), c.edit.index))[:count] for name, mine in found.items()
    }
    return {name: tuple(c.edit.edit for c in mine if c.edit.edit is not None) for name, mine in best.items()}


def replayed(state: StudentState, composition: Composition, most: int, seed: int) -> tuple[HeldDocument, ...]:
    """Return the earlier documents whose self-edits are trained on again.

    Args:
        state: Of the student that is adapted.
        composition: See `Composition`.
        most: Documents at most, where the composition leaves a choice.
        seed: Of the choice.
    """
    known = [held for held in state.documents if held.asked and held.edits]
    if composition == "joint":
        return tuple(known)
    if composition == "merged":
        return ()
    chosen = set(random.Random(seed).sample(range(len(known)), min(most, len(known))))
    return tuple(held for place, held in enumerate(known) if place in chosen)


def lines_of(
    new: Mapping[str, Sequence[SelfEdit]], again: Sequence[HeldDocument], general: Sequence[Question]
) -> SelfEdit:
    """Return everything that a night's update trains on as one self-edit."""
    edits = [edit for mine in new.values() for edit in mine] + [edit for held in again for edit in held.edits]
    told = [line for edit in edits for line in edit.implications]
    asked = [Implication(text=question.question, answer=question.answer) for question in general]
    return SelfEdit(implications=(*told, *asked))


def update_student(
    ws: Workspace, parent: Path | None, whole: SelfEdit, composition: Composition, recipe: UpdateRecipe, seed: int
) -> NightUpdateRecord:
    """Return the night's update of a student; the adapter is in the work directory.

    Args:
        ws: The night's workspace.
        parent: Directory of the champion's adapter; None is the base student.
        whole: Everything to train on.
        composition: `sequential` goes on from the parent, `merged` adds what was learned to it, `joint` starts anew.
        recipe: Of the update.
        seed: Of the adapter's start and of the order of lines.

    Raises:
        ModelError: The parent's adapter cannot be read.
        UpdateError: The parent's adapter does not fit the recipe.
    """
    started = time.perf_counter()
    before = None if parent is None else load_adapter(parent)
    student, config = ws.student, ws.config.student
    job = make_job(
        "night",
        whole,
        ws.split.test[0].document,
        student.tokenizer,
        recipe,
        config.answer_format,
        seed,
        initial=before if composition == "sequential" else None,
    )
    with bank_of(ws, recipe) as bank:
        result = bank.train([job])[0]
    made = result.adapter
    if made is not None and before is not None and composition == "merged":
        made = merge_adapters([before, made], recipe.rank, recipe.alpha)
    if made is not None:
        save_adapter(made, ws.adapter_dir(made.digest), config.model)
    failed = result.outcome is not UpdateOutcome.OK
    return NightUpdateRecord(
        adapter_digest=None if made is None else made.digest,
        detail=f"{result.outcome.value}: {result.detail}" if failed else result.detail,
        lines=len(whole.implications),
        steps=result.steps,
        tokens=result.tokens,
        first_loss=result.losses[0] if result.losses and not failed else None,
        last_loss=result.losses[-1] if result.losses and not failed else None,
        seconds=time.perf_counter() - started,
    )


def unchanged_student(ws: Workspace, recipe: UpdateRecipe, seed: int) -> Adapter:
    """Return an adapter that changes nothing, saved in the work directory: for a night that leaves all to memory."""
    with bank_of(ws, recipe) as bank:
        adapter = bank.no_change(recipe, seed)
    save_adapter(adapter, ws.adapter_dir(adapter.digest), ws.config.student.model)
    return adapter


def adapter_of(ws: Workspace, digest: str | None) -> Adapter | None:
    """Return an adapter of the work directory; None is the base student."""
    return None if digest is None else load_adapter(ws.adapter_dir(digest))
