"""Forward passes of learning: what a policy and its base say about the tokens of a few completions.

With a large model the completions of a prompt share one pass over it, with its gradient (exact: what flows back through
the shared keys and values is the sum over the completions), and the output head is applied to some tokens at a time,
again in the backward pass, so that logits of all tokens never exist together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from evaluation.exact_match import has_direct_head
from evaluation.prefixes import behind_prefixes, pays_to_share, shares_prefixes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher.algorithms.algorithm import WeightedExample
    from teacher.policy import TeacherPolicy

_LOGITS = 1 << 22
"""Logits made at a time: 16 MiB in float32."""


@dataclass(slots=True)
class Row:
    """An example as the training step sees it."""

    example: WeightedExample
    prompt_P: Tensor
    tokens_T: Tensor
    weights_T: Tensor
    old_log_probs_T: Tensor | None = None
    """Of its tokens before the round's first step; None until they are known."""


class Batch:
    """Rows as tensors, whose completions are padded on the right."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        """Collate at least one row."""
        import torch

        self.rows = rows
        self.tokens_NT = _padded([row.tokens_T for row in rows], device)
        self.mask_NT = _padded([torch.ones_like(row.tokens_T, dtype=torch.bool) for row in rows], device)
        self.weights_NT = _padded([row.weights_T for row in rows], device)

    def keep(self, log_probs_NT: Tensor) -> None:
        """Give the rows their tokens' log-probabilities before the first step."""
        for row, found_T in zip(self.rows, log_probs_NT.detach().cpu(), strict=True):
            row.old_log_probs_T = found_T[: len(row.tokens_T)].float()

    def old_log_probs(self, log_probs_NT: Tensor) -> Tensor:
        """Return those before the first step (N, T); in that step they are the ones given, and are kept."""
        known = [row.old_log_probs_T for row in self.rows if row.old_log_probs_T is not None]
        if known:
            return _padded(known, log_probs_NT.device)
        self.keep(log_probs_NT)
        return log_probs_NT.detach()


def _padded(tensors: Sequence[Tensor], device: torch.device, side: str = "right") -> Tensor:
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(tensors), batch_first=True, padding_side=side).to(device)


