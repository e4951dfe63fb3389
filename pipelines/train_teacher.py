"""The flow `train-teacher`: rounds of reinforcement learning, then a comparison on documents never seen in training."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from prefect.context import get_run_context
from rich.console import Console

from evaluation.endpoints.records import Spent
from evaluation.errors import LineageError
from pipelines import comparison as compared
from pipelines.config import RunConfig, load_config, to_yaml
from pipelines.embedded import close_stale_flow_runs, exclusive, record_server, stop_orphans
from pipelines.grading import judge_record
from pipelines.lineage import Lineage
from pipelines.lineage_store import flatten_params, run_tags
from pipelines.plots import plot_accuracy, plot_rewards
from pipelines.progress import Reporter
from pipelines.records import ComparisonRecord, RoundRecord, RunResult, SpentRecord, UsageRecord, VariantRecord
from pipelines.registry import PROMPTS_TAG
from pipelines.report import closing, next_notes, print_report, round_line
from pipelines.rounds import run_round
from pipelines.units import Units
from pipelines.workspace import Workspace

FLOW_NAME = "train-teacher"


class _Run(NamedTuple):
    ws: Workspace
    units: Units
    lineage: Lineage
    reporter: Reporter


@flow(name=FLOW_NAME, persist_result=False)
def train_teacher(config_path: str, overrides: list[str] | None = None, work_dir: str = ".preceptor") -> RunResult:
    """Train a teacher on a frozen student's progress and compare it with the untrained one.

    Started again with the same configuration and code after a kill, it goes on where it was, in the same MLflow run,
    and ends with the same figures.

    Args:
        config_path: YAML file.
        overrides: Settings such as `loop.rounds=3`.
        work_dir: Directory for records, adapters, and the embedded stores.
    """
    config, place = load_config(Path(config_path), overrides or ()), Path(work_dir)
    console = Console()
    with exclusive(place):
        stop_orphans(place)
        record_server(place)
        flow_run = str(get_run_context().flow_run.id)  # type: ignore[union-attr]
        close_stale_flow_runs(FLOW_NAME, flow_run)
        ws = Workspace(config, place)
        ws.check_endpoints()
        with ws, Reporter(console, total_units(config)) as reporter:
            lineage = _open_lineage(ws, flow_run)
            reporter.say(f"{'going on with' if lineage.resumed else 'new'} MLflow run {lineage.run_id}")
            run = _Run(ws, Units(ws, reporter), lineage, reporter)
            try:
                result, comparison, variants = _train_and_compare(run)
            except BaseException:
                with suppress(LineageError):  # the first failure is the one to report
                    lineage.finish("FAILED")
                raise
        last_words = closing(result, place, Path(config_path), {"Prefect flow run": flow_run})
        print_report(console, comparison, variants, last_words)
        lineage.finish("FINISHED")
    return result


def total_units(config: RunConfig) -> int:
    """Return how many units of work a run has, for its progress bar."""
    size, loop, after, data = config.student.unit_updates, config.loop, config.comparison, config.data

    def chunks(updates: int) -> int:
        return -(-updates // size)

    a_round = 3 + chunks(loop.documents * config.teacher.samples * loop.replicates)  # sampling, base scores, learning
    taught = 1 + chunks(data.test_documents * after.edits)
    teachers = 1 + (loop.rounds > 0) + (after.external is not None) + bool(after.fixed_prompts)
    tried = len(after.fixed_prompts) * (1 + chunks(data.development_documents * after.edits))
    plain = 1 + chunks(data.test_documents)
    joint = after.joint_update is not None
    return loop.rounds * a_round + teachers * taught + plain + tried + joint


def _open_lineage(ws: Workspace, flow_run: str) -> Lineage:
    """Return the lineage of this configuration and code, with the documents logged."""
    config = ws.config
    lineage = Lineage.open(
        config.tracking,
        ws.work_dir,
        run_name=config.name,
        run_key=f"{FLOW_NAME}/{ws.key('run', config.digest)}",
        config_yaml=to_yaml(config),
        params=flatten_params(config.model_dump(mode="json", exclude={"tracking"})),
        tags=run_tags(
            kind=FLOW_NAME,
            seed=config.seed,
            config_digest=config.digest,
            code_digest=ws.code_digest,
            flow_run_id=flow_run,
        ),
    )
    lineage.log_documents("train", ws.split.train)
    lineage.log_documents("development", ws.split.development)
    lineage.log_documents("test", ws.split.test)
    return lineage


def _train_and_compare(run: _Run) -> tuple[RunResult, ComparisonRecord, list[VariantRecord]]:
    """Return the result, the comparison and the variants, all logged."""
    rounds: list[RoundRecord] = []
    policy: str | None = None
    for number in range(run.ws.config.loop.rounds):
        record = run_round(run.ws, run.units, number, policy)
        policy = record.learning.policy
        rounds.append(record)
        run.lineage.log_round(record, run.ws.policy_dir(policy))
        run.reporter.say(round_line(record))
    started = time.perf_counter()
    run.reporter.say(f"comparing on {len(run.ws.split.test)} documents that no training saw")
    variants = _variants(run, policy)
    comparison = compared.compare_variants(run.ws, variants)
    _log_variants(run, variants, comparison)
    result = _result(run, rounds, comparison, variants, time.perf_counter() - started)
    figures = _figures(run.ws, rounds, comparison, variants)
    run.lineage.log_comparison(comparison, result, figures)
    return result, comparison, variants


def _variants(run: _Run, policy: str | None) -> list[VariantRecord]:
    """Return every variant, scored on the test documents."""
    ws, units, test = run.ws, run.units, run.ws.split.test
    prompt, keep = ws.config.teacher.prompt, ws.config.comparison.keep_adapters
    found: list[VariantRecord | None] = [
        compared.base_variant(ws, units, test),
        compared.raw_variant(ws, units, test),
        compared.best_fixed_variant(ws, units, ws.split.development, test),
        compared.external_variant(ws, units, test),
        compared.teacher_variant(
            ws, units, "untrained_teacher", "untrained teacher", None, prompt, test, keep=0 if policy else keep
        ),
    ]
    if policy is not None:  # without a round there is no trained teacher, and the untrained one is the last
        found.append(
            compared.teacher_variant(ws, units, "trained_teacher", "trained teacher", policy, prompt, test, keep=keep)
        )
    return [variant for variant in found if variant is not None]


def _log_variants(run: _Run, variants: list[VariantRecord], comparison: ComparisonRecord) -> None:
    """Log every variant, the last teacher's with kept adapters, and register the student for all documents."""
    for variant in variants:
        adapters = compared.kept_adapters(run.ws, variant) if variant is variants[-1] else {}
        run.lineage.log_variant(variant, comparison.variants.get(variant.name), adapters)
    joint = compared.joint_student(run.ws, run.units, variants[-1], run.ws.split.test)
    if joint is not None:
        record = joint.variant
        mean = sum(record.accuracy.values()) / len(record.accuracy)
        run.lineage.log_variant(record, None, {})
        run.lineage.register(
            "student",
            joint.directory,
            digest=joint.digest,
            tags={
                "preceptor.documents": str(len(record.accuracy)),
                "preceptor.student": run.ws.student_digest,
                PROMPTS_TAG: compared.probe_prompts(run.ws, run.ws.split.test),
            },
            metrics={"eval/joint_accuracy": mean},
        )
        run.reporter.say(f"one student for all {len(record.accuracy)} documents: {100 * mean:.1f} % (registered)")


