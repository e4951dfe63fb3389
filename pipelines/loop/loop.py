"""The loop that all flows share: a teacher writes self-edits, a frozen student is updated with them and scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from evaluation.domains import domain_of
from evaluation.engines.ledger import Spent
from evaluation.graders import Grade, Grader, JudgeGrader
from evaluation.tasks import KnowledgeTask, Question
from pipelines import models
from pipelines.execution import Execution, content_key
from pipelines.loop import update as updates
from pipelines.loop.teacher import learn_from, sample_from, sample_teacher
from pipelines.loop.update import BankWork, Trial, questions_of
from pipelines.records import Edit, InContext, Learning, Sampling, ScoredUpdate
from pipelines.settings import LoopSettings, QuestionSet
from student.adapters import load_adapter
from teacher.algorithms.algorithm import WeightedExample
from teacher.prompts import prompt_template
from teacher.samplers.openai import OpenAISampler, OpenAISampling

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

        `tasks` are all documents that may be asked about, with unique ids, and `probes` questions on what the student
        knew before any update. Adapters, teacher states and the stores are in `work_dir`.
        """
        self.settings, self.work_dir, self.reporter = models.with_answer_format(settings), work_dir, reporter
        self.tasks = {task.id: task for task in tasks}
        self.probes = tuple(probes)
        self.execution = Execution(settings, work_dir, reporter)
        self.verdicts: list[Grade] = []
        """Every verdict of the grader so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.execution.updates.close()
        models.close_models()

    def seed(self, *purpose: str | int) -> int:
        """Return the seed of one purpose."""
        return self.settings.seed_of(*purpose)

    @cached_property
    def student_ref(self) -> models.ModelRef:
        """The frozen student, to be opened."""
        return models.ModelRef.of(self.settings.student, self.settings)

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

    def _teacher(self, state: str | None) -> models.TeacherState:
        ref = models.ModelRef.of(self.settings.teacher.model, self.settings)
        directory = None if state is None else self.state_dir(state)
        return models.TeacherState(ref, self.settings.teacher, self.seed("policy"), directory)

    @property
    def open_teacher(self) -> models.Teacher:
        """The teacher's policy and tokenizer."""
        return self._teacher(None).open()

    def prompt(self, template: str, task: KnowledgeTask) -> str:
        """Return what the teacher reads about a task."""
        chosen, budget = prompt_template(template), self.settings.student.update.step_budget
        document = domain_of(task).render(task)
        if self.settings.teacher.chat:
            return chosen.render_chat(document, self.open_teacher.policy.tokenizer, budget)
        return chosen.render(document, budget)

    def sample(self, state: str | None, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
        """Return `n` self-edits for each task, by a prompt template, from the teacher at a saved state.

        States are given by the names of their directories; None is the untrained teacher.
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
            "sample", content, sample_teacher, self._teacher(state), prompts, list(tasks), n, seed, describe=describe
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
            self._teacher(state),
            list(examples),
            seed,
            self.work_dir / STATES,
            describe=f"teacher learns from {len(examples)} self-edits",
            complete=self._has_state,
        )

    def _teacher_content(self, state: str | None) -> Any:
        """Return what identifies a teacher: its base and configuration, and its state."""
        policy = self.open_teacher.policy
        return [policy.base_digest, policy.config.model_dump(mode="json"), state or f"untrained, {self.seed('policy')}"]

    # Updates and scores

    def adapter_dir(self, digest: str) -> Path:
        """Return the directory of a student's adapter, whether or not it was kept."""
        return updates.adapter_dir(self.work_dir, digest)

    def trials(
        self, edits: Iterable[Edit], purpose: str, replicates: int = 1, keep: Collection[str] = ()
    ) -> list[Trial]:
        """Return the updates to make for the self-edits that could be parsed.

        All self-edits of a document share their seeds (common random numbers): only the edit differs between them.
        Seeds differ between purposes, so that no comparison reuses a round's luck, and between replicates. Self-edits
        whose `Edit.id` is in `keep` keep their adapters.
        """
        parsed = [edit for edit in edits if edit.edit is not None]
        return [
            Trial(e.document_id, e.index, e.edit, self.seed("update", purpose, e.document_id, replicate), e.id in keep)
            for replicate in range(replicates)
            for e in parsed
        ]

    def update(self, trials: Sequence[Trial], questions: QuestionSet) -> tuple[ScoredUpdate, ...]:
        """Return the scores of some trials, in their order; each is trained once, whichever round or variant asks.

        They are trained and stored in units of `UNIT_UPDATES`; those with `keep` leave their adapters in the work
        directory. What of a stored unit is damaged is trained again among the others of its unit.
        """
        probes, store = self._probes_for(questions), self.execution.updates
        keys = [self._update_key(trial, questions, probes) for trial in trials]
        before, found = store.damaged, store.find(dict.fromkeys(keys))
        self.execution.tell_damaged(store.damaged - before, "updates")
        # Of equal trials the first one is trained.
        missing = {
            key: trial
            for key, trial in reversed(list(zip(keys, trials, strict=True)))
            if key not in found or (trial.keep and self._is_lost(found[key]))
        }
        todo, of_key = dict(reversed(missing.items())), dict(zip(keys, trials, strict=True))
        units = store.banks(of_key, todo)
        rest = [key for key in todo if not any(key in unit for unit in units)]
        for unit in (*units, *(rest[start : start + UNIT_UPDATES] for start in range(0, len(rest), UNIT_UPDATES))):
            self.reporter.begin(f"training and scoring {len(unit)} adapters")
            chosen = tuple(todo.get(key, of_key[key]) for key in unit)
            tasks = {trial.document_id: self.tasks[trial.document_id] for trial in chosen}
            work = BankWork(self.settings, chosen, tasks, questions, probes, self.work_dir)
            made = dict(zip(unit, self.execution.run_bank(updates.train_and_score, work), strict=True))
            made = {key: update for key, update in made.items() if key in todo}
            store.keep(made, unit)
            found |= made
        scored = [
            found[key].model_copy(update={"document_id": trial.document_id, "index": trial.index})
            for key, trial in zip(keys, trials, strict=True)
        ]
        return updates.grade_updates(scored, self.tasks, questions, self.settings, self.grader, self.verdicts)

    def base(self, tasks: Sequence[KnowledgeTask], questions: QuestionSet) -> tuple[ScoredUpdate, ...]:
        """Return the scores of the student without an update, in the order of the tasks."""
        return self.update([Trial(task.id, 0, None, 0) for task in tasks], questions)

    def in_context(self, edits: Sequence[Edit]) -> InContext:
        """Return the probability of the gold answers with each self-edit in the student's context, and no update."""
        tasks = {edit.document_id: self.tasks[edit.document_id] for edit in edits}
        content = {
            "student": self.student_digest,
            "format": self.settings.student.answer_format.model_dump(mode="json"),
            "edits": [[e.document_id, tasks[e.document_id].digest, e.edit.digest] for e in edits if e.edit is not None],
        }
        describe = f"reading {len(edits)} self-edits in the student's context"
        return self.execution.run(
            "in-context", content, updates.read_in_context, self.settings, list(edits), tasks, describe=describe
        )

    def _probes_for(self, questions: QuestionSet) -> tuple[Question, ...]:
        """Return the probes asked besides some questions: in comparisons always, for rewards if they count."""
        counts = questions == "comparison" or self.settings.teacher.reward.retention_weight > 0.0
        return self.probes if counts else ()

    def _update_key(self, trial: Trial, questions: QuestionSet, probes: Sequence[Question]) -> str:
        student, task = self.settings.student, self.tasks[trial.document_id]
        asked, grading = questions_of(task, questions), self.settings.grading_for(questions)
        content = {
            "student": self.student_digest,
            "recipe": student.update.model_dump(mode="json"),
            "format": student.answer_format.model_dump(mode="json"),
            # Both may change the batches in which an update is computed, and with that how its sums are rounded.
            "slots": student.bank_slots,
            "memory": student.bank_memory_gb,
            "task": [task.domain, task.document.digest, [[q.question, q.answer] for q in asked]],
            "edit": None if trial.edit is None else trial.edit.digest,
            "seed": trial.seed,
            "probes": [[probe.question, probe.answer] for probe in probes],
            # The grader is no part: it reads the stored answers.
            "answers": None if grading is None else grading.model_dump(mode="json", exclude={"grader"}),
        }
        return content_key(self.settings, "update", content)

    def _is_lost(self, update: ScoredUpdate) -> bool:
        """Return whether an update left an adapter that is not in the work directory, or not whole."""
        return update.adapter_digest is not None and not self.has_adapter(update.adapter_digest)

    def has_adapter(self, digest: str) -> bool:
        """Return whether a student's adapter is in the work directory, as it was saved; a damaged one is removed."""
        return self._is_whole(self.adapter_dir(digest), lambda place: load_adapter(place).digest == digest)

    def _has_state(self, learning: Learning) -> bool:
        """Return whether a state of the teacher is in the work directory, as it was saved; see `has_adapter`."""
        policy = self.open_teacher.policy
        return self._is_whole(
            self.state_dir(learning.policy), lambda place: policy.check(place).digest == learning.policy_digest
        )

    def _is_whole(self, place: Path, check: Callable[[Path], bool]) -> bool:
        if not place.is_dir():
            return False
        try:
            whole = check(place)
        except Exception:  # whatever a parser makes of damaged files
            whole = False
        if not whole:
            self.execution.tell_damaged(1, f"adapter ({place.name})")
            shutil.rmtree(place)
        return whole

    # Endpoints and graders

    @property
    def grader(self) -> Grader | None:
        """Who grades the students' texts; None where exact match or the domain decides."""
        return models.open_grader(self.settings.grading, self.work_dir, self.settings.name)

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
        samplings = {"teacher": self.settings.teacher.sampling, **others}
        found: dict[str, OpenAISampler | JudgeGrader] = {
            role: self.endpoint(asked, role) for role, asked in samplings.items() if isinstance(asked, OpenAISampling)
        }
        if isinstance(self.grader, JudgeGrader):
            found["judge"] = self.grader
        return found
