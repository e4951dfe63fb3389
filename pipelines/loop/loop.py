"""The loop that all flows share: a teacher writes self-edits, a frozen student is updated with them and scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from evaluation.domains import domain_of
from evaluation.engines.ledger import Spent
from evaluation.graders import Grade, Grader, JudgeGrader
from evaluation.tasks import KnowledgeTask, Question
from pipelines import models
from pipelines.execution import Execution, content_key
from pipelines.loop import update as updates
from pipelines.loop.teacher import Writing, imitate, learn_from, sample_from, sample_student, sample_teacher
from pipelines.loop.update import BankWork, Trial, questions_of
from pipelines.records import Edit, Learning, Sampling, ScoredUpdate, WarmStart
from pipelines.settings import LoopSettings, QuestionSet
from student.adapters import load_adapter
from student.config import Objective
from teacher.algorithms.algorithm import Algorithm, WeightedExample
from teacher.prompts import prompt_template
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.samplers.transformers import TransformersSampling

if TYPE_CHECKING:
    from pipelines.reports.console import Reporter

STATES = "teachers"
"""Directory of the work directory with the teacher's saved states, by digest."""

_Learned = TypeVar("_Learned", bound=Learning)

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

    def prompt(self, template: str, task: KnowledgeTask, strategy: str = "") -> str:
        """Return what the teacher reads about a task, with the strategy that the template's instruction asks for."""
        chat = self.open_teacher.policy.tokenizer if self.settings.teacher.chat else None
        return self._prompt(template, task, chat, strategy)

    def _prompt(self, template: str, task: KnowledgeTask, chat: Any, strategy: str = "") -> str:
        """Return a prompt about a task, in the chat template of a tokenizer where `chat` gives one."""
        budget = self.settings.student.update.step_budget
        chosen = prompt_template(template).with_item(strategy)
        document = domain_of(task).render(task)
        return chosen.render(document, budget) if chat is None else chosen.render_chat(document, chat, budget)

    def sample(self, state: str | None, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
        """Return `n` self-edits for each task, by a prompt template, from the teacher at a saved state.

        States are given by the names of their directories; None is the untrained teacher.
        """
        return self.write(state, prompt, [self.prompt(prompt, task) for task in tasks], tasks, n=n, seed=seed)

    def write(
        self, state: str | None, prompt: str, texts: Sequence[str], tasks: Sequence[KnowledgeTask], *, n: int, seed: int
    ) -> Sampling:
        """Return `n` self-edits for each task from its `texts`, which `prompt` made from a template; see `sample`."""
        sampling = self.settings.teacher.sampling
        stop = None if self.settings.teacher.chat else prompt_template(prompt).stop
        writing = Writing(list(texts), list(tasks), n, seed, stop)
        if isinstance(sampling, OpenAISampling):
            return self._ask(sampling, "teacher", writing)
        content = {
            "teacher": self._teacher_content(state),
            "sampling": sampling.model_dump(mode="json"),
            **writing.content,
        }
        describe = f"sampling {n * len(tasks)} self-edits"
        return self.execution.run("sample", content, sample_teacher, self._teacher(state), writing, describe=describe)

    def sample_student(self, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int) -> Sampling:
        """Return `n` self-edits for each task, by a prompt template, from the student without an update.

        Temperature and lengths are the teacher's. A student that is asked in its chat template writes in it, too.
        """
        sampling = self.settings.teacher.sampling
        how = TransformersSampling(**sampling.model_dump(include={"temperature", "top_p", "max_new_tokens"}))
        chat = models.chat_of(self.student_ref, self.settings.student.answer_format)
        prompts = [self._prompt(prompt, task, chat) for task in tasks]
        stop = prompt_template(prompt).stop if chat is None else None
        writing = Writing(prompts, list(tasks), n, seed, stop)
        content = {"student": self.student_digest, "sampling": how.model_dump(mode="json"), **writing.content}
        describe, work = f"the student writes {n * len(tasks)} self-edits", (self.student_ref, how, writing)
        return self.execution.run("sample-student", content, sample_student, *work, describe=describe)

    def endpoint(self, sampling: OpenAISampling, role: str) -> OpenAISampler:
        """Return a sampler behind an endpoint, whose budget counts by the flow's name and the role."""
        return models.open_endpoint(sampling, self.work_dir, f"{self.settings.name}/{role}")

    def ask(
        self, sampling: OpenAISampling, role: str, prompt: str, tasks: Sequence[KnowledgeTask], *, n: int, seed: int
    ) -> Sampling:
        """Return an endpoint's self-edits. Its ledger stores the replies, so that only failures are asked again."""
        budget = self.settings.student.update.step_budget
        template = prompt_template(prompt)
        prompts = [template.render(domain_of(task).render(task), budget) for task in tasks]
        return self._ask(sampling, role, Writing(prompts, list(tasks), n, seed, template.stop))

    def _ask(self, sampling: OpenAISampling, role: str, writing: Writing) -> Sampling:
        self.reporter.begin(f"asking for {writing.n * len(writing.tasks)} self-edits")
        return sample_from(self.endpoint(sampling, role), writing)

    def learn(
        self, state: str | None, examples: Sequence[WeightedExample], *, seed: int, reference: str | None = None
    ) -> Learning:
        """Return the teacher's step from a saved state; the new state is in the work directory.

        `reference` is the state that the KL divergence is from: where the rounds began.
        """
        return self._step("learn", learn_from, state, examples, self.settings.teacher.learning, seed, reference)

    def warm_start(self, examples: Sequence[WeightedExample], learning: Algorithm, *, seed: int) -> WarmStart:
        """Return the untrained teacher's supervised steps; the new state is in the work directory."""
        return self._step("warm-start", imitate, None, examples, learning, seed)

    def _step(
        self,
        kind: str,
        function: Callable[..., _Learned],
        state: str | None,
        examples: Sequence[WeightedExample],
        learning: Algorithm,
        seed: int,
        reference: str | None = None,
    ) -> _Learned:
        teacher = self._teacher(state)
        content = {
            "teacher": self._teacher_content(state),
            "reference": self._teacher_content(reference),
            "examples": [[e.prompt, list(e.token_ids), e.weight, e.group_id, e.token_weights] for e in examples],
            "learning": learning.model_dump(mode="json"),
            "seed": seed,
        }
        return self.execution.run(
            kind,
            content,
            function,
            teacher._replace(config=teacher.config.model_copy(update={"learning": learning})),
            list(examples),
            seed,
            self.work_dir / STATES,
            self._teacher(reference).directory,
            describe=f"teacher learns from {len(examples)} completions",
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
        self,
        edits: Iterable[Edit],
        purpose: str,
        replicates: int = 1,
        keep: Collection[str] = (),
        objective: Objective | None = None,
    ) -> list[Trial]:
        """Return the updates to make for the self-edits that could be parsed.

        All self-edits of a document share their seeds (common random numbers): only the edit differs between them.
        Seeds differ between purposes, so that no comparison reuses a round's luck, and between replicates. Self-edits
        whose `Edit.id` is in `keep` keep their adapters. `objective` None is that of the recipe.
        """
        parsed = [edit for edit in edits if edit.edit is not None]
        seeds = [(e, self.seed("update", purpose, e.document_id, r)) for r in range(replicates) for e in parsed]
        return [Trial(e.document_id, e.index, e.edit, seed, e.id in keep, objective) for e, seed in seeds]

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

    def with_passages(self, passages: Mapping[str, Sequence[str]]) -> tuple[ScoredUpdate, ...]:
        """Return the scores of the student without an update, with passages in its context.

        By document id there is one for each of the held-out questions; a blank one leaves the question alone.
        """
        trials = [Trial(name, 0, None, 0, passages=tuple(mine)) for name, mine in passages.items()]
        return self.update(trials, "comparison")

    def knows(self, questions: Sequence[Question]) -> tuple[bool, ...]:
        """Return which questions the student answers right, by exact match, without an update and a passage."""
        content = {
            "student": self.student_digest,
            "format": self.settings.student.answer_format.model_dump(mode="json"),
            "questions": [[question.question, question.answer] for question in questions],
        }
        describe, work = f"asking the student {len(questions)} questions first", (self.settings, list(questions))
        return self.execution.run("ask-first", content, updates.ask_base, *work, describe=describe).exact

    def _probes_for(self, questions: QuestionSet) -> tuple[Question, ...]:
        """Return the probes asked besides some questions: in comparisons always, for rewards if they count."""
        rewarded = questions == "rewards" and self.settings.teacher.reward.retention_weight > 0.0
        return self.probes if rewarded or questions == "comparison" else ()

    def _update_key(self, trial: Trial, questions: QuestionSet, probes: Sequence[Question]) -> str:
        student, task = self.settings.student, self.tasks[trial.document_id]
        asked, grading = questions_of(task, questions), self.settings.grading_for(questions)
        content = {
            "student": self.student_digest,
            "recipe": updates.recipe_of(trial, student.update).model_dump(mode="json"),
            "format": student.answer_format.model_dump(mode="json"),
            # Both may change the batches in which an update is computed, and with that how its sums are rounded.
            "slots": student.bank_slots,
            "memory": student.bank_memory_gb,
            "task": [task.domain, task.document.digest, [[q.question, q.answer] for q in asked]],
            "edit": None if trial.edit is None else trial.edit.digest,
            "seed": trial.seed,
            "passages": list(trial.passages),
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
