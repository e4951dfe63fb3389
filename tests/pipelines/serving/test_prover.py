"""Reference answers from a process of their own, by the real transformers and PEFT."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from evaluation.checkpoints import load_checkpoint, model_digest
from evaluation.errors import ServeError
from pipelines.serving.champions import Champion
from pipelines.serving.config import ServeConfig
from pipelines.serving.probes import DRAWN, ServedAnswer, compare
from pipelines.serving.prover import Prover
from pipelines.serving.reference import ReferenceRequest, compute_reference
from pipelines.serving.upstream import Upstream
from student.adapters import Adapter, save_adapter
from tests.vllm_parts import random_adapter


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return random_adapter(load_checkpoint("micro-student").model, 1)


def champion(adapter: Adapter, directory: Path, base_digest: str = "") -> Champion:
    return Champion(1, adapter.digest, directory, adapter.rank, frozenset(), base_digest, (), False)


def test_reference_is_the_same_each_time_and_unlike_the_base(adapter: Adapter, tmp_path: Path) -> None:
    place = save_adapter(adapter, tmp_path / "adapter")
    request = ReferenceRequest(model="micro-student", adapter=place, prompts=["The river"], new_tokens=4)
    first, second = compute_reference(request), compute_reference(request)
    assert first == second
    assert len(first.answers) == 1 + DRAWN
    right = [ServedAnswer(a.tokens, [{t: v} for t, v in zip(a.tokens, a.logprobs, strict=True)]) for a in first.answers]
    assert compare(first, right, tolerance=1e-6).told_apart == 1 + DRAWN
    ignored = [
        ServedAnswer(a.tokens, [{t: v} for t, v in zip(a.tokens, a.base_logprobs, strict=True)]) for a in first.answers
    ]
    assert not compare(first, ignored, tolerance=1e-3).passed


def test_base_is_known_in_either_number_format(adapter: Adapter, tmp_path: Path) -> None:
    """An adapter trained on the base in bfloat16 recorded another digest than one trained in float32."""
    import torch

    place = save_adapter(adapter, tmp_path / "adapter")
    request = ReferenceRequest(model="micro-student", adapter=place, prompts=[], new_tokens=2, dtype="bfloat16")
    opened = [load_checkpoint("micro-student", dtype=dtype).model for dtype in (torch.float32, torch.bfloat16)]
    rounded = compute_reference(request)
    assert rounded.base_digests == [model_digest(model) for model in opened]
    assert rounded.answers != compute_reference(request.model_copy(update={"dtype": "float32"})).answers


def test_adapter_of_another_base_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    made = champion(adapter, save_adapter(adapter, tmp_path / "adapter"), base_digest="0" * 64)
    prover = Prover(ServeConfig(work_dir=tmp_path), "micro-student", tmp_path)
    with pytest.raises(ServeError, match="trained on the base '000000000000'"):
        asyncio.run(prover.prove(Upstream(1, "key"), "name", made))


def test_reference_that_fails_says_why_and_is_tried_again(adapter: Adapter, tmp_path: Path) -> None:
    made = champion(adapter, tmp_path / "nothing here")
    prover = Prover(ServeConfig(work_dir=tmp_path), str(tmp_path / "no model"), tmp_path)

    async def test() -> None:
        first = prover.prepare(made)
        with pytest.raises(ServeError, match=r"could not be computed.*no model"):
            await first
        again = prover.prepare(made)
        assert again is not first
        again.cancel()
        await prover.close()

    asyncio.run(test())
