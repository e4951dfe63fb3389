"""Configuration of the teacher: its model and prompt, how it is sampled, how rewards are formed and learned from.

The parts live with what they configure: engines in `teacher.samplers`, algorithms in `teacher.algorithms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from evaluation.common.data import Frozen, any_of
from teacher import algorithms, samplers
from teacher.algorithms.algorithm import Algorithm
from teacher.algorithms.grpo import GroupRelativeConfig
from teacher.filters import FilterConfig
from teacher.prompts import prompt_template
from teacher.rewards import RewardConfig
from teacher.samplers.openai import OpenAISampling
from teacher.samplers.sampler import Sampling
from teacher.samplers.transformers import TransformersSampling

if TYPE_CHECKING:
    SamplingConfig: TypeAlias = Sampling
    LearningConfig: TypeAlias = Algorithm
else:
    SamplingConfig = any_of(vars(samplers), Sampling, "type")
    LearningConfig = any_of(vars(algorithms), Algorithm, "algorithm")

PromptName: TypeAlias = Annotated[str, AfterValidator(lambda name: prompt_template(name).name)]
"""Name of an existing prompt template."""


class PolicyConfig(Frozen):
    """The trained part of the teacher: one LoRA adapter on all linear layers of a frozen base."""

    rank: int = Field(default=16, ge=1, le=256)
    """LoRA rank R, in [1, 256]."""
    alpha: float = Field(default=32.0, gt=0.0, le=4096.0)
    """LoRA scale: the adapter's output is multiplied by alpha / rank; in (0, 4096]."""


class TeacherConfig(Frozen):
    """The teacher of a run."""

    model: str = Field(min_length=1)
    """Directory or hub name of the frozen base model; behind an endpoint its name there, which need not be repeated."""
    prompt: PromptName = "micro-implications"
    """Name of the prompt template."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat format; for instruction-tuned teachers."""
    samples: int = Field(default=8, ge=1, le=1024)
    """Completions sampled for a document in a round, in [1, 1024]; an algorithm that compares them needs at least 2."""
    sampling: SamplingConfig = TransformersSampling()
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    filters: FilterConfig = FilterConfig()
    learning: LearningConfig = GroupRelativeConfig()

    @field_validator("sampling", mode="before")
    @classmethod
    def _embedded_by_default(cls, value: Any) -> Any:
        """Take the embedded engine where no `type` is given."""
        return {"type": "transformers", **value} if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_endpoint(cls, value: Any) -> Any:
        """Take the model's name from the endpoint that it is behind."""
        if isinstance(value, Mapping) and "model" not in value:
            sampling = value.get("sampling")
            endpoint = sampling.get("endpoint") if isinstance(sampling, Mapping) else None
            if isinstance(endpoint, Mapping) and "model" in endpoint:
                return {**value, "model": endpoint["model"]}
        return value

    @model_validator(mode="after")
    def _fits_its_endpoint(self) -> TeacherConfig:
        if isinstance(self.sampling, OpenAISampling):
            if self.model != self.sampling.endpoint.model:
                raise ValueError(
                    f"model: got {self.model!r}, but the endpoint's is {self.sampling.endpoint.model!r}; leave one out"
                )
            if self.chat:
                raise ValueError("chat: an endpoint formats messages itself; set sampling.endpoint.api to chat instead")
        return self
