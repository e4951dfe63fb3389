"""A night's own units of work, stored under content keys like all others, so that a killed night goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import task

from evaluation.tasks import KnowledgeTask, Question
from pipelines.nights.config import NightConfig
from pipelines.nights.learning import NightUpdateRecord, update_student
from pipelines.nights.scoring import StudentScores, score_student
from pipelines.progress import Reporter
from pipelines.units import STORED
from pipelines.workspace import Workspace
from student.adapters import Adapter
from student.external_memory import ExternalMemory
from teacher.self_edit import SelfEdit


@task(name="update-student", **STORED)
def _update(
    key: str, ws: Workspace, parent: Path | None, whole: SelfEdit, config: NightConfig, seed: int
) -> NightUpdateRecord:
    return update_student(ws, parent, whole, config.composition, config.update, seed)


@task(name="score-student", **STORED)
def _score(
    key: str,
    ws: Workspace,
    adapter: Adapter | None,
    memory: ExternalMemory,
    tasks: Sequence[KnowledgeTask],
    probes: Sequence[Question],
    config: NightConfig,
) -> StudentScores:
    return score_student(ws, adapter, memory, tasks, probes, config)


class NightUnits:
    """Runs the units of one night, each at most once whatever happens."""

    def __init__(self, ws: Workspace, reporter: Reporter, config: NightConfig) -> None:
        """Run units of `ws` and tell `reporter` of each that is done."""
        self._ws = ws
        self._reporter = reporter
        self._config = config

    def update(self, parent: Adapter | None, place: Path | None, whole: SelfEdit, *, seed: int) -> NightUpdateRecord:
        """Return the night's update of a student; see `update_student`.

        Args:
            parent: The champion's adapter; None is the base student.
            place: Its directory.
            whole: Everything to train on.
            seed: Of the update.
        """
        ws, config = self._ws, self._config
        content = {
            "student": ws.student_digest,
            "parent": None if parent is None else parent.digest,
            "composition": config.composition,
            "recipe": config.update.model_dump(mode="json"),
            "format": config.student.answer_format.model_dump(mode="json"),
            "lines": whole.digest,
            "seed": seed,
        }
        key = ws.key("night-update", content)
        self._reporter.begin(f"training the student on {len(whole.implications)} lines")
        record: NightUpdateRecord = _update(key, ws, place, whole, config, seed)
        digest = record.adapter_digest
        if digest is not None and not ws.adapter_dir(digest).is_dir():
            record = _update.with_options(refresh_cache=True)(key, ws, place, whole, config, seed)
        self._reporter.done()
        return record

    def scores(
        self,
        what: str,
        adapter: Adapter | None,
        memory: ExternalMemory,
        tasks: Sequence[KnowledgeTask],
        probes: Sequence[Question],
    ) -> StudentScores:
        """Return what a student answers right; see `score_student`.

        Args:
            what: Whose scores they are, for progress.
            adapter: Of the student; None is the base.
            memory: Of the student.
            tasks: Whose comparison questions are asked.
            probes: Retention probes.
        """
        ws, config = self._ws, self._config
        content = {
            "student": ws.student_digest,
            "adapter": None if adapter is None else adapter.digest,
            "memory": memory.digest,
            "asking": config.asking().model_dump(mode="json"),
            "tasks": [[task.id, task.digest] for task in tasks],
            "probes": [[probe.question, probe.answer] for probe in probes],
        }
        key = ws.key("night-scores", content)
        questions = sum(len(task.comparison_questions) for task in tasks) + len(probes)
        self._reporter.begin(f"asking {what} {questions} questions")
        record: StudentScores = _score(key, ws, adapter, memory, tasks, probes, config)
        self._reporter.done()
        return record
