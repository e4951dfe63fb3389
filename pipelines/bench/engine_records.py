"""What the benchmark of the sampling engines is asked for and what it found; importable without torch or vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.bench.common import Machine, Record, Spread

EngineName = Literal["transformers", "vllm"]
ENGINES: tuple[EngineName, ...] = ("transformers", "vllm")
"""In the order in which they are opened."""
LABELS: dict[EngineName, str] = {"transformers": "transformers", "vllm": "vLLM"}


class EngineBench(Record):
    """What `preceptor bench engines` is asked to time."""

    config: Path
    """YAML file that gives teacher, prompt, sampling and documents."""
    prompts: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(1, 8, 64), min_length=1)
    """Prompts of a call, each in [1, 65536]."""
    samples: int = Field(default=1, ge=1, le=1024)
    """Completions of each prompt, in [1, 1024]."""
    pairs: int = Field(default=5, ge=1, le=1000)
    """Timed calls of each engine at each number of prompts, half of them in the opposite order; in [1, 1000]."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is random, in [0, 2^31)."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of prompts that are run, ascending."""
        return tuple(sorted(set(self.prompts)))


class Startup(Record):
    """Seconds from nothing to the first completion of one prompt."""

    first: float
    """Imports, opening the model, the call. The transformers engine goes first, so that what both need, such as the
    import of transformers and the teacher with its adapter, counts as its own."""
    again: float
    """The same after everything was closed, with all that is imported kept."""


class Runs(Record):
    """The timed calls of one engine at one number of prompts, in the order of the pairs."""

    samples: int
    """Completions of a call."""
    seconds: tuple[float, ...]
    new_tokens: tuple[int, ...]
    """Over all completions of a call. The engines draw different samples, so these differ."""


class SamplingWork(Record):
    """What was sampled."""

    teacher: str
    configured: str
    """The engine that the configuration names."""
    parameters: int
    """Of the frozen base."""
    rank: int
    """Of the teacher's adapter."""
    samples: int
    """Completions of each prompt."""
    prompt_tokens: float
    """Mean over all prompts."""
    max_new_tokens: int
    temperature: float
    top_p: float
    greedy_prompts: int
    """Prompts on which the engines were compared."""


class EngineBenchResult(Record):
    """Everything that `preceptor bench engines` found. Dictionaries by number are by prompts of a call."""

    ratios: dict[int, Spread]
    """Samples per second, vLLM over transformers, pair by pair."""
    token_ratios: dict[int, Spread]
    """New tokens per second, likewise: unlike `ratios` not moved by which engine happened to draw longer samples."""
    samples_per_second: dict[EngineName, dict[int, float]]
    """Medians over the pairs."""
    tokens_per_second: dict[EngineName, dict[int, float]]
    """New tokens; medians over the pairs."""
    startup_seconds: dict[EngineName, Startup]
    greedy_equal_share: float
    """Of completions at temperature 0, those with the same tokens from both engines; in [0, 1]."""
    peak_memory_bytes: dict[EngineName, int | None]
    """Growth at its highest, from opening the engine to the end of its largest call; None where it cannot be measured.
    On a GPU that of PyTorch's allocator."""
    runs: dict[EngineName, dict[int, Runs]]
    pairs: int
    work: SamplingWork
    machine: Machine
    versions: dict[EngineName, str]
