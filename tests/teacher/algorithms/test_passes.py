"""Completions of a prompt that share a pass over it learn what they learn alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.common.checkpoints import load_checkpoint
from evaluation.prefixes import shares_prefixes
from teacher.algorithms.algorithm import Algorithm, LearningReport, WeightedExample, learn
from teacher.algorithms.grpo import GroupRelativeConfig
from teacher.algorithms.rest_em import RestEmConfig
from teacher.policy import PolicyConfig, TeacherPolicy
from tests.student.architectures import save_checkpoint
from tests.teacher.factories import shaken

PROMPTS = ("Alva Brin keeps the mill.", "Corda.")
EXAMPLES = [
    WeightedExample(PROMPTS[k % 2], tuple(range(5 + k, 8 + 3 * k)), 1.0 - 0.4 * k, PROMPTS[k % 2]) for k in range(7)
]
SHARING = ("llama", "gpt2", "gemma3_text", "cohere", "qwen3")
"""The output head of cohere scales, positions of gpt2 are absolute, attention in gemma3 slides."""


def learned(place: Path, config: Algorithm, *, shared: bool) -> tuple[LearningReport, torch.Tensor, int]:
    """Return the report of a step, AdamW's first moments, which are a tenth of the gradient, and the tokens read."""
    checkpoint = load_checkpoint(str(place), dtype=torch.float64)
    policy = shaken(TeacherPolicy(checkpoint, PolicyConfig(rank=2, alpha=1.0), seed=0))
    read: list[int] = []
    embeddings = checkpoint.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    report = learn(policy, EXAMPLES, config, seed=0, shared=shared)
    assert policy.optimizer_state is not None
    moments = [state["exp_avg"].flatten() for state in policy.optimizer_state["state"].values()]
    return report, torch.cat(moments), sum(read)


@pytest.mark.parametrize("kind", [*SHARING, "lfm2"])
def test_learn_behind_shared_prompts_has_the_gradients_of_rows_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a convolution, as in lfm2, nothing can be shared, and nothing is."""
    monkeypatch.setattr("teacher.algorithms.passes._LOGITS", 1)  # 16 tokens at a time
    place = save_checkpoint(kind, tmp_path / kind)
    assert shares_prefixes(load_checkpoint(str(place)).model) is (kind in SHARING)
    for config in (GroupRelativeConfig(minibatch_size=4, epochs=2, learning_rate=1e-3), RestEmConfig()):
        plain, expected, many = learned(place, config, shared=False)
        report, gradient, few = learned(place, config, shared=True)
        assert report.model_dump() == pytest.approx(plain.model_dump(), rel=1e-5, abs=1e-7)
        assert float((gradient - expected).norm() / expected.norm()) < 1e-5
        assert few < many or kind not in SHARING
