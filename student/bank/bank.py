"""The LoRA bank: K adapters of one frozen student, trained in one batch and scored in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from evaluation.common.checkpoints import model_digest
from evaluation.common.errors import ScoringError, UpdateError
from evaluation.exact_match import AnswerFormat, EncodedAnswer, context_length, encode_questions, end_tokens_of
from evaluation.tasks import Question
from student.adapters import Adapter
from student.bank.layers import FlatLayout, initial_factors, misfit, unstack
from student.bank.model import BankedModel
from student.bank.packing import lay_out, probe_line
from student.bank.passes import BankLimits, peak_bytes, plan_limits
from student.bank.reuse import KnownStates
from student.bank.scoring import (
    Decoding,
    ScoringFailure,
    SlotScores,
    Written,
    check_pairs,
    generate_group,
    groups_of_slots,
    score_group,
)
from student.bank.training import Slot, bytes_of_slots, train_slots
from student.config import WHOLE_DEPTH, Objective, TargetModules, UpdateRecipe
from student.updates import BankUsage, SkipReason, UpdateOutcome, UpdateRequest, UpdateResult

_PROBE_LENGTH = 8
_NOISE = 8.0
"""Differences below this many units of rounding of the largest logit count as none."""


class _Canary:
    """The check of every update: an adapter that is missing, does nothing or moved the base never counts as trained.

    Adapters are compared with the base on one short probe, in one forward pass for a whole group.
    """

    def __init__(self, student: BankedModel) -> None:
        """Remember the base's logits as they are now, before any training."""
        self._student = student
        self._probe = probe_line(student.model, _PROBE_LENGTH)
        self._reference = self._logits(1)

    def _logits(self, rows: int) -> Tensor:
        """Return the probe's logits (rows, T, V) with what is attached."""
        batch = lay_out([[self._probe]] * rows, self._student.device, packed=self._student.packed)
        with torch.inference_mode():
            return self._student.label_logits(batch).view(rows, _PROBE_LENGTH, -1)

    def problems(self, adapters: Sequence[Adapter], initial: Sequence[Adapter | None]) -> list[str]:
        """Return for each of K adapters what is wrong with it, or an empty string.

        Each is compared with the base in the same batch, so that what differs does so by the factors alone, and with
        the adapter that it continued from (`initial`, None for a new one).
        """
        now = self._logits(1)
        if not torch.equal(now, self._reference):
            moved = f"moved by up to {float((now - self._reference).abs().max()):g} since the bank was opened"
            return [f"the base's own logits {moved}; allowed is 0"] * len(adapters)
        with self._student.using([*adapters, None]):
            logits = self._logits(len(adapters) + 1)
        differences = (logits[:-1] - logits[-1]).abs().flatten(1).amax(1).tolist()
        noise = _NOISE * torch.finfo(logits.dtype).eps * float(logits[-1].abs().max())
        found = []
        for adapter, start, difference in zip(adapters, initial, differences, strict=True):
            if start is not None and start.digest == adapter.digest:
                found.append("the adapter has the digest of the one it continued from; training changed nothing")
            elif not difference > noise:  # A logit that is not a number fails here too.
                found.append(
                    f"logits differ from the base's by {difference:g}; a trained adapter gives more than {noise:g}"
                )
            else:
                found.append("")
        return found


