"""The comparison at the end: ways to adapt the student, side by side on documents that no training saw."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.paired_tests import mcnemar_test, paired_tests
from evaluation.statistics import bootstrap_mean, compare, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.diagnostics import edit_notes
from pipelines.drafts import agreement, most_written
from pipelines.records import CandidateRecord, Interval, ReplicateRecord, SamplingRecord
from pipelines.redraws import update_with_redraws
from pipelines.results import ComparisonRecord, PairedTestRecord, VariantRecord
from pipelines.sampling import written_edit
from pipelines.units import Units
from pipelines.workspace import Workspace

PAIRS = (
    ("trained_teacher", "untrained_teacher"),
    ("trained_teacher", "fixed_kind"),
    ("trained_teacher", "fixed_kind_equal_tokens"),
    ("trained_teacher", "fixed_spec"),
    ("trained_teacher", "proxy_teacher"),
    ("trained_teacher", "external_generator"),
    ("trained_teacher", "raw_passage"),
    ("trained_teacher", "base"),
    ("trained_teacher", "other_document"),
    ("untrained_teacher", "raw_passage"),
    ("untrained_teacher", "base"),
    ("null_edit", "base"),
    ("other_document", "base"),
    ("swapped_values", "base"),
    ("oracle", "trained_teacher"),
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
        verdicts=_verdicts(scores),
        phrasings=_by_phrasing(ws, scores),
        cells=_cells(scores),
        failures=_failures(scores),
    )


def raw_variant(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask]) -> VariantRecord:
    """Return the student trained on the passages as they are."""
    edits = tuple(written_edit(task, task.document.text) for task in tasks)
    return scored_variant(ws, units, "raw_passage", "raw passage", SamplingRecord(edits=edits, seconds=0.0), tasks)


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
    settings, seed = ws.config.comparison, ws.seed("sample", "comparison")
    sampling = units.sample(policy, prompt, tasks, n=settings.drawn, seed=seed)
    if settings.drafts == 1:
        return scored_variant(ws, units, name, label, sampling, tasks, keep=keep)
    agreed = agreement(sampling.edits)
    chosen = most_written(sampling, settings.tried)
    variant = scored_variant(ws, units, name, label, chosen, tasks, keep=keep)
    return variant if agreed is None else variant.model_copy(update={"notes": {**variant.notes, "agreement": agreed}})


def external_variant(ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask]) -> VariantRecord | None:
    """Return the student trained on the self-edits of the generator that is not ours; None where there is none."""
    external = ws.config.comparison.external
    if external is None:
        return None
    sampling = units.external(tasks, n=ws.config.comparison.tried, seed=ws.seed("sample", "external"))
    return scored_variant(ws, units, "external_generator", external.label, sampling, tasks)


class FixedKind(NamedTuple):
    """The fixed prompt of the untrained teacher that is best on the development documents."""

    prompt: str
    label: str
    notes: dict[str, float]


def best_fixed_kind(ws: Workspace, units: Units, development: Sequence[KnowledgeTask]) -> FixedKind | None:
    """Return which fixed prompt is best on the development documents; None where none competes."""
    means: dict[str, float] = {}
    for prompt in ws.config.comparison.fixed_prompts:
        tried = teacher_variant(ws, units, "fixed_kind", prompt, None, prompt, development)
        mean = known_mean(tried.accuracy.values())
        if mean is not None:
            means[prompt] = mean
    if not means:
        return None
    best = max(means, key=lambda prompt: means[prompt])
    notes = {f"development accuracy of {prompt}": mean for prompt, mean in means.items()}
    return FixedKind(best, f"best fixed kind ({best.removeprefix('micro-')})", notes)


def fixed_variant(
    ws: Workspace, units: Units, kind: FixedKind | None, tasks: Sequence[KnowledgeTask]
) -> VariantRecord | None:
    """Return the untrained teacher with the best fixed prompt; None where there is none."""
    if kind is None:
        return None
    chosen = teacher_variant(ws, units, "fixed_kind", kind.label, None, kind.prompt, tasks)
    return chosen.model_copy(update={"notes": {**chosen.notes, **kind.notes}})


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
    pairs = [pair for pair in PAIRS if names.issuperset(pair)]
    accuracies = {variant.name: variant.accuracy for variant in variants}
    found = compare(accuracies, pairs, **ws.intervals)
    shared = {name: {d: scores[d] for d in found.documents} for name, scores in accuracies.items() if scores}
    tested = [pair for pair in pairs if shared.keys() >= set(pair)]
    tests = paired_tests(shared, tested, method=settings.correction, seed=ws.seed("bootstrap"))
    verdicts = {variant.name: variant.verdicts for variant in variants}
    return ComparisonRecord(
        documents=len(found.documents),
        variants={name: Interval.of(i) for name, i in found.variants.items()},
        gains={gain_name(name): Interval.of(i) for name, i in found.gains.items()},
        confidence=settings.confidence,
        minimum_detectable={gain_name(name): value for name, value in found.minimum_detectable.items()},
        tests={
            gain_name(f"{a}_minus_{b}"): PairedTestRecord(
                sign_flip=tests[f"{a}_minus_{b}"].sign_flip,
                adjusted=tests[f"{a}_minus_{b}"].adjusted,
                required_documents=tests[f"{a}_minus_{b}"].required_documents,
                mcnemar=_mcnemar(verdicts[a], verdicts[b]),
            )
            for a, b in tested
        },
        forgetting={
            variant.name: Interval.of(
                bootstrap_mean(list(variant.forgetting.values()), bounds=(-1.0, 1.0), **ws.intervals)
            )
            for variant in variants
            if variant.forgetting
        },
    )


def _mcnemar(a: Mapping[str, Sequence[bool | None]], b: Mapping[str, Sequence[bool | None]]) -> float | None:
    """Return the p-value over the questions that both variants have a verdict on; None where there is none."""
    pairs = [
        (x, y)
        for document in sorted(a.keys() & b.keys())
        for x, y in zip(a[document], b[document], strict=True)
        if x is not None and y is not None
    ]
    return mcnemar_test([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None


def gain_name(name: str) -> str:
    """Return the short name of a difference: `trained_minus_untrained`."""
    return name.replace("_teacher", "")


def scored_variant(
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
    tried = update_with_redraws(ws, units, sampling, keep=keep)
    candidates, replicates = tried.candidates, tried.replicates
    drawn = [candidate.edit for candidate in candidates]
    notes = edit_notes(ws, drawn)
    return VariantRecord(
        name=name,
        label=label,
        candidates=tuple(candidates),
        accuracy=_means(tasks, ((r.document_id, r.accuracy) for r in replicates)),
        verdicts=_verdicts(replicates),
        forgetting=_means(tasks, ((r.document_id, r.forgetting) for r in replicates)),
        phrasings=_by_phrasing(ws, replicates),
        cells=_cells(replicates),
        failures={**_failures(replicates), **_unparsed(candidates), **_too_long(sampling)},
        edit_tokens=known_mean(edit.tokens for edit in drawn if edit.tokens),
        training_tokens=known_mean(replicate.tokens for replicate in replicates if replicate.failure is None),
        usage=tried.usage,
        notes={**notes, "redrawn": float(tried.redrawn)} if tried.redrawn else notes,
    )


def _means(tasks: Sequence[KnowledgeTask], values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the mean of the known values by document, in the order of the tasks."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for document, value in values:
        found[document].append(value)
    means = {task.id: known_mean(found[task.id]) for task in tasks}
    return {name: mean for name, mean in means.items() if mean is not None}


def _verdicts(replicates: Iterable[ReplicateRecord]) -> dict[str, tuple[bool | None, ...]]:
    """Return the verdicts on each document's first self-edit."""
    return {r.document_id: r.verdicts for r in replicates if r.index == 0 and r.failure is None}


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


def _cells(replicates: Sequence[ReplicateRecord]) -> float | None:
    return known_mean(known_mean(replicate.cells) for replicate in replicates)


def _failures(replicates: Sequence[ReplicateRecord]) -> dict[str, int]:
    counts = Counter(r.failure.value for r in replicates if r.failure is not None)
    for replicate in replicates:
        counts.update({f"answers {reason}": count for reason, count in replicate.ungraded.items()})
    return dict(counts)


def _unparsed(candidates: Sequence[CandidateRecord]) -> dict[str, int]:
    return dict(Counter(c.reason.value for c in candidates if c.reason is not None and not c.replicates))


def _too_long(sampling: SamplingRecord) -> dict[str, int]:
    return {"prompt_too_long": len(sampling.too_long)} if sampling.too_long else {}
