"""Records as what MLflow shows: named figures and tables. Pure functions; MLflow is not needed here."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.records import CandidateRecord, Interval, ReliabilityRecord, RoundRecord, ScreeningRecord
from pipelines.results import ComparisonRecord, VariantRecord

if TYPE_CHECKING:
    from pipelines.nights.results import NightResult

TOP_CANDIDATES = 100
"""Rows of the table of best candidates."""

Metrics = dict[str, float]


class Table(TypedDict):
    """What `MlflowClient.load_table` reads and the run's page shows."""

    columns: list[str]
    data: list[list[Any]]


_CANDIDATE_COLUMNS = {
    "document_id": "string",
    "document_digest": "string",
    "index": "int32",
    "text": "string",
    "edit": "string",
    "edit_digest": "string",
    "edit_tokens": "int32",
    "finish_reason": "string",
    "rejection": "string",
    "dropped": "string",
    "flags": "strings",
    "seeds": "int64s",
    "accuracy": "float64s",
    "probability": "float64s",
    "empty": "int64s",
    "failures": "strings",
    "details": "strings",
    "adapter_digests": "strings",
    "steps": "int64s",
    "training_tokens": "int64s",
    "first_loss": "float64s",
    "last_loss": "float64s",
    "forgetting": "float64s",
    "facts": "string",
    "proxy": "float64",
    "predicted": "float64",
    "audited": "bool_",
    "reward": "float64",
    "standard_error": "float64",
    "learned_reward": "float64",
    "reason": "string",
    "base_reward": "float64",
    "weight": "float64",
}
"""Types are fixed, so that the tables of all rounds can be read as one; a plural is a list, one item a replicate."""

_DOCUMENT_COLUMNS = {
    "id": "string",
    "title": "string",
    "digest": "string",
    "task_digest": "string",
    "characters": "int64",
    "questions": "int64",
    "held_out_questions": "int64",
    "source": "string",
}


def write_candidates(candidates: Iterable[CandidateRecord], digests: Mapping[str, str], path: Path) -> None:
    """Write one Parquet row for each candidate, failed ones with their reason and a null reward.

    Args:
        candidates: In the order wanted.
        digests: Of the documents, by id; a document that is not there gets null.
        path: File to write.
    """
    _write_parquet([_candidate_row(c, digests) for c in candidates], _CANDIDATE_COLUMNS, path)


def write_documents(tasks: Iterable[KnowledgeTask], path: Path) -> None:
    """Write one Parquet row for each document: identity, size and source, not the text."""
    rows = [
        {
            "id": task.id,
            "title": task.document.title,
            "digest": task.document.digest,
            "task_digest": task.digest,
            "characters": len(task.document.text),
            "questions": len(task.questions),
            "held_out_questions": len(task.held_out_questions),
            "source": task.document.source,
        }
        for task in tasks
    ]
    _write_parquet(rows, _DOCUMENT_COLUMNS, path)


def _candidate_row(candidate: CandidateRecord, digests: Mapping[str, str]) -> dict[str, Any]:
    edit, replicates = candidate.edit, candidate.replicates
    return {
        "document_id": edit.document_id,
        "document_digest": digests.get(edit.document_id),
        "index": edit.index,
        "text": edit.text,
        "edit": json.dumps(edit.edit.model_dump(mode="json"), ensure_ascii=False) if edit.edit else None,
        "edit_digest": edit.edit.digest if edit.edit else None,
        "edit_tokens": edit.tokens,
        "finish_reason": edit.finish_reason,
        "rejection": edit.rejection,
        "dropped": json.dumps(edit.dropped, ensure_ascii=False),
        "flags": edit.flags,
        "seeds": [r.seed for r in replicates],
        "accuracy": [r.accuracy for r in replicates],
        "probability": [r.mean_probability for r in replicates],
        "empty": [r.empty for r in replicates],
        "failures": [r.failure.value if r.failure else None for r in replicates],
        "details": [r.detail for r in replicates],
        "adapter_digests": [r.adapter_digest for r in replicates],
        "steps": [r.steps for r in replicates],
        "training_tokens": [r.tokens for r in replicates],
        "first_loss": [r.first_loss for r in replicates],
        "last_loss": [r.last_loss for r in replicates],
        "forgetting": [r.forgetting for r in replicates],
        "facts": json.dumps(candidate.facts),
        "proxy": candidate.proxy,
        "predicted": candidate.predicted,
        "audited": candidate.audited,
        "reward": candidate.reward,
        "standard_error": candidate.standard_error,
        "learned_reward": candidate.learned_reward,
        "reason": candidate.reason.value if candidate.reason else None,
        "base_reward": candidate.base_reward,
        "weight": candidate.weight,
    }


