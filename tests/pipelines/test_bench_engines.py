"""`preceptor bench engines`: planned calls and their figures, report and plot, and one real run of both engines."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from evaluation.checkpoints import load_checkpoint
from evaluation.errors import ConfigError
from pipelines.bench import engine_summary as summary
from pipelines.bench.common import Machine, Spread, demo_config
from pipelines.bench.engine_figure import plot_engines
from pipelines.bench.engine_records import EngineBench, EngineBenchResult, EngineName, Runs, SamplingWork, Startup
from pipelines.bench.engine_report import closing_lines, print_engine_report
from pipelines.bench.engine_work import cut_prompts, perturb_adapter, sampling_of
from pipelines.cli import app
from pipelines.config import load_config
from teacher.config import PolicyConfig, TransformersSampling, VllmSampling
from teacher.policy import TeacherPolicy
from teacher.samplers import Completion
from tests.pipelines.small import SMALL, small_config
from tests.vllm_parts import needs_vllm

BENCH = EngineBench(config=demo_config(), prompts=(1, 64), samples=2, pairs=3)
WORK = SamplingWork(
    teacher="micro-teacher",
    configured="transformers",
    parameters=1000,
    rank=16,
    samples=2,
    prompt_tokens=107.4,
    max_new_tokens=128,
    temperature=0.8,
    top_p=1.0,
    greedy_prompts=8,
)
MACHINE = Machine(device="cpu", dtype="float32", threads=2, cores=2, matrix_product_rate=1e10, torch="2.13")
# At 64 prompts vLLM takes half of the time, but its samples are shorter; by tokens it wins by less.
RUNS: dict[EngineName, dict[int, Runs]] = {
    "transformers": {
        1: Runs(samples=2, seconds=(1.0, 1.0, 1.0), new_tokens=(100, 120, 80)),
        64: Runs(samples=128, seconds=(8.0, 6.0, 10.0), new_tokens=(8000, 6000, 8000)),
    },
    "vllm": {
        1: Runs(samples=2, seconds=(2.0, 4.0, 0.5), new_tokens=(100, 120, 80)),
        64: Runs(samples=128, seconds=(4.0, 2.0, 5.0), new_tokens=(6000, 3000, 6000)),
    },
}
STARTS: dict[EngineName, Startup] = {
    "transformers": Startup(first=2.0, again=0.5),
    "vllm": Startup(first=12.0, again=4.0),
}


def result(runs: dict[EngineName, dict[int, Runs]] = RUNS, share: float = 1.0) -> EngineBenchResult:
    return EngineBenchResult(
        ratios=summary.sample_ratios(runs),
        token_ratios=summary.token_ratios(runs),
        samples_per_second=summary.samples_per_second(runs),
        tokens_per_second=summary.tokens_per_second(runs),
        startup_seconds=STARTS,
        greedy_equal_share=share,
        peak_memory_bytes={"transformers": 190_000_000, "vllm": None},
        runs=runs,
        pairs=3,
        work=WORK,
        machine=MACHINE,
        versions={"transformers": "5.19.0", "vllm": "0.32.0"},
    )


def swapped() -> dict[EngineName, dict[int, Runs]]:
    return {"transformers": RUNS["vllm"], "vllm": RUNS["transformers"]}


def values(figure: Spread) -> tuple[float, float, float]:
    return figure.median, figure.low, figure.high


def printed(found: EngineBenchResult) -> str:
    out = io.StringIO()
    print_engine_report(Console(width=80, file=out), found, BENCH, Path("work/bench/engines.png"))
    return out.getvalue()


def test_rates_and_ratios_of_known_calls() -> None:
    found = result()
    assert found.samples_per_second["transformers"] == {1: 2.0, 64: 16.0}
    assert found.samples_per_second["vllm"] == {1: 1.0, 64: 32.0}
    # 8000/8, 6000/6 and 8000/10; 6000/4, 3000/2 and 6000/5.
    assert found.tokens_per_second["transformers"][64] == pytest.approx(1000.0)
    assert found.tokens_per_second["vllm"][64] == pytest.approx(1500.0)
    assert values(found.ratios[1]) == pytest.approx((0.5, 0.25, 2.0))
    assert values(found.ratios[64]) == pytest.approx((2.0, 2.0, 3.0))
    assert values(found.token_ratios[64]) == pytest.approx((1.5, 1.5, 1.5))


def test_slow_start_is_made_up_for_by_what_each_sample_gains() -> None:
    # 10 s lost; 1/16 - 1/32 s gained with every sample.
    assert summary.samples_to_break_even(result()) == pytest.approx(320.0)
    assert summary.samples_to_break_even(result(swapped())) is None


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.booleans()), min_size=1))
def test_equal_share_counts_what_is_the_same_in_tokens_and_end(rows: list[tuple[list[int], bool]]) -> None:
    first = [Completion("", tuple(tokens), "stop") for tokens, _ in rows]
    other = [Completion("", (*tokens, 4) if changed else tuple(tokens), "stop") for tokens, changed in rows]
    assert summary.equal_share(first, first) == 1.0
    assert summary.equal_share(first, other) == pytest.approx(sum(not c for _, c in rows) / len(rows))
    cut = [Completion("", one.token_ids, "length") for one in first]
    assert summary.equal_share(first, cut) == 0.0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True), st.integers(0, 40))
def test_prompts_of_the_sizes_never_overlap(sizes: list[int], available: int) -> None:
    prompts = [f"p{i}" for i in range(available)]
    if sum(sizes) > available:
        with pytest.raises(ConfigError, match="--prompts"):
            cut_prompts(prompts, sizes)
        return
    cut = cut_prompts(prompts, sizes)
    assert {size: len(part) for size, part in cut.items()} == {size: size for size in sizes}
    used = [prompt for part in cut.values() for prompt in part]
    assert len(used) == len(set(used))


def test_both_engines_sample_as_the_configuration_says_whichever_it_names() -> None:
    named = small_config("teacher.sampling.temperature=0.7", "teacher.sampling.batch_size=5")
    hugging, vllm = sampling_of(named, "transformers"), sampling_of(named, "vllm")
    assert isinstance(hugging, TransformersSampling)
    assert isinstance(vllm, VllmSampling)
    assert hugging == named.teacher.sampling
    assert (vllm.temperature, vllm.top_p, vllm.max_new_tokens) == (0.7, 1.0, 40)
    other = small_config("teacher.sampling={type: vllm, top_p: 0.9, structured: true, engine: {max_sequences: 7}}")
    hugging, vllm = sampling_of(other, "transformers"), sampling_of(other, "vllm", greedy=True)
    assert isinstance(vllm, VllmSampling)
    assert (vllm.engine.max_sequences, vllm.structured, vllm.temperature) == (7, False, 0.0)
    assert hugging == TransformersSampling(top_p=0.9)


def test_perturbed_adapter_changes_the_teacher_and_follows_its_seed() -> None:
    policy = TeacherPolicy.create(load_checkpoint("micro-teacher"), PolicyConfig(rank=4), seed=0)
    seen = [policy.digest]
    for seed in (1, 2, 1):
        perturb_adapter(policy, seed)
        seen.append(policy.digest)
    assert seen[1] == seen[3]
    assert len(set(seen)) == 3
    ids = policy.tokenizer("Passage: Mara works for Brandt.\nImplications:\n", return_tensors="pt")["input_ids"]
    logits = policy.model(ids).logits
    with policy.reference():
        change = (policy.model(ids).logits - logits).abs().mean() / logits.abs().mean()
    assert 0.01 < change < 1.0


def test_json_holds_what_scripts_read() -> None:
    read = json.loads(result().model_dump_json())
    assert set(read["ratios"]) == {"1", "64"}
    assert set(read["ratios"]["64"]) == {"median", "low", "high"}
    assert read["samples_per_second"]["vllm"] == {"1": 1.0, "64": 32.0}
    assert read["tokens_per_second"]["transformers"]["64"] == pytest.approx(1000.0)
    assert read["startup_seconds"]["vllm"] == {"first": 12.0, "again": 4.0}
    assert read["greedy_equal_share"] == 1.0
    assert EngineBenchResult.model_validate(read) == result()


def test_report_tells_rates_ratios_and_start_at_80_columns() -> None:
    text = printed(result())
    assert max(len(line) for line in text.split("Next\n")[0].splitlines()) <= 80
    assert "…" not in text
    plain = " ".join(text.split())
    assert "64 transformers 8 16.0 1,000 57.3" in plain
    assert "vLLM 4 32.0 1,500 39.1" in plain
    assert "64 2 times [2, 3] 1.5 times [1.5, 1.5]" in plain
    assert "Median of 3 pairs [lowest, highest]" in plain
    assert "8 of 8 greedy completions have the same tokens from both engines: they compute the same teacher" in plain
    assert "vLLM writes 1.5 times [1.5, 1.5] as many tokens a second; vLLM is faster in every pair" in plain
    assert "1 prompt a call: vLLM writes 0.5 times [0.25, 2] as many tokens a second; neither is faster" in plain
    assert "transformers 2 s, opened again 0.5 s; vLLM 12.0 s, opened again 4 s" in plain
    assert "vLLM takes 320 samples to make up for its first start" in plain
    assert "at most 190 MB with transformers." in plain


def test_report_warns_of_engines_that_disagree() -> None:
    found = result(share=0.75)
    assert "6 of 8 greedy completions have the same tokens from both engines. In float32" in " ".join(
        printed(found).split()
    )
    half = found.model_copy(update={"machine": MACHINE.model_copy(update={"dtype": "bfloat16"})})
    assert "In bfloat16 rounding lets them part" in " ".join(printed(half).split())


def test_next_command_uses_the_faster_engine_and_is_accepted() -> None:
    words = shlex.split(closing_lines(result(), BENCH, Path("a.png"))[-1])
    assert words[:3] == ["preceptor", "train-teacher", str(BENCH.config)]
    sampling = load_config(BENCH.config, [words[words.index("--set") + 1]]).teacher.sampling
    assert sampling == VllmSampling(type="vllm", temperature=0.8, max_new_tokens=128)
    named = result().model_copy(update={"work": WORK.model_copy(update={"configured": "vllm"})})
    assert "--set" not in closing_lines(named, BENCH, Path("a.png"))[-1]
    slower = closing_lines(result(swapped()), BENCH, Path("a.png"))
    assert slower[-1].strip() == "preceptor bench engines --prompts 64 --samples 8 --pairs 3"
    assert any("never makes up for its first start" in line for line in slower)


def test_figure_is_written_and_shows_the_measurements(tmp_path: Path) -> None:
    first, same, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    plot_engines(result(), first)
    plot_engines(result(), same)
    plot_engines(result(swapped()), other)
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == same.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def refusal(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, ["bench", "engines", *arguments])
    assert isinstance(outcome.exception, ConfigError), outcome.output
    return str(outcome.exception)


def test_command_refuses_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing.yaml" in refusal("--config", str(tmp_path / "nothing.yaml"))
    assert "--prompts.0" in refusal("--prompts", "100000")
    monkeypatch.setitem(sys.modules, "vllm", None)  # how Python marks a package that cannot be imported
    assert "pip install 'preceptor[vllm]'" in refusal("--work-dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@needs_vllm
def test_too_few_documents_are_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    message = refusal("--prompts", "400", "--work-dir", str(tmp_path))
    assert "got 400, together 400" in message
    assert "315 documents" in message


@needs_vllm
@pytest.mark.slow
def test_command_times_both_engines_and_writes_json_and_figure(tmp_path: Path) -> None:
    sampling = "teacher.sampling={type: vllm, max_new_tokens: 12, engine: {kv_cache_gb: 0.2, max_adapters: 2}}"
    config = load_config(demo_config(), [*SMALL[:-2], sampling])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    asked = ["--config", str(tmp_path / "config.yaml"), "--prompts", "2", "--prompts", "1", "--pairs", "1"]
    places = ["--json", str(tmp_path / "out" / "engines.json"), "--work-dir", str(tmp_path)]
    outcome = CliRunner().invoke(app, ["bench", "engines", *asked, *places], catch_exceptions=False)
    assert outcome.exit_code == 0
    found = EngineBenchResult.model_validate(json.loads((tmp_path / "out" / "engines.json").read_text()))
    assert found.greedy_equal_share == 1.0
    assert list(found.ratios) == [1, 2]
    for by_size in found.runs.values():
        for size, runs in by_size.items():
            assert len(runs.seconds) == 1
            assert runs.samples == size
            assert size <= runs.new_tokens[0] <= 12 * size
    slow, fast = found.runs["transformers"][2].seconds[0], found.runs["vllm"][2].seconds[0]
    assert found.ratios[2].median == pytest.approx(slow / fast)
    assert all(start.again > 0 for start in found.startup_seconds.values())
    assert found.startup_seconds["vllm"].first > found.runs["vllm"][1].seconds[0]
    assert found.work.greedy_prompts == 2
    assert (tmp_path / "bench" / "engines.png").read_bytes().startswith(b"\x89PNG")
    assert "pair 1 of 1" in outcome.output
    assert outcome.stdout.strip().splitlines()[-1].strip().startswith("preceptor ")