class Passes:
    """The passes of a policy over batches of rows."""

    def __init__(self, policy: TeacherPolicy, shared: bool | None = None) -> None:
        """Try what the policy's model can do; `shared` is whether it is tried, by default where the model is large."""
        self._policy = policy
        self._model: Any = policy.model.get_base_model()
        self.large = pays_to_share(self._model) if shared is None else shared
        """Whether prompts are shared and the head is applied apart, where the model can do that."""
        self._head = self._model.get_output_embeddings() if self.large and has_direct_head(self._model) else None
        self._shares = self.large and shares_prefixes(self._model, policy.adapter_parameters())

    def batches(self, rows: Sequence[Row], size: int) -> Iterator[Batch]:
        """Yield batches of `size` rows, sorted by length to minimize padding, or by prompt to share it."""

        def place(row: Row) -> tuple[int, list[int], int]:
            length = len(row.prompt_P) + len(row.tokens_T)
            return (len(row.prompt_P), row.prompt_P.tolist(), length) if self._shares else (0, [], length)

        order = sorted(rows, key=place)
        for start in range(0, len(order), size):
            yield Batch(order[start : start + size], self._policy.device)

    def log_probs(self, batch: Batch) -> Tensor:
        """Return the policy's log-probabilities of the completion tokens (N, T), without gradient."""
        import torch

        def of_labels(features_CX: Tensor, labels_C: Tensor) -> tuple[Tensor]:
            return (self._log_probs(features_CX).gather(-1, labels_C[:, None])[:, 0],)

        with torch.no_grad():
            (log_probs_NT,) = self._by_token(batch, of_labels, self._features(batch))
        return log_probs_NT

    def distributions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the policy's next-token distribution is like at each completion token, each (N, T), in nats.

        The log-probability of the token and the KL divergence from the base, both with gradient, and the entropy.
        """
        import torch
        from torch.utils.checkpoint import checkpoint

        def terms(features_CX: Tensor, reference_CX: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            reference_CV, log_probs_CV = self._log_probs(reference_CX), self._log_probs(features_CX)
            probs_CV = log_probs_CV.exp()
            kl_C = (probs_CV * (log_probs_CV - reference_CV)).sum(-1)
            entropy_C = -(probs_CV.detach() * log_probs_CV.detach()).sum(-1)
            return log_probs_CV.gather(-1, labels_C[:, None])[:, 0], kl_C, entropy_C

        compute = partial(checkpoint, terms, use_reentrant=False, preserve_rng_state=False) if self.large else terms
        with torch.no_grad(), self._policy.reference():
            reference_LX = self._features(batch)
        log_probs_NT, kl_NT, entropy_NT = self._by_token(batch, compute, self._features(batch), reference_LX)
        return log_probs_NT, kl_NT, entropy_NT

    def _by_token(self, batch: Batch, compute: Callable[..., tuple[Tensor, ...]], *features: Tensor) -> list[Tensor]:
        """Return what is computed of tokens' features (L, X) and labels (L,), some at a time, each as (N, T)."""
        import torch

        labels_L = batch.tokens_NT[batch.mask_NT]
        vocabulary = features[0].shape[1] if self._head is None else self._head.weight.shape[0]
        size = max(16, _LOGITS // vocabulary)
        parts = [slice(start, start + size) for start in range(0, len(labels_L), size)]
        found = [compute(*(each[part] for each in features), labels_L[part]) for part in parts]
        columns = [torch.cat(column) for column in zip(*found, strict=True)]
        return [each.new_zeros(batch.mask_NT.shape).masked_scatter(batch.mask_NT, each) for each in columns]

    def _log_probs(self, features_CX: Tensor) -> Tensor:
        """Return the log-probabilities of the vocabulary (C, V), float32 or wider."""
        import torch

        logits_CV = features_CX if self._head is None else self._head(features_CX)
        return torch.log_softmax(logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)), dim=-1)

    def _features(self, batch: Batch) -> Tensor:
        """Return what stands before each completion token (L, X): the head's input, or else the logits."""
        import torch

        prompts, width = [row.prompt_P for row in batch.rows], batch.tokens_NT.shape[1]
        distinct = list(dict.fromkeys(tuple(prompt.tolist()) for prompt in prompts))
        if self._shares and len(distinct) < len(prompts):
            owners = [distinct.index(tuple(prompt.tolist())) for prompt in prompts]
            last = max(len(row.prompt_P) + len(row.tokens_T) for row in batch.rows) - 2
            inputs = behind_prefixes(self._model, [prompt[:-1] for prompt in distinct], owners, width, last)
            ends_N1 = torch.stack([prompt[-1:] for prompt in prompts]).to(batch.tokens_NT.device)
            inputs["input_ids"], kept = torch.cat([ends_N1, batch.tokens_NT[:, :-1]], dim=1), width
        else:  # prompts padded on the left, which aligns the completions
            prompts_NP = _padded(prompts, self._policy.device, "left")
            read_NP = _padded([torch.ones_like(prompt) for prompt in prompts], self._policy.device, "left")
            mask_NL = torch.cat([read_NP, batch.mask_NT.long()], dim=1)
            inputs = {"attention_mask": mask_NL, "position_ids": (mask_NL.cumsum(1) - 1).clamp_(min=0)}
            inputs["input_ids"], kept = torch.cat([prompts_NP, batch.tokens_NT], dim=1), width + 1
        if self._head is None:
            found_NTX = self._model(**inputs, use_cache=False, logits_to_keep=kept).logits
        else:
            found_NTX = self._model.base_model(**inputs, use_cache=False).last_hidden_state[:, -kept:]
        features_LX: Tensor = found_NTX[:, :width][batch.mask_NT]
        return features_LX
