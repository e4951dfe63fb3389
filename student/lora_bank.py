"""The LoRA bank: K adapters of one frozen student, trained in one batch and asked in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from evaluation.answers import (
    AnswerFormat,
    AnswerScore,
    EncodedAnswer,
    answer_batch,
    answer_scores,
    encode_questions,
    end_tokens_of,
)
from evaluation.errors import ScoringError, UpdateError
from evaluation.tasks import Document, Question
from student.adapters import Adapter, model_digest
from student.banked_linear import BankedModel, FlatLayout
from student.batching import SlotWork
from student.canary import Canary
from student.config import TargetModules, UpdateRecipe
from student.sequences import SkipReason, build_sequences
from student.training import TrainedGroup, UpdateJob, UpdateOutcome, UpdateResult, initial_factors, train_group
from teacher.self_edit import SelfEdit


class ScoringFailure(NamedTuple):
    """Why a slot has no scores; its neighbours have theirs."""

    reason: str


def make_job(
    key: str,
    edit: SelfEdit,
    document: Document,
    tokenizer: Any,
    recipe: UpdateRecipe,
    answer_format: AnswerFormat,
    seed: int,
    initial: Adapter | None = None,
) -> UpdateJob:
    """Return the job that takes one self-edit into an adapter, with the edit's training spec in its recipe.

    Args:
        key: Names the job in results.
        edit: The parsed self-edit.
        document: What the edit is about.
        tokenizer: The student's Hugging Face tokenizer.
        recipe: The run's recipe.
        answer_format: The wrapper of questions, the same as in scoring.
        seed: Of the initial A and of the order of sequences.
        initial: Adapter to continue from, or None.
    """
    resolved = recipe.with_spec(edit.training)
    data = build_sequences(edit, document, tokenizer, resolved, answer_format)
    return UpdateJob(key, data.sequences, resolved, seed, data.skipped, initial)


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
        self._student = BankedModel(self._model, self._target_modules)
        self._canary = Canary(self._student)
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
            refused = _refusal(job, set(student.shapes))
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
        flat = torch.stack(
            [
                initial_factors(layout, job.recipe, job.seed)
                if job.initial is None
                else _flatten(layout, [job.initial])[0]
                for job in jobs
            ]
        ).to(student.device, student.dtype)
        slots = [SlotWork(job.sequences, job.recipe, job.seed) for job in jobs]
        trained = train_group(student, layout, slots, flat)
        finite = trained.flat.isfinite().all(1).tolist()
        adapters = _adapters(layout, trained.flat, [job.recipe for job in jobs], self.base_digest)
        problems = self._canaries(jobs, layout, trained.flat, adapters)
        return [
            _result(job, trained, k, adapters[k], finite[k], problems[k]) for k, job in enumerate(jobs)
        ]

    def _canaries(
        self, jobs: Sequence[UpdateJob], layout: FlatLayout, flat: Tensor, adapters: Sequence[Adapter]
    ) -> list[str]:
        """Return what the canary finds wrong with each slot."""
        _, canary = self._opened()
        with_base = torch.cat([flat, torch.zeros_like(flat[:1])])
        scales = torch.tensor([*(job.recipe.scale for job in jobs), 1.0], dtype=flat.dtype, device=flat.device)
        return canary.problems(
            layout.views(with_base), scales[:, None, None], adapters, [job.initial for job in jobs]
        )

    def score(
        self,
        adapters: Sequence[Adapter | None],
        questions: Sequence[Sequence[Question]],
        tokenizer: Any,
        answer_format: AnswerFormat,
    ) -> list[list[AnswerScore] | ScoringFailure]:
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
            raise ScoringError(f"score: got {len(adapters)} adapters and {len(questions)} lists of questions; give one each.")
        done: dict[int, list[AnswerScore] | ScoringFailure] = {}
        encoded: dict[int, list[EncodedAnswer]] = {}
        for k, (adapter, asked) in enumerate(zip(adapters, questions, strict=True)):
            problem = _misfit(adapter, student, self.base_digest)
            if problem or not asked:
                done[k] = ScoringFailure(problem) if problem else []
                continue
            try:
                encoded[k] = encode_questions(tokenizer, asked, answer_format)
            except ScoringError as error:
                done[k] = ScoringFailure(str(error))
        ends = end_tokens_of(self._model, tokenizer)
        for group in self._score_groups(encoded):
            done.update(self._score_group({k: adapters[k] for k in group}, encoded, ends))
        return [done[k] for k in range(len(adapters))]

    def _score_groups(self, encoded: dict[int, list[EncodedAnswer]]) -> Iterator[list[int]]:
        """Yield slots that fit in one forward pass, similar in length."""
        widths = {k: max(len(row.tokens) for row in rows) for k, rows in encoded.items()}
        group: list[int] = []
        for k in sorted(encoded, key=lambda k: (-widths[k], -len(encoded[k]))):
            grown = [*group, k]
            places = len(grown) * max(len(encoded[j]) for j in grown) * widths[grown[0]]
            if group and (len(grown) > self._max_slots or places > self._max_step_tokens):
                yield group
                grown = [k]
            group = grown
        if group:
            yield group

    def _score_group(
        self, adapters: dict[int, Adapter | None], encoded: dict[int, list[EncodedAnswer]], ends: frozenset[int]
    ) -> dict[int, list[AnswerScore] | ScoringFailure]:
        """Return the scores of the slots in one forward pass."""
        student, _ = self._opened()
        present = list(adapters.values())
        layout = FlatLayout(student.shapes, max((a.rank for a in present if a is not None), default=1))
        flat = _flatten(layout, present).to(student.device, student.dtype)
        scales = torch.tensor([1.0 if a is None else a.alpha / a.rank for a in present]).to(flat)
        most = max(len(encoded[k]) for k in adapters)
        rows: list[EncodedAnswer | None] = []
        for k in adapters:
            rows += [*encoded[k], *[None] * (most - len(encoded[k]))]
        batch = answer_batch(rows, student.device)
        student.attach(layout.views(flat), scales[:, None, None])
        try:
            with torch.inference_mode():
                logits = student.label_logits(batch.input_ids, batch.positions)
        finally:
            student.detach()
        scores = iter(answer_scores(logits, batch.labels, batch.rows, sum(len(encoded[k]) for k in adapters), ends))
        return {k: _whole_or_failure([next(scores) for _ in encoded[k]]) for k in adapters}


def _whole_or_failure(scores: list[AnswerScore | None]) -> list[AnswerScore] | ScoringFailure:
    """Return a slot's scores, or a failure when any is missing."""
    whole = [score for score in scores if score is not None]
    if len(whole) < len(scores):
        return ScoringFailure(f"logits of {len(scores) - len(whole)} of {len(scores)} questions are not finite")
    return whole