def _write_parquet(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {name: getattr(pa, name)() for name in ("string", "int32", "int64", "float64", "bool_")}
    types |= {f"{name}s": pa.list_(of) for name, of in types.items()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = [{name: _storable(value) for name, value in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(clean, schema=schema), path)


def _storable(value: Any) -> Any:
    """Replace lone surrogates, which a language model's JSON may hold and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


def best_candidates(candidates: Iterable[CandidateRecord]) -> Table:
    """Return the candidates with the highest rewards, best first, at most `TOP_CANDIDATES`."""
    scored = [(c.reward, c) for c in candidates if c.reward is not None]
    scored.sort(key=lambda pair: (-pair[0], pair[1].edit.document_id, pair[1].edit.index))
    columns = ["document_id", "index", "reward", "base_reward", "accuracy", "probability", "weight", "text"]
    data = [
        [
            c.edit.document_id,
            c.edit.index,
            reward,
            c.base_reward,
            known_mean(r.accuracy for r in c.replicates),
            known_mean(r.mean_probability for r in c.replicates),
            c.weight,
            _storable(c.edit.text),
        ]
        for reward, c in scored[:TOP_CANDIDATES]
    ]
    return Table(columns=columns, data=data)


def round_metrics(record: RoundRecord) -> Metrics:
    """Return a round's figures; what is not known is left out.

    `candidate/positive_fraction` is the share of the candidates with a reward above the student's without an update.
    """
    candidates, learning = record.candidates, record.learning
    scored = [(c.reward, c.base_reward) for c in candidates if c.reward is not None]
    gains = [reward - base for reward, base in scored if base is not None]
    failures = Counter(c.reason.value for c in candidates if c.reason)
    figures: dict[str, float | None] = {
        "candidate/count": len(candidates),
        "candidate/ok_count": len(scored),
        "candidate/failed_count": len(candidates) - len(scored),
        "candidate/left_out_documents": len(record.left_out),
        "candidate/reward_mean": record.mean_reward,
        "candidate/base_reward": record.base_reward,
        "candidate/positive_fraction": known_mean(gain > 0.0 for gain in gains),
        **_quantiles([reward for reward, _ in scored]),
        **{f"failure/{reason}": count for reason, count in failures.items()},
        "teacher/examples": learning.examples,
        "teacher/tokens": learning.tokens,
        "teacher/loss": learning.loss,
        "teacher/kl": learning.kl,
        "teacher/entropy": learning.entropy,
        "teacher/clip_fraction": learning.clip_fraction,
        "teacher/gradient_norm": learning.gradient_norm,
        "candidate/inner_runs": record.inner_runs,
        **_parts("reliability", record.reliability),
        **_parts("screening", record.screening),
        "development/reward": None if record.development is None else record.development.mean,
        "development/best": None if record.development is None else record.development.best,
        "bank/slots": record.usage.slots,
        "bank/padding_share": record.usage.padding_share,
        "memory/bank_peak_bytes": record.usage.peak_bytes,
        **{f"time/{_part(stage)}_s": seconds for stage, seconds in record.seconds.items()},
        **{f"notes/{_part(name)}": value for name, value in record.notes.items()},
    }
    return _known(figures)


def _parts(name: str, record: ReliabilityRecord | ScreeningRecord | None) -> dict[str, float | None]:
    """Return the fields of a part of a record as figures."""
    return {} if record is None else {f"{name}/{field}": value for field, value in record.model_dump().items()}


def _quantiles(rewards: Sequence[float]) -> dict[str, float | None]:
    """Return p10, p50, p90 (interpolated linearly) and the largest reward."""
    if not rewards:
        return {}
    import numpy as np

    levels = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
    return {f"candidate/reward_{name}": float(np.quantile(rewards, level)) for name, level in levels.items()}


def variant_metrics(record: VariantRecord, interval: Interval | None) -> Metrics:
    """Return a variant's figures; `interval` is its accuracy over the documents that all variants share."""
    return _known(
        {
            **_interval("eval/accuracy", interval),
            "eval/documents": len(record.accuracy),
            "eval/edit_tokens": record.edit_tokens,
            "eval/training_tokens": record.training_tokens,
            "eval/forgetting": known_mean(record.forgetting.values()),
            "eval/failed_count": sum(record.failures.values()),
            **{f"failure/{_part(reason)}": count for reason, count in record.failures.items()},
            **{f"phrasing/{_part(name)}": accuracy for name, accuracy in record.phrasings.items()},
            **{f"notes/{_part(name)}": value for name, value in record.notes.items()},
        }
    )


def variant_table(record: VariantRecord) -> Table:
    """Return a variant's mean accuracy by document."""
    return Table(columns=["document_id", "accuracy"], data=[list(row) for row in sorted(record.accuracy.items())])


def comparison_metrics(comparison: ComparisonRecord) -> Metrics:
    """Return the figures of a comparison under the names of its variants and gains."""
    figures: dict[str, float | None] = {"eval/documents": comparison.documents}
    for name, interval in comparison.variants.items():
        figures |= _interval(f"eval/{_part(name)}/accuracy", interval)
    for name, interval in comparison.gains.items():
        figures |= _interval(f"gain/{_part(name)}", interval)
        figures[f"gain/{_part(name)}_minimum_detectable"] = comparison.minimum_detectable.get(name)
        if name in comparison.tests:
            figures[f"gain/{_part(name)}_p_adjusted"] = comparison.tests[name].adjusted
    return _known(figures)


def comparison_tables(comparison: ComparisonRecord) -> dict[str, Table]:
    """Return the tables of a comparison by artifact path: its variants, and its gains."""
    variants = [[name, i.mean, i.low, i.high] for name, i in comparison.variants.items()]
    gains = [[n, i.mean, i.low, i.high, comparison.minimum_detectable.get(n)] for n, i in comparison.gains.items()]
    ends = ["ci_low", "ci_high"]
    return {
        "comparison/variants.json": Table(columns=["variant", "accuracy", *ends], data=variants),
        "comparison/gains.json": Table(columns=["gain", "mean", *ends, "minimum_detectable"], data=gains),
    }


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {}
    return {name: interval.mean, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def _known(figures: Mapping[str, float | None]) -> Metrics:
    return {name: float(value) for name, value in figures.items() if value is not None}


def _part(name: str) -> str:
    """Return a name of data as a part of a metric's name: MLflow refuses brackets, percent signs and the like."""
    return re.sub(r"[^\w.: -]", "_", name)[:100].strip(". ") or "_"


def night_metrics(result: NightResult) -> dict[str, float]:
    """Return the figures of a night: what is known before it and after it, in [0, 1]."""
    groups = [group for group in result.groups if group.before is not None and group.after is not None]
    found = {
        "night/new_before": result.new_before,
        "night/new_after": result.new_after,
        "night/earlier_before": known_mean([group.before for group in groups]),
        "night/earlier_after": known_mean([group.after for group in groups]),
        "night/probes_base": result.probes_base,
        "night/probes_before": result.probes_before,
        "night/probes_after": result.probes_after,
        "night/new_documents": float(len(result.new)),
    }
    return {name: value for name, value in found.items() if value is not None}
