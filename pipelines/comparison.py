"""The comparison at the end: ways to adapt the student, side by side on documents that no training saw."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.statistics import compare, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.diagnostics import edit_notes
from pipelines.records import (
    CandidateRecord,
    ComparisonRecord,
    Interval,
    ReplicateRecord,
    SamplingRecord,
    VariantRecord,
)
from pipelines.rounds import update_requests
from pipelines.sampling import written_edit
from pipelines.units import Units
from pipelines.work import judge
from pipelines.workspace import Workspace

PAIRS = (
    ("trained_teacher", "untrained_teacher"),
    ("trained_teacher", "fixed_kind"),
    ("trained_teacher", "external_generator"),
    ("trained_teacher", "raw_passage"),
    ("trained_teacher", "base"),
    ("untrained_teacher", "raw_passage"),
    ("untrained_teacher", "base"),
)
"""Differences that are reported, where both variants are there."""


def base_variant(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask]) -> VariantRecord:
    """Return the student without any update."""
    scores = units.base(tasks, "comparison").replicates
    return VariantRecord(
        name="base",
        label="base student, no update",
        candidates=(),
        accuracy={score.document_id: score.accuracy for score in scores if score.accuracy is not None},
        phrasings=_by_phrasing(ws, scores),
        failures=_failures(scores),
    )


def raw_variant(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask]) -> VariantRecord:
    """Return the student trained on the passages as they are."""
    edits = tuple(written_edit(task, task.document.text) for task in tasks)
    return _scored(ws, units, "raw_passage", "raw passage", SamplingRecord(edits=edits, seconds=0.0), tasks)


def teacher_variant(
    ws: Workspace,
    units: Units,
    name: str,
    label: str,
    policy: str | None,
    prompt: str,
    tasks: Sequence[KnowledgeTask],
    *,
    keep: int = 0,
) -> VariantRecord:
    """Return the student trained on the self-edits of a teacher at a saved state.

    Args:
        ws: The run's workspace.
        units: Where units run.
        name: Of the variant.
        label: Of the variant, for people.
        policy: Name of the teacher's state; None is the untrained teacher.
        prompt: Name of the prompt template.
        tasks: Documents to write about and to ask about.
        keep: Documents, from the first on, of which the adapter of the first self-edit is kept (`kept_adapters`).
    """
    sampling = units.sample(policy, prompt, tasks, n=ws.config.comparison.edits, seed=ws.seed("sample", "comparison"))
    return _scored(ws, units, name, label, sampling, tasks, keep=keep)


def external_variant(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask]) -> VariantRecord | None:
    """Return the student trained on the self-edits of the generator that is not ours; None where there is none."""
    external = ws.config.comparison.external
    if external is None:
        return None
    sampling = units.external(tasks, n=ws.config.comparison.edits, seed=ws.seed("sample", "external"))
    return _scored(ws, units, "external_generator", external.label, sampling, tasks)


def best_fixed_variant(
    ws: Workspace, units: Units, development: Sequence[KnowledgeTask], test: Sequence[KnowledgeTask]
) -> VariantRecord | None:
    """Return the untrained teacher with the fixed prompt that is best on the development documents, or None."""
    means: dict[str, float] = {}
    for prompt in ws.config.comparison.fixed_prompts:
        tried = teacher_variant(ws, units, "fixed_kind", prompt, None, prompt, development)
        mean = known_mean(tried.accuracy.values())
        if mean is not None:
            means[prompt] = mean
    if not means:
        return None
    best = max(means, key=lambda prompt: means[prompt])
    label = f"best fixed kind ({best.removeprefix('micro-')})"
    chosen = teacher_variant(ws, units, "fixed_kind", label, None, best, test)
    notes = {f"development accuracy of {prompt}": mean for prompt, mean in means.items()}
    return chosen.model_copy(update={"notes": {**chosen.notes, **notes}})


def kept_adapters(ws: Workspace, variant: VariantRecord) -> dict[str, Path]:
    """Return directories of the adapters that were kept of a variant's first documents, by document id."""
    chosen = [c for c in variant.candidates if c.edit.index == 0][: ws.config.comparison.keep_adapters]
    digests = {c.edit.document_id: r.adapter_digest for c in chosen for r in c.replicates}
    return {name: ws.adapter_dir(digest) for name, digest in digests.items() if digest is not None}


class JointStudent(NamedTuple):
    """One student for all documents."""

    variant: VariantRecord
    directory: Path
    """Of its adapter, in PEFT's format."""
    digest: str
    """SHA-256 of its adapter."""


