"""Records as what MLflow shows: named figures and tables. Pure functions; MLflow is not needed here."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.gate.checks import GateCheck
from evaluation.statistics import Interval, known_mean
from evaluation.tasks import KnowledgeTask
from pipelines.records import Candidate, Record, Round, VariantComparison, VariantScores, WarmStart, usage_of

if TYPE_CHECKING:
    from pipelines.adapt_student.page import NightResult
    from pipelines.write_corpus.output import CorpusResult

TOP_CANDIDATES = 100
"""Rows of the table of best candidates."""
_LEARNING = ("examples", "tokens", "loss", "kl", "entropy", "clip_fraction", "gradient_norm")
_NIGHT = ("new_before", "new_after", "earlier_before", "earlier_after", "probes_base", "probes_before", "probes_after")
_CORPUS = ("documents", "sections", "rows", "tokens", "train_tokens", "replay_tokens")

Metrics = dict[str, float]


_CANDIDATE_COLUMNS: dict[str, tuple[str, Callable[[Candidate], Any]]] = {
    "document_id": ("string", lambda c: c.edit.document_id),
    "index": ("int32", lambda c: c.edit.index),
    "text": ("string", lambda c: c.edit.text),
    "edit": ("string", lambda c: _json(c.edit.edit.model_dump(mode="json")) if c.edit.edit else None),
    "edit_digest": ("string", lambda c: c.edit.edit.digest if c.edit.edit else None),
    "edit_tokens": ("int32", lambda c: c.edit.tokens),
    "finish_reason": ("string", lambda c: c.edit.finish_reason),
    "rejection": ("string", lambda c: c.edit.rejection),
    "dropped": ("string", lambda c: _json(c.edit.dropped)),
    "seeds": ("int64s", lambda c: [r.seed for r in c.replicates]),
    "accuracy": ("float64s", lambda c: [r.accuracy for r in c.replicates]),
    "probability": ("float64s", lambda c: [r.mean_probability for r in c.replicates]),
    "empty": ("int64s", lambda c: [r.empty for r in c.replicates]),
    "failures": ("strings", lambda c: [r.failure.value if r.failure else None for r in c.replicates]),
    "details": ("strings", lambda c: [r.detail for r in c.replicates]),
    "adapter_digests": ("strings", lambda c: [r.adapter_digest for r in c.replicates]),
    "steps": ("int64s", lambda c: [r.steps for r in c.replicates]),
    "training_tokens": ("int64s", lambda c: [r.tokens for r in c.replicates]),
    "first_loss": ("float64s", lambda c: [r.first_loss for r in c.replicates]),
    "last_loss": ("float64s", lambda c: [r.last_loss for r in c.replicates]),
    "forgetting": ("float64s", lambda c: [r.forgetting for r in c.replicates]),
    "facts": ("string", lambda c: _json(c.facts)),
    "reward": ("float64", lambda c: c.reward),
    "reason": ("string", lambda c: c.reason.value if c.reason else None),
    "base_reward": ("float64", lambda c: c.base_reward),
    "weight": ("float64", lambda c: c.weight),
}
"""Types are fixed, so that the tables of all rounds can be read as one; a plural is a list, one item a replicate."""

_DOCUMENT_COLUMNS: dict[str, tuple[str, Callable[[KnowledgeTask], Any]]] = {
    "id": ("string", lambda task: task.id),
    "title": ("string", lambda task: task.document.title),
    "digest": ("string", lambda task: task.document.digest),
    "task_digest": ("string", lambda task: task.digest),
    "characters": ("int64", lambda task: len(task.document.text)),
    "questions": ("int64", lambda task: len(task.questions)),
    "held_out_questions": ("int64", lambda task: len(task.held_out_questions)),
    "source": ("string", lambda task: task.document.source),
}


def write_candidates(candidates: Iterable[Candidate], digests: Mapping[str, str], path: Path) -> None:
    """Write one Parquet row for each candidate, failed ones with their reason and a null reward.

    `digests` are those of the documents, by id.
    """
    digest = ("string", lambda c: digests.get(c.edit.document_id))
    _write_parquet(candidates, _CANDIDATE_COLUMNS | {"document_digest": digest}, path)


def write_documents(tasks: Iterable[KnowledgeTask], path: Path) -> None:
    """Write one Parquet row for each document: identity, size and source, not the text."""
    _write_parquet(tasks, _DOCUMENT_COLUMNS, path)


def _write_parquet(items: Iterable[Any], columns: Mapping[str, tuple[str, Callable[[Any], Any]]], path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {name: getattr(pa, name)() for name in ("string", "int32", "int64", "float64")}
    types |= {f"{name}s": pa.list_(of) for name, of in types.items()}
    schema = pa.schema([(name, types[kind]) for name, (kind, _) in columns.items()])
    rows = [{name: _storable(value(item)) for name, (_, value) in columns.items()} for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _storable(value: Any) -> Any:
    """Replace lone surrogates, which a language model's JSON may hold and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


