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

    metric: Literal["accuracy", "probability", "token_probability", "proxy"] = "probability"
    """`accuracy`: share of questions answered exactly, in [0, 1]; `probability`: mean probability of the gold answer,
    in [0, 1], which varies less between seeds; `token_probability`: mean over questions of the geometric mean of the
    gold tokens' probabilities, in [0, 1], which tells long answers apart that are all but impossible as a whole;
    `proxy`: the probability with the self-edit in the context of a student that is not updated (after
    Reinforcement-Learned Teachers, arXiv 2506.08388), which takes no update at all."""
    minimum_replicates: int = Field(default=1, ge=1, le=100)
    """Replicates that must have succeeded for there to be a reward, in [1, 100]."""
    retention_weight: float = Field(default=0.0, ge=0.0, le=10.0)
    """Reward taken off per unit of forgetting (the fall of retention accuracy), in [0, 10]; 0 ignores forgetting."""
    shrink: bool = False
    """Draw each reward towards its document's mean by the measured reliability before the teacher learns from it. It
    matters where rewards of one document rest on different numbers of updates, or are compared with the base's."""

    @property
    def of_any(self) -> RewardConfig:
        """The same, from as few updates as there are."""
        return self.model_copy(update={"minimum_replicates": 1})


class GateConfig(_Frozen):
    """What a self-edit must be like to be worth an update; what is not refused is measured all the same."""

    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """Longest self-edit in tokens as written, in [1, 32768]; None sets no limit."""
    min_coverage: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least share of the distinct gold answers that must occur in it, in [0, 1]."""
    max_repetition: float = Field(default=1.0, ge=0.0, le=1.0)
    """Most share of its lines that may repeat an earlier one, in [0, 1]."""
    reject_questions: bool = False
    """Refuse self-edits that hold a whole evaluation question; questions are a kind of self-edit, so by default the
    share is measured only."""
    max_overlap: float = Field(default=1.0, ge=0.0, le=1.0)
    """Most share of the evaluation questions' n-grams (those of the passage left out) that it may hold, in [0, 1]."""
    ngram: int = Field(default=8, ge=1, le=64)
    """Words of an n-gram, in [1, 64]; a shorter question counts as one n-gram."""


class ScreeningConfig(_Frozen):
    """Which candidates are left out before any student is updated, because a cheap score expects little of them."""

    by: Literal["proxy", "ridge"] = "proxy"
    """`proxy`: gold-answer probability with the self-edit in context; `ridge`: a regression of rewards on features of
    self-edits (coverage, kinds, length, support ...), refitted each round."""
    skip_share: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of each document's candidates that is skipped, the worst by the cheap score, in (0, 1)."""
    audit_share: float = Field(default=0.2, ge=0.0, le=1.0)
    """Chance that one to be skipped is updated all the same, in [0, 1]: the unbiased check of the cheap score."""
    warm_up_rounds: int = Field(default=2, ge=1, le=1000)
    """Rounds without skipping, in [1, 1000], that `ridge` is first fitted on."""


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

    algorithm: Literal["rest_em"] = "rest_em"
    keep: int = Field(default=1, ge=1, le=64)
    """Best completions kept of each group, in [1, 64]."""
    require_gain: bool = True
    """Keep only completions whose reward is above that of the student without an update."""
    restart: bool = False
    """Start each round from the base teacher with a fresh adapter instead of the current one."""


class RewardWeightedConfig(_Learning):
    """Reward-weighted regression: imitate all completions, the better ones more.

    The weights are exponential in the reward (Peters and Schaal 2007, ICML) less its document's mean
    (advantage-weighted regression, arXiv 1910.00177).
    """

    algorithm: Literal["rwr"] = "rwr"
    beta: float = Field(default=0.1, gt=0.0, le=1000.0)
    """Difference of rewards that multiplies the weight by e, in reward units, in (0, 1000]: small values imitate the
    best completions only, large ones all alike."""
    weight_cap: float = Field(default=5.0, ge=1.0, le=1e6)
    """Largest weight, in [1, 1e6], where a reward equal to its document's mean has 1; keeps one lucky reward from
    outweighing the rest."""


class GroupRelativeConfig(_Learning):
    """Group-relative policy gradient (GRPO, arXiv 2402.03300, with the leave-one-out baseline of arXiv 2402.14740).

    Raise what did better than the others of its group, lower what did worse; no advantage is divided by its group's
    standard deviation, which would weigh groups of mere noise like the others (Dr. GRPO, arXiv 2503.20783).

    Log-probabilities are those of the model at temperature 1 and over all tokens, so sample with temperature 1 and
    top_p 1 for the update to be on-policy.
    """

    algorithm: Literal["grpo"] = "grpo"
    normalize: Literal["none", "batch"] = "none"
    """`batch` divides all advantages by one standard deviation, that of the whole batch; `none` leaves them."""
    line_credit: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weight of the credit of single lines in their tokens' advantages, in [0, 10]: each question's gain goes to the
    line that speaks of it, less what lines at that place earned in the document's other self-edits (`teacher.credit`);
    0 gives all tokens of a self-edit the same advantage."""
    refused_weight: float = Field(default=0.0, ge=0.0, le=10.0)
    """Weight with which completions that were refused for what they say (no self-edit in them, over a budget, stopped
    by a gate) are made less likely, in [0, 10]; with `normalize: batch` 1 is the size of an ordinary advantage. It is
    no reward and enters no mean and no baseline. 0 learns nothing from them."""
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


class PreferenceConfig(_Learning):
    """Direct preference optimization (arXiv 2305.18290): prefer a document's better completion to its worse one.

    The two examples of a pair stay together: a minibatch holds `minibatch_size` // 2 pairs and a forward pass
    `micro_batch_size` // 2, at least one each.
    """

    algorithm: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0.0, le=100.0)
    """Scale of the implicit reward beta * log(policy / base teacher), in (0, 100]; large values hold the policy nearer
    to the base (arXiv 2305.18290, equation 7)."""
    gap_errors: float = Field(default=1.5, ge=0.0, le=100.0)
    """Standard errors that the rewards of a pair must lie apart, at least, in [0, 100]; 0 takes every difference."""
    max_pairs: int = Field(default=8, ge=1, le=65_536)
    """Pairs taken of a document, those with the largest gaps, in [1, 65536]."""


LearningConfig: TypeAlias = Annotated[
    RestEmConfig | RewardWeightedConfig | GroupRelativeConfig | PreferenceConfig, Field(discriminator="algorithm")
]
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
    """Completions sampled for a document in a round, in [1, 1024]; all algorithms but `rest_em` need at least 2."""
    sampling: SamplingConfig = TransformersSampling()
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    gates: GateConfig = GateConfig()
    screening: ScreeningConfig | None = None
    """None updates a student with every candidate."""
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
