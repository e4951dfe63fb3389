"""The days of all three users: the commands of the documented walkthroughs, run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.adapt_student.config import NightConfig
from pipelines.settings import load, to_yaml
from pipelines.train_teacher.config import TrainTeacherConfig
from tests.flows.settings import CONFIGS, ROOT, TINY, environment
from tests.flows.test_nights import document_rows
from tests.pipelines.adapt_student.factories import SMALL

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(1200)]
PAGES = ROOT / "docs" / "walkthroughs"


def commands(page: str) -> list[str]:
    """Return the lines of all shell blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run_all(page: str, place: Path) -> str:
    """Run the commands of a page in a directory, one after another, and return all that they print."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for line in commands(page):
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=place,
            env={**environment(place / "home"), "PATH": paths},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        printed += done.stdout
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return printed


def test_enterprises_day(tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in document_rows()))
    (tmp_path / "night.yaml").write_text(to_yaml(load(CONFIGS / "nights-demo.yaml", NightConfig, SMALL)))
    printed = run_all("enterprise.md", tmp_path)
    assert "night-0001: promoted" in printed
    assert "champion" in printed
    assert (tmp_path / "work" / "nights" / "night-0001" / "morning.html").is_file()


def test_data_scientists_afternoon(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(to_yaml(load(CONFIGS / "demo.yaml", TrainTeacherConfig, TINY)))
    printed = run_all("data-scientist.md", tmp_path)
    assert "Cost of demo" in printed
    assert "Versions of the teacher" in printed
    assert "trained_minus_untrained" in json.loads((tmp_path / "result.json").read_text())["gains"]


def test_pull_requests_check(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(CONFIGS)
    printed = run_all("continuous-integration.md", tmp_path)
    assert "passed" in printed.lower()
    assert "<testsuite" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "report.md").read_text().startswith("# PASSED")
