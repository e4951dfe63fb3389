"""The days of all three users: the commands of the documented walkthroughs, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluation.microworld.world import draw_documents
from pipelines.adapt_student.config import NightConfig
from pipelines.settings import load, to_yaml
from pipelines.train_teacher.config import TrainTeacherConfig
from tests.flows.settings import CONFIGS, ROOT, TINY, environment
from tests.flows.test_nights import document_rows
from tests.pipelines.adapt_student.factories import SMALL
from tests.pipelines.inbox.files import ordinary_files

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(1200)]
PAGES = ROOT / "docs" / "walkthroughs"


def commands(page: str) -> list[str]:
    """Return the lines of all shell blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module", params=["checkout", "wheel"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `preceptor`, installed from the checkout or from a wheel in a new virtual environment."""
    if request.param == "checkout":
        return Path(sys.executable).parent
    place = tmp_path_factory.mktemp("wheel")
    for package in ("configs", "evaluation", "pipelines", "student", "teacher"):
        shutil.copytree(ROOT / package, place / "source" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, place / "source")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", place, place / "source"], check=True)
    shutil.rmtree(place / "source")
    venv.create(place / "venv", with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv")}))
    (own / "requirements.pth").write_text(sysconfig.get_path("purelib"))  # all but the editable installation
    python, (wheel,) = place / "venv" / "bin" / "python", place.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--force-reinstall", wheel], check=True)
    return python.parent


def run_all(lines: Sequence[str], place: Path, programs: Path) -> str:
    """Run commands in a directory, one after another, and return all that they print."""
    printed, found = "", {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    if programs != Path(sys.executable).parent:
        found["PYTHONPATH"] = ""
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=place,
            env={**environment(place / "home"), **found},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        printed += done.stdout
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return printed


def test_enterprises_day(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in document_rows()))
    (tmp_path / "night.yaml").write_text(to_yaml(load(CONFIGS / "nights-demo.yaml", NightConfig, SMALL)))
    printed = run_all(commands("enterprise.md"), tmp_path, programs)
    assert "night-0001: promoted" in printed
    assert "champion" in printed
    assert (tmp_path / "work" / "nights" / "night-0001" / "morning.html").is_file()


def test_a_night_on_files_of_ones_own(tmp_path: Path, programs: Path) -> None:
    """Every file is learned, in memory, or refused with a reason; a moved work directory answers the same."""
    drawn = [(each.task.document.title, each.task.document.text) for each in draw_documents("test", 12, 6)]
    ordinary_files(tmp_path / "papers", drawn)
    printed = run_all(commands("own-documents.md"), tmp_path, programs)
    page = (tmp_path / "elsewhere" / "work" / "nights" / "night-0001" / "morning.html").read_text(encoding="utf-8")
    for name in ("register.pdf", "directory.docx", "chat.json", "page-0.html", "note-1.md"):
        assert name in page
    assert "night-0001: promoted" in printed
    before, after = re.findall(r"(.+)\nFrom the (.+);", printed)
    assert before == after
    assert not (tmp_path / "work").exists()


def test_data_scientists_afternoon(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(to_yaml(load(CONFIGS / "demo.yaml", TrainTeacherConfig, TINY)))
    printed = run_all(commands("data-scientist.md"), tmp_path, programs)
    assert "Cost of demo" in printed
    assert "Versions of the teacher" in printed
    assert "trained_minus_untrained" in json.loads((tmp_path / "result.json").read_text())["gains"]


def test_pull_requests_check(tmp_path: Path, programs: Path) -> None:
    printed = run_all(commands("continuous-integration.md"), tmp_path, programs)
    assert "passed" in printed.lower()
    assert "<testsuite" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "report.md").read_text().startswith("# PASSED")


def test_commands_of_the_readme_find_their_files(tmp_path: Path, programs: Path) -> None:
    found = re.findall(
        r"^preceptor (?:doctor|train-teacher|adapt-student) [^#\n]+", (ROOT / "README.md").read_text(), re.M
    )
    lines = [line.replace("my.yaml", "demo") for line in found]
    lines = [line if line.startswith("preceptor doctor") else f"{line} --dry-run" for line in lines]
    printed = run_all(["preceptor --version", *lines], tmp_path, programs)
    assert len(lines) == 4
    assert "Cost of demo" in printed
    assert "The next night of nights-demo" in printed
    assert "PROBLEM" not in printed
