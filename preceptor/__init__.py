"""Preceptor from Python, in notebooks and scripts: what its commands do, with results as typed records.

>>> import preceptor
>>> night = preceptor.adapt("nights-demo", work_dir="work")  # doctest: +SKIP
>>> night.outcome, night.version  # doctest: +SKIP
('promoted', 1)
>>> preceptor.ask("Where does Ada live?", work_dir="work").text  # doctest: +SKIP
'Rome'

Flows run as child processes: what this process has imported or set does not matter to them, and an interrupt ends them
in order. They print their progress here. Every function raises `PreceptorError`, or its subclass that the docstring
names, with the message that the command would print.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO, TypeAlias, TypeVar, overload

from evaluation.common.errors import ConfigError, PreceptorError
from pipelines.process import find_optional_config

if TYPE_CHECKING:
    from peft import PeftModel
    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerBase

    from pipelines.adapt_student.page import NightResult
    from pipelines.ask.answers import Answer, By
    from pipelines.check_regression.verdict import RegressionReport
    from pipelines.compare_students.comparison import StudentsComparison
    from pipelines.records import RunResult

__all__ = ["ConfigError", "PreceptorError", "Student", "adapt", "ask", "check_regression", "compare", "load_student"]
__all__ += ["train_teacher"]

PathLike: TypeAlias = str | os.PathLike[str]
_Result = TypeVar("_Result", bound="BaseModel")
_WORK_DIR = ".preceptor"


class Student(NamedTuple):
    """A registered student, ready to generate."""

    model: PeftModel
    """The base with the version's LoRA adapter, in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    version: int
    """Number in the registry."""


def train_teacher(config: PathLike, *, overrides: Sequence[str] = (), work_dir: PathLike = _WORK_DIR) -> RunResult:
    """Train a teacher and compare it with the untrained one, as `preceptor train-teacher` does; resumes a killed run.

    Args:
        config: YAML file, or the name of one that ships, such as `demo`.
        overrides: Settings such as `loop.rounds=3`.
        work_dir: Directory of results, adapters and the embedded stores.

    Raises:
        ConfigError: The configuration was refused, before anything expensive.
        PreceptorError: The run failed; the same call goes on where it was.
    """
    from pipelines.records import RunResult

    return _run(RunResult, "train-teacher", config, *_set(overrides), work_dir=work_dir)


def adapt(config: PathLike, *, overrides: Sequence[str] = (), work_dir: PathLike = _WORK_DIR) -> NightResult:
    """Adapt the champion to what is new in the inbox, as `preceptor adapt-student` does; finishes a killed night.

    Arguments and errors are those of `train_teacher`. A night that the gate rejects or holds is a result, not an error.
    """
    from pipelines.adapt_student.page import NightResult

    return _run(NightResult, "adapt-student", config, *_set(overrides), work_dir=work_dir)


def compare(
    suites: PathLike | Sequence[PathLike],
    students: Sequence[str],
    reference: str | None = None,
    *,
    work_dir: PathLike = _WORK_DIR,
) -> StudentsComparison:
    """Compare several students on pinned suites, with every answer, as `preceptor compare` does.

    Args:
        suites: YAML file, or the name of one that ships, such as `suites/micro-world`; or several.
        students: Such as `base`, `version:student@champion` or `adapter:DIRECTORY`; `LABEL=WORD,WORD` is several seeds.
        reference: The one that the others are compared with; None is the first.
        work_dir: Directory with the embedded stores.

    Raises:
        ConfigError: Suites or students were refused.
        PreceptorError: A student cannot be opened or scored.
    """
    from pipelines.compare_students.comparison import StudentsComparison

    first, *rest = [suites] if isinstance(suites, str | os.PathLike) else suites
    options = [*(os.fspath(each) for each in rest), *(part for student in students for part in ("--student", student))]
    options += [] if reference is None else ["--reference", reference]
    return _run(StudentsComparison, "compare", first, *options, work_dir=work_dir)


def check_regression(
    suite: PathLike, candidate: str, baseline: str, *, work_dir: PathLike = _WORK_DIR
) -> RegressionReport:
    """Test whether a student or variant is worse than another on a pinned suite, as `preceptor check-regression` does.

    Args:
        suite: See `compare`.
        candidate: What to test, such as `version:student@champion`, `adapter:DIRECTORY` or `base`.
        baseline: What to compare it with, of the same kind.
        work_dir: Directory with the embedded stores.

    Returns:
        The report; `outcome` says whether the candidate is worse.

    Raises:
        ConfigError: Suite or subjects were refused.
        PreceptorError: The comparison failed.
    """
    from pipelines.check_regression.verdict import RegressionReport

    subjects = "--candidate", candidate, "--baseline", baseline
    return _run(RegressionReport, "check-regression", suite, *subjects, work_dir=work_dir, results=(0, 1, 3))


