"""The documentation: its notebook runs as it stands, and its site is strict and loads nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.flows.settings import ROOT, environment

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>|@import[^;]*//""")


def outputs(notebook: Any) -> list[set[str]]:
    """Return the kinds of the outputs of each code cell."""
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [{each.get("name", each.output_type) for each in cell.outputs} for cell in code]


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_notebook_runs_as_it_stands(tmp_path: Path) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    stored = nbformat.read(NOTEBOOK, 4)
    fresh = deepcopy(stored)
    for cell in fresh.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(tmp_path / "home"), "PATH": path, "PYTHONPATH": str(ROOT)}
    place = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(fresh, timeout=1800, kernel_name="python3", resources=place).execute(env=env)
    assert outputs(fresh) == outputs(stored)
    assert not any("stderr" in kinds for kinds in outputs(fresh))
    shown = [each.data["text/plain"] for cell in fresh.cells for each in cell.get("outputs", ()) if "data" in each]
    assert shown[0] == "('promoted', 1)"


def test_stored_notebook_names_no_place_of_the_machine_that_ran_it() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert '"execution_count": 1,' in text
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)/|[0-9a-f]{32}|Warning", text)


def test_site_is_strict_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra `docs` (`make docs`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "quickstart.html", "notebook.html", "glossary.html"} <= pages.keys()
    assert [found for page in pages.values() for found in LOADED.findall(page)] == []
