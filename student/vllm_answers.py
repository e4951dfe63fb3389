"""Text from many adapters at once by vLLM: one call with an adapter for each slot, as in `LoraBank.generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.answers import prompt_ids
from evaluation.engines.vllm_engine import AdapterHandle, EngineFailure, EngineRequest, VllmEngine
from evaluation.errors import ModelError, ScoringError
from student.adapters import Adapter, save_adapter
from student.scoring import ScoringFailure


def answer_with_vllm(
    engine: VllmEngine,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[str]],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int] = (),
) -> list[list[str] | ScoringFailure]:
    """Return for each slot what it writes greedily after each of its prompts, or why it writes nothing.

    Args:
        engine: Running the student's base, with a largest rank that holds all adapters.
        adapters: K adapters; None asks the base student.
        prompts: K lists of prompts, of any lengths.
        tokenizer: The student's Hugging Face tokenizer.
        max_new_tokens: Longest answer, at least 1.
        end_tokens: Tokens that end an answer beside the tokenizer's own.

    Raises:
        ScoringError: There are not as many lists of prompts as adapters.
        GenerationError: The engine failed as a whole.
    """
    if len(adapters) != len(prompts):
        raise ScoringError(
            f"vllm answers: got {len(adapters)} adapters and {len(prompts)} lists of prompts; give one each"
        )
    failures: dict[int, ScoringFailure] = {}
    with tempfile.TemporaryDirectory(prefix="preceptor-students-") as scratch:
        handles: dict[int, AdapterHandle] = {}
        try:
            for k, adapter in enumerate(adapters):
                if adapter is not None:
                    try:
                        handles[k] = _registered(engine, adapter, Path(scratch))
                    except ModelError as error:
                        failures[k] = ScoringFailure(str(error))
            asked = [(k, prompt) for k, mine in enumerate(prompts) if k not in failures for prompt in mine]
            requests = [
                EngineRequest(prompt_ids(tokenizer, prompt), max_new_tokens, handles.get(k), end_tokens=end_tokens)
                for k, prompt in asked
            ]
            written = engine.generate(requests)
        finally:
            for handle in set(handles.values()):
                engine.forget(handle)
    texts: dict[int, list[str]] = {k: [] for k in range(len(adapters))}
    for (k, _), completion in zip(asked, written, strict=True):
        if isinstance(completion, EngineFailure):
            failures[k] = ScoringFailure(f"vllm: {completion.detail}")
        else:
            texts[k].append(tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
    return [failures.get(k, texts[k]) for k in range(len(adapters))]


def _registered(engine: VllmEngine, adapter: Adapter, scratch: Path) -> AdapterHandle:
    """Return the handle of an adapter, written to `scratch` for the engine to read."""
    directory = scratch / adapter.digest[:20]
    if not directory.exists():
        save_adapter(adapter, directory)
    return engine.register(directory, adapter.digest)
