"""Configuration of the teacher: base model, prompt, sampling, filters, reward and learning algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, model_validator

from evaluation.common.data import any_of
from evaluation.common.gguf import ModelName
from teacher import algorithms, samplers
from teacher.algorithms.algorithm import Algorithm
from teacher.algorithms.grpo import GroupRelativeConfig
from teacher.filters import FilterConfig
from teacher.policy import PolicyConfig
from teacher.prompts import Prompt, PromptedConfig
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


class TeacherConfig(PromptedConfig):
    """The teacher of a run."""

    model: ModelName
    """Directory, hub name or GGUF file of the frozen base model; with an endpoint its model name, the default there."""
    prompt: Prompt = "micro-implications"
    chat: bool = False
    """Apply the tokenizer's chat template to the prompt; for instruction-tuned teachers."""
    samples: int = Field(default=8, ge=1, le=1024)
    """Completions per document and round, in [1, 1024]; algorithms that compare completions need at least 2."""
    sampling: SamplingConfig = TransformersSampling()
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    filters: FilterConfig = FilterConfig()
    learning: LearningConfig = GroupRelativeConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        """Default to the embedded engine, and to the model of an endpoint."""
        sampling = value.get("sampling") if isinstance(value, Mapping) else None
        if not isinstance(sampling, Mapping):
            return value
        endpoint = sampling.get("endpoint")
        model = {"model": endpoint["model"]} if isinstance(endpoint, Mapping) and "model" in endpoint else {}
        return {**model, **value, "sampling": {"type": "transformers", **sampling}}

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
