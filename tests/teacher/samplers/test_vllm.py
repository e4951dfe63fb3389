from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import ConfigError, GenerationError
from teacher.policy import PolicyConfig, TeacherPolicy
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler
from teacher.samplers.transformers import TransformersSampling
from teacher.samplers.vllm import VllmSampling
from tests.teacher.factories import shaken, tiny_base
from tests.vllm_parts import SMALL, needs_vllm

PROMPTS = [
    f"Passage: {name} works for Brandt as a baker. Brandt was founded by {name}.\nImplications:\n"
    for name in ("Mara Velt", "Otto Klein", "Ines Roth")
]


def test_prompt_limit_is_the_smaller_of_model_and_engine() -> None:
    policy = TeacherPolicy(tiny_base(context=64), PolicyConfig(rank=4), seed=0)
    config = VllmSampling(type="vllm", max_new_tokens=16)
    sampler = config.build(policy, "nowhere", "float32")
    assert sampler.max_prompt_tokens == 48
    with pytest.raises(GenerationError, match="longer than the 48 tokens"):
        sampler.sample(["w1 " * 49], n=1, seed=0)
    short = config.model_copy(update={"engine": SMALL.model_copy(update={"max_model_tokens": 40})})
    assert short.build(policy, "nowhere", "float32").max_prompt_tokens == 24
    with pytest.raises(ConfigError, match="max_new_tokens"):
        VllmSampling(type="vllm", max_new_tokens=64).build(policy, "nowhere", "float32")
    sampler.close()  # no error if nothing was started


@pytest.fixture(scope="module")
def policy() -> TeacherPolicy:
    return TeacherPolicy(load_checkpoint("micro-teacher"), PolicyConfig(rank=16, alpha=8), seed=0)


def vllm_sampler(policy: TeacherPolicy, **settings: object) -> Sampler:
    config = VllmSampling.model_validate({"type": "vllm", "max_new_tokens": 48, "engine": SMALL, **settings})
    return config.build(policy, "micro-teacher", "float32")


@pytest.fixture(scope="module")
def greedy(policy: TeacherPolicy) -> Iterator[Sampler]:
    sampler = vllm_sampler(policy, temperature=0.0)
    yield sampler
    sampler.close()


def texts(rows: Sequence[Sequence[Completion | FailedCompletion]]) -> list[list[str]]:
    return [[c.text for c in row if isinstance(c, Completion)] for row in rows]


@needs_vllm
def test_greedy_completions_equal_the_embedded_engine_for_every_policy(policy: TeacherPolicy, greedy: Sampler) -> None:
    embedded = TransformersSampling(max_new_tokens=48, temperature=0.0).build(policy, "micro-teacher", "float32")
    seen = []
    for change in (None, 5, 6, None):
        if change is None:
            policy.reset(0)
        else:
            shaken(policy, change)
        wanted = embedded.sample(PROMPTS, n=2, seed=0)
        assert greedy.sample(PROMPTS, n=2, seed=0) == wanted
        seen.append(str(texts(wanted)))
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3, "the adapters must change what is written"


@needs_vllm
def test_stop_ends_completions_as_in_the_embedded_engine(policy: TeacherPolicy, greedy: Sampler) -> None:
    policy.reset(0)
    embedded = TransformersSampling(max_new_tokens=48, temperature=0.0).build(policy, "micro-teacher", "float32")
    whole = embedded.sample(PROMPTS[:1], n=1, seed=0)[0][0]
    stop = whole.text[len(whole.text) // 2 :][:4]
    cut = greedy.sample(PROMPTS[:1], n=1, seed=0, stop=stop)
    assert cut == embedded.sample(PROMPTS[:1], n=1, seed=0, stop=stop)
    assert texts(cut) == [[whole.text.partition(stop)[0]]]
    assert greedy.sample(PROMPTS[:1], n=1, seed=0) == [[whole]]


@needs_vllm
def test_samples_depend_on_seed_prompt_and_index_alone(policy: TeacherPolicy) -> None:
    policy.reset(0)
    sampler = vllm_sampler(policy)
    try:
        together = sampler.sample(PROMPTS, n=4, seed=3)
        assert sampler.sample(PROMPTS[::-1], n=4, seed=3) == together[::-1]
        assert sampler.sample(PROMPTS[1:2], n=2, seed=3) == [list(together[1][:2])]
        assert len({text for row in texts(together) for text in row}) == 12
        assert texts(sampler.sample(PROMPTS, n=4, seed=4)) != texts(together)
        sampler.close()
        assert sampler.sample(PROMPTS[:1], n=1, seed=3) == [list(together[0][:1])]  # the engine starts again
    finally:
        sampler.close()
