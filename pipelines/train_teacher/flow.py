"""The flow `train-teacher`: rounds of reinforcement learning, then a comparison on documents never seen in training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from evaluation.graders import JudgeGrader, judge_noise
from evaluation.microworld.world import MicroworldData, microworld_sheets
from evaluation.retention import retention_probes
from evaluation.tasks import Split
from pipelines.checks import check, findings_of
from pipelines.execution import code_digest, content_key
from pipelines.flow_run import entered, show_report
from pipelines.lineage.run import Lineage
from pipelines.loop.loop import Loop
from pipelines.plan import Plan, Stage, steps_of
from pipelines.records import Round, RunResult, VariantComparison, VariantScores, WarmStart, usage_of
from pipelines.reports.console import Reporter, closing, print_run, round_line, run_markdown, run_notes, warm_start_line
from pipelines.reports.plots import draw_figures
from pipelines.settings import load
from pipelines.terminal import open_console
from pipelines.train_teacher.comparison import by_group, compare_variants, find_unknown, transfer, with_unknown
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.edits import Diagnostics
from pipelines.train_teacher.plan import plan_run
from pipelines.train_teacher.rounds import Course, Training
from pipelines.train_teacher.variants import Comparing
from pipelines.train_teacher.warm_start import examples_of

FLOW_NAME = "train-teacher"


@flow(name=FLOW_NAME, persist_result=False)
def train_teacher(config_path: str, overrides: list[str] | None = None, work_dir: str = ".preceptor") -> RunResult:
    """Train a teacher on a frozen student's rewards and compare it with the untrained one.

    Started again with the same configuration and code after a kill, it resumes in the same MLflow run and ends with the
    same figures. Results, adapters and the embedded stores are in `work_dir`.
    """
    config, place = load(Path(config_path), TrainTeacherConfig, overrides or ()), Path(work_dir)
    check(config, place, findings_of)
    split, plan, console = config.load_documents(), plan_run(config), open_console()
    with entered(place, _name_of(config)) as flow_run, Reporter(console, len(steps_of(plan))) as reporter:
        probes = retention_probes(config.data, config.comparison.retention_probes, config.seed_of("retention"))
        tasks = [task for side in split for task in side]
        with Loop(config, place, tasks, probes, reporter) as loop:
            loop.check_endpoints(external=config.external_sampling)
            lineage = _open_lineage(config, place, split, flow_run)
            lineage.fetch_states(loop.state_dir)
            reporter.say(f"{'resuming' if lineage.resumed else 'new'} MLflow run {lineage.run_id}")
            with lineage.failing():
                result, variants = _Run(config, loop, split, lineage, plan).run()
        figures = place / "plots" / config.name
        last_words = closing(result, place, Path(config_path), overrides or (), figures, lineage.runs_link)
        print_run(console, result, variants, last_words)
        lineage.finish("FINISHED")
        show_report(FLOW_NAME, run_markdown(result, variants, lineage.runs_link), f"{config.name}, seed {config.seed}")
    return result


def _name_of(config: TrainTeacherConfig) -> str:
    """Return what MLflow and Prefect call a run."""
    return f"{config.name} s{config.seed}"


def _open_lineage(config: TrainTeacherConfig, work_dir: Path, split: Split, flow_run: str) -> Lineage:
    key = content_key(config, "run", config.digest)
    lineage = Lineage(config, work_dir, kind=FLOW_NAME, run_name=_name_of(config), key=key, flow_run=flow_run)
    lineage.log_documents("train", split.train)
    lineage.log_documents("development", split.development)
    lineage.log_documents("test", split.test)
    return lineage


class _Run:
    """One run: its stages in order, everything logged."""

    def __init__(self, config: TrainTeacherConfig, loop: Loop, split: Split, lineage: Lineage, plan: Plan) -> None:
        self._config, self._loop, self._split, self._lineage, self._plan = config, loop, split, lineage, plan
        sheets = microworld_sheets(config.data) if isinstance(config.data, MicroworldData) else None
        self._diagnostics = Diagnostics(loop.tasks, sheets)

    def run(self) -> tuple[RunResult, list[VariantScores]]:
        """Return the result and the variants."""
        start = self._warm_start()
        course = self._train(start)
        start = start and start.model_copy(update={"development": course.begun})
        started = time.perf_counter()
        self._loop.reporter.say(f"comparing on {len(self._split.test)} documents that no training saw")
        states = {"warm_started": start.policy if start else None, "trained": course.state}
        comparing = Comparing(self._config, self._loop, self._split, states, self._diagnostics)
        for stage in self._stages("variant"):
            comparing.add(stage)
        unknown = next((find_unknown(comparing, stage) for stage in self._stages("known questions")), None)
        if unknown is not None:
            comparing.scored = [with_unknown(variant, unknown) for variant in comparing.scored]
        transferred = [transfer(comparing, stage) for stage in self._stages("transfer")]
        comparison = compare_variants(comparing.scored, comparing.intervals, unknown)
        for variant in comparing.scored:
            adapters = comparing.kept_adapters(variant)
            interval, params = comparison.variants.get(variant.name), comparing.parameters(variant)
            self._lineage.log_variant(variant, interval, adapters, params, comparing.state_of(variant))
        found = {
            "warm_start": start,
            "transfer": transferred[0] if transferred else None,
            "specs": comparing.specs,
        }
        result = self._result(course, comparing, comparison, time.perf_counter() - started, found)
        place = self._loop.work_dir / "plots" / self._config.name
        figures = draw_figures(place, course.rounds, comparison, comparing.scored)
        self._lineage.log_comparison(comparison, result, figures)
        return result, comparing.scored

    def _stages(self, *prefixes: str) -> list[Stage]:
        return [stage for stage in self._plan if stage.name.startswith(prefixes)]

    def _warm_start(self) -> WarmStart | None:
        """Run the supervised steps before the first round; None without any."""
        loop, settings = self._loop, self._config.warm_start
        if settings is None:
            return None
        (stage,) = self._stages("warm start")
        with loop.reporter.step(stage.steps[0], stage.name):
            made = examples_of(loop, self._config.teacher.prompt, settings.targets(self._split))
            record = loop.warm_start(made.examples, stage.subject, seed=loop.seed("warm start"))
        record = record.model_copy(update={"document_ids": tuple(made.texts), "left_out": made.left_out})
        self._lineage.log_warm_start(record, made.texts, loop.state_dir(record.policy))
        loop.reporter.say(warm_start_line(record))
        return record

    def _train(self, start: WarmStart | None) -> Course:

        def on_round(record: Round) -> None:
            self._lineage.log_round(record, self._loop.state_dir(record.learning.policy))
            self._loop.reporter.say(round_line(record))

        training = Training(self._config, self._loop, self._split, self._diagnostics, start)
        return training.run(self._stages("round", "development"), on_round)

    def _result(
        self,
        course: Course,
        comparing: Comparing,
        comparison: VariantComparison,
        seconds: float,
        found: Mapping[str, Any],
    ) -> RunResult:
        rounds, loop, config, variants = course.rounds, self._loop, self._config, comparing.scored
        stages = {stage: sum(r.seconds[stage] for r in rounds) for stage in ("sample", "update", "learn")}
        trained = [update for r in rounds for c in r.candidates for update in c.replicates]
        trained += [update for variant in variants for c in variant.candidates for update in c.replicates]
        judged = isinstance(loop.grader, JudgeGrader)
        result = RunResult(
            **dict(comparison),
            rounds=tuple(_round_figures(record) for record in rounds),
            seconds={**stages, "compare": seconds},
            mlflow_run_id=self._lineage.run_id,
            config_digest=config.digest,
            code_digest=code_digest(),
            seed=config.seed,
            document_accuracy={variant.name: variant.accuracy for variant in variants},
            document_unknown={variant.name: variant.unknown for variant in variants if variant.unknown},
            edit_tokens={variant.name: variant.edit_tokens for variant in variants if variant.edit_tokens is not None},
            judge=judge_noise(loop.verdicts, **comparing.intervals) if judged else None,
            spent=loop.spent(external=config.external_sampling),
            padding_share=usage_of(trained).padding_share,
            inner_runs=sum(record.inner_runs for record in rounds),
            document_forgetting={variant.name: variant.forgetting for variant in variants if variant.forgetting},
            groups=by_group(variants, self._split),
            edit_notes={variant.name: variant.notes for variant in variants if variant.notes},
            phrasings={variant.name: variant.phrasings for variant in variants if variant.phrasings},
            **found,
        )
        return result.model_copy(update={"notes": run_notes(result, comparison, variants)})


def _round_figures(record: Round) -> dict[str, float | int | None]:
    found = record.model_dump(include={"round", "mean_reward", "base_reward", "inner_runs"}) | record.notes
    found |= {"kl": record.learning.kl, "entropy": record.learning.entropy}
    return found if record.development is None else found | {"development_reward": record.development.mean}
