"""Which documents are replaced by which: pure functions of what arrived and what it claims to replace.

A claim retires a document that came before it. A document counts as having come when it arrived or when it last made a
claim, whichever is later: a section that a later version brings back is in force again. So whatever retires a document
came later than the document did, and chains of replacements end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Arrival(NamedTuple):
    """A document in the order of arrival."""

    id: str
    title: str
    name: str
    """The sender's own id; may be empty."""
    source: str
    place: int
    """In the order of documents and claims, at least 1."""


class Claim(NamedTuple):
    """A document says that it replaces something."""

    document: str
    """Id of the document that says so."""
    whole: str
    """What the document was part of when it said so; claims of one whole do not retire each other's documents."""
    target: str
    """Id, sender's name or source of what is replaced."""
    place: int
    """In the order of documents and claims, at least 1."""


class _Index:
    """Documents by what a claim may call them."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self.ids = {arrival.id: arrival for arrival in arrivals}
        self._named: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            for called in {arrival.name, arrival.source} - {""}:
                self._named.setdefault(called, []).append(arrival)

    def meant(self, target: str) -> list[Arrival]:
        """Return the documents that a target means; an id goes before a name or source that is spelled alike."""
        return [self.ids[target]] if target in self.ids else self._named.get(target, [])


def newest(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, str]:
    """Return the id of each retired document with that of the newest one that stands for it.

    Args:
        arrivals: All documents.
        claims: All claims, in order of place.
    """
    index = _Index(arrivals)
    members: dict[str, set[str]] = {}
    came = {arrival.id: arrival.place for arrival in arrivals}
    for claim in claims:
        members.setdefault(claim.whole, set()).add(claim.document)
        came[claim.document] = max(came[claim.document], claim.place)
    retired_by: dict[str, Claim] = {}
    for claim in claims:
        for old in index.meant(claim.target):
            if old.id not in members[claim.whole] and came[old.id] < claim.place:
                before = retired_by.get(old.id)
                if before is None or before.whole != claim.whole or _same_title(index, old, claim):
                    retired_by[old.id] = claim
    return {old: _end(old, retired_by) for old in retired_by}


def unknown_targets(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, tuple[str, ...]]:
    """Return by document the targets that mean no document but those of the claim's own whole.

    Args:
        arrivals: All documents.
        claims: All claims.
    """
    index = _Index(arrivals)
    members: dict[str, set[str]] = {}
    for claim in claims:
        members.setdefault(claim.whole, set()).add(claim.document)
    found: dict[str, tuple[str, ...]] = {}
    for claim in claims:
        if all(old.id in members[claim.whole] for old in index.meant(claim.target)):
            found[claim.document] = (*found.get(claim.document, ()), claim.target)
    return found


def _same_title(index: _Index, old: Arrival, claim: Claim) -> bool:
    return index.ids[claim.document].title == old.title


def _end(old: str, retired_by: dict[str, Claim]) -> str:
    """Return where a chain of replacements ends."""
    while old in retired_by:
        old = retired_by[old].document
    return old