def best_candidates(candidates: Iterable[Candidate]) -> dict[str, list[Any]]:
    """Return the `TOP_CANDIDATES` highest rewards, best first, as MLflow's tables: `columns` and `data`."""
    scored = [(-c.reward, c.edit.document_id, c.edit.index, c) for c in candidates if c.reward is not None]
    best = [c for *_, c in sorted(scored, key=lambda row: row[:3])[:TOP_CANDIDATES]]
    columns = {name: _CANDIDATE_COLUMNS[name][1] for name in ("document_id", "index", "reward", "base_reward")}
    columns["accuracy"] = lambda c: known_mean(r.accuracy for r in c.replicates)
    columns["probability"] = lambda c: known_mean(r.mean_probability for r in c.replicates)
    columns |= {name: _CANDIDATE_COLUMNS[name][1] for name in ("weight", "text", "seeds", "adapter_digests")}
    return {"columns": list(columns), "data": [[_storable(of(c)) for of in columns.values()] for c in best]}


def evaluation_table(answers: Iterable[Record], seed: int, *found: str) -> dict[str, list[Any]]:
    """Return questions with what was found as an MLflow table, by default the fields of `Answered`.

    The columns are the same for every run of a flow, so that MLflow compares runs: at first it shows the second column
    of the chosen runs side by side, for each value of the first one.
    """
    first, *rest = found or ("answer", "right", "edit")
    columns = ("question", first, "gold", *rest, "document")
    rows = [[_storable(getattr(each, name)) for name in columns] + [seed] for each in answers]
    return {"columns": [*columns, "seed"], "data": rows}


def round_metrics(record: Round) -> Metrics:
    """Return a round's figures; what is not known is left out.

    `candidate/positive_fraction` is the share of the candidates with a reward above the student's without an update.
    """
    candidates, development = record.candidates, record.development
    usage = usage_of(update for candidate in candidates for update in candidate.replicates)
    scored = [(c.reward, c.base_reward) for c in candidates if c.reward is not None]
    gains = [reward - base for reward, base in scored if base is not None]
    rewards = [reward for reward, _ in scored]
    failures = Counter(c.reason.value for c in candidates if c.reason)
    figures: dict[str, float | None] = {
        "candidate/count": len(candidates),
        "candidate/ok_count": len(scored),
        "candidate/failed_count": len(candidates) - len(scored),
        "candidate/left_out_documents": len(record.left_out),
        "candidate/reward_mean": record.mean_reward,
        "candidate/base_reward": record.base_reward,
        "candidate/positive_fraction": known_mean(gain > 0.0 for gain in gains),
        **{f"failure/{reason}": count for reason, count in failures.items()},
        **{f"teacher/{name}": getattr(record.learning, name) for name in _LEARNING},
        "candidate/inner_runs": record.inner_runs,
        "development/reward": None if development is None else development.mean,
        "development/best": None if development is None else development.best,
        "bank/slots": usage.slots,
        "bank/padding_share": usage.padding_share,
        "memory/bank_peak_bytes": usage.peak_bytes,
        **{f"time/{metric_part(stage)}_s": seconds for stage, seconds in record.seconds.items()},
        **{f"notes/{metric_part(name)}": value for name, value in record.notes.items()},
    }
    if rewards:
        levels = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
        figures |= {f"candidate/reward_{name}": float(np.quantile(rewards, level)) for name, level in levels.items()}
    return _known(figures)


def warm_start_metrics(record: WarmStart) -> Metrics:
    """Return the figures of a warm start; losses are in nats a token."""
    figures = {name: getattr(record, name) for name in (*_LEARNING, "loss_before", "loss_after", "seconds")}
    figures |= {"documents": len(record.document_ids), "left_out_documents": len(record.left_out)}
    return _known({f"warm_start/{name}": value for name, value in figures.items()})


