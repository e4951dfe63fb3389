"""Configurations of either kind: commands that look into a store take a run's YAML file as well as a night's."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from evaluation.errors import ConfigError
from pipelines.config import RunConfig, TrackingConfig, read_config
from pipelines.nights.config import NightConfig


def run_or_night(path: Path) -> RunConfig | NightConfig:
    """Return the configuration in a YAML file, whichever kind it is; no file is both.

    Raises:
        ConfigError: The file cannot be read, or is neither; its mistakes are those of the kind that it is nearer to.
    """
    try:
        return read_config(path, RunConfig)
    except ConfigError as error:
        as_run = error
    try:
        return read_config(path, NightConfig)
    except ConfigError as error:
        as_night = error
    if as_run.__cause__ is not None and not isinstance(as_run.__cause__, ValidationError):
        raise as_run  # it could not be read at all, so that its kind does not matter
    kind, nearer = ("run", as_run) if _mistakes(as_run) <= _mistakes(as_night) else ("night", as_night)
    raise ConfigError(
        f"config {str(path)!r} is neither the configuration of a run (as `preceptor train-teacher` takes it, such as "
        f"configs/demo.yaml) nor of a night (as `preceptor adapt-student` takes it, such as configs/nights-demo.yaml). "
        f"Read as a {kind}'s, {nearer}"
    ) from nearer


def _mistakes(error: ConfigError) -> int:
    return error.__cause__.error_count() if isinstance(error.__cause__, ValidationError) else 0


def tracking_of(path: Path | None) -> TrackingConfig:
    """Return where the lineage of a configuration goes; None is the store in the work directory.

    Raises:
        ConfigError: See `run_or_night`.
    """
    return TrackingConfig() if path is None else run_or_night(path).tracking
