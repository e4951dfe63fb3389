"""The LoRA bank: K adapters of one frozen student, trained in one batch and asked in one batch."""

from __future__ import annotations

from collections.abc import Sequence
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
from student.config import WHOLE_DEPTH, TargetModules, UpdateRecipe
from student.generation import generate_group
from student.memory import MemoryPlan, PeakMemory, bytes_of_slot, plan_memory
from student.scoring import ScoringFailure, SlotScores, score_slots
from student.sequences import SkipReason
from student.stacks import misfit, stack, unstack
from student.training import BankLimits, BankTrainer, BankUsage, TrainedSlot, initial_factors
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
        depth: tuple[float, float] = WHOLE_DEPTH,
        max_slots: int = 64,
        max_pass_places: int = 16_384,
        memory_bytes: int | None = None,
        base_digest: str | None = None,
    ) -> None:
        """Prepare a bank; nothing is wrapped yet.

        Args:
            model: A Hugging Face causal language model with causal attention, or PEFT's wrapper of one: what is active
                in it, such as a champion's adapter, belongs to the frozen base.
            target_modules: Layers that may get factors; a job's recipe names these or some of them.
            depth: Where they are; see `UpdateRecipe.depth`.
            max_slots: Adapters trained at once, at least 1; further jobs wait until one is done.
            max_pass_places: Token places, padding included, in one forward pass; a single slot may need more.
            memory_bytes: What slots and activations may take, the base left out; None is a share of what is free. The
                number of slots follows from it, and a single slot that needs more has its layers computed again in
                the backward pass.
            base_digest: `model_digest` of the model where it is known; None computes it.
        """
        self._model = model
        self._target_modules, self._depth = target_modules, depth
        self._max_slots, self._max_pass_places, self._memory_bytes = max_slots, max_pass_places, memory_bytes
        self.base_digest = model_digest(model) if base_digest is None else base_digest
        """Identity of the frozen base, in every adapter."""
        self.usage = BankUsage()
        """What the last training took."""
        self._student: BankedModel | None = None
        self._canary: Canary | None = None
        self._plan: MemoryPlan | None = None

    def __enter__(self) -> Self:
        if self._student is not None:
            raise UpdateError("bank: it is open already. Leave the first context before entering it again.")
        student = BankedModel(self._model, self._target_modules, self._depth)
        try:
            self._canary = Canary(student)
            self._plan = plan_memory(student, self._memory_bytes)
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
        self._student = self._canary = self._plan = None

    def _opened(self) -> tuple[BankedModel, Canary]:
        if self._student is None or self._canary is None:
            raise UpdateError("bank: it is not open. Use it inside `with LoraBank(model) as bank:`.")
        return self._student, self._canary

    def no_change(self, recipe: UpdateRecipe, seed: int) -> Adapter:
        """Return the adapter that an update starts from, which changes nothing yet: the base as a student's version.

        Args:
            recipe: Gives rank and scale; all layers of the bank have factors.
            seed: Of A, as in `UpdateJob.seed`.

        Raises:
            UpdateError: The bank is not open.
        """
        student, _ = self._opened()
        layout = FlatLayout(student.shapes, recipe.rank)
        flat = initial_factors(layout, recipe, seed)
        return Adapter(
            unstack(layout, flat, recipe.rank, list(student.shapes)), recipe.rank, recipe.alpha, self.base_digest
        )

    def train(self, jobs: Sequence[UpdateJob]) -> list[UpdateResult]:
        """Return what became of each job, in order; a job that fails does so alone, with a reason.

        Raises:
            UpdateError: The bank is not open, or a job was made for other layers or another tokenizer.
        """
        student, _ = self._opened()
        layers = self._check(jobs, student)
        results: dict[int, UpdateResult] = {}
        for i, job in enumerate(jobs):
            refused = _refusal(job, student, layers[i], self.base_digest)
            if refused is not None:
                results[i] = refused
        self.usage = BankUsage()
        for group in _rank_groups([i for i in range(len(jobs)) if i not in results], jobs):
            trained = self._train_group([jobs[i] for i in group], [layers[i] for i in group])
            results.update(zip(group, trained, strict=True))
        return [results[i] for i in range(len(jobs))]

    def _check(self, jobs: Sequence[UpdateJob], student: BankedModel) -> list[list[str]]:
        """Refuse mistakes that concern the whole batch; return the layers that each job adapts."""
        vocabulary = student.model.get_input_embeddings().weight.shape[0]
        found = []
        for job in jobs:
            layers = student.layers_of(job.recipe)
            if layers is None:
                raise UpdateError(
                    f"update {job.key!r}: the recipe adapts {job.recipe.target_modules!r} at the depth "
                    f"{list(job.recipe.depth)}, the bank has {self._target_modules!r} at {list(self._depth)}. Open "
                    "the bank with layers that include the recipe's."
                )
            highest = max((max(sequence.tokens) for sequence in job.sequences), default=0)
            if highest >= vocabulary:
                raise UpdateError(
                    f"update {job.key!r}: token {highest} is outside the student's vocabulary of {vocabulary}. "
                    "Use the student's own tokenizer."
                )
            found.append(layers)
        return found

    def _train_group(self, jobs: Sequence[UpdateJob], layers: Sequence[list[str]]) -> list[UpdateResult]:
        """Train jobs of similar ranks in one bank and return their results."""
        student, _ = self._opened()
        adapted = {name for names in layers for name in names}
        shapes = {name: shape for name, shape in student.shapes.items() if name in adapted}
        layout = FlatLayout(shapes, max(job.recipe.rank for job in jobs))
        works = [job.work for job in jobs]

        def start(i: int) -> Tensor:
            job = jobs[i]
            if job.initial is not None:
                return stack(layout, [job.initial])[0]
            return initial_factors(layout, job.recipe, job.seed, layers[i])

        trainer = BankTrainer(student, layout, self._limits(student, layout, works))
        with PeakMemory(student.device) as peak:
            trained = trainer.train(works, start)
        self.usage = self.usage.merged(trainer.usage, peak.grown)
        adapters = [
            Adapter(
                unstack(layout, slot.flat, job.recipe.rank, names), job.recipe.rank, job.recipe.alpha, self.base_digest
            )
            for slot, job, names in zip(trained, jobs, layers, strict=True)
        ]
        problems = self._canaries(jobs, layout, trained, adapters)
        return [_result(*all_of_it) for all_of_it in zip(jobs, trained, adapters, problems, strict=True)]

    def _limits(self, student: BankedModel, layout: FlatLayout, works: Sequence[SlotWork]) -> BankLimits:
        """Return how much may be done at once, and keep fewer activations if a single slot needs that."""
        assert self._plan is not None
        widest = max(work.places for work in works)
        need = bytes_of_slot(layout, student.dtype) + widest * self._plan.place_bytes
        if need > self._plan.budget and not student.checkpoints and student.checkpoint():
            self._plan = plan_memory(student, self._memory_bytes)
        return BankLimits(self._max_slots, self._max_pass_places, self._plan)

    def _canaries(
        self, jobs: Sequence[UpdateJob], layout: FlatLayout, trained: Sequence[TrainedSlot], adapters: Sequence[Adapter]
    ) -> list[str]:
        """Return what the canary finds wrong with each slot, as many at once as a bank holds."""
        student, canary = self._opened()
        problems: list[str] = []
        for begin in range(0, len(jobs), self._max_slots):
            part = slice(begin, begin + self._max_slots)
            flat = torch.stack([slot.flat for slot in trained[part]]).to(student.device, student.dtype)
            with_base = torch.cat([flat, torch.zeros_like(flat[:1])])
            scales = [*(job.recipe.scale for job in jobs[part]), 1.0]
            initial = [job.initial for job in jobs[part]]
            problems += canary.problems(layout.views(with_base), scales, adapters[part], initial)
        return problems

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
        _check_pairs("score", adapters, questions)
        limits = {"max_slots": self._max_slots, "max_pass_places": self._max_pass_places}
        return score_slots(student, self.base_digest, adapters, questions, tokenizer, answer_format, **limits)

    def generate(
        self,
        adapters: Sequence[Adapter | None],
        prompts: Sequence[Sequence[str]],
        tokenizer: Any,
        *,
        max_new_tokens: int,
    ) -> list[list[str] | ScoringFailure]:
        """Return for each slot what it writes greedily after each of its prompts, or why it writes nothing.

        Args:
            adapters: K adapters; None asks the base student.
            prompts: K lists of prompts, of any lengths.
            tokenizer: The student's Hugging Face tokenizer.
            max_new_tokens: Longest answer, at least 1.

        Raises:
            UpdateError: The bank is not open.
            ScoringError: There are not as many lists of prompts as adapters.
        """
        student, _ = self._opened()
        _check_pairs("generate", adapters, prompts)
        done: dict[int, list[str] | ScoringFailure] = {}
        for k, (adapter, asked) in enumerate(zip(adapters, prompts, strict=True)):
            problem = "" if adapter is None else misfit(adapter, student.shapes, self.base_digest)
            if problem or not asked:
                done[k] = ScoringFailure(problem) if problem else []
        todo = [k for k in range(len(adapters)) if k not in done]
        for begin in range(0, len(todo), self._max_slots):
            part = todo[begin : begin + self._max_slots]
            texts = generate_group(
                student, [adapters[k] for k in part], [prompts[k] for k in part], tokenizer, max_new_tokens
            )
            done.update(zip(part, texts, strict=True))
        return [done[k] for k in range(len(adapters))]


