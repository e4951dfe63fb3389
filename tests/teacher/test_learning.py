from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation.checkpoints import Checkpoint
from evaluation.errors import InputError
from teacher.config import (
    GroupRelativeConfig,
    LearningConfig,
    PolicyConfig,
    PreferenceConfig,
    RestEmConfig,
    RewardWeightedConfig,
    TransformersSampling,
)
from teacher.learning import LearningReport, learn, log_likelihoods
from teacher.policy import TeacherPolicy
from teacher.prompts import prompt_token_ids
from teacher.samplers.transformers_engine import TransformersSampler
from teacher.selection import Candidate, CandidateGroup, WeightedExample, group_relative, select_examples
from tests.teacher.tiny import shaken, tiny_base

EXAMPLES = [
    WeightedExample("w1 w2 w3", (5, 6, 7, 1), 1.0, "a"),
    WeightedExample("w1 w2 w3", (9, 9, 12, 40, 41, 1), -1.0, "a"),
    WeightedExample("w8", (30, 31), 0.5, "b"),
    WeightedExample("w8 w9 w10 w11 w12 w13", (50, 51, 52, 53, 54, 55, 56, 57), -0.5, "b"),
]
POSITIVE = [WeightedExample(e.prompt, e.token_ids, abs(e.weight), e.group_id) for e in EXAMPLES]
PAIRS = [
    WeightedExample("w1 w2 w3", (5, 6, 7, 1), 1.0, "a", 0),
    WeightedExample("w1 w2 w3", (9, 9, 12, 40, 41, 1), -1.0, "a", 0),
    WeightedExample("w8", (30, 31), 1.0, "b", 1),
    WeightedExample("w8", (50, 51, 52, 53, 54, 55, 56, 57), -1.0, "b", 1),
    WeightedExample("w1 w2 w3", (20, 1), -1.0, "a", 2),
    WeightedExample("w1 w2 w3", (5, 6, 7, 1), 1.0, "a", 2),
]
RELATIVE = GroupRelativeConfig(learning_rate=5e-3, length_normalizer=8)
REST_EM = RestEmConfig(learning_rate=5e-3)
WEIGHTED = RewardWeightedConfig(learning_rate=5e-3)
PREFERENCE = PreferenceConfig(learning_rate=5e-3)


def policy(vocabulary: int = 300) -> TeacherPolicy:
    return TeacherPolicy.create(tiny_base(vocabulary), PolicyConfig(rank=4, alpha=8.0), seed=1)


def token_log_probs(of: TeacherPolicy, example: WeightedExample) -> torch.Tensor:
    """Return the log-probabilities of a completion's tokens (T,), one sequence alone and without padding."""
    ids = [*prompt_token_ids(of.tokenizer, example.prompt), *example.token_ids]
    with torch.no_grad():
        log_probs = torch.log_softmax(of.model(torch.tensor([ids])).logits[0].double(), -1)
    width = len(example.token_ids)
    return log_probs[-width - 1 : -1].gather(1, torch.tensor(example.token_ids)[:, None])[:, 0]


def preference_loss(of: TeacherPolicy, pairs: Sequence[WeightedExample], beta: float) -> torch.Tensor:
    """Return the mean of -log sigmoid(margin) as the paper writes it, differentiable, each sequence alone."""
    margins: dict[int | None, torch.Tensor] = {}
    for e in pairs:
        ids = torch.tensor([[*prompt_token_ids(of.tokenizer, e.prompt), *e.token_ids]])

        def likelihood(ids: torch.Tensor = ids, width: int = len(e.token_ids)) -> torch.Tensor:
            log_probs = torch.log_softmax(of.model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])
            return log_probs[-width:].sum()

        with torch.no_grad(), of.reference():
            reference = likelihood()
        margins[e.pair] = margins.get(e.pair, torch.zeros(())) + beta * e.weight * (likelihood() - reference)
    return -logsigmoid(torch.stack(list(margins.values()))).mean()


def test_log_likelihoods_equal_those_of_each_sequence_alone() -> None:
    teacher = shaken(policy())
    expected = [float(token_log_probs(teacher, example).sum()) for example in EXAMPLES]
    assert log_likelihoods(teacher, EXAMPLES, micro_batch_size=3) == pytest.approx(expected, abs=1e-4)


