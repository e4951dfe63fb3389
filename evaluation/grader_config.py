"""The `grader` section of a run's configuration: who decides whether a student's free text answers a question.

Importable without any of the graders. The variants are told apart by `type`; to add one, give it a `type` literal, name
it in `GraderConfig` and in `evaluation.graders.build_grader`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evaluation.endpoints.config import EndpointConfig


class ExactGrading(BaseModel):
    """The answer is a gold answer, but for case, punctuation and English articles (`graders.ExactGrader`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["exact"] = "exact"


class GoldTokenRecallGrading(BaseModel):
    """The answer holds most of a gold answer's words, whatever else it says (`graders.GoldTokenRecallGrader`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["gold-token-recall"] = "gold-token-recall"
    threshold: float = Field(default=0.67, gt=0.0, le=1.0)
    """Smallest recall that counts as correct, in (0, 1]; at 0.67 two words of three do not suffice."""
    language: str = "english"
    """Snowball's name of the language whose stems are compared, such as `german`."""

    @field_validator("language")
    @classmethod
    def _stemmed(cls, value: str) -> str:
        import snowballstemmer

        allowed = snowballstemmer.algorithms()
        if value not in allowed:
            raise ValueError(f"allowed is one of {', '.join(allowed)}")
        return value


class TokenF1Grading(BaseModel):
    """The answer's words are those of a gold answer and few others (`graders.TokenF1Grader`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["token-f1"] = "token-f1"
    threshold: float = Field(default=0.5, gt=0.0, le=1.0)
    """Smallest F1 that counts as correct, in (0, 1]."""


class GridVotesGrading(BaseModel):
    """Of a grid task's output, all views are answered, turned back and voted on; one of two attempts must be right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["grid-votes"] = "grid-votes"


class JudgeGrading(BaseModel):
    """A language model says whether the answer conveys a gold answer (`judge.JudgeGrader`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["judge"] = "judge"
    endpoint: EndpointConfig
    """The judge; `api: chat` unless it is a base model."""
    repeats: int = Field(default=1, ge=1, le=25)
    """Times that each answer is judged, in [1, 25]; the majority decides. An odd number cannot tie while all verdicts
    are clear."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """Divides the judge's logits, in [0, 2]; at 0 repeats show no more than the server's own noise."""
    max_tokens: int = Field(default=16, ge=2, le=32_768)
    """Longest verdict in tokens, in [2, 32768]; a verdict that is cut is not clear. Reasoning counts, where the judge
    reasons before it answers."""
    seed: int = Field(default=0, ge=0)
    """Of the judge's sampling, at least 0, where the server heeds it; each repeat has its own, derived from this."""


FreeTextGrading: TypeAlias = ExactGrading | GoldTokenRecallGrading | TokenF1Grading | JudgeGrading
"""Graders that decide on one answer at a time."""

GraderConfig = Annotated[FreeTextGrading | GridVotesGrading, Field(discriminator="type")]
"""Any `grader` section; `type` says which."""
