from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import GenerationError, ModelError
from evaluation.engines.vllm import (
    ALLOWED_RANKS,
    AdapterHandle,
    EngineCompletion,
    EngineFailure,
    EngineRequest,
    VllmEngine,
    VllmOptions,
    allowed_rank,
)
from student.adapters import Adapter, save_adapter
from tests.vllm_parts import SMALL, needs_vllm, random_adapter

NEW_TOKENS = 24


def test_allowed_rank_is_the_smallest_that_holds_the_adapter() -> None:
    for rank in range(1, ALLOWED_RANKS[-1] + 1):
        size = allowed_rank(rank)
        assert size >= rank
        assert all(other < rank for other in ALLOWED_RANKS if other < size)
    with pytest.raises(ValueError, match="got 513, vLLM allows at most 512"):
        allowed_rank(513)


@pytest.fixture(scope="module")
def student() -> Any:
    return load_checkpoint("micro-student")


@pytest.fixture(scope="module")
def prompts(student: Any) -> list[list[int]]:
    texts = ("Question: Where does Mara Velt work? Answer:", "Mara Velt", "Question: Who runs Brandt? Answer:", "The")
    return [[1, *student.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]


class Process(NamedTuple):
    """What an engine must leave as it is."""

    environment: dict[str, str]
    threads: int
    set_threads: Any
    python_state: Any
    torch_state: bytes

    @classmethod
    def now(cls) -> Process:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("VLLM", "PYTEST"))}
        state = torch.random.get_rng_state().numpy().tobytes()
        return cls(environment, torch.get_num_threads(), torch.set_num_threads, random.getstate(), state)


class Started(NamedTuple):
    engine: VllmEngine
    before: Process
    after: Process


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    before = Process.now()
    with closing(VllmEngine("micro-student", SMALL, max_rank=8)) as running:
        yield Started(running, before, Process.now())


@pytest.fixture(scope="module")
def engine(started: Started) -> VllmEngine:
    return started.engine


@pytest.fixture(scope="module")
def adapters(student: Any) -> list[Adapter]:
    return [random_adapter(student.model, seed) for seed in range(16)]


@pytest.fixture(scope="module")
def handles(engine: VllmEngine, adapters: list[Adapter], tmp_path_factory: Any) -> list[AdapterHandle]:
    place = tmp_path_factory.mktemp("adapters")
    return [engine.register(save_adapter(a, place / str(i)), a.digest) for i, a in enumerate(adapters)]


