"""The rounds of a teacher: sample self-edits, update students, score them, form rewards, learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.loop.reward import Probabilities, groups_of, judge
from pipelines.plan import Stage
from pipelines.records import (
    Candidate,
    DevelopmentCheck,
    Edit,
    Round,
    Sampling,
    ScoredUpdate,
    by_edit,
)
from pipelines.train_teacher.config import DevelopmentConfig, TrainTeacherConfig
from pipelines.train_teacher.diagnostics import Diagnostics
from teacher.algorithms.algorithm import Selection
from teacher.filters import EditFacts, refusal
from teacher.rewards import RewardConfig, RewardFailure

_FALL = 0.05
"""When the mean reward is below the best one by more than this, learning continues from the best teacher."""


def round_documents(config: TrainTeacherConfig, train: Sequence[KnowledgeTask], number: int) -> list[KnowledgeTask]:
    """Return the training documents of a round: a fresh shuffle each time all of them have been used."""
    size = config.loop.documents
    rounds_in_pass = len(train) // size
    order = list(train)
    random.Random(config.seed_of("documents", number // rounds_in_pass)).shuffle(order)
    start = number % rounds_in_pass * size
    return order[start : start + size]


class Course(NamedTuple):
    """The rounds of one teacher."""

    rounds: tuple[Round, ...]
    state: str | None
    """Of the trained teacher: the best on the development documents, or the last one; None after no round."""


class _Tried(NamedTuple):
    """A round's self-edits after their filters and their updates."""

    updates: Mapping[str, Sequence[ScoredUpdate]]
    in_context: Mapping[str, Probabilities]
    facts: Mapping[str, EditFacts]
    refused: Mapping[str, RewardFailure]
    inner_runs: int
    seconds: float


