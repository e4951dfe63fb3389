"""What the tests of `preceptor doctor` share: packages that pretend to be installed, and one check out of several."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipelines.doctor.checks import Check
from pipelines.doctor.children import Outcome, Probe, run_probes
from pipelines.doctor.remedies import Remedies

PACKAGED = Remedies("python", None)
"""The commands of an installation without a checkout, the same wherever tests run."""


def pretend(place: Path, name: str, version: str, *fields: str) -> list[str]:
    """Write the metadata of a distribution into a directory, and return that as a path to look in."""
    info = place / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *fields)
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    return [str(place)]


def package(place: Path, name: str, code: str) -> None:
    """Write a module that does `code` when it is imported."""
    (place / name).mkdir(parents=True)
    (place / name / "__init__.py").write_text(code)


def probed(place: Path, probe: Probe) -> Outcome:
    """Return what a probe says where the packages of a directory stand before those that are installed."""
    environment = {**os.environ, "PYTHONPATH": str(place)}
    found = run_probes([probe], environment, at_once=1, begun=lambda _: None, ended=lambda _: None)
    return found[probe.name]


def named(checks: Iterable[Check], name: str) -> Check:
    """Return the one check of a name."""
    [check] = [check for check in checks if check.name == name]
    return check
