"""The rounds of a teacher: sample self-edits, update students, score them, form rewards, learn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.loop.reward import groups_of, judge
from pipelines.plan import Stage
from pipelines.records import Candidate, DevelopmentCheck, Edit, Round, ScoredUpdate, WarmStart
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.edits import Diagnostics
from teacher.algorithms.algorithm import Selection
from teacher.filters import EditFacts, refusal
from teacher.rewards import RewardFailure

_PATIENCE = 3
"""Checks in a row without a better teacher after which learning ends."""
_FALL = 0.05
"""When the mean reward is below the best one by more than this, learning continues from the best teacher."""


def round_documents(
    config: TrainTeacherConfig, train: Sequence[KnowledgeTask], number: int, last: Collection[str] = ()
) -> list[KnowledgeTask]:
    """Return the training documents of a round: a fresh shuffle each time all of them have been used.

    Those whose ids are in `last` come after all others.
    """
    size = config.loop.documents
    rounds_in_pass = len(train) // size
    order = list(train)
    random.Random(config.seed_of("documents", number // rounds_in_pass)).shuffle(order)
    order.sort(key=lambda task: task.id in last)
    start = number % rounds_in_pass * size
    return order[start : start + size]


class Course(NamedTuple):
    """The rounds of one teacher."""

    rounds: tuple[Round, ...]
    state: str | None
    """Of the trained teacher: the best on the development documents, or the last one; after no round the one that
    rounds would begin with."""
    begun: DevelopmentCheck | None = None
    """Of the warm-started teacher, where checkpoints are selected."""


class _Tried(NamedTuple):
    """Self-edits after their updates."""

    updates: tuple[ScoredUpdate, ...]
    facts: dict[str, EditFacts]
    refused: dict[str, RewardFailure]
    """By `Edit.id`, as for `judge`."""
    inner_runs: int


class Training(NamedTuple):
    """What the rounds of one teacher need."""

    config: TrainTeacherConfig
    loop: Loop
    split: Split
    diagnostics: Diagnostics
    start: WarmStart | None = None
    """Where the rounds begin; None is the untrained teacher."""

    def run(self, plan: Sequence[Stage], on_round: Callable[[Round], None]) -> Course:
        """Run the rounds of a plan; `on_round` is called with each round's record."""
        settings = self.config.loop.development
        selection = None if settings is None else CheckpointSelection()
        rounds: list[Round] = []
        state = None if self.start is None else self.start.policy
        stages = {stage.name: stage for stage in plan}
        begun = next((stage for stage in plan if stage.name.endswith("of the warm start")), None)
        first = None
        if selection is not None and begun is not None and state is not None:
            first = selection.check(state, self._development_reward(begun, state))
        for stage in (stage for stage in plan if "round" in stage.name):
            record = self._round(stage, state, rounds)
            state = record.learning.policy
            check = stages.get(stage.name.replace("round", "development"))
            if selection is not None and check is not None:
                decided = selection.check(state, self._development_reward(check, state))
                record = record.model_copy(update={"development": decided})
                state = selection.next_state
            rounds.append(record)
            on_round(record)
            if selection is not None and selection.ended:
                break
        return Course(tuple(rounds), state if selection is None or not rounds else selection.best_state, first)

    def _round(self, stage: Stage, state: str | None, history: Sequence[Round]) -> Round:
        """Return the record of one round; the new state is in the work directory."""
        config, loop, number = self.config, self.loop, int(stage.subject)
        sample, try_, score, learn = stage.steps
        start = self.start
        tasks = round_documents(config, self.split.train, number, () if start is None else start.document_ids)
        with loop.reporter.step(sample, stage.name):
            seed = loop.seed("sample", f"round {number}")
            sampling = loop.sample(state, config.teacher.prompt, tasks, n=config.teacher.samples, seed=seed)
        with loop.reporter.step(try_, stage.name):
            tried = self._filter_and_try(sampling.edits, number, history)
        with loop.reporter.step(score, stage.name):
            base = loop.base(tasks, "rewards")
        floors = {scored.document_id: scored for scored in base}
        candidates = judge(
            sampling.edits,
            config.teacher.reward,
            updates=tried.updates,
            base=floors,
            facts=tried.facts,
            refused=tried.refused,
        )
        selection = self._select(candidates, floors)
        weights = {(example.group_id, example.token_ids): example.weight for example in selection.examples}
        with loop.reporter.step(learn, stage.name):
            reference, seed = None if start is None else start.policy, loop.seed("learn", number)
            learning = loop.learn(state, selection.examples, seed=seed, reference=reference)
        updating = sum(update.seconds for update in (*tried.updates, *base))
        return Round(
            round=number,
            document_ids=tuple(task.id for task in tasks),
            candidates=tuple(
                c.model_copy(update={"weight": weights.get((c.document_id, c.edit.token_ids))}) for c in candidates
            ),
            left_out={**{name: reason.value for name, reason in selection.left_out.items()}, **sampling.too_long},
            mean_reward=known_mean([c.reward for c in candidates]),
            base_reward=known_mean([c.base_reward for c in candidates]),
            learning=learning,
            seconds={"sample": sampling.seconds, "update": updating, "learn": learning.seconds},
            inner_runs=tried.inner_runs,
            notes=self.diagnostics.of(sampling.edits),
        )

    def _filter_and_try(self, edits: Sequence[Edit], number: int, history: Iterable[Round]) -> _Tried:
        """Filter a round's self-edits, and try those that pass."""
        config, settings = self.config, self.config.loop
        facts = {e.id: self.diagnostics.facts(e, "rewards") for e in edits if e.edit is not None}
        reasons = {name: refusal(known, config.teacher.filters) for name, known in facts.items()}
        refused = {name: reason for name, reason in reasons.items() if reason is not None}
        passed = [edit for edit in edits if edit.id in facts and edit.id not in refused]
        trials = self.loop.trials(passed, "round" if settings.remember else f"round {number}", settings.replicates)
        new = _distinct(passed)
        if settings.remember:
            new -= _distinct(c.edit for record in history for c in record.candidates if c.replicates)
        return _Tried(self.loop.update(trials, "rewards"), facts, refused, len(new) * settings.replicates)

    def _select(self, candidates: Sequence[Candidate], base: Mapping[str, ScoredUpdate]) -> Selection:
        """Return the examples that the teacher learns from."""
        loop, learning, prompt = self.loop, self.config.teacher.learning, self.config.teacher.prompt
        tokenizer = loop.open_teacher.policy.tokenizer

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

        prompts = {name: loop.prompt(prompt, loop.tasks[name]) for name in {c.document_id for c in candidates}}
        by_line = decode if learning.assigns_credit_by_line else None
        return learning.select(groups_of(candidates, prompts, loop.tasks, base, self.config.teacher.reward, by_line))

    def _development_reward(self, stage: Stage, state: str) -> float | None:
        """Return a teacher's mean reward on the development documents; every teacher has the same seeds."""
        loop, prompt = self.loop, self.config.teacher.prompt
        sample, try_ = stage.steps
        with loop.reporter.step(sample, stage.name):
            seed = loop.seed("sample", "development")
            sampling = loop.sample(state, prompt, self.split.development, n=sample.each, seed=seed)
        with loop.reporter.step(try_, stage.name):
            updates = loop.update(loop.trials(sampling.edits, "development"), "rewards")
        judged = judge(sampling.edits, self.config.teacher.reward, updates=updates)
        return known_mean(candidate.reward for candidate in judged)