def _refusal(job: UpdateJob, layers: set[str]) -> UpdateResult | None:
    """Return the result of a job that cannot be trained, or None."""
    if not job.sequences:
        too_long = any(line.reason is SkipReason.TOO_LONG for line in job.skipped)
        outcome = UpdateOutcome.SEQUENCE_TOO_LONG if too_long else UpdateOutcome.EMPTY_EDIT
        return UpdateResult(job.key, outcome, _left_out(job) or "the self-edit has no lines to train on")
    initial = job.initial
    if initial is not None:
        got = (initial.rank, initial.alpha)
        wanted = (job.recipe.rank, job.recipe.alpha)
        if got != wanted or set(initial.factors) != layers:
            detail = f"the adapter to continue from has rank and alpha {got} and {len(initial.factors)} layers, "
            detail += f"the recipe wants {wanted} and the bank has {len(layers)} layers"
            return UpdateResult(job.key, UpdateOutcome.INITIAL_MISMATCH, detail)
    return None


def _left_out(job: UpdateJob) -> str:
    """Return what became of the lines that were not trained on."""
    if not job.skipped:
        return ""
    first = job.skipped[0]
    lines = len(job.sequences) + len(job.skipped)
    return f"{len(job.skipped)} of {lines} lines left out; first line {first.index}: {first.reason.value}, {first.detail}"


def _result(
    job: UpdateJob, trained: TrainedGroup, k: int, adapter: Adapter, finite: bool, problem: str
) -> UpdateResult:
    """Return a trained slot's result."""
    losses = tuple(trained.losses[k])
    bad = next((i for i, loss in enumerate(losses) if loss - loss != 0), None)
    outcome, detail, kept = UpdateOutcome.OK, _left_out(job), adapter
    if bad is not None or not finite:
        where = f"loss of step {bad} is {losses[bad]}" if bad is not None else "factors are not finite"
        outcome, detail = UpdateOutcome.NON_FINITE, f"{where} (learning rate {job.recipe.learning_rate:g})"
    elif problem:
        outcome, detail = UpdateOutcome.CANARY_FAILED, problem
    if outcome is not UpdateOutcome.OK:
        kept = None
    return UpdateResult(
        job.key, outcome, detail, kept, losses, len(losses), trained.tokens[k], trained.padded_tokens[k]
    )


def _misfit(adapter: Adapter | None, student: BankedModel, base_digest: str) -> str:
    """Return why an adapter cannot be used on this base, or an empty string."""
    if adapter is None:
        return ""
    if adapter.base_digest not in ("", base_digest):
        return f"the adapter belongs to base {adapter.base_digest!r}, the student is {base_digest!r}"
    for name, (a, b) in adapter.factors.items():
        shape = student.shapes.get(name)
        if shape is None or a.shape != (adapter.rank, shape.d_in) or b.shape != (shape.d_out, adapter.rank):
            return f"layer {name!r} of the adapter does not fit the student: A {tuple(a.shape)}, B {tuple(b.shape)}"
    return ""


def _flatten(layout: FlatLayout, adapters: Sequence[Adapter | None]) -> Tensor:
    """Return the adapters' factors as (K, P); a missing adapter or layer is zero."""
    dtypes = {a.dtype for adapter in adapters if adapter is not None for a, _ in adapter.factors.values()}
    flat = torch.zeros(len(adapters), layout.size, dtype=max(dtypes, key=lambda d: d.itemsize, default=torch.float32))
    views = layout.views(flat)
    for k, adapter in enumerate(adapters):
        if adapter is not None:
            for name, (a, b) in adapter.factors.items():
                views[name][0][k, : adapter.rank] = a
                views[name][1][k, : adapter.rank] = b.t()
    return flat


def _adapters(
    layout: FlatLayout, flat: Tensor, recipes: Sequence[UpdateRecipe], base_digest: str
) -> list[Adapter]:
    """Return each slot's factors as an adapter of its own memory, in PEFT's orientation."""
    views = layout.views(flat.detach().cpu())
    turned = {name: (a, b.transpose(1, 2).contiguous()) for name, (a, b) in views.items()}
    return [
        Adapter(
            {name: (a[k, : r.rank].clone(), b[k, :, : r.rank].clone()) for name, (a, b) in turned.items()},
            r.rank,
            r.alpha,
            base_digest,
        )
        for k, r in enumerate(recipes)
    ]