def variant_metrics(record: VariantScores, interval: Interval | None) -> Metrics:
    """Return a variant's figures; `interval` is its accuracy over the documents that all variants share."""
    return _known(
        {
            **_interval("eval/accuracy", interval),
            "eval/documents": len(record.accuracy),
            "eval/edit_tokens": record.edit_tokens,
            "eval/training_tokens": record.training_tokens,
            "eval/unknown_accuracy": known_mean(record.unknown.values()),
            "eval/token_probability": known_mean(record.token_probability.values()),
            **{f"grader/{name}": known_mean(verdicts) for name, verdicts in record.grades.items()},
            "eval/forgetting": known_mean(record.forgetting.values()),
            "eval/failed_count": sum(record.failures.values()),
            **{f"failure/{metric_part(reason)}": count for reason, count in record.failures.items()},
            **{f"phrasing/{metric_part(name)}": accuracy for name, accuracy in record.phrasings.items()},
            **{f"notes/{metric_part(name)}": value for name, value in record.notes.items()},
        }
    )


def comparison_metrics(comparison: VariantComparison) -> Metrics:
    """Return the figures of a comparison under the names of its variants and gains."""
    figures: dict[str, float | None] = {"eval/documents": comparison.documents}
    measured = {"accuracy": comparison.variants, "token_probability": comparison.token_probability}
    if unknown := comparison.unknown:
        figures |= {"eval/questions": unknown.questions, "eval/unknown_questions": unknown.unknown}
        measured |= {"unknown_accuracy": unknown.variants}
        for name, interval in unknown.gains.items():
            figures |= _interval(f"gain/{metric_part(name)}_unknown", interval)
    for measure, intervals in measured.items():
        for name, interval in intervals.items():
            figures |= _interval(f"eval/{metric_part(name)}/{measure}", interval)
    for pair in comparison.graders.agreement if comparison.graders else ():
        both = f"{pair.first}/{pair.second}"
        figures |= {f"agreement/{both}": pair.equal, f"kappa/{both}": pair.kappa}
    for name, interval in comparison.gains.items():
        figures |= _interval(f"gain/{metric_part(name)}", interval)
        figures[f"gain/{metric_part(name)}_minimum_detectable"] = comparison.minimum_detectable.get(name)
        if name in comparison.tests:
            figures[f"gain/{metric_part(name)}_p_adjusted"] = comparison.tests[name].adjusted
    return _known(figures)


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {}
    return {name: interval.mean, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def _known(figures: Mapping[str, float | None]) -> Metrics:
    return {name: float(value) for name, value in figures.items() if value is not None}


def metric_part(name: str) -> str:
    """Return a name of data as a part of a metric's name: MLflow refuses brackets, percent signs and the like."""
    return re.sub(r"[^\w.: -]", "_", name)[:100].strip(". ") or "_"


def night_metrics(result: NightResult) -> Metrics:
    """Return the figures of a night: shares of what is known before and after it, in [0, 1]."""
    figures = {f"night/{name}": getattr(result, name) for name in _NIGHT}
    changes = change_metrics(result.gate.checks if result.gate else ())
    return _known(figures | {"night/new_documents": len(result.new)}) | changes


def change_metrics(checks: Iterable[GateCheck]) -> Metrics:
    """Return what checks measured, with their one-sided bounds."""
    figures: dict[str, float | None] = {}
    for check in checks:
        name = f"change/{metric_part(check.name)}"
        figures |= {name: check.estimate, f"{name}_ci_low": check.low, f"{name}_ci_high": check.high}
    return _known(figures)


def corpus_metrics(result: CorpusResult) -> Metrics:
    """Return the figures of a corpus; gains are in [-1, 1] for 1,000 tokens."""
    figures: dict[str, float | None] = {f"corpus/{name}": getattr(result, name) for name in _CORPUS}
    figures |= {"corpus/supported_share": result.funnel.supported_share}
    figures |= {f"corpus/{name}": value for name, value in result.diversity.items()}
    for kind, tokens in result.funnel.column("tokens").items():
        figures[f"tokens/{metric_part(kind)}"] = tokens
    for gain in result.gains:
        figures[f"gain/{metric_part(gain.kind)}"] = gain.per_tokens
    return _known(figures)
