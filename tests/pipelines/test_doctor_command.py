"""`preceptor doctor` as it is typed, and what it prints."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from evaluation.errors import ConfigError
from pipelines.doctor.checks import Check, DoctorReport
from pipelines.doctor.command import doctor
from pipelines.doctor.report import print_doctor_report
from tests.pipelines.small import DEMO

app = typer.Typer(pretty_exceptions_enable=False)
app.command("doctor")(doctor)


def printed(*checks: Check) -> list[str]:
    console = Console(file=io.StringIO(), width=80, no_color=True)
    print_doctor_report(console, DoctorReport.of(checks))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_command_that_mends_two_things_is_printed_once_and_whole() -> None:
    fix = "python -m pip install " + " ".join(f"package-{i}" for i in range(20))
    lines = printed(
        Check(area="packages", name="a", status="missing", found="[red]wanted[/red] is >=1", fix=fix),
        Check(area="packages", name="b", status="broken", found="x " * 100, fix=fix),
        Check(area="machine", name="c", status="optional", found="not there", fix="make c"),
        Check(area="machine", name="d", status="ok", found="/" + "long/" * 30, fix="never shown"),
    )
    assert lines.count(f"  {fix}") == 1
    assert lines[-2:] == ["To add what is optional:", "  make c"]
    assert "never shown" not in "\n".join(lines)
    assert "Not usable as it is: 1 missing, 1 broken." in lines
    assert "[red]wanted[/red] is >=1" in "\n".join(lines)
    assert max(len(line) for line in lines if line.strip() != fix) <= 80


def test_warnings_and_options_leave_it_usable() -> None:
    lines = printed(
        Check(area="machine", name="a", status="warning", found="slow", fix="export A=1"),
        Check(area="machine", name="b", status="optional", found="not there"),
    )
    assert "Usable: nothing that is needed is missing or broken (1 warning)." in lines
    assert lines[-2:] == ["To mend it:", "  export A=1"]


@pytest.mark.flow
def test_doctor_of_this_machine(tmp_path: Path) -> None:
    places = ["--work-dir", str(tmp_path / "work"), "--json", str(tmp_path / "out" / "doctor.json")]
    outcome = CliRunner().invoke(app, ["--config", str(DEMO), *places], catch_exceptions=False)
    report = DoctorReport.model_validate(json.loads((tmp_path / "out" / "doctor.json").read_text()))
    assert outcome.exit_code == (0 if report.usable else 1)
    # What any test environment has; vLLM, a GPU and Ray may or may not be there.
    areas = {check.area: check for check in report.checks}
    assert list(areas) == ["packages", "engines", "machine", "work directory", "stores", "configuration"]
    fine = {check.name for check in report.checks if check.status == "ok"}
    assert fine >= {"python", "prefect", "Prefect server", "torch", "float32 on CPU", "writable", "MLflow", "Prefect"}
    assert fine >= {"teacher model", "student model", "device"}
    assert "this check itself failed" not in outcome.output
    assert not (tmp_path / "work").exists()
    commands = re.findall(r"^  \S.*", outcome.output, flags=re.MULTILINE)
    assert len(commands) == len(set(commands))
    assert max(len(line) for line in outcome.output.splitlines() if line not in commands) <= 80


@pytest.mark.flow
def test_doctor_fails_where_something_needed_is_missing_or_damaged(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(DEMO.read_text().replace("model: micro-student", f"model: {tmp_path}/nowhere"))
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    arguments = ["--config", str(config), "--work-dir", str(tmp_path), "--json", str(tmp_path / "doctor.json")]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 1
    report = DoctorReport.model_validate(json.loads((tmp_path / "doctor.json").read_text()))
    assert not report.usable
    bad = {check.name: check.status for check in report.checks if check.status in ("missing", "broken")}
    assert (bad["student model"], bad["MLflow"]) == ("missing", "broken")
    assert "Not usable as it is" in outcome.output


def test_a_bad_configuration_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nloop: {round: 1}\n")
    for name in ("bad.yaml", "none.yaml"):
        outcome = CliRunner().invoke(app, ["--config", str(tmp_path / name)])
        assert isinstance(outcome.exception, ConfigError), outcome.output


@pytest.mark.parametrize("arguments", [["--help"], ["--config", "/nowhere.yaml"]], ids=" ".join)
def test_answers_without_an_examination_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, typer\n"
        "from typer.testing import CliRunner\n"
        "from pipelines.doctor.command import doctor\n"
        "app = typer.Typer()\n"
        "app.command()(doctor)\n"
        f"CliRunner().invoke(app, {arguments!r})\n"
        "print([n for n in ('torch', 'transformers', 'mlflow', 'prefect', 'datasets') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
