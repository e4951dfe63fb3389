"""Tags that promotions and rollbacks write to a version, and where a rollback leads. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from evaluation.common.errors import LineageError

DECISION_TAG, DATA_TAG, PARENT_TAG = "preceptor.gate_decision", "preceptor.data_digest", "preceptor.parent_version"
"""Tags of a promoted version: the gate's decision, SHA-256 of the data it learned and was judged on, and the champion
that it first replaced."""
PROMOTED_TAG = "preceptor.promoted_at"
"""Tag: when the version last became the champion; written last, so it marks a complete promotion."""
ROLLED_BACK_TAG, REASON_TAG = "preceptor.rolled_back_at", "preceptor.rolled_back_because"
"""Tags: when and why the version was taken out of use."""

NO_PARENT = "none"
"""Value of `PARENT_TAG` when there was no champion before."""
REPORT_FILE = "gate-report.md"
"""The gate's report, whole, among the files of a version."""
LONGEST_DESCRIPTION = 5000
"""Characters that MLflow's databases take for a version's description."""
_CUT = f"\n\n… (cut; the whole report is in `{REPORT_FILE}` among the version's files)"


class VersionRecord(NamedTuple):
    """A registered version with its history."""

    version: int
    aliases: tuple[str, ...]
    """In alphabetical order."""
    created: datetime
    decision: str | None
    """The gate's; None when none is recorded."""
    data_digest: str | None
    parent: int | None
    """The champion that it first replaced; None when there was none, or when it is not known (`parent_known`)."""
    parent_known: bool
    rolled_back: datetime | None
    """When it was taken out of use; None when it was not, or was promoted again since."""
    reason: str | None
    """Why it was taken out of use."""


class Rollback(NamedTuple):
    """Where the champion's alias went."""

    from_version: int
    to_version: int


def version_record(version: int, aliases: Sequence[str], created_ms: int, tags: Mapping[str, str]) -> VersionRecord:
    """Return the record of a version from all of its tags; `created_ms` is in milliseconds since 1970."""
    parent = tags.get(PARENT_TAG)
    promoted, rolled_back = _moment(tags.get(PROMOTED_TAG)), _moment(tags.get(ROLLED_BACK_TAG))
    out_of_use = rolled_back is not None and (promoted is None or promoted <= rolled_back)
    return VersionRecord(
        version=version,
        aliases=tuple(sorted(aliases)),
        created=datetime.fromtimestamp(created_ms / 1000, UTC),
        decision=tags.get(DECISION_TAG),
        data_digest=tags.get(DATA_TAG),
        parent=int(parent) if parent is not None and parent.isdecimal() else None,
        parent_known=parent is not None,
        rolled_back=rolled_back if out_of_use else None,
        reason=tags.get(REASON_TAG) if out_of_use else None,
    )


def parent_of(history: Mapping[int, VersionRecord], version: int, previous: int | None) -> int | None:
    """Return the version that a rollback of `version` leads to; None when there is none.

    Parents are followed and those that were rolled back are skipped, so repeated rollbacks only ever go further back.

    Args:
        history: All versions by number.
        version: The one to leave.
        previous: The version with the alias `previous`, used where no parent was recorded.
    """
    seen = {version}
    here = version
    while True:
        record = history.get(here)
        parent = record.parent if record is not None and record.parent_known else previous
        if parent is None or parent in seen or parent not in history:
            return None
        if history[parent].rolled_back is None:
            return parent
        seen.add(parent)
        here = parent


def described(report: str) -> str:
    """Return a report as the description of a version: whole, or cut with a pointer to the file."""
    return report if len(report) <= LONGEST_DESCRIPTION else report[: LONGEST_DESCRIPTION - len(_CUT)] + _CUT


def refuse_other_champion(name: str, version: int, compared: str, in_use: str) -> None:
    """Refuse a promotion whose gate saw another champion than the one in use.

    Raises:
        LineageError: They differ.
    """
    if compared != in_use:
        raise LineageError(
            f"registry: version {version} of {name!r} was compared with the champion {compared}, and {in_use} is in "
            f"use now. Nothing was changed. Compare it with the champion in use, or promote it without a gate: "
            f"preceptor promote {name.rpartition('-')[2]} {version}"
        )


def nothing_before(name: str, role: str, champion: int | None) -> LineageError:
    """Return the error of a rollback that leads nowhere."""
    if champion is None:
        return LineageError(
            f"registry: {name!r} has no champion, so there is nothing to roll back. Give a version the alias with "
            f"`preceptor promote {role} NUMBER`."
        )
    return LineageError(
        f"registry: version {champion} of {name!r} has no champion before it, so there is nothing to roll back to. "
        f"List the versions with `preceptor versions --role {role}`, then put one in use with `preceptor promote "
        f"{role} NUMBER`."
    )


def now() -> str:
    """Return the time as tags hold it: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _moment(text: str | None) -> datetime | None:
    """Return the time in a tag; None when there is none, or none that can be parsed."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
