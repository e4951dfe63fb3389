"""Grid puzzles from ARC's JSON files, in any of the three forms in which they are published.

- Challenges: `{id: {"train": [{"input", "output"}], "test": [{"input"}]}}`, with or without a file of solutions
  `{id: [output, ...]}`, one for each test input.
- One task: `{"train": [...], "test": [{"input", "output"}]}`; the id is the file's name.
- A directory of such files.

Grids are lists of rows of colours. Everything is checked before anything is used, and all mistakes are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from evaluation.errors import InputError
from evaluation.grids.tasks import CheckedGrid, GridPair, GridTask, GridTest
from evaluation.loaders.files import JsonSyntaxError, parse_json, read_data_file
from evaluation.loaders.intake import Refusals


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
    raw, refusals = _read(path), Refusals(str(path))
    if isinstance(raw, dict) and {"train", "test"} <= raw.keys():
        one = refusals.parse_whole(_TASK, raw)
        refusals.check()
        assert one is not None
        return (_made(_stem(path), one, str(path)),)
    found = refusals.parse_whole(_CHALLENGES, raw)
    refusals.check()
    assert found is not None
    if not found:
        raise InputError(f"{path}: holds no task. Give a file of challenges with at least one.")
    tasks = {name: _made(name, task, f"{path}: {name}") for name, task in found.items()}
    return tuple((tasks if solutions is None else _solved(tasks, solutions)).values())


def _directory(path: Path) -> tuple[GridTask, ...]:
    files = sorted(found for pattern in ("*.json", "*.json.gz") for found in path.expanduser().glob(pattern))
    if not files:
        raise InputError(f"{path}: holds no file '*.json'. Give a directory of ARC tasks, or a file of challenges.")
    refusals, tasks = Refusals(str(path)), []
    for file in files:
        mine = Refusals(file.name)
        try:
            task = mine.parse_whole(_TASK, _read(file))
            mine.check()
        except InputError as error:
            refusals.refuse(file.name, str(error))
            continue
        assert task is not None
        tasks.append(_made(_stem(file), task, str(file)))
    refusals.check()
    return tuple(tasks)


def _read(path: Path) -> Any:
    try:
        return parse_json(read_data_file(path))
    except JsonSyntaxError as error:
        raise InputError(f"{path}: {error}. Nothing was loaded; correct the file and run again.") from error


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def _made(name: str, task: _Task, source: str) -> GridTask:
    tests = tuple(GridTest(input=test.input, output=test.output) for test in task.test)
    return GridTask(id=name, demonstrations=tuple(task.train), tests=tests, source=source)


def _solved(tasks: dict[str, GridTask], path: Path) -> dict[str, GridTask]:
    """Return the tasks with the gold outputs of a file of solutions.

    Raises:
        InputError: It cannot be read, or does not answer each test input once and alike.
    """
    refusals = Refusals(str(path))
    outputs = refusals.parse_whole(_SOLUTIONS, _read(path))
    refusals.check()
    assert outputs is not None
    for name, reason in _misfits(tasks, outputs):
        refusals.refuse(name, reason)
    refusals.check()
    solved = {}
    for name, task in tasks.items():
        pairs = zip(task.tests, outputs[name], strict=True)
        tests = tuple(GridTest(input=test.input, output=output) for test, output in pairs)
        solved[name] = GridTask(id=name, demonstrations=task.demonstrations, tests=tests, source=task.source)
    return solved


def _misfits(tasks: dict[str, GridTask], outputs: dict[str, Any]) -> Iterator[tuple[str, str]]:
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
