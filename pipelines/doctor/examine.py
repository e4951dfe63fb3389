"""Runs the checks: slow ones in child processes side by side, the others here, and all of them whatever one does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipelines.config import RunConfig, TrackingConfig
from pipelines.doctor import configuration, engines, limits, machine, packages, stores, work_directory
from pipelines.doctor.checks import Check, DoctorReport, guarded
from pipelines.doctor.children import Outcome, Probe, run_probes
from pipelines.doctor.remedies import Remedies
from pipelines.progress import Reporter

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",
    "PREFECT_API_REQUEST_TIMEOUT": "5",
    "PREFECT_CLIENT_MAX_RETRIES": "0",
}
"""Set for child processes: nothing is downloaded, and no server is waited for."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the checks look at."""

    work_dir: Path
    config: RunConfig | None
    outcomes: Mapping[str, Outcome]
    remedies: Remedies

    @property
    def tracking(self) -> TrackingConfig:
        return TrackingConfig() if self.config is None else self.config.tracking

    @property
    def torch(self) -> Outcome:
        return self.outcomes.get("torch", Outcome(error="it was not looked at"))

    @property
    def gpu(self) -> bool:
        return machine.has_gpu(self.outcomes.get("gpus"), self.torch)


def examine(work_dir: Path, config: RunConfig | None, console: Console) -> DoctorReport:
    """Return what is installed and usable; takes 10 to 60 s, most of it for importing libraries.

    Downloads nothing and changes nothing; the network is used for the configured stores alone.

    Args:
        work_dir: Of runs; need not exist.
        config: Whose needs are looked at as well; None for those of any run.
        console: Shows progress.
    """
    outcomes: dict[str, Outcome] = {}
    failed = guarded("machine", "probes", lambda: _probe(work_dir, config, console, outcomes))
    scene = _Scene(work_dir, config, outcomes, Remedies.here())
    steps = [*_installation(scene), *_surroundings(scene)]
    if config is not None:
        steps += _configuration(scene, config)
    checks = [check for area, name, step in steps for check in guarded(area, name, step)]
    return DoctorReport.of([*failed, *checks])


_Step = tuple[str, str, Callable[[], Iterable[Check]]]
"""Area and name of the check that says so when this one fails, and what makes it."""


def _installation(scene: _Scene) -> list[_Step]:
    """Return the checks of what is installed."""
    outcomes, remedies = scene.outcomes, scene.remedies
    wanted = configuration.wants_vllm(scene.config)
    return [
        (packages.AREA, "python", lambda: packages.python_check(remedies)),
        (packages.AREA, "requirements", lambda: packages.requirement_checks(remedies)),
        (packages.AREA, "ray (extra)", lambda: packages.ray_check(remedies)),
        (engines.AREA, "Prefect server", lambda: engines.prefect_check(outcomes.get("prefect"), remedies)),
        (
            engines.AREA,
            "vLLM",
            lambda: engines.vllm_check(
                outcomes.get("vllm"), remedies, gpu=scene.gpu, wanted=wanted, beside=outcomes.get("imports")
            ),
        ),
        (engines.AREA, "beside torch", lambda: engines.companions_check(outcomes.get("imports"), remedies)),
    ]


def _surroundings(scene: _Scene) -> list[_Step]:
    """Return the checks of the machine, the work directory and the stores."""
    version, allowed = packages.find_version("torch"), limits.read_limits()
    outcomes, remedies, work_dir = scene.outcomes, scene.remedies, scene.work_dir
    return [
        (machine.AREA, "torch", lambda: machine.torch_checks(scene.torch, version, remedies)),
        (machine.AREA, "GPU", lambda: machine.gpu_checks(outcomes.get("gpus"), scene.torch, version, remedies)),
        (machine.AREA, "cores", lambda: machine.core_check(allowed)),
        (machine.AREA, "memory", lambda: machine.memory_check(allowed)),
        (work_directory.AREA, "place", lambda: work_directory.place_checks(work_dir)),
        (work_directory.AREA, "lock", lambda: work_directory.run_checks(work_dir)),
        (
            stores.AREA,
            "MLflow",
            lambda: stores.mlflow_check(scene.tracking, work_dir, outcomes.get("mlflow"), remedies),
        ),
        (stores.AREA, "Prefect", lambda: stores.prefect_checks(outcomes.get("prefect"), work_dir)),
    ]


def _configuration(scene: _Scene, config: RunConfig) -> list[_Step]:
    """Return the checks of what one configuration needs."""
    area = configuration.AREA
    return [
        (area, "models", lambda: configuration.model_checks(config)),
        (area, "device", lambda: configuration.device_checks(config, scene.torch, machine.native_bfloat16())),
        (area, "endpoint's key", lambda: configuration.key_checks(config)),
    ]


def _probe(work_dir: Path, config: RunConfig | None, console: Console, outcomes: dict[str, Outcome]) -> Iterable[Check]:
    """Fill `outcomes`; torch is alone on the machine while its speed is measured. Yields nothing."""
    tracking = TrackingConfig() if config is None else config.tracking
    alone = [Probe("torch")] if packages.find_version("torch") else []
    together = [Probe("gpus", seconds=10.0)] if shutil.which("nvidia-smi") else []
    together += [Probe("vllm")] if len(engines.installed_vllm()) == 1 else []
    together += [Probe("prefect")] if packages.find_version("prefect") else []
    store = stores.mlflow_probe(tracking, work_dir) if packages.find_version("mlflow") else None
    together += [] if store is None else [store]
    companions = engines.installed_companions()
    together += [Probe("imports", companions)] if companions else []
    with tempfile.TemporaryDirectory() as scratch, Reporter(console, len(alone) + len(together)) as reporter:
        home = stores.prefect_home(work_dir)
        quiet = {"PREFECT_HOME": str(home if home.is_dir() else scratch), **_OFFLINE}
        for probes, at_once in ((alone, 1), (together, max(2, os.cpu_count() or 1))):
            outcomes |= run_probes(
                probes,
                {**os.environ, **quiet},
                at_once=at_once,
                begun=lambda names: reporter.begin(f"looking at {', '.join(names)}"),
                ended=lambda _: reporter.done(),
            )
    return ()
