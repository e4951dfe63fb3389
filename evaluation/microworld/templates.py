"""Sentences of the micro-world: how a passage tells a fact, how an edit may state it, how a question may ask for it.

Three template sets that never mix:

- `passage`: how documents tell a fact. The student's pretraining never has these sentences outside of passages that it
  is questioned on with the passage in sight, so it has not learned to store facts from them: trained on a raw passage
  it answers next to nothing, trained on statements or questions nearly everything. A teacher that sees the passage can
  turn the one into the other.
- `statements`: the name first; what an edit may say.
- `questions`: by phrasing. "asked" phrasings are what edits and rewards use, the "held-out" phrasing appears in the
  student's pretraining only and the "unseen" one in no training at all; comparisons use the last two.
"""

from __future__ import annotations

from typing import NamedTuple

from evaluation.microworld.vocabulary import EntityKind


class Attribute(NamedTuple):
    """One attribute of a kind of entity and all the ways to put it into words; `{name}` and `{value}` are filled."""

    values: str
    """Class of the values, a key of `vocabulary.VALUES`."""
    passage: tuple[str, str]
    statements: tuple[str, str, str]
    anonymous: str
    """A true sentence without the name: it teaches nothing that can be asked for."""
    questions: tuple[str, str, str, str]
    """In the order of `PHRASINGS`."""


PHRASINGS = ("asked-1", "asked-2", "held-out", "unseen")
"""Names of the question phrasings, in the order of `Attribute.questions`."""

