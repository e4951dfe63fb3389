"""Context distillation: what the frozen base makes of training sequences behind the passage, as a target for adapters.

The student that reads the passage teaches the one that does not (Snell et al., arXiv 2209.15189). Kept are the base's
last hidden states at the labelled places, D numbers each, of which the loss makes logits again: the head is frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from student.bank.model import BankedModel
from student.bank.packing import BankBatch, LabelledTokens, Tree, lay_out
from student.bank.passes import is_out_of_memory
from student.updates import TrainingSequence


def with_targets(
    student: BankedModel, sequences: Sequence[TrainingSequence], most_places: int
) -> tuple[LabelledTokens, ...] | None:
    """Return the sequences of one update with their targets; nothing may be attached to the model.

    They are read behind the passage in passes of at most `most_places`, padding included, or of a single sequence; one
    that runs out of memory is split. None when a single sequence does not fit.
    """
    behind = [_behind(sequence) for sequence in sequences]
    todo, found = [list(range(len(behind)))], [torch.empty(0)] * len(behind)
    while todo:
        part = todo.pop()
        states = _states(student, [behind[i] for i in part], most_places)
        if states is None and len(part) == 1:
            return None
        if states is None:
            half = len(part) // 2
            todo += [part[:half], part[half:]]
            continue
        for i, mine in zip(part, states, strict=True):
            found[i] = mine
    return tuple(
        LabelledTokens.of(sequence.tokens, sequence.loss_mask)._replace(targets=targets)
        for sequence, targets in zip(sequences, found, strict=True)
    )


def _behind(sequence: TrainingSequence) -> LabelledTokens:
    """Return a sequence behind the passage; what carries loss is the same."""
    size = len(sequence.behind)
    return LabelledTokens.of(sequence.behind, ((False,) * size + sequence.loss_mask[1:])[-size:])


def _states(student: BankedModel, lines: Sequence[LabelledTokens], most_places: int) -> tuple[Tensor, ...] | None:
    """Return each line's states (`BankedModel.states`) in one pass, or None where several lines or memory are short."""
    try:
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may keep
            if student.packed:
                batch = _lay_out_tree(lines, student.device)
            else:
                batch = lay_out([[line] for line in lines], student.device, packed=False)
            if len(lines) > 1 and batch.input_ids.numel() > most_places:
                return None
            return torch.split(student.states(batch), [int((line.labels >= 0).sum()) for line in lines])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # The exception's traceback has let go of the tensors by now.
    if student.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _lay_out_tree(lines: Sequence[LabelledTokens], device: torch.device) -> BankBatch:
    """Return a pass that reads what all lines begin with, such as the passage, once, and then the rest of each."""
    most = min(int((line.labels >= 0).argmax()) for line in lines)
    heads = np.stack([line.ids[:most] for line in lines])
    shared = int(np.cumprod((heads == heads[0]).all(0)).sum())
    tails = [LabelledTokens(line.ids[shared:], line.labels[shared:]) for line in lines]
    sizes = [shared, *(len(tail.ids) for tail in tails)]
    places = np.concatenate([np.arange(shared), *(shared + np.arange(size) for size in sizes[1:])])
    labels = np.concatenate([np.full(shared, -1), *(tail.labels for tail in tails)])
    ids = np.concatenate([lines[0].ids[:shared], *(tail.ids for tail in tails)])
    kept, owners = np.flatnonzero(labels >= 0), np.repeat(np.arange(len(sizes)), sizes)
    sees = np.tril((owners == 0) | (owners == owners[:, None]))
    arrays = ids[None], places, sees, kept, labels[kept], np.zeros_like(kept)
    row, at, mask, positions, targets, slots = (torch.from_numpy(array).to(device) for array in arrays)
    extra = {"position_ids": at[None], "tree": Tree(at, mask)}
    filled = torch.arange(len(ids), device=device)
    return BankBatch(row, extra, positions, targets, slots, [len(ids)], len(ids), filled)
