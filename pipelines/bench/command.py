"""`preceptor bench`: benchmarks of the parts whose speed is a promise. Nothing heavy is imported before one starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import ValidationError

from evaluation.engines.vllm_guards import INSTALL_HINT
from evaluation.errors import ConfigError
from pipelines.bench.common import Record, demo_config
from pipelines.bench.engine_records import EngineBench
from pipelines.bench.records import BankBench, WorkloadName
from pipelines.process import prepare_process

Asked = TypeVar("Asked", bound=Record)

app = typer.Typer(
    help="Time the parts whose speed is a promise, against what they replace.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _bench() -> None:
    """Time the parts whose speed is a promise, against what they replace."""


_Config = Annotated[Path | None, typer.Option(help="YAML file for recipe, teacher and prompt [the demo's].")]
_Workload = Annotated[WorkloadName, typer.Option(help="`demo`: the untrained teacher's self-edits; or `synthetic`.")]
_Lines = Annotated[int | None, typer.Option(min=1, help="Synthetic: lines of an adapter [8].")]
_Tokens = Annotated[int | None, typer.Option(min=4, help="Synthetic: mean tokens of a line [24].")]
_Epochs = Annotated[int | None, typer.Option(min=1, help="Synthetic: passes [the recipe's].")]
_Rank = Annotated[int | None, typer.Option(min=1, help="Synthetic: LoRA rank [the recipe's].")]
_Student = Annotated[str | None, typer.Option(help="Directory, hub name or micro-student [the configuration's].")]
_Adapters = Annotated[int, typer.Option(min=1, help="Candidates in the timed work.")]
_Slots = Annotated[list[int] | None, typer.Option(min=1, help="Size K of the bank; repeatable [1, 4, 16, 64].")]
_Pairs = Annotated[int, typer.Option(min=1, help="Runs of every arm, in alternating order.")]
_Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Where models run [the configuration's].")]
_Dtype = Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Of the models [the configuration's].")]
_Seed = Annotated[int, typer.Option(min=0, help="Of everything that is random.")]
_Prompts = Annotated[list[int] | None, typer.Option(min=1, help="Prompts of a call; repeatable [1, 8, 64].")]
_Samples = Annotated[int, typer.Option(min=1, help="Completions of each prompt.")]
_EnginePairs = Annotated[int, typer.Option(min=1, help="Timed calls of each engine, in alternating order.")]
_EngineConfig = Annotated[Path | None, typer.Option(help="YAML file for teacher and documents [the demo's].")]
_EnginePlot = Annotated[Path | None, typer.Option(help="PNG file [bench/engines.png in the work directory].")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the result for scripts to this file.")]
_Plot = Annotated[Path | None, typer.Option(help="PNG file [bench/bank.png in the work directory].")]
_WorkDir = Annotated[Path, typer.Option(help="Directory for what is left behind.")]
_Profile = Annotated[bool, typer.Option("--profile", help="Also say where the time of the largest bank goes.")]
_Skip = Annotated[
    bool, typer.Option("--skip-published", help="Leave the published loop out; it takes most of the time.")
]


@app.command("bank")
def bank(
    config: _Config = None,
    workload: _Workload = "demo",
    lines: _Lines = None,
    tokens: _Tokens = None,
    epochs: _Epochs = None,
    rank: _Rank = None,
    student: _Student = None,
    adapters: _Adapters = 64,
    slots: _Slots = None,
    pairs: _Pairs = 5,
    device: _Device = None,
    dtype: _Dtype = None,
    seed: _Seed = 0,
    json_file: _Json = None,
    plot: _Plot = None,
    work_dir: _WorkDir = Path(".preceptor"),
    profile: _Profile = False,
    skip_published: _Skip = False,
) -> None:
    """Time the LoRA bank against a sequential PEFT loop and the published inner loop, on the same work.

    Every pair runs all of them in one process, in turning order; ratios come with their spread over the pairs.
    """
    synthetic = {"lines": lines, "tokens": tokens, "epochs": epochs, "rank": rank}
    chosen = {name: value for name, value in synthetic.items() if value is not None}
    if workload != "synthetic" and chosen:
        given = ", ".join(f"--{name}" for name in chosen)
        raise ConfigError(f"{given}: only for --workload synthetic; the demo's self-edits and recipe are as they are.")
    bench = _checked(
        BankBench,
        config=config or demo_config(),
        workload=workload,
        student=student,
        device=device,
        dtype=dtype,
        adapters=adapters,
        slots=tuple(slots or BankBench.model_fields["slots"].default),
        pairs=pairs,
        seed=seed,
        published=not skip_published,
        **chosen,
    )
    _run_bank(bench, work_dir, json_file, plot or work_dir / "bench" / "bank.png", profile=profile)


@app.command("engines")
def engines(
    config: _EngineConfig = None,
    prompts: _Prompts = None,
    samples: _Samples = 1,
    pairs: _EnginePairs = 5,
    seed: _Seed = 0,
    json_file: _Json = None,
    plot: _EnginePlot = None,
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Time vLLM against the transformers engine: the same teacher, adapter and prompts, sampled by both.

    Compares their greedy completions first. Ratios come with their spread over the pairs, start-up times apart.
    """
    bench = _checked(
        EngineBench,
        config=config or demo_config(),
        prompts=tuple(prompts or EngineBench.model_fields["prompts"].default),
        samples=samples,
        pairs=pairs,
        seed=seed,
    )
    _run_engines(bench, work_dir, json_file, plot or work_dir / "bench" / "engines.png")


def _checked(kind: type[Asked], **fields: Any) -> Asked:
    """Return what is asked for; what is out of range is refused in the words of the command line."""
    try:
        return kind(**fields)
    except ValidationError as error:
        mistakes = [f"--{'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r}" for m in error.errors()]
        raise ConfigError("; ".join(mistakes)) from error


def _run_bank(bench: BankBench, work_dir: Path, json_file: Path | None, plot: Path, *, profile: bool) -> None:
    """Run the benchmark of the bank, print it, and write its files."""
    from pipelines.config import load_config

    load_config(bench.config)  # A file that is refused is refused before torch is imported.
    prepare_process()
    from rich.console import Console

    from pipelines.bench.bank import bench_bank
    from pipelines.bench.figure import plot_bank
    from pipelines.bench.report import print_bank_report

    console = Console()
    result = bench_bank(bench, work_dir, console, profile=profile)
    _write_json(result, json_file)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot_bank(result, plot)
    print_bank_report(console, result, bench, plot)


def _run_engines(bench: EngineBench, work_dir: Path, json_file: Path | None, plot: Path) -> None:
    """Run the benchmark of the engines, print it, and write its files."""
    from importlib.util import find_spec

    from pipelines.config import load_config

    load_config(bench.config)
    if find_spec("vllm") is None:
        raise ConfigError(f"bench engines: vLLM is not installed, and it is one of the two. {INSTALL_HINT}.")
    prepare_process()
    from rich.console import Console

    from pipelines.bench.engine_figure import plot_engines
    from pipelines.bench.engine_report import print_engine_report
    from pipelines.bench.engines import bench_engines

    console = Console()
    result = bench_engines(bench, work_dir, console)
    _write_json(result, json_file)
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot_engines(result, plot)
    print_engine_report(console, result, bench, plot)


def _write_json(result: Record, json_file: Path | None) -> None:
    """Write the result for scripts, first of all files: it is what took the time."""
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
