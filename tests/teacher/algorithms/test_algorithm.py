from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation.common.checkpoints import Checkpoint
from evaluation.common.errors import InputError
from teacher.algorithms.algorithm import (
    Algorithm,
    CompletionGroup,
    CompletionReward,
    LearningReport,
    WeightedExample,
    learn,
)
from teacher.algorithms.grpo import LENGTH_NORMALIZER, GroupRelativeConfig
from teacher.algorithms.rest_em import RestEmConfig
from teacher.policy import PolicyConfig, TeacherPolicy
from teacher.prompts import prompt_token_ids
from teacher.samplers.transformers import TransformersSampler, TransformersSampling
from tests.teacher.factories import loaded, log_likelihoods, shaken, tiny_base, token_log_probs

EXAMPLES = [
    WeightedExample("w1 w2 w3", (5, 6, 7, 1), 1.0, "a"),
    WeightedExample("w1 w2 w3", (9, 9, 12, 40, 41, 1), -1.0, "a"),
    WeightedExample("w8", (30, 31), 0.5, "b"),
    WeightedExample("w8 w9 w10 w11 w12 w13", (50, 51, 52, 53, 54, 55, 56, 57), -0.5, "b"),
]
POSITIVE = [WeightedExample(e.prompt, e.token_ids, abs(e.weight), e.group_id) for e in EXAMPLES]
RELATIVE = GroupRelativeConfig(learning_rate=5e-3)
REST_EM = RestEmConfig(learning_rate=5e-3)


def policy(vocabulary: int = 300) -> TeacherPolicy:
    return TeacherPolicy(tiny_base(vocabulary), PolicyConfig(rank=4, alpha=8.0), seed=1)


def test_learn_with_absolute_positions() -> None:
    """Llama's positions are relative, which hides errors of left padding."""
    config = GPT2Config(vocab_size=300, n_embd=64, n_head=2, n_layer=2, n_positions=128, initializer_range=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Checkpoint(GPT2LMHeadModel(config).eval(), tiny_base().tokenizer)
    teacher = shaken(TeacherPolicy(base, PolicyConfig(rank=4), seed=1))
    total = sum(e.weight * value for e, value in zip(POSITIVE, log_likelihoods(teacher, POSITIVE), strict=True))
    assert learn(teacher, POSITIVE, REST_EM, seed=0).loss == pytest.approx(-total / 20, abs=1e-3)


def test_learn_rest_em_loss_is_the_weighted_likelihood_of_completion_tokens() -> None:
    teacher = shaken(policy())
    total = sum(float(e.weight * token_log_probs(teacher, e).sum()) for e in POSITIVE)
    tokens = sum(len(e.token_ids) for e in POSITIVE)
    report = learn(teacher, POSITIVE, REST_EM, seed=0)
    assert report.loss == pytest.approx(-total / tokens, rel=1e-5)
    assert report.tokens == tokens
    assert report.clip_fraction == 0.0


def test_learn_group_relative_first_loss_and_gradient_are_the_policy_gradient() -> None:
    """At ratio 1 the surrogate is the mean weighted length over the constant, its gradient that of w log p."""
    teacher = policy()
    report = learn(teacher, EXAMPLES, RELATIVE, seed=0)
    expected = -sum(e.weight * len(e.token_ids) for e in EXAMPLES) / (len(EXAMPLES) * LENGTH_NORMALIZER)
    assert report.loss == pytest.approx(expected, abs=1e-6)
    again = policy()
    objective = torch.zeros(())
    for e in EXAMPLES:
        objective = objective + e.weight * token_log_probs(again, e).sum() / (len(EXAMPLES) * LENGTH_NORMALIZER)
    gradients = torch.autograd.grad(objective, again.adapter_parameters())
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert report.gradient_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("config", [RELATIVE, REST_EM])
def test_learn_makes_the_better_completion_more_likely_than_the_worse(config: Algorithm) -> None:
    """The weights may raise both completions, but the better one more."""
    better, worse = CompletionReward((5, 6, 7, 1), 0.9), CompletionReward((9, 9, 12, 40, 1), 0.1)
    group = CompletionGroup("d", "w1 w2 w3", (worse, better), base_reward=0.5)
    both = [WeightedExample(group.prompt, c.token_ids, 1.0, "d") for c in (better, worse)]
    teacher = policy()
    before = log_likelihoods(teacher, both)
    for seed in range(5):
        learn(teacher, config.select([group]).examples, config, seed=seed)
    gains = [after - b for after, b in zip(log_likelihoods(teacher, both), before, strict=True)]
    assert gains[0] > gains[1] + 0.1


def test_learn_report_is_of_the_policy_before_each_step() -> None:
    config = RELATIVE.model_copy(update={"learning_rate": 2e-2})
    first, later = (learn(policy(), EXAMPLES, config.model_copy(update={"epochs": n}), seed=0) for n in (1, 6))
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert first.clip_fraction == 0.0
    assert first.entropy == pytest.approx(math.log(300), rel=0.1)  # a random model is near uniform
    assert later.kl is not None
    assert later.kl > 1e-3
    assert later.clip_fraction is not None
    assert later.clip_fraction > 0.1
    assert (later.examples, later.tokens, later.skipped_steps) == (4, 6 * 20, 0)


def test_learn_kl_and_entropy_equal_an_independent_computation() -> None:
    teacher = shaken(policy())
    kls, entropies = [], []
    for e in POSITIVE:
        ids = torch.tensor([[*prompt_token_ids(teacher.tokenizer, e.prompt), *e.token_ids]])
        with torch.no_grad():
            new = torch.distributions.Categorical(logits=teacher.model(ids).logits[0, -len(e.token_ids) - 1 : -1])
            with teacher.reference():
                old = torch.distributions.Categorical(logits=teacher.model(ids).logits[0, -len(e.token_ids) - 1 : -1])
        kls.append(torch.distributions.kl_divergence(new, old))
        entropies.append(-(new.logits.exp() * new.logits).sum(-1))
    report = learn(teacher, POSITIVE, REST_EM, seed=0)
    assert report.kl == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    assert report.entropy == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-4)


