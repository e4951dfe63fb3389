"""Context distillation: what the frozen base makes of training sequences behind the passage, as a target for adapters.

The student that reads the passage teaches the one that does not (Snell et al., arXiv 2209.15189). Kept are the base's
last hidden states at the labelled places, D numbers each, of which the loss makes logits again: the head is frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from torch import Tensor

from student.bank.model import BankedModel
from student.bank.packing import LabelledTokens, lay_out
from student.bank.passes import is_out_of_memory, split_into_passes
from student.updates import TrainingSequence


def with_targets(
    student: BankedModel, sequences: Sequence[TrainingSequence], most_places: int
) -> tuple[LabelledTokens, ...] | None:
    """Return the sequences of one update with their targets; nothing may be attached to the model.

    Each is read behind the passage, in passes of at most `most_places`, padding included, or of a single sequence; one
    that runs out of memory is split. None when a single sequence does not fit.
    """
    behind = [_behind(sequence) for sequence in sequences]
    todo, found = split_into_passes([len(line.ids) for line in behind], most_places), [torch.empty(0)] * len(behind)
    while todo:
        part = todo.pop()
        states = _states(student, [behind[i] for i in part])
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


def _states(student: BankedModel, lines: Sequence[LabelledTokens]) -> tuple[Tensor, ...] | None:
    """Return each line's states (`BankedModel.states`) in one pass, or None when memory does not suffice."""
    labels = [int((line.labels >= 0).sum()) for line in lines]
    try:
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may keep
            batch = lay_out([[line] for line in lines], student.device, packed=student.packed)
            return torch.split(student.states(batch), labels)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # The exception's traceback has let go of the tensors by now.
    if student.device.type == "cuda":
        torch.cuda.empty_cache()
    return None
