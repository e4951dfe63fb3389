"""The second rival of the bank: the published inner loop, rebuilt with public parts."""

from __future__ import annotations

import tempfile
from typing import Any

from peft import get_peft_model

from pipelines.bench.sequential import NO_LOSS, TrainedAlone, lora_config, trained_factors
from student.updates import UpdateJob

PUBLISHED_TOKENS = 2048
"""Length that SEAL pads every line to."""


def train_published(model: Any, job: UpdateJob, pad_token: int) -> TrainedAlone:
    """Return the adapter of one job, trained as SEAL's inner loop does (arXiv 2506.10943, `TTT_server.py`).

    As there: PEFT around a base that is loaded already, `transformers.Trainer` with its default schedule, clipping and
    AdamW, one line a step, every line padded with the end token to 2048 tokens or the student's own limit where that
    is less, labels on the padding too, the loss logged after every step, the adapter written to disk. Otherwise than
    there: rank, layers, learning rate and passes are the job's own (there 32, queries and values, 1e-3 and 10), lines
    are its training sequences without the passage, the number format is that of the base at hand (there bfloat16), the
    wrapper is taken off afterwards, and neither vLLM nor the grader is in the time. It is another training than the
    bank's: more steps, and mostly padding as labels.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

    width = published_width(model)
    rows = Dataset.from_list([_padded_row(job, i, width, pad_token) for i in range(len(job.sequences))])
    wrapped = get_peft_model(model, lora_config(model, job))
    on_cuda = next(model.parameters()).is_cuda
    try:
        with tempfile.TemporaryDirectory(prefix="preceptor-published-") as place:
            arguments = TrainingArguments(
                output_dir=place,
                per_device_train_batch_size=1,
                num_train_epochs=job.recipe.epochs,
                learning_rate=job.recipe.learning_rate,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                seed=job.seed,
                disable_tqdm=True,
                use_cpu=not on_cuda,
                dataloader_pin_memory=on_cuda,
            )
            trainer = Trainer(model=wrapped, args=arguments, train_dataset=rows, data_collator=default_data_collator)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            wrapped.save_pretrained(f"{place}/final_adapter")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        factors = trained_factors(wrapped, "default")
    finally:
        wrapped.unload()
        model.eval()
    tokens = job.recipe.epochs * sum(min(len(sequence.tokens), width) for sequence in job.sequences)
    return TrainedAlone(factors, losses, tokens, len(losses) * width)


def published_width(model: Any) -> int:
    """Return the token places that the published loop gives every line of this student."""
    return min(PUBLISHED_TOKENS, getattr(model.config, "max_position_embeddings", None) or PUBLISHED_TOKENS)


def _padded_row(job: UpdateJob, index: int, width: int, pad_token: int) -> dict[str, list[int]]:
    """Return one line as the published loop lays it out: padded, with the padding among its labels."""
    sequence = job.sequences[index]
    tokens, flags = sequence.tokens[:width], sequence.loss_mask[:width]
    pads = width - len(tokens)
    return {
        "input_ids": [*tokens, *[pad_token] * pads],
        "attention_mask": [1] * len(tokens) + [0] * pads,
        "labels": [token if flag else NO_LOSS for token, flag in zip(tokens, flags, strict=True)] + [pad_token] * pads,
    }