ATTRIBUTES: dict[EntityKind, dict[str, Attribute]] = {
    "person": {
        "home": Attribute(
            "town",
            ("As for {name}, letters go to {value}.", "{name}, say the neighbours, is found in {value}."),
            ("{name} lives in {value}.", "The home of {name} is in {value}.", "{name} has a house in {value}."),
            "One of them lives in {value}.",
            (
                "Where does {name} live?",
                "In which town does {name} live?",
                "In what place is the home of {name}?",
                "Which town is the home of {name}?",
            ),
        ),
        "trade": Attribute(
            "trade",
            ("As for {name}, the sign on the door says {value}.", "{name}, say the neighbours, is known as a {value}."),
            (
                "{name} works as a {value}.",
                "The trade of {name} is that of a {value}.",
                "{name} earns a living as a {value}.",
            ),
            "One of them works as a {value}.",
            (
                "What does {name} do for a living?",
                "As what does {name} work?",
                "What is the trade of {name}?",
                "Which trade does {name} have?",
            ),
        ),
        "instrument": Attribute(
            "instrument",
            (
                "From the rooms of {name} one hears a {value}.",
                "{name}, say the neighbours, never leaves without the {value}.",
            ),
            (
                "{name} plays the {value}.",
                "The instrument of {name} is the {value}.",
                "{name} takes lessons on the {value}.",
            ),
            "One of them plays the {value}.",
            (
                "Which instrument does {name} play?",
                "What does {name} play?",
                "What is the instrument of {name}?",
                "What instrument is that of {name}?",
            ),
        ),
        "pet": Attribute(
            "animal",
            ("At the side of {name} goes a {value}.", "{name}, say the neighbours, is fond of a certain {value}."),
            ("{name} keeps a {value}.", "The pet of {name} is a {value}.", "{name} owns a {value}."),
            "One of them keeps a {value}.",
            (
                "Which animal does {name} keep?",
                "What pet does {name} own?",
                "What kind of animal is the pet of {name}?",
                "Which pet does {name} keep?",
            ),
        ),
    },
    "company": {
        "seat": Attribute(
            "town",
            (
                "As for {name}, the books are kept in {value}.",
                "{name}, says the directory, answers letters from {value}.",
            ),
            (
                "{name} is based in {value}.",
                "The main office of {name} is in {value}.",
                "{name} has its offices in {value}.",
            ),
            "One of them is based in {value}.",
            (
                "Where is {name} based?",
                "In which town is {name} based?",
                "In what place is the main office of {name}?",
                "Which town is the main office of {name} in?",
            ),
        ),
        "goods": Attribute(
            "goods",
            ("From the yard of {name} come carts of {value}.", "{name}, says the directory, is a name for {value}."),
            ("{name} makes {value}.", "The main business of {name} is {value}.", "{name} sells {value}."),
            "One of them makes {value}.",
            (
                "What does {name} make?",
                "Which goods does {name} sell?",
                "What is the main business of {name}?",
                "Which goods does {name} make?",
            ),
        ),
        "emblem": Attribute(
            "animal",
            (
                "Over the gate of {name} stands a {value}.",
                "{name}, says the directory, seals its letters with a {value}.",
            ),
            (
                "{name} has a {value} as its emblem.",
                "The emblem of {name} is a {value}.",
                "{name} shows a {value} on its sign.",
            ),
            "One of them has a {value} as its emblem.",
            (
                "Which animal is the emblem of {name}?",
                "What is the emblem of {name}?",
                "What animal does {name} show on its sign?",
                "Which emblem does {name} show?",
            ),
        ),
        "founder": Attribute(
            "trade",
            ("At the start of {name} stood a {value}.", "{name}, says the directory, goes back to a {value}."),
            (
                "{name} was founded by a {value}.",
                "The founder of {name} was a {value}.",
                "{name} was started by a {value}.",
            ),
            "One of them was founded by a {value}.",
            (
                "Who founded {name}?",
                "By whom was {name} founded?",
                "Who was the founder of {name}?",
                "By whom was {name} started?",
            ),
        ),
    },
    "product": {
        "material": Attribute(
            "material",
            ("Into every {name} goes a lot of {value}.", "{name}, says the catalogue, owes its weight to {value}."),
            ("{name} is made of {value}.", "The material of {name} is {value}.", "{name} consists of {value}."),
            "One of them is made of {value}.",
            (
                "What is {name} made of?",
                "Of what does {name} consist?",
                "What is the material of {name}?",
                "Of which material is {name} made?",
            ),
        ),
        "colour": Attribute(
            "colour",
            ("On the shelf the {name} shines in {value}.", "{name}, says the catalogue, is known for its {value}."),
            ("{name} is painted {value}.", "The colour of {name} is {value}.", "{name} comes in {value}."),
            "One of them is painted {value}.",
            (
                "What colour is {name}?",
                "In which colour is {name} painted?",
                "What is the colour of {name}?",
                "In what colour does {name} come?",
            ),
        ),
        "origin": Attribute(
            "town",
            ("Each {name} leaves a workshop in {value}.", "{name}, says the catalogue, arrives from {value}."),
            (
                "{name} is built in {value}.",
                "The factory of {name} is in {value}.",
                "{name} is produced in {value}.",
            ),
            "One of them is built in {value}.",
            (
                "Where is {name} built?",
                "In which town is {name} produced?",
                "In what place is the factory of {name}?",
                "Which town is {name} built in?",
            ),
        ),
        "mark": Attribute(
            "animal",
            ("Under every {name} hides a small {value}.", "{name}, says the catalogue, is signed with a {value}."),
            (
                "{name} bears the mark of a {value}.",
                "The mark on {name} is a {value}.",
                "{name} carries the picture of a {value}.",
            ),
            "One of them bears the mark of a {value}.",
            (
                "Which animal is the mark on {name}?",
                "What mark does {name} bear?",
                "What picture does {name} carry?",
                "Which mark is on {name}?",
            ),
        ),
    },
}
"""Attributes by kind of entity."""

FILLERS = (
    "The text gives a few facts.",
    "There is more to say about this.",
    "The passage is about several names.",
    "All of this was written down with care.",
    "Some of this may be new to the reader.",
    "It is good to know such things.",
)
"""Lines that say nothing."""

OPENINGS: dict[EntityKind, tuple[str, ...]] = {
    "person": ("Notes on four people of the valley.", "The parish register lists four people."),
    "company": ("Notes on four firms of the coast.", "The trade directory lists four firms."),
    "product": ("Notes on four goods of the season.", "The catalogue lists four articles."),
}
"""First sentences of documents."""