def test_learn_kl_term_limits_the_divergence() -> None:
    def kl(coefficient: float) -> float:
        config = RELATIVE.model_copy(update={"epochs": 25, "learning_rate": 1e-2, "kl_coefficient": coefficient})
        found = learn(policy(), EXAMPLES, config, seed=0).kl
        assert found is not None
        return found

    assert kl(5.0) < 0.5 * kl(0.0)


def test_learn_clips_in_the_direction_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CLIP = 0 the likelihood of a good completion stops rising after one step, that of a bad one falling."""
    config = RELATIVE.model_copy(update={"epochs": 4, "kl_coefficient": 0.0})
    monkeypatch.setattr("teacher.algorithms.grpo.CLIP", 0.0)
    for examples in ([EXAMPLES[0]], [EXAMPLES[1]]):
        one, four = (learn(policy(), examples, config.model_copy(update={"epochs": n}), seed=0) for n in (1, 4))
        assert (one.clip_fraction, four.clip_fraction) == (0.0, 0.75)
        assert four.gradient_norm == pytest.approx((one.gradient_norm or 0.0) / 4)


@pytest.mark.parametrize("config", [RELATIVE, REST_EM])
def test_learn_does_not_depend_on_the_micro_batch_and_repeats_itself(config: Algorithm) -> None:
    runs = []
    for size in (1, 4, 4):
        teacher = policy()
        report = learn(teacher, POSITIVE, config.model_copy(update={"micro_batch_size": size, "epochs": 2}), seed=0)
        runs.append((report, teacher.digest, log_likelihoods(teacher, POSITIVE)))
    assert runs[1] == runs[2]
    assert runs[0][0].gradient_norm == pytest.approx(runs[1][0].gradient_norm, rel=1e-4)
    assert runs[0][2] == pytest.approx(runs[1][2], abs=1e-2)


def test_learn_is_seeded_and_leaves_base_and_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    config = RELATIVE.model_copy(update={"minibatch_size": 2})
    teacher, other = policy(), policy()
    with teacher.reference():
        likelihoods = log_likelihoods(teacher, EXAMPLES)
    learn(teacher, EXAMPLES, config, seed=0)
    learn(other, EXAMPLES, config, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert teacher.digest != other.digest
    with teacher.reference():
        assert log_likelihoods(teacher, EXAMPLES) == likelihoods


def test_learn_save_load_learn_equals_learn_learn_bit_for_bit(tmp_path: Path) -> None:
    config = RELATIVE.model_copy(update={"epochs": 2, "minibatch_size": 3})
    straight, stopped = policy(), policy()
    for teacher in (straight, stopped):
        learn(teacher, EXAMPLES, config, seed=0)
    stopped.save(tmp_path / "policy")
    resumed = loaded(tmp_path / "policy", tiny_base())
    expected, found = (learn(teacher, EXAMPLES, config, seed=1) for teacher in (straight, resumed))
    assert found == expected
    assert resumed.digest == straight.digest
    forgetful = loaded(tmp_path / "policy", tiny_base())
    forgetful.optimizer_state = None
    learn(forgetful, EXAMPLES, config, seed=1)
    assert forgetful.digest != straight.digest  # so the optimizer's state did matter


def test_learn_without_examples_changes_nothing() -> None:
    teacher = shaken(policy())
    before = teacher.digest
    report = learn(teacher, [], RELATIVE, seed=0)
    assert report == LearningReport()
    assert teacher.digest == before


def test_learn_skips_and_counts_non_finite_steps() -> None:
    teacher = shaken(policy())
    with torch.no_grad():
        teacher.adapter_parameters()[0].fill_(math.inf)
    before = teacher.digest
    report = learn(teacher, POSITIVE, REST_EM, seed=0)
    assert report.skipped_steps == 1
    assert report.loss is None
    assert teacher.digest == before


def test_learn_refuses_bad_examples_all_at_once() -> None:
    wrong = [
        WeightedExample("w1", (), 1.0, "empty"),
        WeightedExample("w1 " * 100, (5,) * 40, 1.0, "long"),
        WeightedExample("w1", (5,), math.nan, "nan"),
    ]
    with pytest.raises(InputError, match=r"'empty'.*'long'.*140 tokens.*128.*'nan'"):
        learn(policy(), wrong, REST_EM, seed=0)
    with pytest.raises(InputError, match="nan"):
        learn(policy(), wrong[2:3], RELATIVE, seed=0)


def test_learn_group_relative_raises_the_reward_of_a_toy_bandit() -> None:
    """Reward: share of one of 32 tokens in the completion. Ten rounds (0.03 to 0.62) must gain 8 standard errors."""
    teacher = policy(vocabulary=32)
    sampler = TransformersSampler(teacher.model, teacher.tokenizer, TransformersSampling(max_new_tokens=12))
    prompts = [f"w{i} w{i + 1} w{i + 2}" for i in range(8)]

    def share(token_ids: tuple[int, ...]) -> float:
        return token_ids.count(5) / 12

    def mean_reward() -> tuple[float, float]:
        rewards = [share(c.token_ids) for row in sampler.sample(prompts, n=24, seed=999) for c in row]
        values = torch.tensor(rewards, dtype=torch.float64)
        return float(values.mean()), float(values.std()) / math.sqrt(len(rewards))

    config = GroupRelativeConfig(learning_rate=1e-2, epochs=2, minibatch_size=32)
    before, error_before = mean_reward()
    for step in range(10):
        sampled = sampler.sample(prompts, n=8, seed=step)
        groups = [
            CompletionGroup(prompt, prompt, tuple(CompletionReward(c.token_ids, share(c.token_ids)) for c in row))
            for prompt, row in zip(prompts, sampled, strict=True)
        ]
        learn(teacher, config.select(groups).examples, config, seed=step)
    after, error_after = mean_reward()
    assert after - before > 8 * math.hypot(error_before, error_after)
