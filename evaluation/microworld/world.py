"""The micro-world: entities with names nobody has heard, facts about them, and documents that tell those facts.

The names of each kind are dealt once, by `WORLD_SEED`, into pools that no two uses share (`POOL_SHARES`): what the
micro models were pretrained on, what rewards are earned on and what comparisons ask for are about different entities.
"""

from __future__ import annotations

import itertools
import random
from functools import lru_cache
from typing import Literal, NamedTuple

from evaluation.errors import InputError
from evaluation.microworld.templates import ATTRIBUTES, OPENINGS, PHRASINGS, Attribute
from evaluation.microworld.vocabulary import ENTITY_KINDS, NAME_PARTS, VALUES, EntityKind
from evaluation.tasks import Document, KnowledgeTask, Question

WORLD_SEED = 20261122
"""Deals names into pools; the shipped micro models know this deal, so it never changes without rebuilding them."""

Pool = Literal["known", "context", "teacher", "train", "development", "test"]
POOL_SHARES: dict[Pool, float] = {
    "known": 0.04,
    "context": 0.22,
    "teacher": 0.22,
    "train": 0.32,
    "development": 0.05,
    "test": 0.15,
}
"""Share of each kind's names by use: facts the student is pretrained on, its reading exercises, the teacher's
pretraining, documents that give rewards, documents for choices, documents for comparisons."""

ENTITIES_PER_DOCUMENT = 4
ATTRIBUTES_PER_DOCUMENT = 2


class Fact(NamedTuple):
    """One true sentence's worth of the world."""

    kind: EntityKind
    attribute: str
    name: str
    value: str

    @property
    def words(self) -> Attribute:
        """The ways to put this fact into words."""
        return ATTRIBUTES[self.kind][self.attribute]


class Sheet(NamedTuple):
    """A document before it is put into words: four entities of one kind that share two attributes, eight facts."""

    kind: EntityKind
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The entities, in order of first mention."""
        return tuple(dict.fromkeys(fact.name for fact in self.facts))

    def value_of(self, name: str, attribute: str) -> str | None:
        """Return the value of `attribute` for `name`, or None when the sheet does not tell it."""
        return next((f.value for f in self.facts if f.name == name and f.attribute == attribute), None)


@lru_cache(maxsize=1)
def name_pools() -> dict[tuple[EntityKind, Pool], tuple[str, ...]]:
    """Return the names of every kind and pool; pools of a kind are disjoint and together hold all its names."""
    pools: dict[tuple[EntityKind, Pool], tuple[str, ...]] = {}
    for kind in ENTITY_KINDS:
        names = [f"{first} {second}" for first, second in itertools.product(*NAME_PARTS[kind])]
        random.Random(f"{WORLD_SEED}:{kind}").shuffle(names)
        start = 0
        for pool, share in POOL_SHARES.items():
            end = len(names) if pool == "test" else start + round(share * len(names))
            pools[kind, pool] = tuple(names[start:end])
            start = end
    return pools


def draw_sheet(
    rng: random.Random,
    names: tuple[str, ...],
    kind: EntityKind,
    *,
    attributes: int = ATTRIBUTES_PER_DOCUMENT,
) -> Sheet:
    """Return a sheet about `names`: random attributes, values that differ between the entities, facts in random order.

    Args:
        rng: Source of all choices.
        names: The entities, at most as many as the smallest class has values.
        kind: Their kind.
        attributes: How many attributes the entities share, in [1, 4].
    """
    facts = []
    for attribute in rng.sample(sorted(ATTRIBUTES[kind]), attributes):
        values = rng.sample(VALUES[ATTRIBUTES[kind][attribute].values], len(names))
        facts += [Fact(kind, attribute, name, value) for name, value in zip(names, values, strict=True)]
    rng.shuffle(facts)
    return Sheet(kind, tuple(facts))


def take_names(names: list[str], count: int) -> tuple[str, ...]:
    """Remove and return `count` names from the end of `names`, no two of which share a word.

    Raises:
        ValueError: There are not enough such names left.
    """
    taken: list[str] = []
    for name in reversed(names):
        if not {word for other in taken for word in other.split()} & set(name.split()):
            taken.append(name)
        if len(taken) == count:
            break
    else:
        raise ValueError(f"only {len(taken)} of {count} names without a common word are left")
    for name in taken:
        names.remove(name)
    return tuple(taken)


def write_passage(rng: random.Random, sheet: Sheet, *, opening: bool = True) -> str:
    """Return the passage of a document: one sentence a fact, in the sheet's order."""
    first = [rng.choice(OPENINGS[sheet.kind])] if opening else []
    told = [rng.choice(f.words.passage).format(name=f.name, value=f.value) for f in sheet.facts]
    return " ".join(first + told)


def ask(fact: Fact, phrasing: str) -> Question:
    """Return the question about `fact` in one of `PHRASINGS`."""
    template = fact.words.questions[PHRASINGS.index(phrasing)]
    return Question(question=template.format(name=fact.name), answer=fact.value, phrasing=phrasing)


class WorldDocument(NamedTuple):
    """A task of the micro-world with the fact table behind it."""

    task: KnowledgeTask
    sheet: Sheet


def write_document(
    rng: random.Random, sheet: Sheet, entities: tuple[str, ...], name: str, source: str
) -> WorldDocument:
    """Return a sheet as a document with its questions.

    Args:
        rng: Of the wordings.
        sheet: What it tells.
        entities: Those of the sheet, in the order in which the title names them.
        name: Its id.
        source: Where it comes from.
    """
    document = Document(
        id=name,
        title=", ".join(entities[:-1]) + " and " + entities[-1],
        text=write_passage(rng, sheet),
        source=source,
        entities=entities,
    )
    asked = tuple(ask(fact, phrasing) for fact in sheet.facts for phrasing in PHRASINGS[:2])
    held_out = tuple(ask(fact, phrasing) for fact in sheet.facts for phrasing in PHRASINGS[2:])
    return WorldDocument(KnowledgeTask(document=document, questions=asked, held_out_questions=held_out), sheet)


@lru_cache(maxsize=16)
def draw_documents(pool: Pool, count: int, seed: int) -> tuple[WorldDocument, ...]:
    """Return `count` documents about entities of `pool`, no entity in two of them.

    Args:
        pool: Which names to use.
        count: Number of documents; the kinds take turns.
        seed: Of the choice of names, facts and wordings.

    Raises:
        InputError: The pool has too few names.
    """
    rng = random.Random(f"{WORLD_SEED}:{pool}:{seed}")
    left = {kind: rng.sample(name_pools()[kind, pool], len(name_pools()[kind, pool])) for kind in ENTITY_KINDS}
    documents = []
    for i in range(count):
        kind = ENTITY_KINDS[i % len(ENTITY_KINDS)]
        try:
            names = take_names(left[kind], ENTITIES_PER_DOCUMENT)
        except ValueError as error:
            raise InputError(
                f"microworld: pool {pool!r} has names for {i} documents, got a request for {count}; ask for fewer"
            ) from error
        sheet = draw_sheet(rng, names, kind)
        source = f"microworld pool {pool}, seed {seed}"
        documents.append(write_document(rng, sheet, names, f"{pool}-{seed}-{i:04d}", source))
    return tuple(documents)
