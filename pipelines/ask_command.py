"""`preceptor ask`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.process import prepare_process

if TYPE_CHECKING:
    from pipelines.asking import Answer

_Question = Annotated[str, typer.Argument(help="As a person asks it.")]
_By = Annotated[
    Literal["auto", "weights", "memory", "both"],
    typer.Option("--by", help="auto: the memory where it has something that fits, else the weights."),
]
_Version = Annotated[str, typer.Option("--version", help="Number or alias of the student's version.")]
_Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file of a run or a night, for its student and its store.")
]
_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
_Student = Annotated[
    str | None, typer.Option("--student", help="Directory, hub name or micro-student [the version's own base].")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the answer and its sources as one JSON object.")]


def ask(
    question: _Question,
    by: _By = "auto",
    version: _Version = "champion",
    config: _Config = None,
    work_dir: _WorkDir = Path(".preceptor"),
    student: _Student = None,
    json: _Json = False,
) -> None:
    """Ask a registered student, and say whether its weights, its memory or both answered."""
    if not question.strip():
        raise typer.BadParameter("is blank; ask in words", param_hint="QUESTION")
    from pipelines.asking_options import AskingOptions
    from pipelines.config import RunConfig, TrackingConfig
    from pipelines.lineage_store import require_store
    from pipelines.run_or_night import run_or_night

    tracking, options, named_base = TrackingConfig(), AskingOptions(), student
    if config is not None:
        found = run_or_night(config)
        tracking, student = found.tracking, student or found.student.model
        if isinstance(found, RunConfig):
            form = found.student.answer_format
            options = AskingOptions(answer_format=form, device=found.device, dtype=found.dtype)
        else:
            options = found.asking()
    require_store(tracking, work_dir)
    prepare_process()
    from pipelines.asking import Answerer

    named = int(version) if version.isdecimal() else version
    answerer = Answerer.from_registry(tracking, work_dir, version=named, model=student, options=options)
    answer = answerer.answer(question, by)
    if json:
        sys.stdout.write(answer.model_dump_json() + "\n")
        return
    sys.stdout.write(f"{answer.text or '(no answer)'}\n{how(answer)}\n")
    again = [
        "preceptor",
        "ask",
        question,
        "--by",
        "weights" if answer.sources else "memory",
        "--work-dir",
        str(work_dir),
    ]
    again += ["--version", version] if version != "champion" else []
    again += ["--config", str(config)] if config is not None else []
    again += ["--student", named_base] if named_base is not None else []
    sys.stdout.write(f"To compare: {shlex.join(again)}\n")


def how(answer: Answer) -> str:
    """Return in a line what an answer rests on."""
    version = "the student" if answer.version is None else f"version {answer.version} of the student"
    found = "; ".join(_named(s.id, s.title, s.score) for s in answer.sources)
    if answer.by == "both":
        return f"From both: weights of {version}, and its memory: {found}."
    if answer.by == "memory":
        return f"From memory of {version}: {found}."
    told = f"From weights of {version}" if answer.by == "weights" else f"From the base of {version} alone"
    return f"{told}; no passage of its memory was used."


def _named(document: str, title: str, score: float) -> str:
    return f"{document}{f' ({title})' if title else ''}, score {score:.2f}"
