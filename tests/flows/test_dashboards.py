"""From the links that `preceptor ui` prints to a wrong answer, its self-edit and their origin, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pipelines.process import free_port
from tests.extras import BROWSER
from tests.flows.conftest import FinishedRun
from tests.flows.settings import Child, preceptor, run_command
from tests.flows.test_nights import document_rows, night

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.flow, pytest.mark.browser, pytest.mark.timeout(1800)]
PATIENCE_MS = 120_000
MOST_CLICKS = 3


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
            page.set_default_timeout(PATIENCE_MS)
            yield Dashboards(links, page, work_dir)
            browser.close()
    finally:
        ui.kill()


def follow(page: Page, link: str, *clicks: Locator) -> None:
    """Open a printed link and click, at most as often as is allowed."""
    assert len(clicks) <= MOST_CLICKS
    page.goto(link)
    for click in clicks:
        click.click()


def rows(page: Page) -> list[list[str]]:
    """Return the cells of the table that an artifact is shown as."""
    page.get_by_role("table").first.wait_for()
    return [row.get_by_role("cell").all_inner_texts() for row in page.get_by_role("row").all()]


def test_wrong_answers_of_a_variant_are_two_clicks_away(dashboards: Dashboards) -> None:
    page = dashboards.page
    run, answers = page.get_by_role("link", name="trained", exact=True), page.get_by_text("Questions and answers")
    follow(page, dashboards.links["preceptor/train-teacher"], run.first, answers.first)
    page.get_by_text("...", exact=False).first.wait_for()
