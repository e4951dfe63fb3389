"""The LoRA bank: K adapters of one frozen student, trained in one batch and asked in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from evaluation.answers import AnswerFormat
from evaluation.checkpoints import model_digest
from evaluation.errors import ScoringError, UpdateError
from evaluation.tasks import Question
from student.adapters import Adapter
from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.batching import SlotWork
from student.canary import Canary
from student.config import TargetModules
from student.scoring import SlotScores, score_slots
from student.sequences import SkipReason
from student.stacks import misfit, stack, unstack
from student.training import TrainedGroup, initial_factors, train_group
from student.updates import UpdateJob, UpdateOutcome, UpdateResult


class LoraBank:
    """Context manager that trains and asks many adapters of one frozen causal language model at once.

    Inside the context the model's target layers are wrapped, its parameters frozen and its mode is evaluation; leaving
    it puts everything back as it was. A slot's result is that of the same adapter trained alone with PEFT and
    torch.optim.AdamW up to rounding, whatever its neighbours are.
    """

    def __init__(
        self,
        model: Any,
        target_modules: TargetModules = "all-linear",
        *,
        max_slots: int = 64,
        max_step_tokens: int = 8192,
        base_digest: str | None = None,
    ) -> None:
        """Prepare a bank; nothing is wrapped yet.

        Args:
            model: A Hugging Face causal language model with causal attention.
            target_modules: Layers that get factors; every job's recipe must say the same.
            max_slots: Adapters trained at once, at least 1; more jobs go in several groups.
            max_step_tokens: Token places, padding included, in one step of a group; bounds its memory. A single slot
                that needs more is trained alone.
            base_digest: `model_digest` of the model where it is known; None computes it.
        """
        self._model = model
        self._target_modules = target_modules
        self._max_slots, self._max_step_tokens = max_slots, max_step_tokens
        self.base_digest = model_digest(model) if base_digest is None else base_digest
        """Identity of the frozen base, in every adapter."""
        self._student: BankedModel | None = None
        self._canary: Canary | None = None

    def __enter__(self) -> Self:
        if self._student is not None:
            raise UpdateError("bank: it is open already. Leave the first context before entering it again.")
        student = BankedModel(self._model, self._target_modules)
        try:
            self._canary = Canary(student)
        except BaseException:
            student.restore()
            raise
        self._student = student
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._student is not None:
            self._student.restore()
        self._student = self._canary = None

    def _opened(self) -> tuple[BankedModel, Canary]:
        if self._student is None or self._canary is None:
            raise UpdateError("bank: it is not open. Use it inside `with LoraBank(model) as bank:`.")
        return self._student, self._canary

    def train(self, jobs: Sequence[UpdateJob]) -> list[UpdateResult]:
        """Return what became of each job, in order; a job that fails does so alone, with a reason.

        Raises:
            UpdateError: The bank is not open, or a job was made for other layers or another tokenizer.
        """
        student, _ = self._opened()
        self._check(jobs, student)
        results: dict[int, UpdateResult] = {}
        for i, job in enumerate(jobs):
            refused = _refusal(job, student, self.base_digest)
            if refused is not None:
                results[i] = refused
        todo = [i for i in range(len(jobs)) if i not in results]
        for group in self._groups(todo, [SlotWork(job.sequences, job.recipe, job.seed) for job in jobs]):
            for i, result in zip(group, self._train_group([jobs[i] for i in group]), strict=True):
                results[i] = result
        return [results[i] for i in range(len(jobs))]

    def _check(self, jobs: Sequence[UpdateJob], student: BankedModel) -> None:
        """Refuse mistakes that concern the whole batch."""
        vocabulary = student.model.get_input_embeddings().weight.shape[0]
        for job in jobs:
            if job.recipe.target_modules != self._target_modules:
                raise UpdateError(
                    f"update {job.key!r}: recipe.target_modules is {job.recipe.target_modules!r}, the bank has "
                    f"{self._target_modules!r}. Open the bank with the recipe's target modules."
                )
            highest = max((max(sequence.tokens) for sequence in job.sequences), default=0)
            if highest >= vocabulary:
                raise UpdateError(
                    f"update {job.key!r}: token {highest} is outside the student's vocabulary of {vocabulary}. "
                    "Use the student's own tokenizer."
                )

    def _groups(self, todo: Sequence[int], works: Sequence[SlotWork]) -> Iterator[list[int]]:
        """Yield jobs that fit in one bank, similar in size so that little of a step is padding, longest first."""

        def similar(i: int) -> tuple[Any, ...]:
            work = works[i]
            return (work.recipe.adam_betas, work.recipe.adam_epsilon, -work.width, -work.rows, -work.steps)

        group: list[int] = []
        for i in sorted(todo, key=similar):
            grown = [*group, i]
            places = len(grown) * max(works[j].rows for j in grown) * max(works[j].width for j in grown)
            fits = len(grown) <= self._max_slots and places <= self._max_step_tokens
            if group and not (fits and similar(group[0])[:2] == similar(i)[:2]):
                yield sorted(group, key=lambda j: -works[j].steps)
                grown = [i]
            group = grown
        if group:
            yield sorted(group, key=lambda j: -works[j].steps)

    def _train_group(self, jobs: Sequence[UpdateJob]) -> list[UpdateResult]:
        """Train jobs sorted by falling steps in one bank and return their results."""
        student, _ = self._opened()
        layout = FlatLayout(student.shapes, max(job.recipe.rank for job in jobs))
        starts = [
            initial_factors(layout, job.recipe, job.seed) if job.initial is None else stack(layout, [job.initial])[0]
            for job in jobs
        ]
        flat = torch.stack(starts).to(student.device, student.dtype)
        slots = [SlotWork(job.sequences, job.recipe, job.seed) for job in jobs]
        trained = train_group(student, layout, slots, flat)
        finite = trained.flat.isfinite().all(1).tolist()
        adapters = unstack(layout, trained.flat, [job.recipe for job in jobs], self.base_digest)
        problems = self._canaries(jobs, layout, trained.flat, adapters)
        return [_result(job, trained, k, adapters[k], finite[k], problems[k]) for k, job in enumerate(jobs)]

    def _canaries(
        self, jobs: Sequence[UpdateJob], layout: FlatLayout, flat: Tensor, adapters: Sequence[Adapter]
    ) -> list[str]:
        """Return what the canary finds wrong with each slot."""
        _, canary = self._opened()
        with_base = torch.cat([flat, torch.zeros_like(flat[:1])])
        scales = [*(job.recipe.scale for job in jobs), 1.0]
        return canary.problems(layout.views(with_base), scales, adapters, [job.initial for job in jobs])

    def score(
        self,
        adapters: Sequence[Adapter | None],
        questions: Sequence[Sequence[Question]],
        tokenizer: Any,
        answer_format: AnswerFormat,
    ) -> list[SlotScores]:
        """Return for each slot the score of each of its questions, or why it has none.

        Args:
            adapters: K adapters; None asks the base student.
            questions: K lists of questions, of any lengths.
            tokenizer: The student's Hugging Face tokenizer.
            answer_format: The wrapper that the student was trained with.

        Raises:
            UpdateError: The bank is not open.
            ScoringError: There are not as many lists of questions as adapters.
        """
        student, _ = self._opened()
        if len(adapters) != len(questions):
            raise ScoringError(
                f"score: got {len(adapters)} adapters and {len(questions)} lists of questions; give one each."
            )
        limits = {"max_slots": self._max_slots, "max_step_tokens": self._max_step_tokens}
        return score_slots(student, self.base_digest, adapters, questions, tokenizer, answer_format, **limits)


def _refusal(job: UpdateJob, student: BankedModel, base_digest: str) -> UpdateResult | None:
    """Return the result of a job that cannot be trained, or None."""
    if not job.sequences:
        too_long = any(line.reason is SkipReason.TOO_LONG for line in job.skipped)
        outcome = UpdateOutcome.SEQUENCE_TOO_LONG if too_long else UpdateOutcome.EMPTY_EDIT
        return UpdateResult(job.key, outcome, job.left_out or "the self-edit has no lines to train on")
    longest = max(len(sequence.tokens) for sequence in job.sequences)
    limit = getattr(student.model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        detail = f"{longest} tokens, the student has {limit} positions"
        return UpdateResult(job.key, UpdateOutcome.SEQUENCE_TOO_LONG, detail)
    if job.initial is not None:
        got, wanted = (job.initial.rank, job.initial.alpha), (job.recipe.rank, job.recipe.alpha)
        problem = misfit(job.initial, student.shapes, base_digest)
        if got != wanted:
            problem = f"the adapter to continue from has rank and alpha {got}, the recipe wants {wanted}"
        elif not problem and len(job.initial.factors) < len(student.shapes):
            problem = f"the adapter to continue from has {len(job.initial.factors)} of {len(student.shapes)} layers"
        if problem:
            return UpdateResult(job.key, UpdateOutcome.INITIAL_MISMATCH, problem)
    return None


def _result(
    job: UpdateJob, trained: TrainedGroup, k: int, adapter: Adapter, finite: bool, problem: str
) -> UpdateResult:
    """Return a trained slot's result."""
    losses = tuple(trained.losses[k])
    bad = next((i for i, loss in enumerate(losses) if loss - loss != 0), None)
    outcome, detail = UpdateOutcome.OK, job.left_out
    if bad is not None or not finite:
        where = f"loss of step {bad} is {losses[bad]}" if bad is not None else "factors are not finite"
        outcome, detail = UpdateOutcome.NON_FINITE, f"{where} (learning rate {job.recipe.learning_rate:g})"
    elif problem:
        outcome, detail = UpdateOutcome.CANARY_FAILED, problem
    kept = adapter if outcome is UpdateOutcome.OK else None
    return UpdateResult(
        job.key, outcome, detail, kept, losses, len(losses), trained.tokens[k], trained.padded_tokens[k]
    )