@overload
def ask(
    question: str,
    *,
    version: int | str = "champion",
    by: By = "auto",
    work_dir: PathLike = _WORK_DIR,
    config: PathLike | None = None,
    student: str | None = None,
) -> Answer: ...
@overload
def ask(
    question: list[str] | tuple[str, ...],
    *,
    version: int | str = "champion",
    by: By = "auto",
    work_dir: PathLike = _WORK_DIR,
    config: PathLike | None = None,
    student: str | None = None,
) -> list[Answer]: ...
def ask(
    question: str | list[str] | tuple[str, ...],
    *,
    version: int | str = "champion",
    by: By = "auto",
    work_dir: PathLike = _WORK_DIR,
    config: PathLike | None = None,
    student: str | None = None,
) -> Answer | list[Answer]:
    """Ask a registered student, as `preceptor ask` does: its weights, its external memory, or what fits best.

    Args:
        question: One question, or several, for which the model is opened once.
        version: Number or alias.
        by: What answers; `auto` is the memory if a passage matches, else the weights.
        work_dir: Directory with the embedded stores.
        config: YAML file of any flow, for its student and its store.
        student: Directory, hub id or shipped name of the base; None is the one that the version recorded.

    Returns:
        The answer with its sources and confidence, or a list of them in the order of the questions.

    Raises:
        ConfigError: There is no such version.
        PreceptorError: The student cannot be opened or asked.
    """
    from pipelines.ask.answerer import open_registered

    answerer = open_registered(version, _config(config), Path(work_dir), student)
    if isinstance(question, str):
        return answerer.answer(question, by)
    return answerer.answer_many(list(question), by)


def load_student(
    version: int | str = "champion", *, work_dir: PathLike = _WORK_DIR, config: PathLike | None = None
) -> Student:
    """Open a registered student as a PEFT model with its tokenizer; its external memory is not part of it (see `ask`).

    Args:
        version: Number or alias.
        work_dir: Directory with the embedded stores.
        config: YAML file of any flow, for its student, device and number format and its store; None opens the base that
            the version recorded, in float32 on the CPU.

    Raises:
        ConfigError: There is no such version, or no base was recorded.
        PreceptorError: Files cannot be opened, or are not those that were registered.
    """
    from peft import PeftModel

    from pipelines.lineage.registry import Registry
    from pipelines.lineage.store import require_store
    from pipelines.models import ModelRef
    from pipelines.settings import AnyFlow, TrackingConfig, load

    file, place = _config(config), Path(work_dir)
    flow = None if file is None else load(file, AnyFlow)
    tracking = TrackingConfig() if flow is None else flow.tracking
    require_store(tracking, place)
    registry = Registry.open(tracking, place)
    number = registry.number("student", version)
    recorded = registry.recorded_model("student", number)
    if flow is None and recorded is None:
        raise ConfigError(f"load_student: version {number} recorded no base model. Name its run's file as config.")
    ref = ModelRef(str(recorded), "cpu", "float32", None) if flow is None else ModelRef.of(flow.student, flow)
    base = ref.load()
    with TemporaryDirectory() as scratch:
        adapted = PeftModel.from_pretrained(base.model, registry.fetch("student", number, Path(scratch, "student")))
    return Student(adapted.eval(), base.tokenizer, number)


def _config(config: PathLike | None) -> Path | None:
    return find_optional_config(None if config is None else Path(config))


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _run(
    kind: type[_Result],
    command: str,
    config: PathLike,
    *options: str,
    work_dir: PathLike,
    results: Collection[int] = (0,),
) -> _Result:
    """Run a command as a child, show what it prints, and return its result, which exit codes in `results` have."""
    with TemporaryDirectory() as scratch:
        file = Path(scratch, "result.json")
        arguments = [command, os.fspath(config), *options, "--work-dir", os.fspath(work_dir), "--json", str(file)]
        code, told = _relayed([sys.executable, "-m", "pipelines.cli", *arguments])
        if code in results and file.is_file():
            return kind.model_validate_json(file.read_text(encoding="utf-8"))
    raise (ConfigError if code == 2 else PreceptorError)(told.strip() or f"{command}: ended with exit code {code}")


def _relayed(command: Sequence[str]) -> tuple[int, str]:
    """Return a command's exit code and what it printed to standard error, having shown all that it printed."""
    told: list[str] = []

    def relay(source: IO[str], target: TextIO, kept: list[str] | None = None) -> None:
        for line in source:
            target.write(line)
            target.flush()
            if kept is not None:
                kept.append(line)

    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        reader = Thread(target=relay, args=(process.stderr, sys.stderr, told))
        reader.start()
        try:
            relay(process.stdout, sys.stdout)
        except BaseException:  # an interrupted cell: the command says how it ends
            process.send_signal(signal.SIGINT)
            raise
        finally:
            process.wait()
            reader.join()
    return process.returncode, "".join(told)
