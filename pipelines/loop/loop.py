"""The loop that all flows share: a teacher writes self-edits, a frozen student is updated with them and scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from evaluation.domains import domain_of
from evaluation.engines.ledger import Spent
from evaluation.graders import Graded, Grader, JudgeGrader
from evaluation.tasks import KnowledgeTask, Question
from pipelines import models
from pipelines.execution import Execution, content_key
from pipelines.loop.learn import learn_from
from pipelines.loop.sample import TeacherState, sample_from, sample_teacher
from pipelines.loop.update import (
    BankWork,
    Trial,
    adapter_dir,
    answer_settings,
    grade_updates,
    questions_of,
    train_and_score,
)
from pipelines.records import Edit, InContext, Learning, Sampling, ScoredUpdate, Updates
from pipelines.settings import LoopSettings, QuestionSet
from teacher.algorithms.algorithm import WeightedExample
from teacher.prompts import prompt_template
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.self_edit import SelfEdit

if TYPE_CHECKING:
    from pipelines.reports.console import Reporter

STATES = "teachers"
"""Directory of the work directory with the teacher's saved states, by digest."""

UNIT_UPDATES = 64
"""Updates trained and stored together: the most that a kill can cost."""


class Loop:
    """Samples, updates, scores and learns under one configuration; each piece of work is done once and stored."""

    def __init__(
        self,
        settings: LoopSettings,
        work_dir: Path,
        tasks: Iterable[KnowledgeTask],
        probes: Sequence[Question],
        reporter: Reporter,
    ) -> None:
        """Open nothing but the stores; models are opened when they are first needed.

        Args:
            settings: Teacher, student and grading.
            work_dir: Gets adapters, teacher states and the stores.
            tasks: All documents that may be asked about, with unique ids.
            probes: Retention probes: questions on what the student knew before any update.
            reporter: Shows progress.
        """
        self.settings, self.work_dir, self.reporter = models.with_answer_format(settings), work_dir, reporter
        self.tasks = {task.id: task for task in tasks}
        self.probes = tuple(probes)
        self.execution = Execution(settings, work_dir, reporter)
        self.verdicts: list[Graded] = []
        """Every verdict of the grader so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.execution.close()
        models.close_models()

    def seed(self, *purpose: str | int) -> int:
        """Return the seed of one purpose."""
        return self.settings.seed_of(*purpose)

    @cached_property
    def student_ref(self) -> models.ModelRef:
        """The frozen student, to be opened."""
        return models.ModelRef.of(self.settings.student.model, self.settings)

    @property
    def student_digest(self) -> str:
        """SHA-256 of the student's weights."""
        return models.student_digest(self.student_ref)

    # Sampling and learning

    @property
    def learns_here(self) -> bool:
        """Whether the teacher is a policy of this process, not a model behind an endpoint."""
        return not isinstance(self.settings.teacher.sampling, OpenAISampling)

    def state_dir(self, state: str) -> Path:
        """Return the directory of a saved state of the teacher."""
        return self.work_dir / STATES / state

    def teacher(self, state: str | None) -> TeacherState:
        """Return the teacher at a saved state; None is the untrained one."""
        ref = models.ModelRef.of(self.settings.teacher.model, self.settings)
        directory = None if state is None else self.state_dir(state)
        return TeacherState(ref, self.settings.teacher, self.seed("policy"), directory)

    @property
    def open_teacher(self) -> models.Teacher:
        """The teacher's policy and tokenizer."""
        teacher = self.teacher(None)
        return models.open_teacher(teacher.ref, teacher.config, teacher.seed)

    def prompt(self, template: str, task: KnowledgeTask) -> str:
        """Return what the teacher reads about a task."""
        chosen, budget = prompt_template(template), self.settings.student.update.step_budget
        document = domain_of(task).render(task)
        if self.settings.teacher.chat:
            return chosen.render_chat(document, self.open_teacher.policy.tokenizer, budget)
        return chosen.render(document, budget)

    def sample(self, state: str | None, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
        """Return `n` self-edits for each task from the teacher at a saved state.

        Args:
            state: Name of the state's directory; None is the untrained teacher.
            prompt: Name of the prompt template.
            tasks: What to write about.
            n: Samples of each.
            seed: Of the sampling.
        """
        sampling = self.settings.teacher.sampling
        if isinstance(sampling, OpenAISampling):
            return self.ask(sampling, "teacher", prompt, tasks, n=n, seed=seed)
        prompts = [self.prompt(prompt, task) for task in tasks]
        content = {
            "teacher": self._teacher_content(state),
            "prompts": [[task.id, text] for task, text in zip(tasks, prompts, strict=True)],
            "sampling": sampling.model_dump(mode="json"),
            "n": n,
            "seed": seed,
        }
        describe = f"sampling {n * len(tasks)} self-edits"
        return self.execution.run(
            "sample", content, sample_teacher, self.teacher(state), prompts, list(tasks), n, seed, describe=describe
        )

    def endpoint(self, sampling: OpenAISampling, role: str) -> OpenAISampler:
        """Return a sampler behind an endpoint, whose budget counts by the flow's name and the role."""
        return models.open_endpoint(sampling, self.work_dir, f"{self.settings.name}/{role}")

    def ask(
        self, sampling: OpenAISampling, role: str, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int
    ) -> Sampling:
        """Return an endpoint's self-edits. Its ledger stores the replies, so that only failures are asked again."""
        budget = self.settings.student.update.step_budget
        prompts = [prompt_template(prompt).render(domain_of(task).render(task), budget) for task in tasks]
        self.reporter.begin(f"asking for {n * len(tasks)} self-edits")
        return sample_from(self.endpoint(sampling, role), prompts, tasks, n, seed)

    def learn(self, state: str | None, examples: Sequence[WeightedExample], *, seed: int) -> Learning:
        """Return the teacher's step from a saved state; the new state is in the work directory."""
        content = {
            "teacher": self._teacher_content(state),
            "examples": [[e.prompt, list(e.token_ids), e.weight, e.group_id, e.token_weights] for e in examples],
            "learning": self.settings.teacher.learning.model_dump(mode="json"),
            "seed": seed,
        }
        return self.execution.run(
            "learn",
            content,
            learn_from,
            self.teacher(state),
            list(examples),
            seed,
            self.work_dir / STATES,
            describe=f"teacher learns from {len(examples)} self-edits",
            complete=lambda learning: self.state_dir(learning.policy).is_dir(),
        )

    def _teacher_content(self, state: str | None) -> Any:
        """Return what identifies a teacher: its base and configuration, and its state."""
        policy = self.open_teacher.policy
        return [policy.base_digest, policy.config.model_dump(mode="json"), state or f"untrained, {self.seed('policy')}"]

    # Updates and scores

    def adapter_dir(self, digest: str) -> Path:
        """Return the directory of a student's adapter, whether or not it was kept."""
        return adapter_dir(self.work_dir, digest)

    def trials(self, edits: Sequence[Edit], purpose: str, replicates: int = 1) -> list[Trial]:
        """Return the updates to make for the self-edits that could be parsed.

        All self-edits of a document share their seeds (common random numbers): only the edit differs between them.
        Seeds differ between purposes, so that no comparison reuses a round's luck.

        Args:
            edits: Those without a parsed self-edit are skipped.
            purpose: Part of every seed.
            replicates: Updates of each self-edit.
        """
        return [
            Trial(e.document_id, e.index, e.edit, self.seed("update", purpose, e.document_id, replicate))
            for replicate in range(replicates)
            for e in edits
            if e.edit is not None
        ]

    def update(self, trials: Sequence[Trial], questions: QuestionSet) -> Updates:
        """Return the scores of some trials; each is trained at most once, whichever round or variant asks for it.

        Trials with `keep` leave their adapters in the work directory.

        Args:
            trials: In any number; they are trained and stored in units of `UNIT_UPDATES`.
            questions: Which questions to ask.
        """
        probes = self._probes_for(questions)
        keys = [self._update_key(trial, questions, probes) for trial in trials]
        found = self.execution.updates.find(list(dict.fromkeys(keys)))
        missing = {
            key: trial
            for key, trial in reversed(list(zip(keys, trials, strict=True)))
            if key not in found or (trial.keep and self._is_lost(found[key]))
        }
        todo = list(reversed(missing.items()))
        for start in range(0, len(todo), UNIT_UPDATES):
            unit = todo[start : start + UNIT_UPDATES]
            self.reporter.begin(f"training and scoring {len(unit)} adapters")
            done = self.execution.run_bank(train_and_score, self._bank_work([t for _, t in unit], questions, probes))
            made = dict(zip((key for key, _ in unit), done.replicates, strict=True))
            self.execution.updates.keep(made)
            found |= made
        replicates = [
            found[key].model_copy(update={"document_id": trial.document_id, "index": trial.index})
            for key, trial in zip(keys, trials, strict=True)
        ]
        return Updates(replicates=self._graded(replicates, questions))

    def base(self, tasks: Sequence[KnowledgeTask], questions: QuestionSet) -> Updates:
        """Return the scores of the student without an update, in the order of the tasks."""
        return self.update([Trial(task.id, 0, None, 0) for task in tasks], questions)

    def in_context(self, edits: Sequence[tuple[str, SelfEdit]]) -> InContext:
        """Return the probability of the gold answers with each self-edit in the student's context, and no update.

        Args:
            edits: Pairs of a document's id and a self-edit for it.
        """
        tasks = {name: self.tasks[name] for name, _ in edits}
        content = {
            "student": self.student_digest,
            "format": self.settings.student.answer_format.model_dump(mode="json"),
            "edits": [[name, tasks[name].digest, edit.digest] for name, edit in edits],
        }
        describe = f"reading {len(edits)} self-edits in the student's context"
        return self.execution.run(
            "in-context", content, read_in_context, self.settings, list(edits), tasks, describe=describe
        )

    def _probes_for(self, questions: QuestionSet) -> tuple[Question, ...]:
        """Return the probes asked besides some questions: in comparisons always, for rewards if they count."""
        counts = questions == "comparison" or self.settings.teacher.reward.retention_weight > 0.0
        return self.probes if counts else ()

    def _update_key(self, trial: Trial, questions: QuestionSet, probes: Sequence[Question]) -> str:
        """Return the content key of one update."""
        student, task = self.settings.student, self.tasks[trial.document_id]
        asked = [[q.question, q.answer] for q in questions_of(task, questions)]
        content = {
            "student": self.student_digest,
            "recipe": student.update.model_dump(mode="json"),
            "format": student.answer_format.model_dump(mode="json"),
            # Both may change the batches in which an update is computed, and with that how its sums are rounded.
            "slots": student.bank_slots,
            "memory": student.bank_memory_gb,
            "task": [task.domain, task.document.digest, asked],
            "edit": None if trial.edit is None else trial.edit.digest,
            "seed": trial.seed,
            "probes": [[probe.question, probe.answer] for probe in probes],
            "answers": answer_settings(self.settings, questions),
        }
        return content_key(self.settings, "update", content)

    def _bank_work(self, trials: Sequence[Trial], questions: QuestionSet, probes: tuple[Question, ...]) -> BankWork:
        tasks = {trial.document_id: self.tasks[trial.document_id] for trial in trials}
        return BankWork(self.settings, tuple(trials), tasks, questions, probes, self.work_dir)

    def _is_lost(self, update: ScoredUpdate) -> bool:
        """Return whether an update left an adapter that is not in the work directory."""
        digest = update.adapter_digest
        return digest is not None and not self.adapter_dir(digest).is_dir()

    # Endpoints and graders

    @property
    def grader(self) -> Grader | None:
        """Who grades the students' texts; None where exact match or the domain decides."""
        return models.open_grader(self.settings, self.work_dir)

    def _graded(self, updates: Sequence[ScoredUpdate], questions: QuestionSet) -> tuple[ScoredUpdate, ...]:
        return grade_updates(updates, self.tasks, questions, self.settings, self.grader, self.verdicts)

    def spent(self, **endpoints: OpenAISampling | None) -> dict[str, Spent]:
        """Return what was spent at endpoints by role, killed runs included: the judge's, and those that are given."""
        return {role: part.spent for role, part in self._endpoints(endpoints).items()}

    def check_endpoints(self, **endpoints: OpenAISampling | None) -> None:
        """Check that every endpoint can be asked, before anything expensive starts.

        Raises:
            ConfigError: A key is missing.
            EndpointError: An endpoint refuses, or does not have the model.
        """
        for part in self._endpoints(endpoints).values():
            part.check()

    def _endpoints(self, others: dict[str, OpenAISampling | None]) -> dict[str, OpenAISampler | JudgeGrader]:
        sampling = self.settings.teacher.sampling
        roles = {"teacher": None if not isinstance(sampling, OpenAISampling) else sampling, **others}
        found: dict[str, OpenAISampler | JudgeGrader] = {
            role: self.endpoint(asked, role) for role, asked in roles.items() if asked is not None
        }
        if isinstance(self.grader, JudgeGrader):
            found["judge"] = self.grader
        return found


def read_in_context(
    settings: LoopSettings, edits: Sequence[tuple[str, SelfEdit]], tasks: dict[str, KnowledgeTask]
) -> InContext:
    """Return the probability of the gold answers with each self-edit in the student's context."""
    import time

    from student.bank.scoring import ScoringFailure
    from student.in_context import score_in_context

    started = time.perf_counter()
    student = models.open_student(models.ModelRef.of(settings.student.model, settings))
    contexts = [" ".join(implication.line for implication in edit.implications) for _, edit in edits]
    questions = [tasks[name].questions for name, _ in edits]
    found = score_in_context(student.model, student.tokenizer, contexts, questions, settings.student.answer_format)
    return InContext(
        probabilities=tuple(
            None if isinstance(scores, ScoringFailure) else tuple(score.probability for score in scores)
            for scores in found
        ),
        seconds=time.perf_counter() - started,
    )
