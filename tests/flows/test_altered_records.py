"""Whatever is changed in what a finished run stored, the same command ends with the same figures."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from tests.flows.conftest import FinishedRun
from tests.flows.settings import CONFIGS, TINY, command, figures, run_command

pytestmark = [pytest.mark.slow, pytest.mark.flow, pytest.mark.timeout(1800)]


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(7)
    path.write_bytes(content)


def results(work: Path) -> list[Path]:
    return sorted(path for path in (work / "prefect" / "storage").glob("*/v*/*/*"))


def states(work: Path) -> list[Path]:
    files = (path for kind in ("teachers", "adapters") for path in (work / kind).rglob("*"))
    return sorted(path for path in files if path.is_file() and path.name != "README.md")


def flipped(of: Callable[[Path], Iterable[Path]]) -> Callable[[Path], int]:
    def alter(work: Path) -> int:
        files, draw = [*of(work)], random.Random(0)
        for path in files:
            flip(path, draw)
        return len(files)

    return alter


def swapped_and_cut(work: Path) -> int:
    files = results(work)
    samples = [path for path in files if "sample" in path.parts]
    contents = [path.read_bytes() for path in samples]
    for path, content in zip(samples, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    for path, left in zip((path for path in files if "learn" in path.parts), (0, -9), strict=False):
        path.write_bytes(path.read_bytes()[:left])
    return len(files)


def edited(work: Path) -> int:
    """Give a base student full marks, flip bits, swap and delete: in the store of updates."""
    draw = random.Random(3)
    with closing(sqlite3.connect(work / "updates.sqlite")) as db, db:
        rows = db.execute("SELECT key, record FROM updates ORDER BY key").fetchall()
        for number, (key, record) in enumerate(rows):
            update = json.loads(record)
            if update["seed"] == 0:
                update["exact"] = [True] * len(update["exact"])
                db.execute("UPDATE updates SET record = ? WHERE key = ?", (json.dumps(update), key))
            elif number % 5 == 0:
                content = bytearray(record.encode())
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(7)
                db.execute("UPDATE updates SET record = CAST(? AS TEXT) WHERE key = ?", (bytes(content), key))
            elif number % 7 == 0:
                db.execute("UPDATE updates SET record = ? WHERE key = ?", (rows[number - 1][1], key))
            elif number % 9 == 0:
                db.execute("DELETE FROM updates WHERE key = ?", (key,))
    return len(rows)


def deleted(work: Path) -> int:
    directories = [*(work / "teachers").iterdir(), *(work / "adapters").iterdir()]
    for number, directory in enumerate(directories):
        files = sorted(directory.iterdir())
        files[number % len(files)].unlink()
    return len(directories)


ALTERATIONS = {
    "results flipped": flipped(results),
    "results swapped and cut": swapped_and_cut,
    "updates edited": edited,
    "adapters flipped": flipped(states),
    "adapters incomplete": deleted,
}


@pytest.mark.parametrize("kind", ALTERATIONS)
def test_altered_records_change_no_figure_and_are_reported(
    finished_run: FinishedRun, tmp_path: Path, kind: str
) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    shutil.copytree(finished_run.work_dir, work)
    assert ALTERATIONS[kind](work) > 2
    code, output = run_command(command(CONFIGS / "demo.yaml", work, TINY, result), tmp_path / "home")
    assert code == 0, output[-3000:]
    assert figures(result) == figures(finished_run.result)
    assert "damaged" in output
