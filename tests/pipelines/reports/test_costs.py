from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.plan import Plan, Stage, Step
from pipelines.reports import costs
from pipelines.train_teacher.config import TrainTeacherConfig
from teacher.rewards import RewardConfig
from teacher.samplers.openai import OpenAISampling

UPDATES, STEPS, TOKENS = "Student updates", "Student optimizer steps", "Student training tokens"
LEARNED = "Teacher learning tokens"
SECTIONS: dict[str, Any] = {
    "name": "small",
    "data": {"type": "jsonl", "path": "x.jsonl", "development_documents": 7, "test_documents": 11},
    "teacher": {"model": "org/teacher", "samples": 5, "sampling": {"max_new_tokens": 100}},
    "student": {"model": "org/student", "update": {"epochs": 3, "batch_size": 8, "max_steps": 1000}},
}


def settings(**changes: Any) -> TrainTeacherConfig:
    """Return settings of self-edits of at most 100 tokens, and updates of 3 epochs in batches of 8."""
    sections = {
        name: {**(SECTIONS[name] if name in ("teacher", "student") else {}), **changes[name]} for name in changes
    }
    return TrainTeacherConfig.model_validate({**SECTIONS, **sections})


PLAN: Plan = (
    Stage("round 0", (Step("sample", 4, 5), Step("update", 4, 10), Step("score", 4), Step("learn", 4, 5))),
    Stage("variant base", (Step("score", 11, questions="comparison"),)),
    Stage("variant raw_passage", (Step("update", 11, trains_on="passage", questions="comparison"),)),
    Stage(
        "variant external", (Step("sample", 11, 2, writer="external"), Step("update", 11, 2, questions="comparison"))
    ),
)


def cost_of(config: TrainTeacherConfig, plan: Plan = PLAN) -> costs.CostEstimate:
    return costs.estimate(plan, config, config.data)


def shown(cost: costs.CostEstimate, config: TrainTeacherConfig, width: int = 80) -> str:
    out = io.StringIO()
    Console(width=width, file=out).print(costs.cost_table(cost, config))
    return out.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    directory = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).save_pretrained(directory)
    return directory


def test_estimate_sums_the_steps_of_a_plan() -> None:
    cost = cost_of(settings())
    # An edit: 3 epochs over at most 100 tokens, which are at most 50 lines: 7 steps an epoch. A passage: one line.
    assert cost.counts == {
        "Self-edits sampled": 20,
        UPDATES: 40 + 11 + 22,
        STEPS: 62 * 21 + 11 * 3,
        TOKENS: 62 * 300 + 11 * 3 * costs.PASSAGE_TOKENS,
        "Teacher optimizer steps": 1,  # 20 fit a minibatch of 32
        LEARNED: 20 * 100,
    }
    assert (cost.teacher, cost.student, cost.flops, cost.minutes, cost.endpoints) == (None, None, None, None, {})
    assert set(cost_of(settings(), ()).counts.values()) == {0}


def test_estimate_counts_what_the_student_writes_and_reads(checkpoint: Path) -> None:
    model = {"model": str(checkpoint)}
    writes = (Stage("variant own", (Step("sample", 11, 2, writer="student"),)),)
    cost = cost_of(settings(teacher=model, student=model), writes)
    assert cost.counts["Self-edits sampled"] == 22
    assert cost.flops is not None
    assert cost.flops["sampling"] > 0
    reads = (Stage("variant retrieval", (Step("read", 11, questions="comparison"),)),)
    address = {"base_url": "http://127.0.0.1:1/v1", "model": "large"}
    graded = settings(grading={"grader": {"type": "judge", "endpoint": address}})
    assert cost_of(graded, reads).endpoints["judge"][1] == 11 * costs.QUESTIONS


def test_estimate_respects_the_recipe() -> None:
    with_passage = cost_of(settings(student={"update": {"epochs": 3, "batch_size": 8, "include_passage": True}}))
    assert with_passage.counts[TOKENS] - cost_of(settings()).counts[TOKENS] == 62 * 3 * costs.PASSAGE_TOKENS
    capped = cost_of(settings(student={"update": {"epochs": 30, "max_steps": 4}}))
    assert capped.counts[STEPS] == 4 * capped.counts[UPDATES]
    rest_em = settings(teacher={"learning": {"algorithm": "rest_em", "keep": 2, "epochs": 3}})
    assert cost_of(rest_em).counts[LEARNED] == 20 * 100 * 3