class Training(NamedTuple):
    """What the rounds of one teacher need."""

    config: TrainTeacherConfig
    loop: Loop
    split: Split
    reward: RewardConfig
    diagnostics: Diagnostics

    def run(self, plan: Sequence[Stage], on_round: Callable[[Round], None]) -> Course:
        """Run the rounds of a plan; `on_round` is called with each round's record."""
        settings = self.config.loop.development
        selection = None if settings is None else CheckpointSelection(settings)
        rounds: list[Round] = []
        state: str | None = None
        stages = {stage.name: stage for stage in plan}
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
        return Course(tuple(rounds), state if selection is None or not rounds else selection.best_state)

    def _round(self, stage: Stage, state: str | None, history: Sequence[Round]) -> Round:
        """Return the record of one round; the new state is in the work directory."""
        config, loop, number = self.config, self.loop, int(stage.subject)
        sample, tried_in, score, learn = stage.steps
        tasks, prompt = round_documents(config, self.split.train, number), config.teacher.prompt
        with loop.reporter.step(sample, stage.name):
            seed = loop.seed("sample", f"round {number}")
            sampling = loop.sample(state, prompt, tasks, n=config.teacher.samples, seed=seed)
        with loop.reporter.step(tried_in, stage.name):
            tried = self._try(sampling, number, history)
        with loop.reporter.step(score, stage.name):
            base = loop.base(tasks, "rewards")
        floors = {scored.document_id: scored for scored in base.replicates}
        candidates = judge(
            sampling,
            self.reward,
            updates=tried.updates,
            base=floors,
            facts=tried.facts,
            refused=tried.refused,
            in_context=tried.in_context,
        )
        selection = self._select(candidates, floors)
        with loop.reporter.step(learn, stage.name):
            learning = loop.learn(state, selection.examples, seed=loop.seed("learn", number))
        return Round(
            round=number,
            document_ids=tuple(task.id for task in tasks),
            candidates=_weighted(candidates, selection),
            left_out={**{name: reason.value for name, reason in selection.left_out.items()}, **sampling.too_long},
            mean_reward=known_mean([c.reward for c in candidates]),
            base_reward=known_mean([c.base_reward for c in candidates]),
            learning=learning,
            seconds={"sample": sampling.seconds, "update": tried.seconds + base.seconds, "learn": learning.seconds},
            inner_runs=tried.inner_runs,
            notes=self.diagnostics.of(sampling.edits),
        )

    def _try(self, sampling: Sampling, number: int, history: Sequence[Round]) -> _Tried:
        """Filter a round's self-edits, then update students with them, or read them in the student's context."""
        config, loop = self.config, self.loop
        parsed = [edit for edit in sampling.edits if edit.edit is not None]
        facts = {edit.id: self.diagnostics.facts(edit, "rewards") for edit in parsed}
        refusals = {name: refusal(known, config.teacher.filters) for name, known in facts.items()}
        refused = {name: reason for name, reason in refusals.items() if reason is not None}
        passed = [edit for edit in parsed if edit.id not in refused]
        if self.reward.metric == "proxy":
            found, seconds = self._read(passed)
            return _Tried({}, found, facts, refused, 0, seconds)
        remember = config.loop.remember
        purpose = "round" if remember else f"round {number}"
        updates = loop.update(loop.trials(passed, purpose, config.loop.replicates), "rewards")
        new = _distinct(passed) - (_distinct(_updated(history)) if remember else set())
        return _Tried(
            by_edit(updates.replicates), {}, facts, refused, len(new) * config.loop.replicates, updates.seconds
        )

    def _read(self, edits: Sequence[Edit]) -> tuple[dict[str, Probabilities], float]:
        """Return the proxy scores of some self-edits by id, and the seconds that they took."""
        pairs = [(edit.document_id, edit.edit) for edit in edits if edit.edit is not None]
        if not pairs:
            return {}, 0.0
        found = self.loop.in_context(pairs)
        return {e.id: values for e, values in zip(edits, found.probabilities, strict=True)}, found.seconds

    def _select(self, candidates: Sequence[Candidate], base: Mapping[str, ScoredUpdate]) -> Selection:
        """Return the examples that the teacher learns from."""
        loop, learning, prompt = self.loop, self.config.teacher.learning, self.config.teacher.prompt
        tokenizer = loop.open_teacher.policy.tokenizer

        def decode(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

        prompts = {name: loop.prompt(prompt, loop.tasks[name]) for name in {c.edit.document_id for c in candidates}}
        by_line = decode if learning.assigns_credit_by_line else None
        return learning.select(groups_of(candidates, prompts, loop.tasks, base, self.reward, by_line))

    def _development_reward(self, stage: Stage, state: str) -> float | None:
        """Return a teacher's mean reward on the development documents; every teacher has the same seeds."""
        loop, tasks, prompt = self.loop, self.split.development, self.config.teacher.prompt
        sample, tried_in = stage.steps
        with loop.reporter.step(sample, stage.name):
            sampling = loop.sample(state, prompt, tasks, n=sample.each, seed=loop.seed("sample", "development"))
        with loop.reporter.step(tried_in, stage.name):
            if self.reward.metric == "proxy":
                found, _ = self._read([edit for edit in sampling.edits if edit.edit is not None])
                judged = judge(sampling, self.reward, in_context=found)
            else:
                updates = loop.update(loop.trials(sampling.edits, "development"), "rewards")
                judged = judge(sampling, self.reward, updates=by_edit(updates.replicates))
        return known_mean(candidate.reward for candidate in judged)


def _distinct(edits: Iterable[Edit]) -> set[tuple[str, str]]:
    """Return the distinct self-edits by document and digest."""
    return {(edit.document_id, edit.edit.digest) for edit in edits if edit.edit is not None}


def _updated(history: Iterable[Round]) -> Iterator[Edit]:
    """Yield the self-edits that were updated in earlier rounds."""
    return (candidate.edit for record in history for candidate in record.candidates if candidate.replicates)


def _weighted(candidates: Sequence[Candidate], selection: Selection) -> tuple[Candidate, ...]:
    """Return the candidates with the weights that selection gave them."""
    weights = {(example.group_id, example.token_ids): example.weight for example in selection.examples}
    return tuple(
        c.model_copy(update={"weight": weights.get((c.edit.document_id, c.edit.token_ids))}) for c in candidates
    )


class CheckpointSelection:
    """Checkpoint selection and early stopping on the development set: keeps the best teacher so far."""

    def __init__(self, config: DevelopmentConfig) -> None:
        """Start without a teacher."""
        self._config = config
        self._best = -float("inf")
        self._stale = 0
        self.best_state: str | None = None
        """The state with the highest mean reward; the last one checked while none had a reward."""
        self.next_state: str | None = None
        """The state that the next round starts from."""
        self.ended = False

    def check(self, state: str, mean: float | None) -> DevelopmentCheck | None:
        """Return the decision on a teacher's state; None where no self-edit had a reward, which decides nothing.

        Args:
            state: Of the teacher.
            mean: Its mean reward on the development documents.
        """
        self.next_state = state
        if mean is None:
            self.best_state = self.best_state or state
            return None
        if mean > self._best:
            self._best, self.best_state, self._stale = mean, state, 0
            return DevelopmentCheck(mean=mean, best=mean, decision="best")
        self._stale += 1
        if self._stale >= self._config.patience:
            self.ended = True
            return DevelopmentCheck(mean=mean, best=self._best, decision="stop")
        if mean < self._best - _FALL:
            self.next_state = self.best_state
            return DevelopmentCheck(mean=mean, best=self._best, decision="back to the best")
        return DevelopmentCheck(mean=mean, best=self._best, decision="continue")