def test_log_likelihoods_are_right_where_positions_are_absolute() -> None:
    """Llama's positions are relative, so padding on the left could not be seen there."""
    config = GPT2Config(vocab_size=300, n_embd=64, n_head=2, n_layer=2, n_positions=128, initializer_range=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Checkpoint(GPT2LMHeadModel(config).eval(), tiny_base().tokenizer)
    teacher = shaken(TeacherPolicy.create(base, PolicyConfig(rank=4), seed=1))
    expected = [float(token_log_probs(teacher, example).sum()) for example in EXAMPLES]
    assert log_likelihoods(teacher, EXAMPLES, micro_batch_size=4) == pytest.approx(expected, abs=1e-3)


def test_learn_rest_em_loss_is_the_weighted_likelihood_of_completion_tokens() -> None:
    teacher = shaken(policy())
    total = sum(float(e.weight * token_log_probs(teacher, e).sum()) for e in POSITIVE)
    tokens = sum(len(e.token_ids) for e in POSITIVE)
    report = learn(teacher, POSITIVE, REST_EM, seed=0)
    assert report.loss == pytest.approx(-total / tokens, rel=1e-5)
    assert report.tokens == report.steps[0].tokens == tokens
    assert report.clip_fraction == 0.0


def test_learn_group_relative_first_loss_and_gradient_are_the_policy_gradient() -> None:
    """At ratio 1 the surrogate is the mean weighted length over the constant, its gradient that of w log p."""
    teacher = policy()
    report = learn(teacher, EXAMPLES, RELATIVE.model_copy(update={"max_gradient_norm": 1e9}), seed=0)
    expected = -sum(e.weight * len(e.token_ids) for e in EXAMPLES) / (len(EXAMPLES) * 8)
    assert report.loss == pytest.approx(expected, abs=1e-6)
    again = policy()
    objective = torch.zeros(())
    for e in EXAMPLES:
        ids = torch.tensor([[*prompt_token_ids(again.tokenizer, e.prompt), *e.token_ids]])
        log_probs = torch.log_softmax(again.model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])
        objective = objective + e.weight * log_probs[-len(e.token_ids) :].sum() / (len(EXAMPLES) * 8)
    gradients = torch.autograd.grad(objective, again.adapter_parameters())
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert report.gradient_norm == pytest.approx(norm, rel=1e-4)


def test_learn_reward_weighted_loss_is_the_weighted_likelihood_of_completion_tokens() -> None:
    teacher = shaken(policy())
    total = sum(float(e.weight * token_log_probs(teacher, e).sum()) for e in POSITIVE)
    assert learn(teacher, POSITIVE, WEIGHTED, seed=0).loss == pytest.approx(-total / 20, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 8])
def test_learn_preferences_gradient_is_that_of_the_textbook_loss(micro_batch_size: int) -> None:
    """In float64 and with a policy that differs from its base; AdamW's first moment is 0.1 times the first gradient."""
    base = tiny_base()
    teacher = shaken(TeacherPolicy.create(Checkpoint(base.model.double(), base.tokenizer), PolicyConfig(rank=4), 1))
    loss = preference_loss(teacher, PAIRS, beta=0.7)
    expected = torch.autograd.grad(loss, teacher.adapter_parameters())
    textbook = float(loss.detach())
    options = {"beta": 0.7, "micro_batch_size": micro_batch_size, "max_gradient_norm": 1e9}
    report = learn(teacher, PAIRS, PREFERENCE.model_copy(update=options), seed=0)
    assert abs(textbook - math.log(2.0)) > 0.1  # the weights are not those of equal policies
    assert report.loss == pytest.approx(textbook, abs=1e-9)
    assert teacher.optimizer_state is not None
    for i, gradient in enumerate(expected):
        found = teacher.optimizer_state["state"][i]["exp_avg"] / 0.1
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9)
    (step,) = report.steps
    assert step.gradient_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in expected)), rel=1e-7)
    assert (step.examples, step.tokens, step.clip_fraction) == (6, 26, 0.0)
    assert step.kl > 0.0
    assert 0.0 < step.entropy < math.log(300)