def _check_pairs(what: str, adapters: Sequence[Adapter | None], asked: Sequence[Sequence[object]]) -> None:
    """Refuse another number of lists than of adapters."""
    if len(adapters) != len(asked):
        raise ScoringError(f"{what}: got {len(adapters)} adapters and {len(asked)} lists to ask them; give one each.")


def _rank_groups(todo: Sequence[int], jobs: Sequence[UpdateJob]) -> list[list[int]]:
    """Return jobs whose ranks are alike together: every slot of a bank has room for the largest rank in it."""
    groups: dict[int, list[int]] = {}
    for i in todo:
        size = max(8, 1 << (jobs[i].recipe.rank - 1).bit_length())
        groups.setdefault(size, []).append(i)
    return [groups[size] for size in sorted(groups)]


def _refusal(job: UpdateJob, student: BankedModel, layers: Sequence[str], base_digest: str) -> UpdateResult | None:
    """Return the result of a job that cannot be trained, or None."""
    if not job.sequences:
        too_long = any(line.reason is SkipReason.TOO_LONG for line in job.skipped)
        outcome = UpdateOutcome.SEQUENCE_TOO_LONG if too_long else UpdateOutcome.EMPTY_EDIT
        return UpdateResult(job.key, outcome, job.left_out or "the self-edit has no lines to train on")
    steps, budget = job.recipe.asked_steps(len(job.sequences)), job.recipe.step_budget
    if budget is not None and steps > budget:
        detail = f"{steps} optimizer steps, allowed are {budget} (step_budget): {job.recipe.epochs} epochs of "
        return UpdateResult(job.key, UpdateOutcome.OVER_BUDGET, f"{detail}{len(job.sequences)} sequences")
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
        elif not problem and set(job.initial.factors) != set(layers):
            problem = (
                f"the adapter to continue from has {len(job.initial.factors)} layers, the recipe adapts {len(layers)}"
            )
        if problem:
            return UpdateResult(job.key, UpdateOutcome.INITIAL_MISMATCH, problem)
    return None


def _result(job: UpdateJob, slot: TrainedSlot, adapter: Adapter, problem: str) -> UpdateResult:
    """Return a trained slot's result."""
    losses = tuple(slot.losses)
    bad = next((i for i, loss in enumerate(losses) if loss - loss != 0), None)
    outcome, detail = UpdateOutcome.OK, job.left_out
    if slot.failure:
        outcome, detail = UpdateOutcome.OUT_OF_MEMORY, slot.failure
    elif bad is not None or not bool(slot.flat.isfinite().all()):
        where = f"loss of step {bad} is {losses[bad]}" if bad is not None else "factors are not finite"
        outcome, detail = UpdateOutcome.NON_FINITE, f"{where} (learning rate {job.recipe.learning_rate:g})"
    elif problem:
        outcome, detail = UpdateOutcome.CANARY_FAILED, problem
    kept = adapter if outcome is UpdateOutcome.OK else None
    return UpdateResult(job.key, outcome, detail, kept, losses, len(losses), slot.tokens, slot.places)
