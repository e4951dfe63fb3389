"""The flow `train-teacher`: rounds of reinforcement learning, then a comparison on documents never seen in training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from rich.console import Console

from evaluation.endpoints.records import Spent
from evaluation.errors import LineageError
from pipelines import comparison as compared
from pipelines.config import RunConfig, load_config, to_yaml
from pipelines.control_variants import control_variants
from pipelines.curves import Writer, token_curves
from pipelines.embedded import embedded_flow
from pipelines.families import by_family
from pipelines.grading import judge_record
from pipelines.lineage import Lineage
from pipelines.lineage_store import flatten_params, run_tags
from pipelines.plots import draw_figures
from pipelines.progress import Reporter
from pipelines.records import RoundRecord, SpentRecord, UsageRecord
from pipelines.registry import PROMPTS_TAG
from pipelines.report import closing, next_notes, pilot_line, print_report, round_line
from pipelines.results import (
    ComparisonRecord,
    CurvePoint,
    RunResult,
    SpecSearchRecord,
    TransferRecord,
    VariantRecord,
)
from pipelines.rounds import Pilot, run_course, run_pilot
from pipelines.spec_search import find_fixed, find_oracle, fixed_spec_variant
from pipelines.transfer import other_student, transferred
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
    with embedded_flow(place, FLOW_NAME) as flow_run:
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
        print_report(console, comparison, variants, result.families, last_words)
        lineage.finish("FINISHED")
    return result


def total_units(config: RunConfig) -> int:
    """Return how many units of work a run has, for its progress bar."""
    size, loop, after, data = config.student.unit_updates, config.loop, config.comparison, config.data

    def chunks(updates: int) -> int:
        return -(-updates // size)

    samples, repeated = config.teacher.samples, min(loop.repeated_documents, loop.documents)
    first = chunks(loop.documents * samples * loop.replicates) + chunks(repeated * samples)
    # Repeated documents are ahead of the others by an update, and so in units of their own.
    stages = (stage.keep * stage.replicates for stage in loop.halving)
    halved = sum(chunks((loop.documents - repeated) * updates) + chunks(repeated * updates) for updates in stages)
    proxied = config.teacher.screening is not None and config.teacher.screening.by == "proxy"
    a_round = 3 + proxied + first + halved
    looks = 0 if loop.development is None else -(-loop.rounds // loop.development.every)
    look = 0 if loop.development is None else 1 + chunks(data.development_documents * loop.development.edits)
    pilot = 0 if loop.pilot is None else 1 + chunks(math.prod(loop.pilot.model_dump().values()))
    learning = loop.rounds * a_round + looks * look + pilot
    if loop.rounds and "proxy_teacher" in after.controls:
        learning += loop.rounds * 4 + 2 * looks
    taught = 1 + chunks(data.test_documents * after.edits) + after.redraws
    teachers = 1 + (loop.rounds > 0) + (after.external is not None) + bool(after.fixed_prompts)
    tried = len(after.fixed_prompts) * (1 + chunks(data.development_documents * after.edits) + after.redraws)
    plain = 1 + chunks(data.test_documents)
    joint = after.joint_update is not None
    compared_units = teachers * taught + plain + tried + joint
    if loop.rounds:
        single = {"null_edit", "oracle"}
        known = [name for name in after.controls if name != "equal_tokens" or after.fixed_prompts]
        compared_units += sum(chunks(data.test_documents * (1 if name in single else after.edits)) for name in known)
        compared_units += len({"equal_tokens", "proxy_teacher"} & set(known))
    if after.curve is not None:
        compared_units += (teachers - (after.external is not None)) * (
            1 + len(after.curve.tokens) * chunks(data.test_documents)
        )
    if after.transfer is not None:
        compared_units += teachers * taught + plain
    if after.specs is not None:
        space = len(list(after.specs.space.choices()))
        compared_units += chunks(after.specs.fixed_tasks * space) + chunks(data.test_documents)
        compared_units += chunks(after.specs.oracle_tasks * space) + chunks(after.specs.oracle_tasks)
    return learning + compared_units


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


class _Compared(NamedTuple):
    """Everything that is known at the end of a run."""

    comparison: ComparisonRecord
    variants: list[VariantRecord]
    curve: dict[str, tuple[CurvePoint, ...]]
    transfer: TransferRecord | None
    specs: SpecSearchRecord | None


def _train_and_compare(run: _Run) -> tuple[RunResult, ComparisonRecord, list[VariantRecord]]:
    """Return the result, the comparison and the variants, all logged."""
    ws, reward = run.ws, run.ws.config.teacher.reward
    pilot = run_pilot(ws, run.units, reward)
    if pilot is not None:
        run.lineage.log_pilot(pilot.records)
        run.reporter.say(pilot_line(pilot.records))

    def on_round(record: RoundRecord) -> None:
        run.lineage.log_round(record, ws.policy_dir(record.learning.policy))
        run.reporter.say(round_line(record))

    course = run_course(ws, run.units, reward, pilot, on_round)
    proxy_policy = _proxy_teacher(run)
    started = time.perf_counter()
    run.reporter.say(f"comparing on {len(ws.split.test)} documents that no training saw")
    found = _compare(run, course.policy, proxy_policy)
    _log_variants(run, found.variants, found.comparison, course.policy)
    result = _result(run, course.rounds, found, pilot, time.perf_counter() - started)
    place = ws.work_dir / "plots" / ws.config.name
    figures = draw_figures(place, course.rounds, found.comparison, found.variants, found.curve)
    run.lineage.log_comparison(found.comparison, result, figures)
    return result, found.comparison, found.variants


def _proxy_teacher(run: _Run) -> str | None:
    """Return the state of a teacher that learned from the proxy reward alone; None where the run wants none."""
    config = run.ws.config
    if not config.loop.rounds or "proxy_teacher" not in config.comparison.controls:
        return None
    run.reporter.say("the same rounds with the proxy reward, for the control")
    reward = config.teacher.reward.model_copy(update={"metric": "proxy"})
    return run_course(run.ws, run.units, reward, None, lambda record: run.reporter.say(round_line(record))).policy


def _compare(run: _Run, policy: str | None, proxy_policy: str | None) -> _Compared:
    """Return every variant, scored on the test documents, side by side."""
    ws, units, test = run.ws, run.units, run.ws.split.test
    prompt, keep = ws.config.teacher.prompt, ws.config.comparison.keep_adapters
    fixed = compared.best_fixed_kind(ws, units, ws.split.development)
    spec = find_fixed(ws, units)
    found: list[VariantRecord | None] = [
        compared.base_variant(ws, units, test),
        compared.raw_variant(ws, units, test),
        compared.fixed_variant(ws, units, fixed, test),
        None if spec is None else fixed_spec_variant(ws, units, spec, test),
        compared.external_variant(ws, units, test),
        compared.teacher_variant(
            ws, units, "untrained_teacher", "untrained teacher", None, prompt, test, keep=0 if policy else keep
        ),
    ]
    writers = {"untrained_teacher": Writer(None, prompt)}
    if fixed is not None:
        writers["fixed_kind"] = Writer(None, fixed.prompt)
    if policy is not None:  # without a round there is no trained teacher, and the untrained one is the last
        trained = compared.teacher_variant(
            ws, units, "trained_teacher", "trained teacher", policy, prompt, test, keep=keep
        )
        found += [trained, *control_variants(ws, units, test, trained, fixed, proxy_policy)]
        writers["trained_teacher"] = Writer(policy, prompt)
    variants = [variant for variant in found if variant is not None]
    curve = token_curves(ws, units, test, writers)
    other, transfer = other_student(ws), None
    if other is not None:
        run.reporter.say(f"the same self-edits on {other.config.student.model}")
        with other:
            transfer = transferred(ws, other, Units(other, run.reporter), variants, test)
    specs = None if spec is None else spec.record.model_copy(update={"oracle": find_oracle(ws, units, variants)})
    return _Compared(compared.compare_variants(ws, variants), variants, curve, transfer, specs)


def _log_variants(run: _Run, variants: list[VariantRecord], comparison: ComparisonRecord, policy: str | None) -> None:
    """Log every variant, the last teacher's with kept adapters, and register the student for all documents."""
    taught = "untrained_teacher" if policy is None else "trained_teacher"
    last = next(variant for variant in variants if variant.name == taught)
    for variant in variants:
        adapters = compared.kept_adapters(run.ws, variant) if variant is last else {}
        run.lineage.log_variant(variant, comparison.variants.get(variant.name), adapters)
    joint = compared.joint_student(run.ws, run.units, last, run.ws.split.test)
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
    run: _Run, rounds: Sequence[RoundRecord], found: _Compared, pilot: Pilot | None, comparing: float
) -> RunResult:
    """Return the result for scripts."""
    comparison, variants = found.comparison, found.variants
    stages = {stage: sum(r.seconds[stage] for r in rounds) for stage in ("sample", "update", "learn")}
    result = RunResult(
        variants=comparison.variants,
        gains=comparison.gains,
        rounds=tuple(round_figures(record) for record in rounds),
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
        pilot={} if pilot is None else pilot.records,
        reliability=next((r.reliability for r in reversed(rounds) if r.reliability is not None), None),
        inner_runs=sum(record.inner_runs for record in rounds),
        forgetting=comparison.forgetting,
        document_forgetting={variant.name: variant.forgetting for variant in variants if variant.forgetting},
        tests=comparison.tests,
        minimum_detectable=comparison.minimum_detectable,
        curve=found.curve,
        transfer=found.transfer,
        specs=found.specs,
        families=by_family(variants, run.ws.split),
        edit_notes={variant.name: variant.notes for variant in variants if variant.notes},
        phrasings={variant.name: variant.phrasings for variant in variants if variant.phrasings},
    )
    return result.model_copy(update={"notes": next_notes(result, variants)})


def round_figures(record: RoundRecord) -> dict[str, float | int | None]:
    """Return a round's figures for scripts."""
    found = {
        "round": record.round,
        "mean_reward": record.mean_reward,
        "base_reward": record.base_reward,
        "kl": record.learning.kl,
        "entropy": record.learning.entropy,
        "inner_runs": record.inner_runs,
        **record.notes,
    }
    if record.reliability is not None:
        found |= {"reliability_of_one": record.reliability.of_one, "reliability": record.reliability.of_reward}
    if record.screening is not None:
        found |= {"skipped": record.screening.skipped, "screening_rank": record.screening.rank_correlation}
    if record.development is not None:
        found |= {"development_reward": record.development.mean}
    return found


def _spent(spent: Spent) -> SpentRecord:
    return SpentRecord(
        calls=spent.calls,
        failures=spent.failures,
        tokens=spent.tokens,
        cost=spent.cost,
        currency=spent.currency,
    )
