"""From the links that `preceptor ui` prints to a wrong answer, its self-edit and their origin, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pipelines.process import free_port
from tests.extras import BROWSER
from tests.flows.conftest import FinishedRun
from tests.flows.settings import ROOT, Child, preceptor, run_command
from tests.flows.test_nights import document_rows, night

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.flow, pytest.mark.browser, pytest.mark.timeout(1800)]
PATIENCE_MS = 120_000
MOST_CLICKS = 3
NIGHT = "night-0001"


class Dashboards(NamedTuple):
    links: dict[str, str]
    """Printed addresses by what they show."""
    page: Page
    work_dir: Path


@pytest.fixture(scope="module")
def work_dir(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training and a night."""
    place = tmp_path_factory.mktemp("dashboards")
    work, file = place / "work", place / "documents.jsonl"
    shutil.copytree(finished_run.work_dir, work)
    file.write_text("".join(json.dumps(row) + "\n" for row in document_rows()))
    for command in (preceptor("inbox", "add", file, "--work-dir", work), night(work, place / "night.json")):
        code, output = run_command(command, place / "home")
        assert code == 0, output
    return work


@pytest.fixture(scope="module")
def dashboards(work_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboards]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    ports = ["--mlflow-port", str(free_port()), "--prefect-port", str(free_port())]
    ui = Child(preceptor("ui", "--work-dir", work_dir, *ports), tmp_path_factory.mktemp("home"))
    try:
        ui.wait_until(lambda: "Press Ctrl-C" in ui.output)
        links = dict(re.findall(r"^(?:Runs of )?(\S+?):? +(http\S+)$", ui.output, re.M))
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.context.set_default_timeout(PATIENCE_MS)
            yield Dashboards(links, page, work_dir)
            browser.close()
    finally:
        ui.kill()


def follow(dashboards: Dashboards, link: str, *clicks: Locator) -> None:
    """Open a printed link and click, at most as often as is allowed."""
    assert len(clicks) <= MOST_CLICKS
    page = dashboards.page
    page.goto(dashboards.links[link])
    for click in clicks:
        click.first.click()


def table(dashboards: Dashboards, link: str, run: str, name: str, column: str) -> list[list[str]]:
    """Open a run from a printed link, and the table that its description links to; return the table's rows."""
    page = dashboards.page
    with page.context.expect_page() as opened:
        follow(dashboards, link, page.get_by_role("link", name=run, exact=True), page.get_by_role("link", name=name))
    shown = opened.value
    shown.get_by_role("columnheader").filter(has_text=re.compile(f"^{column}$")).wait_for()
    shown.get_by_role("row").nth(1).wait_for()
    rows = [row.get_by_role("cell").all_inner_texts() for row in shown.get_by_role("row").all()]
    shown.close()
    return [row for row in rows if row]


@pytest.mark.parametrize(("link", "run"), [("preceptor/train-teacher", "trained"), ("preceptor/adapt-student", NIGHT)])
def test_wrong_answer_and_self_edits_are_two_clicks_from_a_printed_link(
    dashboards: Dashboards, link: str, run: str
) -> None:
    answers = table(dashboards, link, run, "Questions and answers", "answer")
    assert any(
        question.endswith("?") and answer.endswith(" ...") and gold and right == "false"
        for question, answer, gold, right, *_ in answers
    )
    edits = table(dashboards, link, run, "Self-edits, best first", "adapter_digests")
    assert any("- " in cell for row in edits for cell in row)


def test_page_of_a_variant_says_where_its_numbers_come_from(dashboards: Dashboards) -> None:
    page = dashboards.page
    follow(dashboards, "preceptor/train-teacher", page.get_by_role("link", name="trained", exact=True))
    page.get_by_text("teacher_version").wait_for()
    shown = page.inner_text("body")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    parts = ("seed", "teacher_version", "test-documents", "Parent run", "micro-implications", commit[:7])
    assert [part for part in parts if part not in shown] == []


def test_five_variants_are_compared_by_parameters_accuracy_and_answers(dashboards: Dashboards) -> None:
    page = dashboards.page
    follow(dashboards, "preceptor/train-teacher")
    for row in range(5):
        page.locator(f".ag-row[row-index='{row}'] .ag-checkbox-input:visible").first.click()
    page.get_by_text("Compare", exact=True).first.click()
    page.get_by_text("Comparing 5 Runs").wait_for()
    page.get_by_text("eval/accuracy_ci_low").first.wait_for()
    shown = page.inner_text("body")
    assert {"variant", "seed", "eval/accuracy_ci_high"} <= set(re.split(r"\s+", shown))
    page.goto(f"{dashboards.links['preceptor/train-teacher']}&compareRunsMode=ARTIFACT")  # what the table's button does
    page.get_by_text("Filter by question").or_(page.get_by_placeholder("Filter by question")).first.wait_for()
    page.get_by_text(re.compile(r"\w \.\.\.$")).first.wait_for()


def test_prefect_shows_a_night_with_its_name_state_and_report(dashboards: Dashboards) -> None:
    page = dashboards.page
    runs, night = page.get_by_text("Runs", exact=True), page.get_by_role("link", name=NIGHT)
    follow(dashboards, "Prefect", runs, night, page.get_by_text("Artifacts", exact=True))
    page.get_by_text(f"{NIGHT}: ").last.wait_for()
    shown = page.inner_text("body")
    assert NIGHT in shown
    assert re.search(r"Completed|Held|Rejected", shown)
