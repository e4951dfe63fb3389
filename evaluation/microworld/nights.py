"""Nights of the micro-world: documents by day of arrival, some volatile, some superseded later, some wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Literal, NamedTuple

from evaluation.microworld.world import (
    ENTITIES_PER_DOCUMENT,
    ENTITY_KINDS,
    VALUES,
    EntityKind,
    Sheet,
    WorldDocument,
    draw_documents,
    known_facts,
    write_document,
)
from evaluation.tasks import KnowledgeTask

NightKind = Literal["durable", "volatile", "superseding", "poisoned"]
"""`durable`: new entities. `volatile`: the same, dated. `superseding`: other values for an earlier document's entities,
which it names as replaced. `poisoned`: wrong values for entities of the pretraining and of earlier nights, unmarked."""

_FIRST_DAY = date(2026, 1, 5)


class NightDocument(NamedTuple):
    """A document that arrives before a night."""

    task: KnowledgeTask
    kind: NightKind
    effective: date | None = None
    """From when on it holds; only volatile and superseding documents have one."""
    supersedes: tuple[str, ...] = ()
    """Ids of the documents that it replaces."""


def draw_nights(
    nights: int, documents: int, seed: int, *, volatile: int = 1, superseding: Sequence[int] = (), poisoned: int | None
) -> list[list[NightDocument]]:
    """Return the documents that arrive before each night; nights are counted from 0.

    Args:
        nights: At least 1.
        documents: Of each night, at least `volatile` + 1; on the poisoned night all of them are wrong.
        seed: Of all choices.
        volatile: Dated documents of each night, the last ones of it.
        superseding: Nights on which one document more replaces a durable one of an earlier night.
        poisoned: The night of wrong documents; None is none.

    Raises:
        InputError: The world has too few names.
    """
    rng = random.Random(f"micro-world:nights:{seed}")
    drawn = iter(draw_documents("test", nights * documents, seed))
    found: list[list[NightDocument]] = []
    durable: list[WorldDocument] = []
    for number in range(nights):
        fresh = [next(drawn) for _ in range(documents)]
        day = _FIRST_DAY + timedelta(days=number)
        if number == poisoned:
            found.append([NightDocument(made.task, "poisoned") for made in _wrong(rng, documents, durable, number)])
            continue
        lasting = fresh[: documents - volatile]
        tonight = [NightDocument(made.task, "durable") for made in lasting]
        tonight += [NightDocument(made.task, "volatile", day) for made in fresh[documents - volatile :]]
        if number in superseding and durable:
            old = durable.pop(rng.randrange(len(durable)))
            new = _rewritten(rng, old.sheet, f"night-{number}-new")
            tonight.append(NightDocument(new.task, "superseding", day, (old.task.id,)))
        durable += lasting
        found.append(tonight)
    return found


def _rewritten(rng: random.Random, sheet: Sheet, name: str) -> WorldDocument:
    """Return a document about the same entities and attributes, every value another one."""
    facts = []
    for fact in sheet.facts:
        others = [value for value in VALUES[fact.words.values] if value != fact.value]
        facts.append(fact._replace(value=rng.choice(others)))
    new = Sheet(sheet.kind, tuple(facts))
    return write_document(rng, new, new.names, name, f"microworld nights, {name}")


def _wrong(rng: random.Random, count: int, earlier: Sequence[WorldDocument], night: int) -> list[WorldDocument]:
    """Return wrong documents, in turn about entities that everybody knows and about those of earlier nights."""
    made = []
    for i in range(count):
        if i % 2 == 0 or not earlier:
            sheet = _known_sheet(rng, ENTITY_KINDS[(i // 2) % len(ENTITY_KINDS)])
        else:
            sheet = rng.choice(earlier).sheet
        made.append(_rewritten(rng, sheet, f"night-{night}-wrong-{i}"))
    return made


def _known_sheet(rng: random.Random, kind: EntityKind) -> Sheet:
    """Return two true facts each of some entities of the pretraining."""
    facts = [fact for side in known_facts() for fact in side if fact.kind == kind]
    names = rng.sample(sorted({fact.name for fact in facts}), ENTITIES_PER_DOCUMENT)
    attributes = rng.sample(sorted({fact.attribute for fact in facts}), 2)
    chosen = [fact for fact in facts if fact.name in names and fact.attribute in attributes]
    rng.shuffle(chosen)
    return Sheet(kind, tuple(chosen))
