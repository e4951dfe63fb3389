"""Ways of adapting measured: for each document self-edits are written and taken in, and its questions are asked.

It is the comparison of `train-teacher` (`pipelines.comparison`) on the suite's documents, questions, student and seeds.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.tasks import Question, Split
from pipelines.regression.pins import check_teacher
from pipelines.regression.subjects import Located
from pipelines.regression.suite import RegressionSuite, SuiteContent
from pipelines.regression.way_scores import WayScores, way_scores
from pipelines.regression.ways import Way
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from evaluation.checkpoints import Checkpoint
    from pipelines.progress import Reporter
    from pipelines.regression.scoring import OpenStudent
    from teacher.policy import TeacherPolicy


class WayWorkspace(Workspace):
    """The workspace of a way of adapting: documents, questions, probes and student are those of a suite."""

    def __init__(
        self, way: Way, work_dir: Path, content: SuiteContent, student: OpenStudent, directory: Path | None
    ) -> None:
        """Open nothing yet.

        Args:
            way: To measure.
            work_dir: For records and the teacher's states.
            content: Of the suite.
            student: Of the suite.
            directory: Of the teacher's adapter; None is the base as it is.
        """
        asked = content.questions
        tasks = tuple(task.model_copy(update={"held_out_questions": asked[task.id]}) for task in content.tasks)
        super().__init__(way.run, work_dir, Split((), (), tasks))
        self._content, self._student, self._directory = content, student, directory

    @cached_property
    def student(self) -> Checkpoint:
        """The suite's student, which is open already."""
        return self._student.checkpoint

    @cached_property
    def student_digest(self) -> str:
        """SHA-256 of its weights."""
        return self._student.digest

    @cached_property
    def retention_probes(self) -> tuple[Question, ...]:
        """The suite's probes."""
        return self._content.probes

    @cached_property
    def policy(self) -> TeacherPolicy:
        """The teacher, with its adapter's own configuration where it has one."""
        from teacher.policy import TeacherPolicy

        base, config = self._open(self.config.teacher.model), self.config.teacher.policy
        if self._directory is None:
            return TeacherPolicy.create(base, config, self.seed("policy"))
        return TeacherPolicy.load(self._directory, base)


def total_units(content: SuiteContent, way: Way) -> int:
    """Return how many units of work a measurement has, for a progress bar: sampling, and chunks of updates."""
    return 1 + -(-len(content.tasks) * way.run.comparison.edits // way.run.student.unit_updates)


def measure_way(
    suite: RegressionSuite,
    content: SuiteContent,
    student: OpenStudent,
    way: Way,
    located: Located,
    work_dir: Path,
    reporter: Reporter,
) -> WayScores:
    """Return the scores of a way of adapting on a suite.

    What is done is kept in units of work (`pipelines.units`): a test that was killed goes on where it was, and a
    baseline that was measured before with the same code is not measured again.

    Args:
        suite: Pinned.
        content: Of the suite.
        student: Of the suite.
        way: To measure.
        located: Its teacher's adapter.
        work_dir: For records and the teacher's states.
        reporter: Told of what is done.

    Raises:
        InputError: The teacher's base is not what was pinned.
        ModelError: The teacher, or its adapter, cannot be opened.
        PreceptorError: Whatever else could not be done.
    """
    from pipelines.comparison import teacher_variant
    from pipelines.units import Units

    with WayWorkspace(way, work_dir, content, student, located.directory) as ws:
        ws.check_endpoints()
        state = teacher = adapter = None
        if way.local:
            teacher = ws.policy.base_digest
            if way.pinned:
                check_teacher(suite, teacher)
        if located.directory is not None:
            state, teacher = ws.keep_policy(), ws.policy.digest
            adapter = teacher
        text = way.subject.text
        variant = teacher_variant(
            ws, Units(ws, reporter), "subject", text, state, way.run.teacher.prompt, ws.split.test
        )
    return way_scores(variant, way.digest(teacher), adapter, len(content.tasks) * way.run.comparison.edits)
