"""What both engines are asked for: prompts of a configuration's documents, and an adapter that does something."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from evaluation.errors import ConfigError, GenerationError
from evaluation.tasks import Document
from pipelines.bench.engine_records import ENGINES, EngineName
from pipelines.config import RunConfig
from pipelines.report import counted
from pipelines.workspace import Workspace
from teacher.config import LocalSampling, TransformersSampling, VllmSampling
from teacher.policy import TeacherPolicy
from teacher.samplers import Completion, Sampler, build_sampler, prompts_too_long

_SCALE = 0.02
"""Standard deviation of B: changes what a layer gives by about a tenth, and most completions, but leaves them text."""


def sampling_of(config: RunConfig, engine: EngineName, *, greedy: bool = False) -> LocalSampling:
    """Return how an engine samples: as the configuration says, whichever engine it names, without structured output.

    Args:
        config: The settings of the other engine are their defaults.
        engine: Which to configure.
        greedy: At temperature 0 instead of the configuration's.
    """
    given = config.teacher.sampling
    temperature = 0.0 if greedy else given.temperature
    if engine == "transformers":
        own = given if isinstance(given, TransformersSampling) else TransformersSampling()
        return TransformersSampling(
            temperature=temperature,
            top_p=given.top_p,
            max_new_tokens=given.max_new_tokens,
            batch_size=own.batch_size,
        )
    options = given.engine if isinstance(given, VllmSampling) else VllmSampling(type="vllm").engine
    return VllmSampling(
        type="vllm",
        temperature=temperature,
        top_p=given.top_p,
        max_new_tokens=given.max_new_tokens,
        engine=options,
    )


def perturb_adapter(policy: TeacherPolicy, seed: int) -> None:
    """Give the policy's adapter random weights, B included, so that it differs from its base."""
    policy.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if ".lora_B." in name:
                weight.copy_(_SCALE * torch.randn(weight.shape, generator=generator))


def check_enough(sizes: Sequence[int], available: int) -> None:
    """Refuse to go on with fewer prompts than all sizes take together.

    Raises:
        ConfigError: There are too few.
    """
    if sum(sizes) > available:
        raise ConfigError(
            f"--prompts: got {', '.join(map(str, sizes))}, together {sum(sizes)}, but the configuration has "
            f"{counted(available, 'document')} for it whose prompts fit the teacher. Ask for fewer prompts (and more "
            "--samples), or raise data.train_documents."
        )


def cut_prompts(prompts: Sequence[str], sizes: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return the prompts of each size; no prompt is in two of them, so that none is in a cache when it is timed.

    Raises:
        ConfigError: There are too few.
    """
    check_enough(sizes, len(prompts))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {size: tuple(prompts[start : start + size]) for size, start in zip(sizes, starts, strict=True)}


class Engines:
    """The teacher of a configuration and both engines on it; a context manager that closes what was opened."""

    def __init__(self, config: RunConfig, work_dir: Path, *, greedy: bool) -> None:
        """Load the documents; models and engines wait for `open`.

        Args:
            config: Gives documents, teacher, prompt and sampling.
            work_dir: Of the workspace; nothing is read from it.
            greedy: Sample at temperature 0.

        Raises:
            InputError: The documents were refused.
        """
        self._ws = Workspace(config, work_dir)
        self._greedy = greedy
        self._samplers: dict[EngineName, Sampler] = {}
        documents = [task.document for side in self._ws.split for task in side]
        self._spare = min(documents, key=lambda document: len(document.text))
        self._documents = [document for document in documents if document is not self._spare]
        random.Random(self.seed("documents")).shuffle(self._documents)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sampler in self._samplers.values():
            sampler.close()

    @property
    def documents(self) -> int:
        """Number of documents to make prompts of."""
        return len(self._documents)

    @property
    def policy(self) -> TeacherPolicy:
        """The teacher; opened when it is first asked for."""
        return self._ws.policy

    def seed(self, *parts: str | int) -> int:
        """Return the seed of one purpose of this benchmark."""
        return self._ws.seed("bench", *parts)

    def open(self, engine: EngineName) -> None:
        """Open an engine, and the teacher if it is not open yet, as far as the first completion.

        Raises:
            ModelError: The teacher or the engine cannot be opened.
            GenerationError: The engine failed.
        """
        config = self._ws.config
        sampling = sampling_of(config, engine, greedy=self._greedy)
        self._samplers[engine] = build_sampler(sampling, self.policy, config.teacher.model, config.dtype)
        self.use_spare(engine)

    def use_spare(self, engine: EngineName) -> None:
        """Sample from a prompt that is in no call that is timed; takes up the adapter as it is now."""
        self.sample(engine, [self._prompt(self._spare)], n=1, seed=0)

    def prompts(self) -> list[str]:
        """Return the prompts that both engines take, in a shuffled order; both must be open."""
        found = [self._prompt(document) for document in self._documents]
        long = {record.index for engine in ENGINES for record in prompts_too_long(self._samplers[engine], found)}
        return [prompt for index, prompt in enumerate(found) if index not in long]

    def count_tokens(self, prompt: str) -> int:
        """Return the number of tokens of a prompt."""
        return self._samplers["transformers"].count_tokens(prompt)

    def sample(self, engine: EngineName, prompts: Sequence[str], *, n: int, seed: int) -> list[Completion]:
        """Return `n` completions of each prompt in one list.

        Raises:
            GenerationError: The engine failed, if only for one completion: the time would mean nothing.
        """
        written = [one for row in self._samplers[engine].sample(prompts, n=n, seed=seed) for one in row]
        done = [one for one in written if isinstance(one, Completion)]
        if len(done) < len(written):
            failed = next(one for one in written if not isinstance(one, Completion))
            raise GenerationError(
                f"benchmark: {engine} failed for {len(written) - len(done)} of {len(written)} completions, such as "
                f"{failed.reason}: {failed.detail}. Sample less at once (--prompts, --samples)."
            )
        return done

    def _prompt(self, document: Document) -> str:
        return self._ws.prompt(self._ws.config.teacher.prompt, document)
