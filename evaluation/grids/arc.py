"""Grid tasks from ARC's JSON files, in any of the three forms in which they are published.

- Challenges: `{id: {"train": [{"input", "output"}], "test": [{"input"}]}}`, with or without a file of solutions
  `{id: [output, ...]}`, one for each test input.
- One task: `{"train": [...], "test": [{"input", "output"}]}`; the id is the file's name.
- A directory of such files.

Grids are lists of rows of colours. Everything is checked before anything is used, and all mistakes are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from evaluation.common.errors import InputError
from evaluation.grids.grids import CheckedGrid, GridPair, GridTask, GridTest
from evaluation.sources.files import read_json
from evaluation.sources.rows import Refusals


class _Test(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    input: CheckedGrid
    output: CheckedGrid | None = None


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    train: list[GridPair] = Field(min_length=1)
    test: list[_Test] = Field(min_length=1)


_TASK = TypeAdapter(_Task)
_CHALLENGES = TypeAdapter(dict[str, _Task])
_SOLUTIONS = TypeAdapter(dict[str, list[CheckedGrid]])
_Value = TypeVar("_Value")


def load_arc(path: Path, solutions: Path | None = None) -> tuple[GridTask, ...]:
    """Return the tasks of a file or directory, in its order; files of a directory by name.

    Args:
        path: A file of challenges or of one task, plain or gzipped, or a directory of `*.json` files of one task each.
        solutions: The file of the gold outputs of a file of challenges; None leaves unknown what is not in `path`.

    Raises:
        InputError: A file cannot be read or has mistakes; the message lists all of them by JSON path.
    """
    if path.expanduser().is_dir():
        if solutions is not None:
            raise InputError(
                f"{path}: is a directory of tasks, which have their own outputs; a file of solutions goes with a file "
                "of challenges. Leave data.solutions_path out."
            )
        return _directory(path)
    raw = read_json(path)
    if isinstance(raw, dict) and {"train", "test"} <= raw.keys():
        return (_made(_stem(path), _parsed(_TASK, raw, str(path)), str(path)),)
    found = _parsed(_CHALLENGES, raw, str(path))
    if not found:
        raise InputError(f"{path}: holds no task. Give a file of challenges with at least one.")
    tasks = {name: _made(name, task, f"{path}: {name}") for name, task in found.items()}
    return tuple(tasks.values()) if solutions is None else _solved(tasks, solutions)


def _directory(path: Path) -> tuple[GridTask, ...]:
    files = sorted(found for pattern in ("*.json", "*.json.gz") for found in path.expanduser().glob(pattern))
    if not files:
        raise InputError(f"{path}: holds no file '*.json'. Give a directory of ARC tasks, or a file of challenges.")
    refusals, tasks = Refusals(str(path)), []
    for file in files:
        try:
            tasks.append(_made(_stem(file), _parsed(_TASK, read_json(file), file.name), str(file)))
        except InputError as error:
            refusals.refuse(file.name, str(error))
    refusals.check()
    return tuple(tasks)


def _parsed(adapter: TypeAdapter[_Value], raw: Any, source: str) -> _Value:
    refusals = Refusals(source)
    found = refusals.parse_whole(adapter, raw)
    refusals.check()
    assert found is not None
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def _made(name: str, task: _Task, source: str) -> GridTask:
    tests = tuple(GridTest(input=test.input, output=test.output) for test in task.test)
    return GridTask(id=name, demonstrations=tuple(task.train), tests=tests, source=source)


def _solved(tasks: Mapping[str, GridTask], path: Path) -> tuple[GridTask, ...]:
    """Return the tasks with the gold outputs of a file, which must solve each test once and not contradict it."""
    outputs, refusals = _parsed(_SOLUTIONS, read_json(path), str(path)), Refusals(str(path))
    for name, reason in _misfits(tasks, outputs):
        refusals.refuse(name, reason)
    refusals.check()

    def solved(task: GridTask) -> GridTask:
        pairs = zip(task.tests, outputs[task.id], strict=True)
        tests = tuple(GridTest(input=test.input, output=output) for test, output in pairs)
        return task.model_copy(update={"tests": tests})

    return tuple(map(solved, tasks.values()))


def _misfits(tasks: Mapping[str, GridTask], outputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, task in tasks.items():
        if name not in outputs:
            yield name, "has no solution"
        elif len(outputs[name]) != len(task.tests):
            yield name, f"got {len(outputs[name])} outputs for {len(task.tests)} test inputs"
        else:
            for i, (test, output) in enumerate(zip(task.tests, outputs[name], strict=True)):
                if test.output is not None and test.output != output:
                    yield name, f"output {i} is another one than the challenge itself has"
    for name in outputs.keys() - tasks.keys():
        yield name, "solves a task that is not among the challenges"
