"""Accuracy against tokens: the same teachers' self-edits cut or lengthened to given lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.statistics import bootstrap_mean, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.comparison import scored_variant
from pipelines.control_variants import token_counter
from pipelines.controls import budgeted
from pipelines.records import Interval, SamplingRecord
from pipelines.results import CurvePoint
from pipelines.units import Units
from pipelines.workspace import Workspace


class Writer(NamedTuple):
    """Who writes the self-edits of a curve."""

    policy: str | None
    """State of the teacher; None is the untrained one."""
    prompt: str


def token_curves(
    ws: Workspace, units: Units, tasks: Sequence[KnowledgeTask], writers: Mapping[str, Writer]
) -> dict[str, tuple[CurvePoint, ...]]:
    """Return accuracy at each length by variant; empty where the run draws no curve.

    Lines of several self-edits of one teacher are used one after another (`controls.at_budget`), so that longer
    self-edits say more of what this teacher would say, and shorter ones less.

    Args:
        ws: The run's workspace.
        units: Where units run.
        tasks: Documents to ask about.
        writers: By name of the variant.
    """
    plan = ws.config.comparison.curve
    if plan is None:
        return {}
    count = token_counter(ws)
    curves = {}
    for name, writer in writers.items():
        seed = ws.seed("sample", "curve")
        sampled = units.sample(writer.policy, writer.prompt, tasks, n=plan.samples, seed=seed).edits
        points = []
        for budget in plan.tokens:
            made = budgeted(sampled, budget, count)
            sampling = SamplingRecord(edits=tuple(made), seconds=0.0)
            scored = scored_variant(ws, units, name, name, sampling, tasks).accuracy
            if scored:
                tokens = known_mean(e.tokens for e in made if e.edit is not None) or 0.0
                points.append(_point(ws, budget, tokens, scored))
        curves[name] = tuple(points)
    return curves


def _point(ws: Workspace, budget: int, tokens: float, scored: Mapping[str, float]) -> CurvePoint:
    interval = bootstrap_mean(list(scored.values()), **ws.intervals)
    return CurvePoint(budget=budget, tokens=tokens, accuracy=Interval.of(interval), document_accuracy=dict(scored))
