"""What `make evidence` runs: seeds of one configuration, and arms that differ from it in a few settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipelines.config import read_config

_BY_SEED = ("seed", "data.split_seed")
"""Settings that the seeds of the plan decide."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _setting(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ValueError("allowed is a dotted key, `=` and a value, such as loop.rounds=3")
    if key in _BY_SEED:
        raise ValueError(f"{key} follows from the seeds of the plan; list them there")
    return text


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("allowed are seeds that differ")
    return seeds


Override = Annotated[str, AfterValidator(_setting)]
"""A setting as of `--set`; which keys there are is checked when the configuration is loaded."""

Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=1000), AfterValidator(_distinct)
]

Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^|\n]+$")]
"""A heading or the label of an arm in tables: one line without `|`."""


class TransferPlan(_Frozen):
    """The other student, which is pretrained from its own seed unless it is there."""

    role: Literal["student", "small-student"] = "small-student"
    """`small-student` has another shape than the student of the runs; `student` the same, with other weights."""
    seed: int = Field(default=1, ge=0, lt=2**31)
    """Of its initial weights and pretraining texts, in [0, 2^31); 0 gave the student that ships."""


class ArmsPlan(_Frozen):
    """Runs that differ from a reference in a few settings, to see what each setting is worth."""

    seeds: Seeds = (0,)
    """Each arm and the reference are run once for each; one tells nothing of how another would turn out."""
    common: tuple[Override, ...] = ()
    """Settings of the reference and of all arms, such as fewer controls: an arm needs the trained teacher only."""
    reference: Name = "as configured"
    """What the arms are compared with is called so: the configuration with `common` alone."""
    groups: dict[Name, dict[Name, tuple[Override, ...]]] = Field(default_factory=dict)
    """Heading of a table -> name of an arm -> its settings, after `common`; p-values are corrected within a table."""

    @model_validator(mode="after")
    def _told_apart(self) -> ArmsPlan:
        for heading, arms in self.groups.items():
            if not arms:
                raise ValueError(f"groups.{heading}: got no arm, allowed is at least one")
            if self.reference in arms:
                raise ValueError(f"groups.{heading}: {self.reference!r} is the name of the reference")
            if empty := [name for name, settings in arms.items() if not settings]:
                raise ValueError(f"groups.{heading}: {empty} change nothing; the reference is run anyway")
        return self


class EvidencePlan(_Frozen):
    """Everything that `make evidence` runs."""

    config: str = Field(min_length=1)
    """YAML file of the run, relative to the plan's directory."""
    lanes: int = Field(default=1, ge=1, le=64)
    """Runs at a time, in [1, 64]; they share the cores out. With more lanes than cores all take longer."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of everything random, the choice of documents included, each in [0, 2^31)."""
    transfer: TransferPlan | None = None
    """Another student on which the same self-edits are tried; None leaves this to the configuration."""
    arms: ArmsPlan | None = None
    """None compares no settings."""


def load_plan(path: Path) -> EvidencePlan:
    """Return the plan in a YAML file.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, or is refused; all mistakes are listed at once.
    """
    return read_config(path, EvidencePlan)
