"""Configuration of the teacher: what it is, how it is sampled, how rewards are formed and how it learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from evaluation.endpoints.config import EndpointConfig
from evaluation.engines.vllm_options import VllmOptions
from teacher.prompts import prompt_template


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TransformersSampling(_Frozen):
    """Sampling with the embedded engine: Hugging Face `generate` in this process."""

    type: Literal["transformers"] = "transformers"
    temperature: float = Field(default=1.0, ge=0.0, le=5.0)
    """Divides the logits, in [0, 5]; 0 takes the likeliest token each time (all samples of a prompt are then equal)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of probability kept, in (0, 1]: the smallest set of tokens that reaches it; 1 keeps all tokens."""
    max_new_tokens: int = Field(default=160, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Completions sampled at once (rows), in [1, 4096]; bounds memory, and does not change what is sampled."""


class VllmSampling(_Frozen):
    """Sampling with vLLM in this process; the teacher's adapter goes with each request."""

    type: Literal["vllm"]
    temperature: float = Field(default=1.0, ge=0.0, le=5.0)
    """Divides the logits, in [0, 5]; 0 takes the likeliest token each time (all samples of a prompt are then equal)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of probability kept, in (0, 1]: the smallest set of tokens that reaches it; 1 keeps all tokens."""
    max_new_tokens: int = Field(default=160, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""
    structured: bool = False
    """Write each self-edit as JSON of the self-edit's schema; for teachers that choose specs, and never on-policy: what
    the schema forbids has no part in the log-probabilities that learning uses."""
    engine: VllmOptions = VllmOptions()


class OpenAISampling(_Frozen):
    """Sampling from an endpoint: text alone, so a teacher behind one writes self-edits but does not learn.

    Only temperature and nucleus are sent; what else a server applies, such as the authors' own top-k, is its own
    (`vllm serve --generation-config vllm` applies nothing).
    """

    type: Literal["openai"]
    endpoint: EndpointConfig
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Divides the logits, in [0, 2]; 0 takes the likeliest token each time (each prompt is then asked once)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of probability kept, in (0, 1]: the smallest set of tokens that reaches it; 1 keeps all tokens."""
    max_new_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Longest completion in tokens, in [1, 32768]; together with the prompt it must fit the model's context."""
    structured: bool = False
    """Ask for each self-edit as JSON of the self-edit's schema; the server must know `response_format`."""


LocalSampling: TypeAlias = TransformersSampling | VllmSampling
"""How to sample from a model on this machine."""


def _engine_of(value: Any) -> str:
    """Return which kind of sampling is meant; a mapping without `type` means the embedded engine."""
    return str(value.get("type", "transformers") if isinstance(value, Mapping) else getattr(value, "type", ""))


SamplingConfig: TypeAlias = Annotated[
    Annotated[TransformersSampling, Tag("transformers")]
    | Annotated[VllmSampling, Tag("vllm")]
    | Annotated[OpenAISampling, Tag("openai")],
    Discriminator(_engine_of),
]
"""How to sample: told apart by `type`."""


PromptName: TypeAlias = Annotated[str, AfterValidator(lambda name: prompt_template(name).name)]
"""Name of a prompt template that there is."""


class PolicyConfig(_Frozen):
    """The trained part of the teacher: one LoRA adapter on all linear layers of a frozen base."""

    rank: int = Field(default=16, ge=1, le=256)
    """LoRA rank R, in [1, 256]."""
    alpha: float = Field(default=32.0, gt=0.0, le=4096.0)
    """LoRA scale: the adapter's output is multiplied by alpha / rank; in (0, 4096]."""


class RewardConfig(_Frozen):
    """How the scores of a self-edit's replicates become one reward, or none."""

    metric: Literal["accuracy", "probability"] = "probability"
    """`accuracy`: share of questions answered exactly, in [0, 1]; `probability`: mean probability of the gold answer,
    in [0, 1], which varies less between seeds."""
    minimum_replicates: int = Field(default=1, ge=1, le=100)
    """Replicates that must have succeeded for there to be a reward, in [1, 100]."""
    retention_weight: float = Field(default=0.0, ge=0.0, le=10.0)
    """Reward taken off per unit of forgetting (the fall of retention accuracy), in [0, 10]; 0 ignores forgetting."""


class _Learning(_Frozen):
    learning_rate: float = Field(default=7e-4, gt=0.0, le=0.1)
    """Step size of AdamW, constant, in (0, 0.1]."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """Decoupled weight decay of AdamW, in [0, 1]."""
    epochs: int = Field(default=1, ge=1, le=100)
    """Passes over the examples of a round, in [1, 100]."""
    minibatch_size: int = Field(default=32, ge=1, le=65_536)
    """Examples in one optimizer step, in [1, 65536]; drawn at random."""
    micro_batch_size: int = Field(default=8, ge=1, le=65_536)
    """Rows in one forward pass, in [1, 65536]; bounds memory. A minibatch is cut by length, and gradients add up."""
    max_gradient_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this Euclidean norm; above 0."""
    entropy_bonus: float = Field(default=0.0, ge=0.0, le=1.0)
    """Weight of each token's entropy (nats) in the objective, in [0, 1]; 0 turns it off."""


class RestEmConfig(_Learning):
    """ReST-EM (arXiv 2312.06585; SEAL's choice): imitate each group's best completions."""

    algorithm: Literal["rest-em"] = "rest-em"
    keep: int = Field(default=1, ge=1, le=64)
    """Best completions kept of each group, in [1, 64]."""
    require_gain: bool = True
    """Keep only completions whose reward is above that of the student without an update."""
    restart: bool = False
    """Start each round from the base teacher with a fresh adapter instead of the current one."""


class GroupRelativeConfig(_Learning):
    """Group-relative policy gradient: raise what did better than the others of its group, lower what did worse.

    Log-probabilities are those of the model at temperature 1 and over all tokens, so sample with temperature 1 and
    top_p 1 for the update to be on-policy.
    """

    algorithm: Literal["group-relative"] = "group-relative"
    normalize: Literal["none", "batch"] = "batch"
    """`batch` divides all advantages by one standard deviation, that of the whole batch; `none` leaves them."""
    clip_low: float = Field(default=0.2, ge=0.0, lt=1.0)
    """The importance ratio is clipped below at 1 - clip_low, in [0, 1) (arXiv 1707.06347)."""
    clip_high: float = Field(default=0.2, ge=0.0, le=10.0)
    """The ratio is clipped above at 1 + clip_high, in [0, 10]; larger than `clip_low` keeps rare tokens alive
    (arXiv 2503.14476, section 3.1)."""
    kl_coefficient: float = Field(default=0.01, ge=0.0, le=10.0)
    """Weight of the divergence from the base teacher per token (nats), in [0, 10]; 0 turns it off."""
    length_normalizer: int = Field(default=128, ge=1, le=32_768)
    """Tokens by which every completion's sum is divided whatever its length, in [1, 32768]: a constant, so that long
    bad completions are not punished less for each token (Dr. GRPO, arXiv 2503.20783, section 3.2)."""


LearningConfig: TypeAlias = Annotated[RestEmConfig | GroupRelativeConfig, Field(discriminator="algorithm")]
"""How the teacher learns: told apart by `algorithm`."""


class TeacherConfig(_Frozen):
    """Everything about the teacher of a run."""

    model: str = Field(min_length=1)
    """Directory or hub name of the frozen base model; behind an endpoint its name there, which need not be repeated."""
    prompt: PromptName = "micro-implications"
    """Name of the prompt template."""
    chat: bool = False
    """Put the prompt into the tokenizer's chat format; for instruction-tuned teachers."""
    samples: int = Field(default=8, ge=1, le=1024)
    """Completions sampled for a document in a round, in [1, 1024]; group-relative learning needs at least 2."""
    sampling: SamplingConfig = TransformersSampling()
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    learning: LearningConfig = GroupRelativeConfig()

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
