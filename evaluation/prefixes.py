"""Prefixes that are read once and serve several continuations by their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


_SMALL_MODEL = 50_000_000
"""Parameters of a model up to which a pass costs too little for another way of making it."""


def pays_to_share(model: Any) -> bool:
    """Return whether a model is so large that reading a prefix once saves more than passes of their own cost."""
    return bool(sum(parameter.numel() for parameter in model.parameters()) > _SMALL_MODEL)


def behind_prefixes(
    model: Any, prefixes: Sequence[Sequence[int]], owners: Sequence[int], width: int, last: int
) -> dict[str, Any]:
    """Return the arguments with which a forward pass over (N, `width`) further tokens continues a prefix in each row.

    Gradients flow through the prefixes' keys and values where they are enabled. Prefixes are padded on the left, as in
    generation, so that distances stay what they are, for sliding windows too.

    Args:
        model: A Hugging Face causal language model for which `shares_prefixes` holds.
        prefixes: Token ids of each, any number.
        owners: (N,) index of each row's prefix.
        width: Further tokens of each row, padding on the right included.
        last: Highest position of a token that is not padding: padding may stand beyond the last position, where a model
            with a table of them has no entry.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    device = next(model.parameters()).device
    rows = [torch.tensor(prefix, dtype=torch.long, device=device) for prefix in prefixes]
    seen = pad_sequence(list(map(torch.ones_like, rows)), batch_first=True, padding_side="left")
    of_row = torch.tensor(owners, device=device)
    positions = seen.sum(1)[of_row, None] + torch.arange(width, device=device)
    extra: dict[str, Any] = {
        "attention_mask": torch.cat([seen[of_row], torch.ones_like(positions)], dim=1),
        "position_ids": positions.clamp_(max=last),
    }
    if seen.shape[1]:
        read = model.base_model(
            input_ids=pad_sequence(rows, batch_first=True, padding_side="left"),
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
        )
        read.past_key_values.batch_select_indices(of_row)
        extra["past_key_values"] = read.past_key_values
    return extra


def shares_prefixes(model: Any, parameters: Sequence[Tensor] = ()) -> bool:
    """Return whether rows behind shared prefixes get the logits that they get alone, and `parameters` their gradients.

    Decided by trying: architectures keep what they read in different ways, some have nothing that can be shared.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [i * 7919 % vocabulary for i in range(1, 17)]
    prefixes, owners, kept = (ids[:6], ids[6:9]), (0, 0, 1), [0, 2]
    tails = torch.tensor([ids[9:12], ids[12:15], ids[13:16]], device=next(model.parameters()).device)

    def alone() -> list[Tensor]:
        rows = [torch.cat([tails.new_tensor(prefixes[k]), tail])[None] for k, tail in zip(owners, tails, strict=True)]
        logits = torch.cat([model(input_ids=row, use_cache=False).logits[:, -3:] for row in rows])
        return [logits[:, :2], logits[kept, 2:]]

    def shared() -> list[Tensor]:
        extra = behind_prefixes(model, prefixes, owners, 2, last=8)
        first = model(input_ids=tails[:, :2], use_cache=False, **extra).logits
        extra["past_key_values"].batch_select_indices(tails.new_tensor(kept))  # as where a sampled row has ended
        mask = torch.nn.functional.pad(extra["attention_mask"][kept], (0, 1), value=1)
        positions = extra["position_ids"][kept, -1:] + 1
        extra |= {"attention_mask": mask, "position_ids": positions}
        return [first, model(input_ids=tails[kept, 2:], use_cache=True, **extra).logits]

    def tried(logits: list[Tensor]) -> list[Tensor]:
        weights = torch.linspace(-1, 1, vocabulary, device=tails.device)
        total = torch.stack([(each.float() @ weights[: each.shape[-1]]).sum() for each in logits]).sum()
        found = torch.autograd.grad([total], list(parameters), materialize_grads=True) if parameters else ()
        return [*(each.detach() for each in logits), torch.cat([g.flatten() for g in found])] if found else logits

    with torch.set_grad_enabled(bool(parameters)):
        apart = tried(alone())
        try:
            together = tried(shared())
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
            return False
    # False where a number is not finite.
    tolerance, pairs = 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.1, zip(apart, together, strict=True)
    return all(float((a - b).abs().max()) <= tolerance * float(a.abs().max()) for a, b in pairs)
