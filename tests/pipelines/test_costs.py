from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.config import RunConfig
from pipelines.costs import CPU_FLOPS_PER_SECOND, CostEstimate, cost_table, estimate
from pipelines.model_sizes import model_size
from teacher.config import RewardConfig


def _config(**changes: Any) -> RunConfig:
    """Return a small run: 3 rounds of 4 documents with 5 self-edits of at most 100 tokens each."""
    sections: dict[str, Any] = {
        "name": "small",
        "data": {"type": "jsonl", "path": "x.jsonl", "development_documents": 7, "test_documents": 11},
        "teacher": {"model": "org/teacher", "samples": 5, "sampling": {"max_new_tokens": 100}},
        "student": {"model": "org/student", "update": {"epochs": 3, "batch_size": 8, "max_steps": 1000}},
        "loop": {"rounds": 3, "documents": 4, "replicates": 2},
        "comparison": {"edits": 2, "fixed_prompts": ["micro-rewrite", "micro-self-qa"]},
    }
    for name, section in changes.items():
        sections[name] = {**sections[name], **section}
    return RunConfig.model_validate(sections)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    directory = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).save_pretrained(directory)
    return directory


def test_estimate_counts_samples_and_updates() -> None:
    cost = estimate(_config())
    # Rounds: 3 * 4 * 5. Comparison: 2 edits of 2 prompts on 7 documents, and of 3 teachers on 11.
    compared = 2 * (2 * 7 + 3 * 11)
    assert cost.teacher_samples == 60 + compared
    # Each edit of a round twice, and the raw passage of 11 documents once.
    assert cost.student_updates == 120 + compared + 11
    assert cost.teacher_steps == 3  # 20 completions fit one minibatch of 32
    assert cost.learning_tokens == 60 * 100


def test_estimate_bounds_tokens_and_steps_of_an_update() -> None:
    cost = estimate(_config(), passage_tokens=50)
    # An edit: 3 epochs over at most 100 tokens, which are at most 50 lines: 7 steps an epoch. A passage: one line.
    edits = 120 + 94
    assert cost.training_tokens == edits * 300 + 11 * 150
    assert cost.optimizer_steps == edits * 21 + 11 * 3


def test_estimate_with_the_passage_in_every_update_adds_it_once() -> None:
    alone, with_passage = (
        estimate(_config(student={"update": {"epochs": 3, "include_passage": include}}), passage_tokens=50)
        for include in (False, True)
    )
    assert with_passage.training_tokens - alone.training_tokens == (120 + 94) * 150


def test_estimate_respects_the_cap_on_steps() -> None:
    cost = estimate(_config(student={"update": {"epochs": 30, "max_steps": 4}}), passage_tokens=50)
    assert cost.optimizer_steps == 4 * cost.student_updates
    assert cost.training_tokens == (120 + 94) * 4 * 100 + 11 * 4 * 50


def test_estimate_without_rounds_has_no_learning_and_no_trained_teacher() -> None:
    cost = estimate(_config(loop={"rounds": 0}, comparison={"fixed_prompts": [], "edits": 1}))
    assert (cost.teacher_samples, cost.student_updates) == (11, 22)
    assert (cost.teacher_steps, cost.learning_tokens) == (0, 0)


def test_estimate_of_rest_em_learns_from_the_kept_edits_only() -> None:
    cost = estimate(_config(teacher={"learning": {"algorithm": "rest_em", "keep": 2, "epochs": 3}}))
    assert cost.learning_tokens == 3 * 4 * 2 * 3 * 100


def test_estimate_takes_no_more_documents_a_round_than_there_are() -> None:
    sections = _config().model_dump(exclude={"data"})
    data = {"type": "microworld", "train_documents": 2, "development_documents": 7, "test_documents": 11}
    cost = estimate(RunConfig.model_validate({**sections, "data": data}))
    assert cost.teacher_samples == 30 + 94


def test_estimate_of_endpoints_counts_calls_tokens_and_money() -> None:
    address = {"base_url": "http://127.0.0.1:1/v1", "model": "large", "price_input": 2.0, "price_output": 10.0}
    external = {"sampling": {"type": "openai", "max_new_tokens": 60, "endpoint": {**address, "budget_cost": 3.0}}}
    judge = {"type": "judge", "repeats": 3, "max_tokens": 8, "endpoint": address}
    sections = _config(comparison={"edits": 2, "external": external}).model_dump()
    config = RunConfig.model_validate({**sections, "grading": {"grader": judge, "max_new_tokens": 20}})
    cost = estimate(config, passage_tokens=100, questions=4)
    asked = {one.role: one for one in cost.endpoints}
    assert set(asked) == {"external", "judge"}
    generator = asked["external"]
    assert generator.calls == 2 * 11
    prompts = generator.tokens - 22 * 60
    assert generator.cost == pytest.approx((2.0 * prompts + 10.0 * 22 * 60) / 1e6)
    assert generator.budget == "3.00 USD"
    # Rewards by probability need no judge: 2 edits of 2 prompts on 7 documents, of 3 teachers and the generator on 11,
    # 2 passages on 11, and the students without an update, each with 4 questions, each asked about 3 times.
    compared = 2 * (2 * 7 + 3 * 11) + 22 + 11 + 7 + 11
    assert asked["judge"].calls == 3 * 4 * compared
    rewarded = config.model_copy(
        update={"teacher": config.teacher.model_copy(update={"reward": RewardConfig(metric="accuracy")})}
    )
    more = {one.role: one for one in estimate(rewarded, passage_tokens=100, questions=4).endpoints}
    assert more["judge"].calls - asked["judge"].calls == 3 * 4 * (120 + 12)
    out = io.StringIO()
    Console(file=out, width=100).print(cost_table(cost, config))
    assert "Endpoint: external" in out.getvalue()
    assert "budget 3.00 USD" in out.getvalue()