def _distinct(edits: Iterable[Edit]) -> set[tuple[str, str]]:
    return {(edit.document_id, edit.edit.digest) for edit in edits if edit.edit is not None}


class CheckpointSelection:
    """Checkpoint selection and early stopping on the development set: keeps the best teacher so far."""

    def __init__(self) -> None:
        self._best, self._stale = -math.inf, 0
        self.best_state: str | None = None
        """The state with the highest mean reward; the first one checked while none had a reward."""
        self.next_state: str | None = None
        """The state that the next round starts from."""
        self.ended = False

    def check(self, state: str, mean: float | None) -> DevelopmentCheck | None:
        """Return the decision on a teacher's state, by its mean reward on the development documents.

        None where no self-edit had a reward, which decides nothing.
        """
        self.next_state = state
        if mean is None:
            self.best_state = self.best_state or state
            return None
        decision: Literal["best", "continue", "back to the best", "stop"] = "continue"
        self._stale += 1
        if mean > self._best:
            decision, self._best, self.best_state, self._stale = "best", mean, state, 0
        elif self._stale >= _PATIENCE:
            decision, self.ended = "stop", True
        elif mean < self._best - _FALL:
            decision, self.next_state = "back to the best", self.best_state
        return DevelopmentCheck(mean=mean, best=self._best, decision=decision)
