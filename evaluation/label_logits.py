"""Logits at chosen places of a batch, without computing those that nobody looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NOTHING: Mapping[str, Any] = {}


def label_hidden(model: Any, input_ids: Tensor, positions: Tensor, extra: Mapping[str, Any] = _NOTHING) -> Tensor:
    """Return the backbone's last hidden states (L, D) at `positions` of the N * T flattened places.

    Args:
        model: A Hugging Face causal language model.
        input_ids: (N, T) token ids, right-padded. No attention mask is needed: under causal attention a token never
            sees what stands to its right, and positions count from the first token as they would without pads.
        positions: (L,) indices into the flattened places.
        extra: Further arguments of the model's forward pass, for rows that are laid out in another way.
    """
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **extra).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, positions)


def label_logits(
    model: Any, input_ids: Tensor, positions: Tensor, *, direct_head: bool, extra: Mapping[str, Any] = _NOTHING
) -> Tensor:
    """Return the logits (L, V) at `positions` of the N * T flattened places.

    Args:
        model: A Hugging Face causal language model.
        input_ids: As for `label_hidden`.
        positions: As for `label_hidden`.
        direct_head: Apply the output head to the chosen hidden states alone; see `has_direct_head`.
        extra: As for `label_hidden`.
    """
    if direct_head:
        chosen: Tensor = model.get_output_embeddings()(label_hidden(model, input_ids, positions, extra))
        return chosen
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **extra).logits
    return logits.flatten(0, 1).index_select(0, positions)


def has_direct_head(model: Any) -> bool:
    """Return whether the logits are a linear head applied to the backbone's last hidden state, and nothing more.

    Decided by trying both on four tokens, because some architectures scale or cap their logits in between.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model:
        return False
    ids = torch.arange(4, device=head.weight.device)[None] % head.weight.shape[0]
    with torch.inference_mode():
        whole = label_logits(model, ids, ids[0], direct_head=False)
        direct = label_logits(model, ids, ids[0], direct_head=True)
    return whole.shape == direct.shape and bool(torch.allclose(whole, direct, rtol=1e-3, atol=1e-5))
