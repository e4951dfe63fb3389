"""Results of runs that never happened, with the statistics of real ones, to build evidence from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.across_seeds import kept_share
from evaluation.paired_tests import paired_tests
from evaluation.statistics import compare
from pipelines.records import Interval, ReliabilityRecord
from pipelines.results import CurvePoint, PairedTestRecord, RunResult, TransferRecord

LEVELS = {
    "base": 0.05,
    "raw_passage": 0.07,
    "null_edit": 0.05,
    "other_document": 0.05,
    "swapped_values": 0.06,
    "fixed_kind": 0.40,
    "fixed_kind_equal_tokens": 0.42,
    "untrained_teacher": 0.25,
    "proxy_teacher": 0.35,
    "trained_teacher": 0.55,
    "oracle": 0.80,
}
"""Mean accuracies."""

PAIRS = (
    ("trained_teacher", "untrained_teacher"),
    ("trained_teacher", "fixed_kind"),
    ("trained_teacher", "fixed_kind_equal_tokens"),
    ("other_document", "base"),
)


def reliability(of_three: float, runs: float = 3.0) -> ReliabilityRecord:
    """Return a record whose rewards of three updates have this reliability."""
    between, within = of_three, 3.0 * (1.0 - of_three)
    of_runs = between / (between + within / runs)
    return ReliabilityRecord(
        between_variance=between,
        within_variance=within,
        edits=40,
        of_one=between / (between + within),
        of_reward=of_runs,
        runs=runs,
    )


def scores(generator: np.random.Generator, levels: Mapping[str, float], documents: int) -> dict[str, dict[str, float]]:
    """Return accuracies by variant and document: eight questions each, some documents harder than others."""
    hard = generator.uniform(-0.04, 0.04, documents)
    return {
        name: {
            f"d{i:03d}": float(generator.binomial(8, np.clip(level + hard[i], 0.0, 1.0))) / 8 for i in range(documents)
        }
        for name, level in levels.items()
    }


def _intervals(found: Mapping[str, Any]) -> dict[str, Interval]:
    return {name.replace("_teacher", "") if "_minus_" in name else name: Interval.of(i) for name, i in found.items()}


def run_result(
    seed: int,
    changes: Mapping[str, float] | None = None,
    *,
    documents: int = 120,
    there: float = 0.9,
    lost: float = 0.0,
    of_three: float = 0.9,
    runs: int = 900,
    extras: bool = True,
) -> RunResult:
    """Return the result of one seed.

    Args:
        seed: Of the run.
        changes: Mean accuracies that differ from `LEVELS`.
        documents: Test documents.
        there: Share of each accuracy that the other student has.
        lost: Retention probes that the trained teacher loses more than the untrained one, as a share.
        of_three: Reliability of a reward from three updates.
        runs: Updates in all rounds.
        extras: Curve, transfer, retention and phrasings are there.
    """
    generator = np.random.default_rng([seed, 7])
    levels = {**LEVELS, **(changes or {})}
    accuracy = scores(generator, levels, documents)
    found = compare(accuracy, PAIRS, resamples=100)
    tests = paired_tests(accuracy, PAIRS, resamples=199)
    result = RunResult(
        variants=_intervals(found.variants),
        gains=_intervals(found.gains),
        rounds=tuple({"round": n, "mean_reward": 0.25 + 0.02 * n + 0.01 * seed, "base_reward": 0.05} for n in range(8)),
        seconds={"sample": 30.0, "update": 300.0, "learn": 60.0, "compare": 90.0},
        documents=documents,
        mlflow_run_id=f"run-{seed}",
        config_digest="c" * 64,
        code_digest="d" * 64,
        seed=seed,
        document_accuracy=accuracy,
        edit_tokens={"untrained_teacher": 80.0, "trained_teacher": 110.0},
        pilot={"accuracy": reliability(0.6), "probability": reliability(of_three)},
        reliability=reliability(of_three),
        inner_runs=runs,
        tests={name.replace("_teacher", ""): PairedTestRecord(**test._asdict()) for name, test in tests.items()},
        minimum_detectable={name.replace("_teacher", ""): value for name, value in found.minimum_detectable.items()},
        edit_notes={
            "untrained_teacher": {"tokens": 80.0, "parsed": 0.97, "coverage": 0.4, "distinct_2": 0.6},
            "trained_teacher": {"tokens": 110.0, "parsed": 1.0, "coverage": 0.8, "distinct_2": 0.5},
        },
    )
    return result.model_copy(update=_extras(generator, levels, accuracy, there, lost)) if extras else result


def _extras(
    generator: np.random.Generator,
    levels: Mapping[str, float],
    accuracy: Mapping[str, Mapping[str, float]],
    there: float,
    lost: float,
) -> dict[str, Any]:
    documents = list(accuracy["base"])
    kept_levels = {n: there * levels[n] for n in ("base", "untrained_teacher", "trained_teacher")}
    other = scores(generator, kept_levels, len(documents))
    pair = ("trained_teacher", "untrained_teacher")
    gains = [[side[pair[0]][d] - side[pair[1]][d] for d in documents] for side in (other, accuracy)]
    kept, beside = kept_share(gains[0], gains[1], resamples=200), compare(other, [pair], resamples=100)
    forgotten = {
        name: {d: float(generator.binomial(24, 0.1 + more)) / 24 for d in documents}
        for name, more in (("untrained_teacher", 0.0), ("trained_teacher", lost))
    }
    return {
        "curve": {name: curve(generator, levels[name], documents) for name in ("fixed_kind", "trained_teacher")},
        "transfer": TransferRecord(
            label="small student",
            model="transfer/small-student",
            variants=_intervals(beside.variants),
            gains=_intervals(beside.gains),
            kept=None if kept is None else Interval.of(kept),
            document_accuracy=other,
        ),
        "document_forgetting": forgotten,
        "forgetting": {name: around(float(np.mean(list(v.values())))) for name, v in forgotten.items()},
        "phrasings": {name: {"held-out": level + 0.02, "unseen": level - 0.02} for name, level in levels.items()},
    }


def around(mean: float, half: float = 0.02) -> Interval:
    """Return an interval of this half width."""
    return Interval(mean=mean, low=mean - half, high=mean + half)


def curve(generator: np.random.Generator, level: float, documents: Sequence[str]) -> tuple[CurvePoint, ...]:
    """Return a curve that rises with its tokens to `level`."""
    points = []
    for budget in (40, 80, 120):
        share = level * budget / 120
        by_document = {d: float(generator.binomial(8, share)) / 8 for d in documents}
        mean = float(np.mean(list(by_document.values())))
        points.append(
            CurvePoint(budget=budget, tokens=0.9 * budget, accuracy=around(mean), document_accuracy=by_document)
        )
    return tuple(points)