def test_learn_preferences_of_the_base_start_at_log_2_and_fall() -> None:
    report = learn(policy(), PAIRS, PREFERENCE.model_copy(update={"epochs": 8}), seed=0)
    losses = [step.loss for step in report.steps]
    assert losses[0] == pytest.approx(math.log(2.0), abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5


@pytest.mark.parametrize(("minibatch_size", "examples"), [(1, [2, 2, 2]), (3, [2, 2, 2]), (4, [4, 2]), (32, [6])])
def test_learn_preferences_keeps_pairs_whole(minibatch_size: int, examples: list[int]) -> None:
    apart = [PAIRS[i] for i in (3, 0, 4, 2, 1, 5)]
    report = learn(policy(), apart, PREFERENCE.model_copy(update={"minibatch_size": minibatch_size}), seed=0)
    assert [step.examples for step in report.steps] == examples
    together = learn(policy(), PAIRS, PREFERENCE, seed=0).loss
    assert learn(policy(), apart, PREFERENCE, seed=0).loss == pytest.approx(together, abs=1e-6)


def test_learn_preferences_with_an_entropy_bonus_spreads_more() -> None:
    plain, spread = (
        learn(policy(), PAIRS, PREFERENCE.model_copy(update={"epochs": 20, "entropy_bonus": bonus}), seed=0).steps[-1]
        for bonus in (0.0, 1.0)
    )
    assert spread.entropy > plain.entropy
    assert spread.loss < plain.loss - 1.0  # the bonus is part of the objective


@pytest.mark.parametrize("config", [RELATIVE, REST_EM, WEIGHTED, PREFERENCE])
def test_learn_makes_the_better_completion_likelier_than_the_worse(config: LearningConfig) -> None:
    """A weight may raise both completions; what counts is which one gains on the other."""
    better, worse = Candidate((5, 6, 7, 1), 0.9, 0.05), Candidate((9, 9, 12, 40, 1), 0.1, 0.05)
    group = CandidateGroup("d", "w1 w2 w3", (worse, better), base_reward=0.5)
    both = [WeightedExample(group.prompt, c.token_ids, 1.0, "d") for c in (better, worse)]
    teacher = policy()
    before = log_likelihoods(teacher, both)
    for seed in range(5):
        learn(teacher, select_examples([group], config).examples, config, seed=seed)
    gains = [after - b for after, b in zip(log_likelihoods(teacher, both), before, strict=True)]
    assert gains[0] > gains[1] + 0.1


@pytest.mark.parametrize("config", [RELATIVE, REST_EM])
def test_learn_raises_good_completions_and_lowers_bad_ones(config: RestEmConfig | GroupRelativeConfig) -> None:
    teacher = policy()
    examples = EXAMPLES if isinstance(config, GroupRelativeConfig) else POSITIVE
    before = log_likelihoods(teacher, examples)
    for seed in range(5):
        learn(teacher, examples, config, seed=seed)
    gains = [after - b for after, b in zip(log_likelihoods(teacher, examples), before, strict=True)]
    assert all(gain * example.weight > 0.1 for gain, example in zip(gains, examples, strict=True))


def test_learn_report_is_of_the_policy_before_each_step() -> None:
    teacher = policy()
    report = learn(teacher, EXAMPLES, RELATIVE.model_copy(update={"epochs": 6, "learning_rate": 2e-2}), seed=0)
    first, last = report.steps[0], report.steps[-1]
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert first.clip_fraction == 0.0
    assert first.entropy == pytest.approx(math.log(300), rel=0.1)  # a random model is near uniform
    assert last.kl > 1e-3
    assert last.clip_fraction > 0.2
    assert len(report.steps) == 6
    assert (report.examples, report.tokens, report.skipped_steps) == (4, 6 * 20, 0)


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


def test_learn_kl_and_entropy_terms_pull() -> None:
    def after(**options: float) -> LearningReport:
        config = RELATIVE.model_copy(update={"epochs": 25, "learning_rate": 1e-2} | options)
        return learn(policy(), EXAMPLES, config, seed=0)

    free, held, spread = (
        after(kl_coefficient=0.0).steps[-1],
        after(kl_coefficient=5.0).steps[-1],
        after(kl_coefficient=0.0, entropy_bonus=1.0).steps[-1],
    )
    assert held.kl < 0.5 * free.kl
    assert spread.entropy > free.entropy


def test_learn_clips_on_the_side_that_the_weight_pushes() -> None:
    """With the upper bound at 0 a good completion stops rising after one step, and a bad one still falls."""
    config = RELATIVE.model_copy(update={"epochs": 4, "clip_low": 0.9, "clip_high": 0.0, "kl_coefficient": 0.0})
    good, bad = [EXAMPLES[0]], [EXAMPLES[1]]
    assert [s.clip_fraction for s in learn(policy(), good, config, seed=0).steps][1:] == [1.0] * 3
    assert [s.gradient_norm for s in learn(policy(), good, config, seed=0).steps][1:] == [0.0] * 3
    assert [s.clip_fraction for s in learn(policy(), bad, config, seed=0).steps] == [0.0] * 4


@pytest.mark.parametrize("config", [RELATIVE, REST_EM, PREFERENCE])
def test_learn_does_not_depend_on_the_micro_batch_and_repeats_itself(config: LearningConfig) -> None:
    examples = PAIRS if isinstance(config, PreferenceConfig) else POSITIVE
    runs = []
    for size in (1, 4, 4):
        teacher = policy()
        report = learn(teacher, examples, config.model_copy(update={"micro_batch_size": size, "epochs": 2}), seed=0)
        runs.append((report, teacher.digest, log_likelihoods(teacher, examples)))
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
    resumed = TeacherPolicy.load(tmp_path / "policy", tiny_base())
    expected, found = (learn(teacher, EXAMPLES, config, seed=1) for teacher in (straight, resumed))
    assert found == expected
    assert resumed.digest == straight.digest
    forgetful = TeacherPolicy.load(tmp_path / "policy", tiny_base())
    forgetful.optimizer_state = None
    learn(forgetful, EXAMPLES, config, seed=1)
    assert forgetful.digest != straight.digest  # so the optimizer's state did matter


def test_learn_rest_em_restart_forgets_earlier_rounds() -> None:
    config = REST_EM.model_copy(update={"restart": True})
    once, twice = policy(), policy()
    learn(twice, POSITIVE[:2], config, seed=4)
    learn(twice, POSITIVE, config, seed=5)
    learn(once, POSITIVE, config, seed=5)
    assert once.digest == twice.digest


def test_learn_from_nothing_changes_nothing() -> None:
    teacher = shaken(policy())
    before = teacher.digest
    report = learn(teacher, [], RELATIVE, seed=0)
    assert report == LearningReport(steps=(), examples=0, tokens=0)
    assert report.loss is report.kl is report.gradient_norm is None
    assert teacher.digest == before


def test_learn_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
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
        WeightedExample("w1", (5,), -1.0, "negative"),
    ]
    with pytest.raises(InputError, match=r"'empty'.*'long'.*got 140 tokens, the model takes 128.*'nan'.*'negative'"):
        learn(policy(), wrong, REST_EM, seed=0)
    with pytest.raises(InputError, match="nan"):
        learn(policy(), wrong[2:3], RELATIVE, seed=0)
    with pytest.raises(InputError, match=r"'negative'.*at least 0"):
        learn(policy(), wrong[3:], WEIGHTED, seed=0)


