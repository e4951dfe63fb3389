from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.common.errors import ConfigError, GenerationError
from evaluation.generation import gumbel_noise, row_key
from evaluation.tasks import Document
from teacher.kinds import kinds
from teacher.policy import PolicyConfig, TeacherPolicy
from teacher.prompts import prompt_template, prompt_token_ids
from teacher.samplers.sampler import prompts_too_long
from teacher.samplers.transformers import TransformersSampler, TransformersSampling, nucleus
from tests.student.architectures import save_checkpoint
from tests.teacher.factories import shaken, tiny_base, tiny_chat_base

PROMPTS = [" ".join(f"w{(7 * i + j) % 290}" for j in range(3 + 4 * i)) for i in range(4)]


def sampler(base: Checkpoint | None = None, **options: float) -> TransformersSampler:
    base = base or tiny_base()
    settings = {"max_new_tokens": 12, "batch_size": 16} | options
    return TransformersSampler(base.model, base.tokenizer, TransformersSampling.model_validate(settings))


def test_sample_does_not_depend_on_the_batch() -> None:
    together = sampler(batch_size=16).sample(PROMPTS, n=4, seed=3)
    assert sampler(batch_size=1).sample(PROMPTS, n=4, seed=3) == together
    assert sampler(batch_size=5).sample(PROMPTS[::-1], n=4, seed=3) == together[::-1]
    assert sampler().sample(PROMPTS[2:3], n=2, seed=3) == [together[2][:2]]
    each = [sampler().sample([prompt], n=1, seed=seed)[0] for seed, prompt in enumerate(PROMPTS)]
    assert sampler().sample(PROMPTS, n=1, seed=range(len(PROMPTS))) == each


def test_sample_changes_with_index_seed_and_prompt_and_not_otherwise() -> None:
    first = sampler().sample(PROMPTS, n=3, seed=3)
    texts = [completion.text for row in first for completion in row]
    assert len(set(texts)) == len(texts)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert sampler().sample(PROMPTS, n=3, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler().sample(PROMPTS, n=3, seed=4) != first
    assert len({row_key(s, p, i) for s in range(5) for p in PROMPTS for i in range(5)}) == 100


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_sample_follows_the_softmax(temperature: float, top_p: float) -> None:
    """Chi-square of 4,000 one-token completions against the probabilities; fails by chance for 1 seed in 1,000."""
    base, prompt, draws = tiny_base(vocabulary=40), "w1 w2 w3", 4000
    with torch.no_grad():
        ids = torch.tensor([prompt_token_ids(base.tokenizer, prompt)])
        probabilities = torch.softmax(base.model(ids).logits[0, -1].double() / temperature, 0).numpy()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1] if top_p < 1 else order
    expected = probabilities[kept] / probabilities[kept].sum() * draws
    engine = sampler(base, temperature=temperature, top_p=top_p, max_new_tokens=1, batch_size=4000)
    counts = Counter(completion.token_ids[0] for completion in engine.sample([prompt], n=draws, seed=0)[0])
    assert set(counts) <= set(kept.tolist())
    observed = np.array([counts[token] for token in kept.tolist()])
    assert expected.min() > 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_gumbel_noise_is_standard_gumbel_and_independent() -> None:
    keys = torch.tensor([row_key(0, "p", i) for i in range(200)])
    noise = torch.stack([gumbel_noise(keys, step, 50) for step in range(4)])  # (steps, N, V)
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    uniform = torch.exp(-torch.exp(-noise))
    pairs = [(uniform[0], uniform[1]), (uniform[:, :-1], uniform[:, 1:]), (uniform[..., :-1], uniform[..., 1:])]
    for a, b in pairs:  # neighbours in step, row and token: |r| below 4 standard errors
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 4 / a.numel() ** 0.5


@pytest.mark.parametrize("sharpness", [0.1, 4.0])
def test_nucleus_is_the_fewest_tokens_of_a_probability_few_or_most_of_the_vocabulary(
    sharpness: float,
) -> None:
    scores = sharpness * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    tokens, kept = nucleus(scores, 0.9)
    wanted = TopPLogitsWarper(0.9)(None, scores) > -torch.inf
    assert torch.equal(torch.zeros_like(wanted).scatter(1, tokens, kept), wanted)
    assert (tokens.shape[1] == 5000) == (sharpness < 1)
    keys = torch.tensor([4, 5, 6])
    assert torch.equal(gumbel_noise(keys, 7, 5000, tokens), gumbel_noise(keys, 7, 5000).gather(1, tokens))


def test_an_untrained_adapter_takes_no_part_in_sampling_and_a_trained_one_does() -> None:
    policy, used = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=0), list[str]()
    for name, module in policy.model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda *_, name=name: used.append(name))
    engine = TransformersSampling(max_new_tokens=4).build(policy, "nowhere", "float32")
    untrained = engine.sample(PROMPTS, n=4, seed=0)
    assert untrained == sampler(tiny_base(), max_new_tokens=4).sample(PROMPTS, n=4, seed=0)
    assert not used
    shaken(policy, 1)
    assert engine.sample(PROMPTS, n=4, seed=0) != untrained
    assert used
    assert all(parameter.requires_grad for parameter in policy.adapter_parameters())


def test_sample_greedy_equals_unbatched_generate() -> None:
    base = tiny_base()
    found = sampler(base, temperature=0.0).sample(PROMPTS, n=2, seed=0)
    for prompt, (completion, again) in zip(PROMPTS, found, strict=True):
        ids = base.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = base.model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
        assert list(completion.token_ids) == expected
        assert again == completion


