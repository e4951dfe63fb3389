"""`preceptor bench bank` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.errors import ConfigError
from pipelines.bench.records import BankBenchResult
from pipelines.cli import app
from pipelines.model_sizes import model_size
from tests.student.tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("student")
    tiny_model().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def bench(*arguments: str) -> list[str]:
    return ["bench", "bank", *arguments]


def refusal(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, bench(*arguments))
    assert isinstance(outcome.exception, ConfigError), outcome.output
    return str(outcome.exception)


@pytest.mark.slow
def test_bank_command_times_all_arms_and_writes_json_and_figure(student: Path, tmp_path: Path) -> None:
    amount = ["--lines", "2", "--tokens", "8", "--epochs", "2", "--rank", "2", "--adapters", "2", "--slots", "1"]
    places = ["--slots", "2", "--json", str(tmp_path / "out" / "bank.json"), "--work-dir", str(tmp_path)]
    asked = ["--workload", "synthetic", "--student", str(student), "--pairs", "2", *amount, *places]
    outcome = CliRunner().invoke(app, bench(*asked), catch_exceptions=False)
    assert outcome.exit_code == 0
    found = BankBenchResult.model_validate(json.loads((tmp_path / "out" / "bank.json").read_text()))
    assert set(found.arms) == {"published", "sequential", "bank-1", "bank-2", "bank-2-of-1"}
    assert list(found.adapters_per_minute) == [1, 2]
    for arm in found.arms.values():
        assert len(arm.seconds) == 2
        assert min(arm.seconds) > 0
        assert 0 <= arm.padding_share < 1
        assert 0 < arm.useful_flop_share < 1
    # Each line of 6 to 10 tokens stands in 256 places, the tiny student's limit.
    assert found.arms["published"].padding_share > 0.95
    each = found.arms["sequential"].seconds, found.arms["bank-2"].seconds
    ratios = sorted(slower / faster for slower, faster in zip(*each, strict=True))
    assert found.ratios.bank_over_sequential.low == pytest.approx(ratios[0])
    assert found.ratios.bank_over_sequential.high == pytest.approx(ratios[1])
    assert found.ratios.bank_over_published is not None
    size = model_size(str(student), 2, "all-linear")
    assert size is not None
    assert found.work.parameters == size.parameters
    assert found.work.flops == pytest.approx(found.work.tokens * (4 * size.parameters + 6 * size.adapter))
    assert found.work.factor_difference < 1e-4
    assert found.targets == ()
    assert (tmp_path / "bench" / "bank.png").read_bytes().startswith(b"\x89PNG")
    assert "pair 2 of 2" in outcome.output
    assert "--profile" in outcome.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_bank_command_profiles_and_leaves_the_published_loop_out(student: Path, tmp_path: Path) -> None:
    amount = ["--lines", "1", "--tokens", "8", "--epochs", "1", "--adapters", "1", "--slots", "64", "--pairs", "1"]
    places = ["--json", str(tmp_path / "bank.json"), "--plot", str(tmp_path / "plot.png"), "--work-dir", str(tmp_path)]
    asked = ["--workload", "synthetic", "--student", str(student), "--skip-published", "--profile", *amount, *places]
    outcome = CliRunner().invoke(app, bench(*asked), catch_exceptions=False)
    assert outcome.exit_code == 0
    found = BankBenchResult.model_validate(json.loads((tmp_path / "bank.json").read_text()))
    assert set(found.arms) == {"sequential", "bank-1"}
    assert found.ratios.bank_over_published is None
    assert found.growth.exponent is None
    assert found.profile is not None
    assert "matrix products" in found.profile.shares
    assert (tmp_path / "plot.png").is_file()
    assert not (tmp_path / "bench").exists()
    assert "Where the time of the largest bank goes" in outcome.output


def test_bank_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    assert "--lines, --rank: only for --workload synthetic" in refusal("--lines", "3", "--rank", "2")
    assert "--adapters" in refusal("--adapters", "100000")
    assert "nothing.yaml" in refusal("--config", str(tmp_path / "nothing.yaml"))
    assert CliRunner().invoke(app, bench("--workload", "other")).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [["bench", "--help"], ["bench", "engines", "--help"], bench("--help"), bench("--lines", "3")],
    ids=" ".join,
)
def test_answers_without_a_benchmark_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from pipelines.cli import app\n"
        f"CliRunner().invoke(app, {arguments!r})\n"
        "print([n for n in ('torch', 'transformers', 'peft', 'matplotlib', 'prefect') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