def test_learn_preferences_refuses_what_is_not_pairs() -> None:
    alone, same_sign = PAIRS[:1], [PAIRS[0], WeightedExample("w1 w2 w3", (9,), 1.0, "a", 0)]
    other_prompt = [PAIRS[0], WeightedExample("w1", (9,), -1.0, "a", 0)]
    unnumbered = [WeightedExample("w1", (8,), 1.0, "u"), WeightedExample("w1", (9,), -1.0, "u")]
    for wrong in (alone, same_sign, other_prompt, [*PAIRS, *unnumbered], [*PAIRS, PAIRS[1]]):
        teacher = policy()
        before = teacher.digest
        with pytest.raises(InputError, match=r"pair (0|None) of group '[au]': got the weights .* select them"):
            learn(teacher, wrong, PREFERENCE, seed=0)
        assert teacher.digest == before


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

    config = GroupRelativeConfig(learning_rate=1e-2, epochs=2, minibatch_size=32, length_normalizer=12)
    before, error_before = mean_reward()
    for step in range(10):
        sampled = sampler.sample(prompts, n=8, seed=step)
        groups = [
            CandidateGroup(prompt, prompt, tuple(Candidate(c.token_ids, share(c.token_ids)) for c in row))
            for prompt, row in zip(prompts, sampled, strict=True)
        ]
        learn(teacher, group_relative(groups, normalize="batch").examples, config, seed=step)
    after, error_after = mean_reward()
    assert after - before > 8 * math.hypot(error_before, error_after)