def test_sample_stops_at_the_closing_token() -> None:
    completions = [c for row in sampler(tiny_base(vocabulary=12)).sample(PROMPTS, n=8, seed=0) for c in row]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        stopped = completion.finish_reason == "stop"
        assert (completion.token_ids[-1] == 1) == stopped
        assert 1 not in completion.token_ids[:-1]
        assert len(completion.token_ids) == 12 or stopped
        assert "<eos>" not in completion.text


@pytest.mark.parametrize("name", sorted({*kinds(), "worked-self-qa"}))
def test_completions_of_every_kind_end_where_another_passage_or_turn_begins(name: str) -> None:
    """In the plain form at the stop string that the template gives, in a chat at the end of the turn alone."""
    template, base = prompt_template(name), tiny_chat_base()
    engine, document = sampler(base, max_new_tokens=30, temperature=5.0), Document(id="d", title="w", text="w w")
    assert template.stop == "\nPassage:"
    whole = engine.sample([template.render(document)], n=24, seed=1)[0]
    cut = engine.sample([template.render(document)], n=24, seed=1, stop=template.stop)[0]
    for long, short in zip(whole, cut, strict=True):
        assert short.text == long.text.partition("\nPassage:")[0]
        assert long.token_ids[: len(short.token_ids)] == short.token_ids
        if short != long:
            assert short.finish_reason == "stop"
            assert "\nPassage:" in base.tokenizer.decode(short.token_ids, skip_special_tokens=True)
            assert "\nPassage:" not in base.tokenizer.decode(short.token_ids[:-1], skip_special_tokens=True)
    assert 0 < sum(short != long for long, short in zip(whole, cut, strict=True)) < 24
    spoken = engine.sample([template.render_chat(document, base.tokenizer)], n=24, seed=1)[0]
    ended = [completion for completion in spoken if completion.finish_reason == "stop"]
    assert ended
    assert all(c.token_ids[-1] == 1 and 1 not in c.token_ids[:-1] and "im_end" not in c.text for c in ended)


def test_nothing_is_generated_after_the_stop_string() -> None:
    base, steps = tiny_chat_base(), list[int]()
    engine = sampler(base, max_new_tokens=30, temperature=5.0, batch_size=1)
    base.model.register_forward_hook(lambda *_: steps.append(1))
    cut = engine.sample(["w"], n=16, seed=1, stop="\nPassage:")[0]
    assert len(steps) == sum(len(completion.token_ids) for completion in cut)
    assert any(completion.finish_reason == "stop" and completion.token_ids[-1] != 1 for completion in cut)


def test_sample_ignores_the_checkpoints_own_generation_settings() -> None:
    expected = sampler().sample(PROMPTS, n=2, seed=0)
    base = tiny_base()
    base.model.generation_config.update(repetition_penalty=5.0, top_k=1, max_length=5, do_sample=True, temperature=0.1)
    own = base.model.generation_config.to_dict()
    base.model.train()
    assert sampler(base).sample(PROMPTS, n=2, seed=0) == expected
    assert base.model.generation_config.to_dict() == own
    assert base.model.training


def test_sample_too_long_prompts_are_listed_and_can_be_skipped() -> None:
    engine = sampler(tiny_base(context=32))
    assert engine.max_prompt_tokens == 20
    prompts = ["w1 " * 20, "w2 " * 21, "w3", "w4 " * 40]
    assert prompts_too_long(engine, prompts) == {1: 21, 3: 40}
    with pytest.raises(GenerationError, match=r"2 of 4 prompts .*prompt 1 .*21 tokens; prompt 3 .*40 tokens"):
        engine.sample(prompts, n=1, seed=0)
    longest = engine.sample(prompts[:1], n=1, seed=0)
    assert len(longest[0][0].token_ids) <= 12
    with pytest.raises(GenerationError, match=r"\[1\] hold no token"):
        engine.sample(["w1", " "], n=1, seed=0)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        sampler(tiny_base(context=32), max_new_tokens=32)


def test_built_sampler_uses_the_current_policy() -> None:
    policy = TeacherPolicy(tiny_base(), PolicyConfig(rank=4), seed=0)
    engine = TransformersSampling(max_new_tokens=12, temperature=0.0).build(policy, "micro-teacher", "float32")
    before = engine.sample(PROMPTS, n=1, seed=0)
    assert before == sampler(temperature=0.0).sample(PROMPTS, n=1, seed=0)
    shaken(policy)
    assert engine.sample(PROMPTS, n=1, seed=0) != before


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "cohere", "lfm2"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.8}])
def test_samples_behind_a_prompt_that_is_read_once_are_those_behind_prompts_of_their_own(
    kind: str, options: dict[str, float], tmp_path: Path
) -> None:
    """Rows end at different tokens and leave the batch; with a convolution (lfm2) nothing can be shared."""
    model, tokenizer = load_checkpoint(str(save_checkpoint(kind, tmp_path)), dtype=torch.float64)
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 10))
    prompts = ["Alva Brin keeps the mill.", "Corda.", "A"]
    config = TransformersSampling.model_validate({"max_new_tokens": 20, "batch_size": 7, **options})
    found = [
        TransformersSampler(model, tokenizer, config, shared=shared).sample(prompts, n=4, seed=1)
        for shared in (True, False)
    ]
    assert found[0] == found[1]
    assert len({len(completion.token_ids) for row in found[0] for completion in row}) > 3