def test_estimate_tries_every_specification_of_a_space_within_the_budget() -> None:
    data = {"type": "microgrids", "test_documents": 11}
    update = {"batch_size": 8, "step_budget": 16, "max_steps": 1000}
    space = {"epochs": [1, 16], "orientations": ["none", "all"]}
    source = {"type": "fixed_specification", "space": space}
    comparison = {"variants": ["base", {"name": "spec", "label": "best specification", "source": source}]}
    config = settings(data=data, student={"update": update}, comparison=comparison, loop={"rounds": 0})
    variant = config.comparison.variants[1]
    tried = Step("update", 3, len(variant.source.choices), trains_on="specification")  # type: ignore[union-attr]
    cost = cost_of(config, (Stage("variant spec", (tried,), variant),))
    assert 0 < cost.counts[STEPS] <= 16 * cost.counts[UPDATES]
    assert cost.counts[TOKENS] == cost.counts[STEPS] * 8 * costs.PASSAGE_TOKENS
    one = cost_of(config, (Stage("variant spec", (Step("update", 11, trains_on="specification"),), variant),))
    assert one.counts[STEPS] == 11 * 16


def test_estimate_of_endpoints_counts_calls_and_tokens() -> None:
    address = {"base_url": "http://127.0.0.1:1/v1", "model": "large"}
    sampling = {"type": "openai", "max_new_tokens": 60, "endpoint": {**address, "budget_tokens": 3000}}
    judge = {"type": "judge", "repeats": 3, "max_tokens": 8, "endpoint": address}
    config = settings(grading={"grader": judge, "max_new_tokens": 20}, loop={"rounds": 0})
    cost = costs.estimate(PLAN, config, config.data, OpenAISampling.model_validate(sampling))
    calls = {role: calls for role, (_, calls, _) in cost.endpoints.items()}
    # Rewards by probability need no judge: the comparison's updates and scores alone are graded.
    assert calls == {"external": 22, "judge": 3 * costs.QUESTIONS * (11 + 11 + 22)}
    accurate = config.teacher.model_copy(update={"reward": RewardConfig(metric="accuracy")})
    more = cost_of(config.model_copy(update={"teacher": accurate})).endpoints["judge"][1]
    assert more - calls["judge"] == 3 * costs.QUESTIONS * (40 + 4)
    assert "budget 3,000 tokens" in shown(cost, config, 100)


def test_estimate_of_local_models_gives_flops_and_minutes(checkpoint: Path) -> None:
    config = settings(teacher={"model": str(checkpoint)}, student={"model": str(checkpoint)})
    cost = cost_of(config)
    size = costs.model_size(str(checkpoint), config.student.update.rank, "all-linear")
    assert cost.flops is not None
    assert size is not None
    # 4 P for each training token through frozen weights, 6 for each parameter of the adapter (arXiv 2001.08361).
    assert cost.flops["updates"] == cost.counts[TOKENS] * (4 * size.parameters + 6 * size.adapter)
    assert all(part > 0 for part in cost.flops.values())
    assert cost.minutes == pytest.approx(sum(cost.flops.values()) / costs.CPU_FLOPS_PER_SECOND / 60)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen2.5-7B-Instruct", 7), ("meta-llama/Llama-3.2-1B", 1), ("HuggingFaceTB/SmolLM2-135M", 0.135),
     ("openai-community/gpt2", 0.124), ("mistralai/Mixtral-8x7B-v0.1", None), ("org/student", None)],
)  # fmt: skip
def test_size_of_a_model_that_is_not_here_is_by_its_name(name: str, billions: float | None) -> None:
    size = costs.model_size(name, 16, "all-linear")
    assert (size and size.parameters / 1e9) == billions
    assert size is None or (size.estimated and 0 < size.adapter < size.parameters)


def test_dry_run_for_a_gpu_has_time_and_memory() -> None:
    model = {"model": "Qwen/Qwen2.5-7B"}
    config = settings(teacher=model, student=model).model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    text = shown(cost_of(config), config)
    assert "about 7.00 billion" in text
    assert "28.0 models" in text
    assert "unknown" not in text


def test_model_size_is_what_transformers_and_peft_count(checkpoint: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    for targets in ("all-linear", ("q_proj", "v_proj")):
        model = LlamaForCausalLM.from_pretrained(checkpoint)
        parameters = model.num_parameters()
        modules = targets if isinstance(targets, str) else list(targets)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM"))
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert costs.model_size(str(checkpoint), 4, targets) == (parameters, trainable, False)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_model_size_without_a_whole_file_is_unknown(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert costs.model_size(str(tmp_path), 8, "all-linear") is None


def test_cost_table_shows_every_figure_at_80_columns(checkpoint: Path) -> None:
    config = settings(teacher={"model": str(checkpoint)})
    cost = cost_of(config)
    text = shown(cost, config)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figure in cost.counts.values():
        assert f"{figure:,}" in text
    assert "size unknown" in text  # the student's
    assert "unknown" in text.split("GFLOP/s")[1]
