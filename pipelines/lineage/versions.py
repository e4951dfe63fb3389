"""Registered versions as records: the tags that promotions and rollbacks write, and where a rollback leads. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from evaluation.common.errors import LineageError
from pipelines.process import preceptor

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
"""Aliases: in use, in use before, newest."""

ADAPTER_TAG, RUN_TAG = "preceptor.adapter_sha", "preceptor.run_id"
"""Tags of a version: digest of the adapter, and the run it comes from."""
FILES_TAG = "preceptor.files_sha"
"""Tag of a version: digest of all its files that decide what it is and how it answers."""
MEMORY_TAG = "preceptor.memory_digest"
"""Tag of a student's version: `ExternalMemory.digest` of the memory among its files."""
DECISION_TAG, NIGHT_TAG, TEACHER_TAG = "preceptor.gate_decision", "preceptor.night", "preceptor.teacher"
"""Tags of a night's version, promoted or not: the gate's decision, the night, and the number of the teacher's version
that wrote its self-edits (`untrained` for none)."""
STATE_TAG = "preceptor.teacher_state"
"""Tag of a teacher's version: `warm-started` or `RL-trained`."""
SCORE_TAG = "preceptor.score."
"""Prefix of the tags with a version's scores, in [0, 1]: `new`, `probes_before` and `probes_after` of a student,
`reward` of the round that a teacher learned from."""
REFUSED = {"hold": "held", "reject": "rejected"}
"""Decisions that keep a version out of use."""
DESPITE_TAG = "preceptor.promoted_despite_gate_because"
"""Tag: why a version was promoted that the gate refused."""
DATA_TAG, PARENT_TAG = "preceptor.data_digest", "preceptor.parent_version"
"""Tags of a promoted version: SHA-256 of the data it learned and was judged on, and the champion that it first
replaced."""
NO_PARENT = "none"
"""Value of `PARENT_TAG` when there was no champion before."""
PROMOTED_TAG = "preceptor.promoted_at"
"""Tag: when the version last became the champion; written last, so it marks a complete promotion."""
ROLLED_BACK_TAG, REASON_TAG = "preceptor.rolled_back_at", "preceptor.rolled_back_because"
"""Tags: when and why the version was taken out of use."""

REPORT_FILE = "gate-report.md"
"""The gate's report, whole, among the files of a version."""


class VersionRecord(NamedTuple):
    """A registered version with its history."""

    version: int
    aliases: tuple[str, ...]
    """In alphabetical order."""
    created: datetime
    decision: str | None
    """The gate's; None when none is recorded."""
    parent: int | None
    """The champion that it first replaced; None when there was none, or when it is not known (`parent_known`)."""
    parent_known: bool
    rolled_back: str | None
    """When it was taken out of use, ISO 8601; None when it was not, or was promoted again since."""
    reason: str | None
    """Why it was taken out of use."""
    despite: str | None = None
    """Why it was promoted although the gate refused it."""
    scores: Mapping[str, float] = MappingProxyType({})
    """See `SCORE_TAG`."""
    teacher: str | None = None
    night: str | None = None
    """See `TEACHER_TAG`."""
    state: str | None = None
    """See `STATE_TAG`."""


class Registered(NamedTuple):
    """An adapter in the registry, and the run that it is of."""

    version: int
    name: str
    """By which a work directory calls the adapter or the teacher's state."""
    run_id: str
    finished: bool


class Rollback(NamedTuple):
    """Where the champion's alias went."""

    from_version: int
    to_version: int


def version_record(version: int, aliases: Iterable[str], created_ms: int, tags: Mapping[str, str]) -> VersionRecord:
    """Return the record of a version from all of its tags; `created_ms` is in milliseconds since 1970."""
    parent, rolled_back = tags.get(PARENT_TAG), tags.get(ROLLED_BACK_TAG)
    if rolled_back is not None and tags.get(PROMOTED_TAG, "") > rolled_back:  # ISO 8601 sorts as text
        rolled_back = None
    return VersionRecord(
        version=version,
        aliases=tuple(sorted(aliases)),
        created=datetime.fromtimestamp(created_ms / 1000, UTC),
        decision=tags.get(DECISION_TAG),
        parent=int(parent) if parent is not None and parent.isdecimal() else None,
        parent_known=parent is not None,
        rolled_back=rolled_back,
        reason=tags.get(REASON_TAG) if rolled_back else None,
        despite=tags.get(DESPITE_TAG),
        scores={name.removeprefix(SCORE_TAG): float(tags[name]) for name in sorted(tags) if name.startswith(SCORE_TAG)},
        teacher=tags.get(TEACHER_TAG),
        night=tags.get(NIGHT_TAG),
        state=tags.get(STATE_TAG),
    )


def promotion_tags(
    name: str,
    version: int,
    champion: int | None,
    tags: Mapping[str, str],
    record: Mapping[str, str],
    despite: str | None,
) -> dict[str, str]:
    """Return what a promotion writes on a version of the model `name` with `tags`; errors as of `Registry.promote`."""
    written = dict(record)
    if (decision := tags.get(DECISION_TAG)) in REFUSED:
        if despite is None:
            raise LineageError(
                f"registry: version {version} of {name!r} was {REFUSED[decision]} by the gate. Nothing was changed. "
                "Read why on its night's page; to promote it all the same, repeat the command with "
                "--despite-the-gate --because 'REASON'."
            )
        written[DESPITE_TAG] = despite
    in_use = NO_PARENT if champion is None else str(champion)
    compared = written.pop(PARENT_TAG, in_use)
    if compared != in_use:
        raise LineageError(
            f"registry: version {version} of {name!r} was compared with the champion {compared}, and {in_use} is in "
            "use now. Nothing was changed. Compare it with the champion in use, or promote it without a gate: "
            f"{preceptor('promote', name.rpartition('-')[2], version)}"
        )
    return written if PROMOTED_TAG in tags else {**written, PARENT_TAG: in_use}


def score_tags(scores: Mapping[str, float | None]) -> dict[str, str]:
    """Return a version's scores as tags; what is not known is left out."""
    return {f"{SCORE_TAG}{name}": repr(float(value)) for name, value in scores.items() if value is not None}


def parent_of(history: Mapping[int, VersionRecord], version: int, previous: int | None) -> int | None:
    """Return the version that a rollback of `version` leads to; None when there is none.

    Parents are followed and those that were rolled back are skipped, so repeated rollbacks only ever go further back.

    Args:
        history: All versions by number.
        version: The one to leave.
        previous: The version with the alias `previous`, used where no parent was recorded.
    """
    seen: set[int] = set()
    here: int | None = version
    while here is not None and here in history and here not in seen:
        record = history[here]
        if here != version and record.rolled_back is None:
            return here
        seen.add(here)
        here = record.parent if record.parent_known else previous
    return None
