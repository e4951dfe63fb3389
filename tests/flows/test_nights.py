"""Nights through the real command: two at once, and one that is killed again and again."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.adapt_student.plan import NIGHTS, RESULT
from pipelines.adapt_student.state import student_version
from pipelines.lineage.registry import Registry
from pipelines.lineage.versions import CHAMPION
from pipelines.settings import TrackingConfig
from tests.flows.settings import CONFIGS, PATIENCE_SECONDS, Child, preceptor, run_command
from tests.pipelines.adapt_student.factories import SMALL, arrivals

pytestmark = pytest.mark.flow


def night(work_dir: Path, result: Path) -> list[str]:
    told = [part for override in SMALL for part in ("--set", override)]
    return preceptor("adapt-student", CONFIGS / "nights-demo.yaml", "--work-dir", work_dir, "--json", result, *told)


def document_rows() -> list[dict[str, Any]]:
    """Return three documents as a sender writes them: two for the weights, one that is dated."""
    rows = []
    for given in arrivals(3):
        row = given.model_dump(mode="json", include={"title", "text", "source", "effective"})
        asked = [{"question": question.question, "answer": question.answer} for question in given.questions]
        rows.append({**row, "questions": asked})
    return rows


def deliver(place: Path) -> Path:
    """Add the documents by the real command and return the work directory."""
    file, work_dir = place / "documents.jsonl", place / "work"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in document_rows()))
    code, output = run_command(preceptor("inbox", "add", file, "--work-dir", work_dir), place / "home")
    assert code == 0, output
    return work_dir


def figures(result: Path) -> dict[str, Any]:
    """Return a night's result without what differs between two runs of the same night."""
    whole: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    whole["update"].pop("seconds")
    for update in (update for candidate in whole["candidates"] for update in candidate["replicates"]):
        del update["seconds"], update["peak_bytes"]
    return {name: value for name, value in whole.items() if name not in ("seconds", "mlflow_run_id", "mlflow", "page")}


def test_of_two_nights_at_once_one_runs_and_the_other_says_why_not(tmp_path: Path) -> None:
    work_dir = deliver(tmp_path)
    first = Child(night(work_dir, tmp_path / "first.json"), tmp_path / "one")
    try:
        first.wait_until(lambda: (work_dir / NIGHTS / "current.json").exists())
        code, output = run_command(night(work_dir, tmp_path / "second.json"), tmp_path / "other")
        assert code == 1, output
        assert "in use by another run" in output
        assert not (tmp_path / "second.json").exists()
        assert first.wait() == 0, first.output
    finally:
        first.kill()
    assert json.loads((tmp_path / "first.json").read_text())["outcome"] == "promoted"
    assert "night-0001: promoted (version 1, trained from the base student)" in first.output


def finished(place: Path) -> tuple[dict[str, Any], float]:
    """Return the figures of a night that nobody disturbs, and the seconds that it takes."""
    work_dir, result = deliver(place), place / "result.json"
    started = time.monotonic()
    code, output = run_command(night(work_dir, result), place / "home")
    took = time.monotonic() - started
    assert code == 0, output
    return figures(result), took


def check_champion(work_dir: Path) -> None:
    """See that a champion is whole, whenever the night that made it was killed."""
    registry = Registry.open(TrackingConfig(), work_dir)
    champion = registry.aliases("student").get(CHAMPION)
    if champion is not None:
        assert len(student_version(registry, champion, work_dir).state.documents) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_night_killed_at_ten_moments_is_finished_as_if_undisturbed(tmp_path: Path) -> None:
    finished(tmp_path / "cold")  # the first one waits for the disk as no other does
    undisturbed, took = finished(tmp_path / "warm")
    rng, kills, nights = random.Random(0), 0, 0
    while kills < 10:
        nights += 1
        place = tmp_path / f"night {nights}"
        work_dir, result = deliver(place), place / "result.json"
        while not result.exists():
            fresh, started = not (work_dir / NIGHTS).exists(), time.monotonic()
            child = Child(night(work_dir, result), place / "home")
            try:
                # Each start goes on where the one before was, until one lives long enough; after ten kills all may.
                child.process.wait(timeout=rng.uniform(0.2, 0.9) * took if kills < 10 else PATIENCE_SECONDS)
                assert child.process.returncode == 0, child.output
                if fresh:  # the machine may be less busy now
                    took = min(took, time.monotonic() - started)
            except subprocess.TimeoutExpired:  # still running: this is the moment
                kills += 1
            finally:
                child.kill()
            check_champion(work_dir)
        assert figures(result) == figures(work_dir / NIGHTS / "night-0001" / RESULT) == undisturbed
        versions = Registry.open(TrackingConfig(), work_dir).history("student")
        assert [version.version for version in versions] == [1]
