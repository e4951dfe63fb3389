"""How a student in use is asked; apart from what answers, so that configurations are read without opening torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation.answers import AnswerFormat


class AskingOptions(BaseModel):
    """How questions are answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_format: AnswerFormat = AnswerFormat()
    """The wrapper that the student was trained with."""
    passages: int = Field(default=1, ge=1, le=32)
    """Most passages before a question, in [1, 32]. With BM25's best one of 300, the shipped student reads 0.94 of the
    answers, with the best two 0.69, with three 0.39; larger students take more."""
    least_score: float = Field(default=1.25, ge=0.0, le=1000.0)
    """Score of a hit from which on `auto` answers from memory, in [0, 1000]; see `student.external_memory.Hit.score`.
    In a memory of 300 micro-world documents, all of 9,600 questions on them reach it, and none of 4,800 on others; it
    separates as well in memories of 1, 3 and 30."""
    with_passages: Literal["memory", "both"] = "memory"
    """What `auto` reads passages with: the base alone, or the adapter too. An adapter that learned eight micro-world
    documents read 2 to 3 points less from passages than the base does."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest answer in tokens, in [1, 4096]; the first line that is not blank is the answer."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Questions in one pass, in [1, 4096]; changes speed and memory alone."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the student runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the student's base."""