def greedy(model: Any, prompt: list[int]) -> tuple[int, ...]:
    """Return what transformers writes, the end included; on one thread, which is faster for such small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    written = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    torch.set_num_threads(threads)
    return tuple(written[0, len(prompt) :].tolist())


def tokens(written: Sequence[EngineCompletion | EngineFailure]) -> list[tuple[int, ...]]:
    """Return what was written, where nothing failed."""
    assert all(isinstance(w, EngineCompletion) for w in written), written
    return [w.token_ids for w in written if isinstance(w, EngineCompletion)]


@needs_vllm
def test_process_is_as_it_was_after_the_engine_started(started: Started) -> None:
    assert started.after == started.before


@needs_vllm
def test_greedy_tokens_equal_those_of_transformers(engine: VllmEngine, student: Any, prompts: list[list[int]]) -> None:
    written = engine.generate([EngineRequest(prompt, NEW_TOKENS) for prompt in prompts])
    assert tokens(written) == [greedy(student.model, prompt) for prompt in prompts]
    for completion in written:
        assert isinstance(completion, EngineCompletion)
        ended = completion.token_ids[-1] == student.tokenizer.eos_token_id
        assert completion.finish_reason == ("stop" if ended else "length")


@needs_vllm
def test_sixteen_adapters_in_one_call_equal_peft_one_by_one(
    engine: VllmEngine, student: Any, prompts: list[list[int]], adapters: list[Adapter], handles: list[AdapterHandle]
) -> None:
    from peft import PeftModel

    requests = [EngineRequest(prompt, NEW_TOKENS, handle) for handle in handles for prompt in prompts]
    base = [EngineRequest(prompt, NEW_TOKENS) for prompt in prompts]
    mixed = engine.generate([*base, *requests])  # the call that goes wrong when base and adapters share a batch
    plain = [greedy(student.model, prompt) for prompt in prompts]
    assert tokens(mixed[: len(base)]) == plain
    wanted: list[tuple[int, ...]] = []
    for handle in handles:
        model = PeftModel.from_pretrained(load_checkpoint("micro-student").model, str(handle.directory)).eval()
        wanted.extend(greedy(model, prompt) for prompt in prompts)
    assert tokens(mixed[len(base) :]) == wanted
    assert len(set(wanted)) > 40, "adapters that change little would hide a mix-up"


@needs_vllm
def test_samples_follow_their_seed_and_not_their_neighbours(engine: VllmEngine, prompts: list[list[int]]) -> None:
    requests = [EngineRequest(prompts[0], NEW_TOKENS, temperature=1.0, seed=seed) for seed in range(8)]
    together = engine.generate(requests)
    assert [engine.generate([request])[0] for request in requests[:3]] == together[:3]
    assert engine.generate(requests[::-1]) == together[::-1]
    assert len(set(tokens(together))) == 8


@needs_vllm
def test_more_prompts_than_one_pass_holds_are_sampled_as_each_alone(engine: VllmEngine, student: Any) -> None:
    """vLLM computes some 4,096 prompt tokens at once; what is left over must not disturb the seeds."""
    words = student.tokenizer("Mara Velt works for Brandt as a baker. " * 12, add_special_tokens=False)["input_ids"]
    requests = [
        EngineRequest([1, *words[i : i + 90], *words[:20]], 4, temperature=1.0, seed=1000 + i) for i in range(64)
    ]
    assert sum(len(request.token_ids) for request in requests) > 6000
    together = engine.generate(requests)
    assert [engine.generate([requests[i]])[0] for i in (0, 37, 63)] == [together[i] for i in (0, 37, 63)]


@needs_vllm
def test_bad_adapters_are_refused_and_the_engine_lives(
    engine: VllmEngine, student: Any, prompts: list[list[int]], tmp_path: Path
) -> None:
    before = engine.generate([EngineRequest(prompts[0], NEW_TOKENS)])
    large = random_adapter(student.model, 99, rank=64)
    with pytest.raises(ModelError, match="refused the adapter"):
        engine.register(save_adapter(large, tmp_path / "large"), large.digest)
    assert engine.generate([EngineRequest(prompts[0], NEW_TOKENS)]) == before


@needs_vllm
def test_a_name_is_never_used_for_other_weights(engine: VllmEngine, student: Any, tmp_path: Path) -> None:
    adapter = random_adapter(student.model, 200)
    directory = save_adapter(adapter, tmp_path / "a")
    first = engine.register(directory, adapter.digest)
    assert engine.register(directory, adapter.digest) == first
    engine.forget(first)
    second = engine.register(directory, adapter.digest)
    assert second.name != first.name
    assert second.number != first.number
    with pytest.raises(GenerationError, match="not registered"):
        engine.generate([EngineRequest([1], 1, first)])
    engine.forget(second)


@needs_vllm
def test_engine_that_cannot_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)could not be started on cpu.*preceptor doctor"):
        VllmEngine(str(tmp_path), SMALL)
    with pytest.raises(ModelError, match="the installed build runs on 'cpu', the configuration wants 'cuda'"):
        VllmEngine("micro-student", SMALL, device="cuda")


@needs_vllm
def test_closed_engine_refuses_and_a_new_one_starts(prompts: list[list[int]]) -> None:
    with closing(VllmEngine("micro-student", VllmOptions(kv_cache_gb=0.1))) as running:
        first = running.generate([EngineRequest(prompts[0], 4)])
    with pytest.raises(GenerationError, match="it was closed"):
        running.generate([EngineRequest(prompts[0], 4)])
    running.close()
    with closing(VllmEngine("micro-student", VllmOptions(kv_cache_gb=0.1))) as running:
        assert running.generate([EngineRequest(prompts[0], 4)]) == first
