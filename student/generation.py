"""Text from many adapters at once, for graders that need more than exact match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evaluation.answers import prompt_ids
from student.adapters import Adapter
from student.banked_linear import FlatLayout
from student.banked_model import BankedModel
from student.stacks import stack


def generate_group(
    student: BankedModel,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[str]],
    tokenizer: Any,
    max_new_tokens: int,
) -> list[list[str]]:
    """Return what each of K slots writes after each of its prompts, greedily, the prompt left out.

    Args:
        student: The wrapped base.
        adapters: K adapters that fit it; None is the base.
        prompts: K lists of prompts, not all empty.
        tokenizer: The student's Hugging Face tokenizer.
        max_new_tokens: Longest answer, at least 1.
    """
    most = max(map(len, prompts))
    filler = next(prompt for asked in prompts for prompt in asked)
    rows = [prompt for asked in prompts for prompt in (*asked, *[filler] * (most - len(asked)))]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = [prompt_ids(tokenizer, row) for row in rows]
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded], device=student.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=student.device)
    layout = FlatLayout(student.shapes, max((a.rank for a in adapters if a is not None), default=1))
    flat = stack(layout, adapters).to(student.device, student.dtype)
    with student.unpacked(), torch.inference_mode():
        student.attach(layout.views(flat), [1.0 if a is None else a.alpha / a.rank for a in adapters])
        try:
            written = student.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
            )
        finally:
            student.detach()
    texts = tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
    return [texts[k * most : k * most + len(asked)] for k, asked in enumerate(prompts)]
