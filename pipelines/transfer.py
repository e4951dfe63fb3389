"""Transfer: the same self-edits on a student that no teacher was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.across_seeds import kept_share
from evaluation.tasks import KnowledgeTask
from pipelines.comparison import base_variant, compare_variants, scored_variant
from pipelines.control_variants import edits_of
from pipelines.records import Interval, SamplingRecord
from pipelines.results import TransferRecord, VariantRecord
from pipelines.units import Units
from pipelines.workspace import Workspace

TRANSFERRED = ("raw_passage", "fixed_kind", "untrained_teacher", "trained_teacher", "oracle")
"""Variants that are tried on the other student, where the comparison has them."""


def other_student(ws: Workspace) -> Workspace | None:
    """Return a workspace of the same run whose student is the other one; None where there is none."""
    plan = ws.config.comparison.transfer
    if plan is None:
        return None
    update = plan.update or ws.config.student.update
    student = ws.config.student.model_copy(update={"model": plan.model, "update": update})
    return Workspace(ws.config.model_copy(update={"student": student}), ws.work_dir)


def transferred(
    ws: Workspace, other: Workspace, units: Units, variants: Sequence[VariantRecord], tasks: Sequence[KnowledgeTask]
) -> TransferRecord:
    """Return the comparison on the other student.

    Args:
        ws: The run's workspace.
        other: See `other_student`.
        units: Where units of `other` run.
        variants: Of the run's own student, with the self-edits.
        tasks: Documents to ask about.
    """
    plan = ws.config.comparison.transfer
    assert plan is not None
    found = [base_variant(other, units, tasks)]
    for variant in variants:
        if variant.name in TRANSFERRED:
            sampling = SamplingRecord(edits=edits_of(ws, variant), seconds=0.0)
            found.append(scored_variant(other, units, variant.name, variant.label, sampling, tasks))
    comparison = compare_variants(other, found)
    return TransferRecord(
        label=plan.label,
        model=plan.model,
        variants=comparison.variants,
        gains=comparison.gains,
        kept=_kept(ws, variants, found),
        document_accuracy={variant.name: variant.accuracy for variant in found},
    )


def _kept(ws: Workspace, here: Sequence[VariantRecord], there: Sequence[VariantRecord]) -> Interval | None:
    """Return which share of trained less untrained is kept on the other student."""
    pair = ("trained_teacher", "untrained_teacher")
    sides = [{v.name: v.accuracy for v in variants if v.name in pair} for variants in (there, here)]
    if any(len(side) < 2 for side in sides):
        return None
    shared = sorted(set.intersection(*(set(scores) for side in sides for scores in side.values())))
    gains = [[side[pair[0]][d] - side[pair[1]][d] for d in shared] for side in sides]
    found = kept_share(gains[0], gains[1], **ws.intervals)
    return None if found is None else Interval.of(found)
