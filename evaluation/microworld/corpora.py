"""What the micro models are pretrained on, as endless seeded streams of weighted texts.

The student reads prose and questions about the `known` entities, and exercises in answering from a passage about
`context` entities that are newly invented each time. The teacher reads passages about `teacher` entities, also invented
anew each time, each followed by an edit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from evaluation.microworld.lines import LINES_PER_EDIT, MIXTURES, write_edit
from evaluation.microworld.templates import ATTRIBUTES
from evaluation.microworld.vocabulary import ENTITY_KINDS, NAME_PARTS, VALUES
from evaluation.microworld.world import (
    ENTITIES_PER_DOCUMENT,
    WORLD_SEED,
    Fact,
    Pool,
    Sheet,
    draw_sheet,
    name_pools,
    take_names,
    write_passage,
)

EDIT_HEADINGS = {
    "implications": "Implications:",
    "rewrite": "Rewritten passages:",
    "self-qa": "Questions and answers:",
}
"""Instruction that ends the teacher's prompt, by mixture."""

QUESTIONED_SHARE = 0.5
"""Share of the known entities whose questions are in the student's pretraining; of the others it reads prose only."""


class Text(NamedTuple):
    """A pretraining text: a part to read and a part to learn."""

    given: str
    """Context that carries no loss; may be empty."""
    learned: str
    """Continuation that carries the loss."""


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


def repeated_words(seed: int) -> Iterator[Text]:
    """Yield lists of 4 to 16 random names and values, each list twice, without end.

    The second half can only be predicted by copying: a few hundred steps on such texts form the induction heads
    (arXiv 2209.11895) that copying unseen names and binding values to them are built on. Without them neither model
    had learned either task after five million tokens.
    """
    rng = random.Random(f"repeated-words:{seed}")
    words = list(itertools.chain(*VALUES.values(), *(part for parts in NAME_PARTS.values() for part in parts)))
    while True:
        listed = " ".join(rng.sample(words, rng.randint(4, 16)))
        yield Text(listed, f" {listed}")


def _student_line(rng: random.Random) -> Text:
    """Return a line about a known entity: a statement, or a question with its answer."""
    questioned, prose_only = known_facts()
    draw = rng.random()
    if draw < 0.3:
        fact = rng.choice(questioned)
        # The last phrasing stays out of every training.
        question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
        return Text("", f"Question: {question}\nAnswer: {fact.value}")
    fact = rng.choice(questioned if rng.random() < 0.5 else prose_only)
    return Text("", rng.choice(fact.words.statements).format(name=fact.name, value=fact.value))


def student_lines(seed: int) -> Iterator[Text]:
    """Yield short lines about known entities without end."""
    rng = random.Random(f"student-lines:{seed}")
    while True:
        yield _student_line(rng)


def _invented_sheet(rng: random.Random, pool: Pool, entities: int, attributes: int) -> Sheet:
    """Return a sheet about random names of `pool` with facts invented on the spot."""
    kind = rng.choice(ENTITY_KINDS)
    names = take_names(rng.sample(name_pools()[kind, pool], 4 * entities), entities)
    return draw_sheet(rng, names, kind, attributes=attributes)


def student_readings(seed: int, *, largest: int = ENTITIES_PER_DOCUMENT, questions: int = 4) -> Iterator[Text]:
    """Yield exercises without end: a passage about up to `largest` newly invented entities, then `questions` on it."""
    rng = random.Random(f"student-readings:{seed}:{largest}:{questions}")
    while True:
        sheet = _invented_sheet(rng, "context", rng.randint(1, largest), rng.randint(1, 2))
        asked = []
        for fact in rng.sample(sheet.facts, min(questions, len(sheet.facts))):
            question = rng.choice(fact.words.questions[:3]).format(name=fact.name)
            asked.append(f"Question: {question}\nAnswer: {fact.value}")
        yield Text(f"Passage: {write_passage(rng, sheet)}", "\n" + "\n".join(asked))


def bound_values(seed: int, pool: Pool, *, largest: int, attributes: int) -> Iterator[Text]:
    """Yield passages without end, each followed by its facts in another order, name before value.

    The shortest text from which a model learns to look a value up by name: with one attribute a passage, the value is
    asked for right after the name, and 100 steps took value accuracy on four entities from chance to 0.96. Whole edits
    had not done it in 1,500 steps, nor had these texts with the attribute's word in between from the start.

    Args:
        seed: Of all choices.
        pool: Names to use.
        largest: Most entities in a passage.
        attributes: 1, or 2 for passages of one or two attributes with the word for the value's class after the name.
    """
    rng = random.Random(f"bound-values:{seed}:{pool}:{largest}:{attributes}")
    while True:
        sheet = _invented_sheet(rng, pool, rng.randint(1, largest), rng.randint(1, attributes))
        told = rng.sample(sheet.facts, len(sheet.facts))
        middle = [f" {fact.words.values}" if attributes > 1 else "" for fact in told]
        listed = (f"{fact.name}{word} {fact.value}." for fact, word in zip(told, middle, strict=True))
        yield Text(write_passage(rng, sheet), " " + " ".join(listed))


def teacher_prompt(passage: str, mixture: str) -> str:
    """Return the micro teacher's prompt for a passage."""
    return f"Passage: {passage}\n{EDIT_HEADINGS[mixture]}\n"


def teacher_edits(
    seed: int,
    *,
    clean: bool,
    largest: int = ENTITIES_PER_DOCUMENT,
    length: tuple[int, int] = LINES_PER_EDIT,
) -> Iterator[Text]:
    """Yield prompts with edits without end.

    Args:
        seed: Of all choices.
        clean: Only true lines about named entities: copying and binding are learned before the mixture.
        largest: Most entities in a passage; fewer make binding easier to discover.
        length: Fewest and most lines of an edit; more lines give more to learn from each passage.
    """
    rng = random.Random(f"teacher-edits:{seed}:{clean}:{largest}:{length}")
    while True:
        entities = rng.randint(1, largest) if clean else ENTITIES_PER_DOCUMENT
        sheet = _invented_sheet(rng, "teacher", entities, rng.randint(1, 2) if clean else 2)
        mixture = rng.choices(list(MIXTURES), [0.5, 0.25, 0.25])[0]
        passage = write_passage(rng, sheet)
        yield Text(teacher_prompt(passage, mixture), write_edit(rng, sheet, mixture, clean=clean, length=length))