class LoraBank:
    """Context manager that trains and scores many adapters of one frozen causal language model at once.

    Inside the context the model's target layers are wrapped, its parameters frozen and its mode is evaluation, until
    everything is put back as it was; outside, methods raise UpdateError. A slot's result is that of the same adapter
    trained alone with PEFT and torch.optim.AdamW up to rounding, whatever its neighbours are.
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
        reuse: bool = True,
    ) -> None:
        """Prepare a bank; nothing is wrapped yet.

        Args:
            model: A Hugging Face causal language model with causal attention, or PEFT's wrapper of one: what is active
                in it, such as a champion's adapter, belongs to the frozen base.
            target_modules: Layers that may get factors; a request's recipe names these or some of them.
            depth: Where they are; see `UpdateRecipe.depth`.
            max_slots: Adapters trained at once, at least 1; further requests wait until one is done.
            max_pass_places: Token places, padding included, in one forward pass; a single slot may need more.
            memory_bytes: For slots and activations, the base left out; None is a share of what is free. The number of
                slots follows from it, and a single slot that needs more has its layers computed again in the backward
                pass.
            base_digest: `model_digest` of the model where it is known; None computes it.
            reuse: Whether blocks below the lowest adapted one read a sequence once, which changes results by rounding
                alone; False is for measuring what that saves.
        """
        self._model = model
        self._target_modules, self._depth = target_modules, depth
        self._budget, self._reuse = (max_slots, max_pass_places, memory_bytes), reuse
        self.base_digest = model_digest(model) if base_digest is None else base_digest
        """Identity of the frozen base, in every adapter."""
        self.usage = BankUsage()
        """Of the last training."""
        self._inside: tuple[BankedModel, _Canary] | None = None
        self._limits: BankLimits

    def __enter__(self) -> Self:
        if self._inside is not None:
            raise UpdateError("bank: it is open already. Leave the first context before entering it again.")
        student = BankedModel(self._model, self._target_modules, self._depth)
        try:
            student.lower.enabled = self._reuse
            canary = _Canary(student)
            self._limits = plan_limits(student, *self._budget)
        except BaseException:
            student.restore()
            raise
        self._inside = student, canary
        return self

    def __exit__(self, *_: object) -> None:
        if self._inside is not None:
            self._inside[0].restore()
        self._inside = None

    def _opened(self) -> tuple[BankedModel, _Canary]:
        if self._inside is None:
            raise UpdateError("bank: it is not open. Use it inside `with LoraBank(model) as bank:`.")
        return self._inside

    def no_change(self, recipe: UpdateRecipe, seed: int) -> Adapter:
        """Return the adapter that an update with this recipe and seed starts from, which changes nothing yet."""
        student, _ = self._opened()
        layout, layers = FlatLayout(student.shapes, recipe.rank), list(student.shapes)
        flat = initial_factors(layout, recipe.rank, seed, layers)
        return Adapter(unstack(layout, flat, recipe.rank, layers), recipe.rank, recipe.alpha, self.base_digest)

    def train(self, requests: Sequence[UpdateRequest]) -> list[UpdateResult]:
        """Return the result of each update, in order; one that fails does so alone, with a reason.

        Raises:
            UpdateError: A request was made for other layers or another tokenizer.
        """
        student, _ = self._opened()
        slots = [Slot(request, self._layers(request, student)) for request in requests]
        results: dict[int, UpdateResult] = {}
        # Ranks that are alike together, since every slot has room for the largest one; and one objective a pass.
        groups: dict[tuple[int, Objective], list[int]] = {}
        for i, slot in enumerate(slots):
            if refused := _refusal(slot, student, self.base_digest):
                results[i] = UpdateResult(slot.request.key, *refused)
            else:
                recipe = slot.request.recipe
                alike = max(8, 1 << (recipe.rank - 1).bit_length()), recipe.objective
                groups.setdefault(alike, []).append(i)
        self.usage = BankUsage()
        for alike in sorted(groups):
            trained = self._train_group([slots[i] for i in groups[alike]])
            results.update(zip(groups[alike], trained, strict=True))
        return [results[i] for i in range(len(slots))]

    def _layers(self, request: UpdateRequest, student: BankedModel) -> list[str]:
        """Return the layers that an update adapts; refuse mistakes that concern the whole batch."""
        vocabulary = student.model.get_input_embeddings().weight.shape[0]
        layers = student.layers_of(request.recipe)
        if layers is None:
            raise UpdateError(
                f"update {request.key!r}: the recipe adapts {request.recipe.target_modules!r} at the depth "
                f"{list(request.recipe.depth)}, the bank has {self._target_modules!r} at {list(self._depth)}. Open the "
                "bank with layers that include the recipe's."
            )
        highest = max((max(*sequence.tokens, *sequence.behind) for sequence in request.sequences), default=0)
        if highest >= vocabulary:
            raise UpdateError(
                f"update {request.key!r}: token {highest} is outside the student's vocabulary of {vocabulary}. "
                "Use the student's own tokenizer."
            )
        return layers

    def _train_group(self, slots: Sequence[Slot]) -> list[UpdateResult]:
        """Train slots of similar ranks together and return their results."""
        student, canary = self._opened()
        adapted = {name for slot in slots for name in slot.layers}
        shapes = {name: shape for name, shape in student.shapes.items() if name in adapted}
        layout = FlatLayout(shapes, max(slot.request.recipe.rank for slot in slots))
        need = bytes_of_slots(student, layout, slots) + max(slot.places for slot in slots) * self._limits.place_bytes
        if need > self._limits.memory_bytes and not student.checkpoints and student.checkpoint():
            # A single slot needs more: fewer activations are kept from now on.
            self._limits = plan_limits(student, *self._budget)
        start = peak_bytes(student.device, reset=True)
        usage = train_slots(student, layout, self._limits, slots)
        peak = peak_bytes(student.device)
        grown = None if start is None or peak is None else max(0, peak - start)
        self.usage = BankUsage.merged([self.usage, usage.model_copy(update={"peak_bytes": grown})])
        adapters = [slot.adapter(layout, self.base_digest) for slot in slots]
        problems: list[str] = []
        for begin in range(0, len(slots), self._limits.max_slots):
            part = slice(begin, begin + self._limits.max_slots)
            problems += canary.problems(adapters[part], [slot.request.initial for slot in slots[part]])
        return [_result(*each) for each in zip(slots, adapters, problems, strict=True)]

    def score(
        self,
        adapters: Sequence[Adapter | None],
        questions: Sequence[Sequence[Question]],
        tokenizer: Any,
        answer_format: AnswerFormat,
    ) -> list[SlotScores]:
        """Return for each of K adapters (None is the base) the score of each of its questions, or why it has none.

        `answer_format` is the wrapper that the student was trained with.

        Raises:
            ScoringError: There are not as many lists of questions as adapters.
        """
        student, _ = self._opened()
        done: dict[int, SlotScores] = {**self._without_work("score", adapters, questions)}
        encoded: dict[int, list[EncodedAnswer]] = {}
        limit = context_length(student.model)
        for k in range(len(adapters)):
            if k not in done:
                try:
                    encoded[k] = encode_questions(tokenizer, questions[k], answer_format, limit)
                except ScoringError as error:
                    done[k] = ScoringFailure(str(error))
        ends = end_tokens_of(student.model, tokenizer)
        adapted = {name for k in encoded for name in getattr(adapters[k], "factors", ())}
        rows = [tuple(row.tokens) for mine in encoded.values() for row in mine]
        first = student.lower.first_of(adapted) if len(set(rows)) < len(rows) else 0
        known = KnownStates(student.lower, first, self._limits.memory_bytes)
        for group in groups_of_slots(encoded, self._limits.max_slots, self._limits.max_pass_places):
            scores = score_group(student, [adapters[k] for k in group], [encoded[k] for k in group], ends, known)
            done.update(zip(group, scores, strict=True))
        return [done[k] for k in range(len(adapters))]

    def generate(
        self,
        adapters: Sequence[Adapter | None],
        prompts: Sequence[Sequence[str]],
        tokenizer: Any,
        *,
        max_new_tokens: int,
    ) -> list[list[str] | ScoringFailure]:
        """Return for each of K adapters (None is the base) its greedy continuation of each prompt; see `write`."""
        slots = self.write(adapters, prompts, tokenizer, max_new_tokens=max_new_tokens)
        return [slot if isinstance(slot, ScoringFailure) else [written.text for written in slot] for slot in slots]

    def write(
        self,
        adapters: Sequence[Adapter | None],
        prompts: Sequence[Sequence[str | Sequence[int]]],
        tokenizer: Any,
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[list[Written] | ScoringFailure]:
        """Return the same continuations as `generate` with their tokens and log-probabilities.

        Prompts are texts or their tokens. A slot whose adapter does not fit has a failure instead; `max_new_tokens` is
        at least 1. With `decoding`, all prompts must be of one adapter.

        Raises:
            ScoringError: There are not as many lists of prompts as adapters.
        """
        student, _ = self._opened()
        done = self._without_work("generate", adapters, prompts)
        todo = [k for k in range(len(adapters)) if k not in done]
        for begin in range(0, len(todo), self._limits.max_slots):
            group = todo[begin : begin + self._limits.max_slots]
            chosen = [adapters[k] for k in group]
            written = generate_group(student, chosen, [prompts[k] for k in group], tokenizer, max_new_tokens, decoding)
            done.update(zip(group, written, strict=True))
        return [done[k] for k in range(len(adapters))]

    def _without_work(
        self, what: str, adapters: Sequence[Adapter | None], lists: Sequence[Sequence[object]]
    ) -> dict[int, ScoringFailure | list[Any]]:
        """Return the outcome of slots whose adapter does not fit or whose list is empty."""
        student, _ = self._opened()
        check_pairs(what, adapters, lists)
        done: dict[int, ScoringFailure | list[Any]] = {}
        for k, adapter in enumerate(adapters):
            problem = "" if adapter is None else misfit(adapter, student.shapes, self.base_digest)
            if problem or not lists[k]:
                done[k] = ScoringFailure(problem) if problem else []
        return done


def _refusal(slot: Slot, student: BankedModel, base_digest: str) -> tuple[UpdateOutcome, str] | None:
    """Return outcome and detail of an update that cannot be trained, or None."""
    request, recipe = slot.request, slot.request.recipe
    if not request.sequences:
        too_long = any(line.reason is SkipReason.TOO_LONG for line in request.skipped)
        outcome = UpdateOutcome.SEQUENCE_TOO_LONG if too_long else UpdateOutcome.EMPTY_EDIT
        return outcome, request.left_out or "the self-edit has no lines to train on"
    steps, budget = recipe.uncapped_steps(len(request.sequences)), recipe.step_budget
    if budget is not None and steps > budget:
        asked = f"{recipe.epochs} epochs of {len(request.sequences)} sequences"
        return UpdateOutcome.OVER_BUDGET, f"{steps} optimizer steps, allowed are {budget} (step_budget): {asked}"
    longest = max(max(len(sequence.tokens), len(sequence.behind)) for sequence in request.sequences)
    limit = context_length(student.model)
    if limit is not None and longest > limit:
        return UpdateOutcome.SEQUENCE_TOO_LONG, f"{longest} tokens, the student has {limit} positions"
    if (initial := request.initial) is not None:
        got, wanted = (initial.rank, initial.alpha), (recipe.rank, recipe.alpha)
        problem = misfit(initial, student.shapes, base_digest)
        if got != wanted:
            problem = f"the adapter to continue from has rank and alpha {got}, the recipe wants {wanted}"
        elif not problem and set(initial.factors) != set(slot.layers):
            layers = len(initial.factors), len(slot.layers)
            problem = "the adapter to continue from has {} layers, the recipe adapts {}".format(*layers)
        if problem:
            return UpdateOutcome.INITIAL_MISMATCH, problem
    return None


def _result(slot: Slot, adapter: Adapter, problem: str) -> UpdateResult:
    """Return the result of a trained slot, in which the canary found `problem`."""
    request, losses = slot.request, tuple(torch.stack(slot.losses).tolist() if slot.losses else ())
    bad = next((i for i, loss in enumerate(losses) if loss - loss != 0), None)
    outcome, detail = UpdateOutcome.OK, request.left_out
    if slot.failure:
        outcome, detail = UpdateOutcome.OUT_OF_MEMORY, slot.failure
    elif bad is not None or not bool(slot.flat.isfinite().all()):
        where = f"loss of step {bad} is {losses[bad]}" if bad is not None else "factors are not finite"
        outcome, detail = UpdateOutcome.NON_FINITE, f"{where} (learning rate {request.recipe.learning_rate:g})"
    elif problem:
        outcome, detail = UpdateOutcome.CANARY_FAILED, problem
    kept = adapter if outcome is UpdateOutcome.OK else None
    return UpdateResult(request.key, outcome, detail, kept, losses, len(losses), slot.tokens, slot.padded_tokens)