def joint_student(
    ws: Workspace, units: Units, trained: VariantRecord, tasks: Sequence[KnowledgeTask]
) -> JointStudent | None:
    """Return one student trained on all self-edits of the trained teacher together; None where there is none.

    It is the student to deploy: one adapter that holds all documents at once. It is reported beside the comparison, not
    in it, because every other variant adapts to one document at a time.
    """
    recipe = ws.config.comparison.joint_update
    edits = [c.edit.edit for c in trained.candidates if c.edit.index == 0 and c.edit.edit is not None]
    if recipe is None or not edits:
        return None
    record = units.joint(edits, tasks, recipe, seed=ws.seed("update", "joint"))
    accuracy = {r.document_id: r.accuracy for r in record.replicates if r.accuracy is not None}
    digest = record.replicates[0].adapter_digest
    if digest is None or not accuracy:
        return None
    variant = VariantRecord(
        name="joint_student",
        label="one student for all documents",
        candidates=(),
        accuracy=accuracy,
        phrasings=_by_phrasing(ws, record.replicates),
        failures=_failures(record.replicates),
        training_tokens=float(record.replicates[0].tokens),
        usage=record.usage,
    )
    return JointStudent(variant, ws.adapter_dir(digest), digest)


def probe_prompts(ws: Workspace, tasks: Sequence[KnowledgeTask], most: int = 16, characters: int = 4000) -> str:
    """Return prompts that show whether a served student is the one registered, as a JSON list.

    Args:
        ws: The run's workspace.
        tasks: What the student was taught; the first question of each is asked.
        most: Prompts at most.
        characters: Of the list, at most: registries limit what a tag may hold.
    """
    chosen: list[str] = []
    for task in tasks:
        prompt = ws.config.student.answer_format.render(task.comparison_questions[0].question)
        if len(chosen) < most and len(json.dumps([*chosen, prompt])) <= characters:
            chosen.append(prompt)
    return json.dumps(chosen)


def compare_variants(ws: Workspace, variants: Sequence[VariantRecord]) -> ComparisonRecord:
    """Return the variants with their intervals and paired gains, over the documents that all of them could score."""
    settings = ws.config.comparison
    names = {variant.name for variant in variants}
    found = compare(
        {variant.name: variant.accuracy for variant in variants},
        [pair for pair in PAIRS if names.issuperset(pair)],
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=ws.seed("bootstrap"),
    )
    return ComparisonRecord(
        documents=len(found.documents),
        variants={name: Interval.of(i) for name, i in found.variants.items()},
        gains={_gain_name(name): Interval.of(i) for name, i in found.gains.items()},
        confidence=settings.confidence,
        minimum_detectable={_gain_name(name): value for name, value in found.minimum_detectable.items()},
    )


def _gain_name(name: str) -> str:
    """Return the short name of a difference: `trained_minus_untrained`."""
    return name.replace("_teacher", "")


def _scored(
    ws: Workspace,
    units: Units,
    name: str,
    label: str,
    sampling: SamplingRecord,
    tasks: Sequence[KnowledgeTask],
    *,
    keep: int = 0,
) -> VariantRecord:
    """Return the variant whose self-edits are given; see `teacher_variant`."""
    first = {edit.document_id for edit in [e for e in sampling.edits if e.index == 0][:keep]}
    requests = [
        request._replace(keep=request.sample == 0 and request.document_id in first)
        for request in update_requests(ws, sampling, "comparison", 1)
    ]
    updates = units.banks(requests, "comparison")
    replicates = updates.replicates
    candidates = judge(ws, sampling, replicates, {})
    by_document: dict[str, list[float | None]] = defaultdict(list)
    for replicate in replicates:
        by_document[replicate.document_id].append(replicate.accuracy)
    means = {task.id: known_mean(by_document[task.id]) for task in tasks}
    return VariantRecord(
        name=name,
        label=label,
        candidates=tuple(candidates),
        accuracy={name: mean for name, mean in means.items() if mean is not None},
        phrasings=_by_phrasing(ws, replicates),
        failures={**_failures(replicates), **_unparsed(candidates), **_too_long(sampling)},
        edit_tokens=known_mean(edit.tokens for edit in sampling.edits if edit.tokens),
        training_tokens=known_mean(replicate.tokens for replicate in replicates if replicate.failure is None),
        usage=updates.usage,
        notes=edit_notes(ws, sampling.edits),
    )


def _by_phrasing(ws: Workspace, replicates: Sequence[ReplicateRecord]) -> dict[str, float]:
    """Return the mean accuracy of each question phrasing over all updates."""
    hits: dict[str, list[float]] = defaultdict(list)
    for replicate in replicates:
        if replicate.failure is None:
            questions = ws.tasks[replicate.document_id].comparison_questions
            for question, right in zip(questions, replicate.verdicts, strict=True):
                if question.phrasing and right is not None:
                    hits[question.phrasing].append(float(right))
    return {phrasing: sum(values) / len(values) for phrasing, values in sorted(hits.items())}


def _failures(replicates: Sequence[ReplicateRecord]) -> dict[str, int]:
    counts = Counter(r.failure.value for r in replicates if r.failure is not None)
    for replicate in replicates:
        counts.update({f"answers {reason}": count for reason, count in replicate.ungraded.items()})
    return dict(counts)


def _unparsed(candidates: Sequence[CandidateRecord]) -> dict[str, int]:
    return dict(Counter(c.reason.value for c in candidates if c.reason is not None and not c.replicates))


def _too_long(sampling: SamplingRecord) -> dict[str, int]:
    return {"prompt_too_long": len(sampling.too_long)} if sampling.too_long else {}
