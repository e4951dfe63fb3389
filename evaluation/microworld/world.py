"""The micro-world: invented entities, facts about them, and documents that state the facts.

Words and sentences are in `words.toml`. `WORLD_SEED` splits the names of each kind into disjoint pools (`POOL_SHARES`):
pretraining, rewards and comparisons are about different entities.
"""

from __future__ import annotations

import itertools
import random
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from evaluation.common.errors import InputError
from evaluation.tasks import DataSplit, Document, KnowledgeTask, Question, Split

EntityKind = Literal["person", "company", "product"]
ENTITY_KINDS: tuple[EntityKind, ...] = get_args(EntityKind)


class Attribute(NamedTuple):
    """An attribute with its sentence templates; `questions` in the order of `PHRASINGS`."""

    values: str
    """Class of the values, a key of `VALUES`."""
    passage: tuple[str, ...]
    statements: tuple[str, ...]
    anonymous: str
    questions: tuple[str, ...]


_WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
VALUES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _WORDS["values"].items()}
"""Values by class: single words, disjoint between classes; chance accuracy is at most 1 / 24."""
NAME_PARTS: dict[EntityKind, tuple[list[str], list[str]]] = {
    kind: (first.split(), second.split()) for kind, (first, second) in _WORDS["names"].items()
}
"""First and second words of names, by kind."""
WORDS = (*itertools.chain(*VALUES.values()), *itertools.chain(*itertools.chain(*NAME_PARTS.values())))
"""All values and parts of names."""
ATTRIBUTES: dict[EntityKind, dict[str, Attribute]] = {
    kind: {
        name: Attribute(f["values"], tuple(f["passage"]), tuple(f["statements"]), f["anonymous"], tuple(f["questions"]))
        for name, f in attributes.items()
    }
    for kind, attributes in _WORDS["attributes"].items()
}
OPENINGS: dict[EntityKind, list[str]] = _WORDS["openings"]
FILLERS: list[str] = _WORDS["fillers"]
"""Lines without content."""
PHRASINGS = ("asked-1", "asked-2", "held-out", "unseen")
"""Names of the question phrasings; rewards use the first two, comparisons the last two."""

WORLD_SEED = 20261122
"""Splits names into pools; a change requires rebuilding the shipped models."""
Pool = Literal["known", "context", "teacher", "train", "development", "test"]
POOL_SHARES: dict[Pool, float] = {
    "known": 0.04,
    "context": 0.22,
    "teacher": 0.22,
    "train": 0.32,
    "development": 0.05,
    "test": 0.15,
}
"""Share of each kind's names: the student's facts, its reading exercises, the teacher's pretraining, and the training,
development and test documents."""
QUESTIONED_SHARE = 0.5
"""Share of the known entities with questions in the student's pretraining; the others occur in prose only."""
ENTITIES_PER_DOCUMENT = 4
ATTRIBUTES_PER_DOCUMENT = 2


class Fact(NamedTuple):
    """A true (name, attribute, value) triple."""

    kind: EntityKind
    attribute: str
    name: str
    value: str

    @property
    def words(self) -> Attribute:
        """Its sentence templates."""
        return ATTRIBUTES[self.kind][self.attribute]


class Sheet(NamedTuple):
    """The fact table of a document: entities of one kind with the same attributes."""

    kind: EntityKind
    facts: tuple[Fact, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The entities, in order of first mention."""
        return tuple(dict.fromkeys(fact.name for fact in self.facts))

    def value_of(self, name: str, attribute: str) -> str | None:
        """Return the value of `attribute` for `name`; None if absent."""
        return next((f.value for f in self.facts if f.name == name and f.attribute == attribute), None)


@lru_cache(maxsize=1)
def name_pools() -> dict[tuple[EntityKind, Pool], tuple[str, ...]]:
    """Return the names by kind and pool; the pools partition the names of a kind."""
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
    """Return all facts of the known entities: with questions in the pretraining, and in prose only."""
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
    """Return a sheet about `names`: 1 to 4 random attributes, values distinct between entities, random order."""
    facts = []
    for attribute in rng.sample(sorted(ATTRIBUTES[kind]), attributes):
        values = rng.sample(VALUES[ATTRIBUTES[kind][attribute].values], len(names))
        facts += [Fact(kind, attribute, name, value) for name, value in zip(names, values, strict=True)]
    rng.shuffle(facts)
    return Sheet(kind, tuple(facts))


def take_names(names: list[str], count: int) -> tuple[str, ...]:
    """Remove and return `count` names without a common word from the end of `names`; ValueError if too few are left."""
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
    """Return a passage: an opening, then one sentence per fact in the sheet's order."""
    first = rng.choice(OPENINGS[sheet.kind])
    return " ".join([first, *(rng.choice(f.words.passage).format(name=f.name, value=f.value) for f in sheet.facts)])


def ask(fact: Fact, phrasing: str) -> Question:
    """Return the question about `fact` in one of `PHRASINGS`; the others are its paraphrases."""
    texts = dict(zip(PHRASINGS, (template.format(name=fact.name) for template in fact.words.questions), strict=True))
    asked = texts.pop(phrasing)
    return Question(question=asked, answer=fact.value, phrasing=phrasing, paraphrases=tuple(texts.values()))


class WorldDocument(NamedTuple):
    """A task of the micro-world with the fact table behind it."""

    task: KnowledgeTask
    sheet: Sheet


def write_document(
    rng: random.Random, sheet: Sheet, entities: tuple[str, ...], name: str, source: str
) -> WorldDocument:
    """Return a sheet as a document with id `name` and its questions; the title lists `entities` in order."""
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
    """Return `count` documents about distinct entities of `pool`, kinds in turn; InputError if names run out."""
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


class MicroworldData(DataSplit):
    """Documents of the micro-world; its splits have disjoint entities."""

    type: Literal["microworld"] = "microworld"
    train_documents: int = Field(default=240, ge=1, le=330)
    """Training documents, in [1, 330]."""
    development_documents: int = Field(default=12, ge=0, le=48)
    """Development documents, in [0, 48]."""
    test_documents: int = Field(default=64, ge=1, le=150)
    """Test documents, in [1, 150]."""

    def draw(self) -> tuple[tuple[WorldDocument, ...], ...]:
        """Return the training, development and test documents; the splits use disjoint pools of names."""
        counts: dict[Pool, int] = {
            "train": self.train_documents,
            "development": self.development_documents,
            "test": self.test_documents,
        }
        return tuple(draw_documents(pool, count, self.split_seed) for pool, count in counts.items())


def microworld_split(data: MicroworldData) -> Split:
    """Return the documents of a run."""
    return Split(*(tuple(document.task for document in side) for side in data.draw()))


def microworld_sheets(data: MicroworldData) -> dict[str, Sheet]:
    """Return the fact tables of the documents of `microworld_split`, by document id."""
    return {document.task.id: document.sheet for side in data.draw() for document in side}
