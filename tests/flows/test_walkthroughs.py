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

from pipelines.adapt_student.queue import champion, statuses
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.interactions import TEACHES_NOTHING, InteractionStore
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.settings import load, to_yaml
from pipelines.train_teacher.config import TrainTeacherConfig
from tests.flows.settings import CONFIGS, ROOT, TINY, environment

pytestmark = [pytest.mark.flow, pytest.mark.timeout(2400)]
PAGES = ROOT / "docs" / "walkthroughs"


def commands(page: str) -> list[str]:
    """Return the shell blocks of a page."""
    return re.findall(r"```bash\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module", params=["checkout", "wheel"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of `preceptor`, installed from the checkout or from a wheel in a new virtual environment."""
    if request.param == "checkout":
        return Path(sys.executable).parent
    place = tmp_path_factory.mktemp("wheel")
    for package in ("configs", "evaluation", "pipelines", "preceptor", "student", "teacher"):
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


def run_all(lines: Sequence[str], place: Path, programs: Path, threads: int = 1) -> str:
    """Run commands in a directory, one after another, and return all that they print."""
    printed, found = "", {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": str(threads)}
    if programs != Path(sys.executable).parent:
        found["PYTHONPATH"] = ""
    for line in lines:
        done = subprocess.run(
            ["bash", "-emc", line],
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


@pytest.mark.slow
def test_enterprises_day(tmp_path: Path, programs: Path) -> None:
    printed = run_all(commands("enterprise.md"), tmp_path, programs)
    assert "night-0001: promoted" in printed
    assert (tmp_path / "work" / "nights" / "night-0001" / "morning.html").is_file()


@pytest.mark.slow
def test_a_night_on_files_of_ones_own(tmp_path: Path, programs: Path) -> None:
    """What is asked and what is served is the same, with vLLM where it is installed."""
    printed = run_all(commands("own-documents.md"), tmp_path, programs)
    told = check_own_files(printed, tmp_path)
    replies = [json.loads(line) for line in printed.splitlines() if line.startswith('{"id"')]
    served = [(each["choices"][0]["message"]["content"], each["preceptor"]["by"]) for each in replies]
    assert served == told
    assert json.loads((tmp_path / "health.json").read_text())["version"] == 1
    counted = (tmp_path / "metrics.txt").read_text()
    for source in ("weights", "memory"):
        assert re.search(f'preceptor_requests_total{{.*source="{source}"}} 1.0', counted)


@pytest.mark.slow
def test_an_agents_day(tmp_path: Path, programs: Path) -> None:
    """What two clients agree on is answered from the weights by the next morning, without a restart; no poison is."""
    printed = run_all(commands("agents.md"), tmp_path, programs)
    before, after = (
        re.findall(rf"^(.+\?) (.*) \(version {version}, (\w+)\)( right)?$", printed, re.MULTILINE) for version in (1, 2)
    )
    assert (len(before), len(after)) == (9, 9)
    right = [bool(right) for *_, right in after[:8]]
    assert sum(right) >= 6 > 2 > sum(bool(right) for *_, right in before)
    assert [by for _, _, by, _ in after[:8]] == ["weights"] * 8
    assert after[8][1] != "gloves", "an insisting client changed what a document says"
    with InteractionStore(tmp_path / "work" / INBOX_FILE) as store:
        told = store.interactions()
        assert not any("hunter2secret99" in str(each) for each in told)
        assert sum(each.note.startswith(TEACHES_NOTHING) for each, _ in told) == 1
        ((contradiction, _),) = store.quarantined().values()
    page = (tmp_path / "work" / "nights" / "night-0002" / "morning.html").read_text(encoding="utf-8")
    assert contradiction in page
    assert "speaks about training" in page


def check_own_files(printed: str, place: Path) -> list[tuple[str, str]]:
    """Check that each file is learned, in memory, or refused with a reason; return answers with their sources.

    A moved work directory whose last version was rolled back answers as the first one did.
    """
    work = place / "elsewhere" / "work"
    page = (work / "nights" / "night-0001" / "morning.html").read_text(encoding="utf-8")
    inbox = {each.source: status for each, status in listed(work)}
    refused = {f"examples/papers/{name}" for name in ("figures.xlsx", "scan.pdf")}
    assert len(inbox) == 14
    for file in (place / "examples" / "papers").iterdir():
        name = str(file.relative_to(place))
        assert name in page
        if name in refused:
            assert printed.count(f"{name}: ") >= 3  # added, in the morning, and listed
        else:
            assert inbox[name] == ("memory" if file.name == "notice.md" else "learned")
    with InboxStore(work / INBOX_FILE) as store:
        assert set(store.refused()) == refused
    assert inbox["examples/later/directory.md"] == "quarantined"
    assert [f"night-000{number}: promoted" in printed for number in (1, 2)] == [True, True]
    answers = re.findall(r"(.+)\nFrom the (weights|memory) of version 1 ", printed)
    assert [by for _, by in answers[:2]] == ["weights", "memory"]
    assert answers[:2] == answers[2:]
    assert not (place / "work").exists()
    return answers[:2]


@pytest.mark.slow
def test_a_real_model_learns_own_notes(tmp_path: Path, programs: Path) -> None:
    printed = run_all(commands("real-model.md"), tmp_path, programs, threads=len(os.sched_getaffinity(0)))
    page = (tmp_path / "work" / "nights" / "night-0001" / "morning.html").read_text(encoding="utf-8")
    kinds = {Path(each.source).name: kind for each, kind in listed(tmp_path / "work")}
    assert set(kinds) == {"boat-club.md", "bakery.md", "observatory.md"}
    assert set(kinds.values()) <= {"learned", "memory", "waiting"}
    assert all(name in page for name in kinds)
    assert len(re.findall(r"\bof version 1 .*\nTo compare: ", printed)) == 2


def listed(work_dir: Path) -> list[tuple[InboxDocument, str]]:
    """Return the documents of an inbox with their statuses."""
    with InboxStore(work_dir / INBOX_FILE) as store:
        found = statuses(store, work_dir, champion(work_dir, None)[1])
        return [(each, found[each.id].kind) for each in store.documents()]


@pytest.mark.slow
def test_data_scientists_afternoon(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(to_yaml(load(CONFIGS / "demo.yaml", TrainTeacherConfig, TINY)))
    printed = run_all(commands("data-scientist.md"), tmp_path, programs)
    assert "Cost of demo" in printed
    assert "Versions of the teacher" in printed
    assert "trained_minus_untrained" in json.loads((tmp_path / "result.json").read_text())["gains"]


@pytest.mark.slow
def test_pull_requests_check(tmp_path: Path, programs: Path) -> None:
    printed = run_all(commands("continuous-integration.md"), tmp_path, programs)
    assert "passed" in printed.lower()
    assert "<testsuite" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "report.md").read_text().startswith("# PASSED")


@pytest.mark.slow
def test_commands_of_the_readme_run_as_they_stand(tmp_path: Path, programs: Path) -> None:
    """The model and one's own files are put in; what would train for long is run dry."""
    shutil.copytree(CONFIGS / "examples" / "papers", tmp_path / "papers")
    shutil.copy(tmp_path / "papers" / "directory.docx", tmp_path / "minutes.docx")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("MODEL ", "micro-student ").replace("my.yaml", "demo")
    found = re.findall(r"^preceptor (?:init|inbox|doctor|train-teacher|adapt-student) [^#\n]+", readme, re.M)
    trains = re.compile("preceptor (train-teacher|adapt-student)(?!.*--dry-run)")
    lines = [f"{line} --dry-run" if trains.match(line) else line for line in found]
    printed = run_all(["preceptor --version", *lines], tmp_path, programs)
    assert len(lines) == 7
    assert "Cost of demo" in printed
    assert "The next night of micro-student-nights" in " ".join(printed.split())
    assert "PROBLEM" not in printed
