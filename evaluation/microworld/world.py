"""The micro-world: entities with invented names, facts about them, and documents that state those facts.

Words and sentences are in `words.toml`. The names of each kind are dealt once, by `WORLD_SEED`, into pools that no two
uses share (`POOL_SHARES`): pretraining of the micro models, rewards and comparisons are about different entities.
"""

from __future__ import annotations

import itertools
import random
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from evaluation.common.errors import InputError
from evaluation.sources.config import MicroworldData
from evaluation.tasks import Document, KnowledgeTask, Question, Split

EntityKind = Literal["person", "company", "product"]
ENTITY_KINDS: tuple[EntityKind, ...] = get_args(EntityKind)


class Attribute(NamedTuple):
    """One attribute of a kind of entity, with the sentences that have it; `questions` in the order of `PHRASINGS`."""

    values: str
    """Class of the values, a key of `VALUES`."""
    passage: tuple[str, ...]
    statements: tuple[str, ...]
    anonymous: str
    questions: tuple[str, ...]


_WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
VALUES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _WORDS["values"].items()}
"""Values by class, each one word, no word in two classes; chance of guessing one is at most 1 / 24."""
NAME_PARTS: dict[EntityKind, tuple[list[str], list[str]]] = {
    kind: (first.split(), second.split()) for kind, (first, second) in _WORDS["names"].items()
}
"""First and second words from which names of a kind are put together."""
ATTRIBUTES: dict[EntityKind, dict[str, Attribute]] = {
    kind: {
        name: Attribute(f["values"], tuple(f["passage"]), tuple(f["statements"]), f["anonymous"], tuple(f["questions"]))
        for name, f in attributes.items()
    }
    for kind, attributes in _WORDS["attributes"].items()
}
"""Attributes by kind of entity."""
OPENINGS: dict[EntityKind, list[str]] = _WORDS["openings"]
"""First sentences of documents."""
FILLERS: list[str] = _WORDS["fillers"]
"""Lines that say nothing."""
PHRASINGS = ("asked-1", "asked-2", "held-out", "unseen")
"""Names of the question phrasings; rewards use the first two, comparisons the last two."""

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
QUESTIONED_SHARE = 0.5
"""Share of the known entities whose questions are in the student's pretraining; of the others it reads prose only."""
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
        """Return the value of `attribute` for `name`, or None when the sheet does not have it."""
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


@lru_cache(maxsize=1)
def known_facts() -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Return all facts of the known entities: of those with questions in the pretraining, and of those without."""
    rng = random.Random(f"{WORLD_SEED}:known")
    questioned: list[Fact] = []
    prose_only: list[Fact] = []
    for kind in ENTITY_KINDS:
        names = name_pools()[kind, "known"]
        for i, name in enumerate(names):
            side = questioned if i < QUESTIONED_SHARE * len(names) else prose_only
            side += [Fact(kind, a, name, rng.choice(VALUES[w.values])) for a, w in sorted(ATTRIBUTES[kind].items())]
    return tuple(questioned), tuple(prose_only)


def draw_sheet(
    rng: random.Random, names: tuple[str, ...], kind: EntityKind, *, attributes: int = ATTRIBUTES_PER_DOCUMENT
) -> Sheet:
    """Return a sheet about `names`: random attributes, values that differ between the entities, facts in random order.

    There are at most as many names as the smallest class has values, and 1 to 4 attributes.
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


def write_passage(rng: random.Random, sheet: Sheet) -> str:
    """Return the passage of a document: an opening, and one sentence a fact, in the sheet's order."""
    first = rng.choice(OPENINGS[sheet.kind])
    return " ".join([first, *(rng.choice(f.words.passage).format(name=f.name, value=f.value) for f in sheet.facts)])


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
    """Return a sheet as a document, called `name`, with its questions; the title names the entities in their order."""
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
    """Return `count` documents about entities of `pool`, no entity in two of them; the kinds take turns.

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
        name, source = f"{pool}-{seed}-{i:04d}", f"microworld pool {pool}, seed {seed}"
        documents.append(write_document(rng, draw_sheet(rng, names, kind), names, name, source))
    return tuple(documents)


def _drawn(data: MicroworldData) -> tuple[tuple[WorldDocument, ...], ...]:
    return (
        draw_documents("train", data.train_documents, data.split_seed),
        draw_documents("development", data.development_documents, data.split_seed),
        draw_documents("test", data.test_documents, data.split_seed),
    )


def microworld_split(data: MicroworldData) -> Split:
    """Return the documents of a run; the sides come from pools of names that no two share.

    Raises:
        InputError: A pool has too few names.
    """
    return Split(*(tuple(document.task for document in side) for side in _drawn(data)))


def microworld_sheets(data: MicroworldData) -> dict[str, Sheet]:
    """Return the fact tables behind the documents of `microworld_split`, by document id."""
    return {document.task.id: document.sheet for side in _drawn(data) for document in side}
