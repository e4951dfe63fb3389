"""What the gate stands on: pins for every direct dependency, and hooks that fetch nothing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_dependency_that_make_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["browser"]]
    names = {normal(found.group()) for line in wanted if (found := re.match(r"[\w.-]+", line))}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(wanted)
    assert names <= {normal(line.partition("==")[0]) for line in lines if "==" in line}


def test_hooks_run_what_is_installed_and_fetch_nothing() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["entry"].split()[0] for hook in hooks] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