def test_estimate_of_hub_models_leaves_sizes_and_time_open() -> None:
    cost = estimate(_config())
    assert (cost.teacher_parameters, cost.student_parameters, cost.flops, cost.minutes) == (None, None, None, None)


def test_estimate_of_local_models_gives_flops_and_minutes(checkpoint: Path) -> None:
    config = _config(teacher={"model": str(checkpoint)}, student={"model": str(checkpoint)})
    cost = estimate(config)
    size = model_size(str(checkpoint), config.student.update.rank, "all-linear")
    assert cost.flops is not None
    assert size is not None
    # 4 P for each training token through frozen weights, 6 for each parameter of the adapter (arXiv 2001.08361).
    assert cost.flops.updates == cost.training_tokens * (4 * size.parameters + 6 * size.adapter)
    parts = cost.flops.model_dump()
    assert all(part > 0 for part in parts.values())
    assert cost.flops.total == sum(parts.values())
    assert cost.minutes == pytest.approx(cost.flops.total / CPU_FLOPS_PER_SECOND / 60)
    assert CostEstimate.model_validate_json(cost.model_dump_json()) == cost


def test_model_size_is_what_transformers_and_peft_count(checkpoint: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    for targets in ("all-linear", ("q_proj", "v_proj")):
        model = LlamaForCausalLM.from_pretrained(checkpoint)
        parameters = model.num_parameters()
        modules = targets if isinstance(targets, str) else list(targets)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM"))
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert model_size(str(checkpoint), 4, targets) == (parameters, trainable)


def test_model_size_from_the_config_alone_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    assert model_size(str(tmp_path), 8, "all-linear") == model_size(str(checkpoint), 8, "all-linear")


def test_model_size_of_a_large_model(tmp_path: Path) -> None:
    # Qwen2.5-7B (config.json on its model card): 7.6 billion parameters; LoRA of rank 16 on all linear layers has
    # 40.4 million, of rank 32 on queries and values 10.1 million.
    shape = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps({**shape, **heads}))
    whole = model_size(str(tmp_path), 16, "all-linear")
    narrow = model_size(str(tmp_path), 32, ("q_proj", "v_proj"))
    assert whole is not None
    assert narrow is not None
    assert whole.parameters == pytest.approx(7.6e9, rel=0.01)
    assert whole.adapter == pytest.approx(40.4e6, rel=0.002)
    assert narrow.adapter == pytest.approx(10.1e6, rel=0.005)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_model_size_of_a_broken_file_is_unknown(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert model_size(str(tmp_path), 8, "all-linear") is None


def test_model_size_of_another_architecture_without_weights_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_embd": 64, "n_layer": 2}')
    assert model_size(str(tmp_path), 8, "all-linear") is None


def test_estimate_is_quick_and_needs_no_torch(checkpoint: Path) -> None:
    config = _config(teacher={"model": str(checkpoint)}, student={"model": str(checkpoint)})
    times = []
    for _ in range(5):
        start = time.process_time()
        estimate(config)
        times.append(time.process_time() - start)
    assert min(times) < 0.05
    code = "import sys, pipelines.costs; print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cost_table_shows_every_figure_at_80_columns(checkpoint: Path) -> None:
    config = _config(teacher={"model": str(checkpoint)})
    cost = estimate(config)
    out = io.StringIO()
    Console(width=80, file=out).print(cost_table(cost, config))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figure in (cost.teacher_samples, cost.student_updates, cost.optimizer_steps, cost.training_tokens):
        assert f"{figure:,}" in text
    assert "size unknown" in text  # the student's
    assert "unknown" in text.split("GFLOP/s")[1]


def test_estimate_counts_pilot_halving_looks_controls_curve_and_the_other_student() -> None:
    plain = estimate(_config())
    loop = {
        **_config().loop.model_dump(),
        "halving": [{"keep": 2, "replicates": 2}],
        "repeated_documents": 1,
        "pilot": {"documents": 2, "samples": 3, "replicates": 4},
        "development": {"every": 2, "edits": 1},
    }
    comparison = {
        "edits": 2,
        "fixed_prompts": ["micro-rewrite", "micro-self-qa"],
        "controls": ["null_edit", "other_document", "equal_tokens", "proxy_teacher"],
        "curve": {"tokens": [40, 80], "samples": 3},
        "transfer": {"model": "another"},
    }
    cost = estimate(_config(loop=loop, comparison=comparison))
    rounds = 3 * (4 * 4 + 5)  # 2 leaders twice on 4 documents, and one document's 5 self-edits again
    looks = 2 * 7
    controls = 11 * (1 + 2 + 2 + 2)
    others = 3 * 11 * 2 + 3 * 11 * 2 + 11  # the curve of 3 teachers; their self-edits and the passage elsewhere
    assert cost.student_updates - plain.student_updates == rounds + 2 * 3 * 4 + looks + controls + others
    proxied = 60 + looks + 2 * 11
    assert cost.teacher_samples - plain.teacher_samples == 6 + looks + proxied + 3 * 2 * 11 + 3 * 11 * 3