def _result(
    run: _Run,
    rounds: list[RoundRecord],
    comparison: ComparisonRecord,
    variants: list[VariantRecord],
    comparing: float,
) -> RunResult:
    """Return the result for scripts."""
    stages = {stage: sum(r.seconds[stage] for r in rounds) for stage in ("sample", "update", "learn")}
    result = RunResult(
        variants=comparison.variants,
        gains=comparison.gains,
        rounds=tuple(
            {
                "round": r.round,
                "mean_reward": r.mean_reward,
                "base_reward": r.base_reward,
                "kl": r.learning.kl,
                "entropy": r.learning.entropy,
                **r.notes,
            }
            for r in rounds
        ),
        seconds={**stages, "compare": comparing},
        documents=comparison.documents,
        mlflow_run_id=run.lineage.run_id,
        config_digest=run.ws.config.digest,
        code_digest=run.ws.code_digest,
        seed=run.ws.config.seed,
        document_accuracy={variant.name: variant.accuracy for variant in variants},
        edit_tokens={variant.name: variant.edit_tokens for variant in variants if variant.edit_tokens is not None},
        judge=judge_record(run.ws),
        spent={role: _spent(spent) for role, spent in run.ws.spent().items()},
        padding_share=UsageRecord.merged([*(r.usage for r in rounds), *(v.usage for v in variants)]).padding_share,
    )
    return result.model_copy(update={"notes": next_notes(result, variants)})


def _spent(spent: Spent) -> SpentRecord:
    return SpentRecord(
        calls=spent.calls,
        failures=spent.failures,
        tokens=spent.tokens,
        cost=spent.cost,
        currency=spent.currency,
    )


def _figures(
    ws: Workspace, rounds: list[RoundRecord], comparison: ComparisonRecord, variants: list[VariantRecord]
) -> list[Path]:
    """Return the plots of the run."""
    place = ws.work_dir / "plots" / ws.config.name
    place.mkdir(parents=True, exist_ok=True)
    accuracy = place / "accuracy.png"
    plot_accuracy(comparison, variants, accuracy)
    if not rounds:
        return [accuracy]
    rewards = place / "rewards.png"
    plot_rewards(rounds, rewards)
    return [rewards, accuracy]
