"""What a corpus is made of: sections of documents by split, kinds, and the pieces to write, each known by its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.common.checkpoints import is_micro
from evaluation.common.data import derive_seed
from evaluation.common.errors import ConfigError, InputError
from evaluation.sources.sections import Section, sections_of
from evaluation.tasks import Document, KnowledgeTask
from pipelines.inbox.documents import MAX_TEXT_CHARACTERS, InboxDocument
from pipelines.inbox.intake import DEFAULT_CHARACTERS, Intake, assign_questions, listing
from pipelines.plan import Plan, Stage, Step
from pipelines.write_corpus.output import SplitName
from teacher.kinds import Kind, kinds, load_kind
from teacher.prompts import PROMPTS

AUTO = "auto"
MICRO_KINDS: Mapping[str, Kind] = {
    name: Kind(name=name, label=name, form=form, template=PROMPTS[name])
    for name, form in {"micro-implications": "lines", "micro-rewrite": "lines", "micro-self-qa": "questions"}.items()
}
"""The forms that the shipped micro-teacher can write."""
_UNITS = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


class CorpusRequest(NamedTuple):
    """What the command asks for; plain data."""

    documents: tuple[str, ...]
    """Files and directories."""
    out: str
    tokens: int
    """Of the training split, replayed text left out."""
    kinds: str = AUTO
    writer: str = ""
    """A registered version such as `teacher@champion`, a saved teacher's directory, or a model; empty: the config's."""
    student: str = ""
    """Empty: the config's, or none."""
    replay: str = ""
    """Text or JSON Lines file with general text; empty for none."""
    replay_share: float = 0.2
    """Of the training split's tokens, in [0, 1)."""
    licence: str = "unknown"
    """Of the documents."""


class Passage(NamedTuple):
    """A section of a document, as a writer reads it."""

    section: Section
    task: KnowledgeTask
    """Its text under its title, and its share of the document's questions."""
    split: SplitName
    source: str

    @property
    def id(self) -> str:
        """Document and place."""
        return self.task.id


class Piece(NamedTuple):
    """A completion to write."""

    passage: Passage
    kind: Kind
    sample: int
    """Counted from 0 for each section and kind."""

    @property
    def id(self) -> str:
        """Section, kind and sample."""
        return f"{self.passage.id}/{self.kind.name}/{self.sample}"


def tokens_of(text: str) -> int:
    """Return a number of tokens as written on a command line: `20000`, `500k`, `2M`.

    Raises:
        ConfigError: It is no number above 0.
    """
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        found = int(float(number) * unit)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise ConfigError(f"--tokens: got {text!r}, allowed is a number above 0, such as 20000, 500k or 2M.")
    return found


def kinds_of(wanted: str, writer: str) -> tuple[Kind, ...]:
    """Return the kinds by `auto` (all that a writer, a model's name, can write), or names and files between commas.

    Raises:
        ConfigError: A name or file is none of a kind.
    """
    if wanted == AUTO:
        return tuple((MICRO_KINDS if is_micro(writer) else kinds()).values())
    found = [MICRO_KINDS.get(name) or load_kind(name) for name in wanted.split(",") if name]
    if not found or len({kind.name for kind in found}) < len(found):
        raise ConfigError(f"--kinds: got {wanted!r}, allowed are auto, or distinct names or files between commas.")
    return tuple(found)


def read_documents(request: CorpusRequest, intake: Intake, say: Callable[[str], None]) -> list[InboxDocument]:
    """Return the distinct documents of all files; what is skipped is said with its reason.

    Raises:
        InputError: Nothing is usable.
    """
    intake.most_characters, intake.marked = MAX_TEXT_CHARACTERS, True
    for path in request.documents:
        intake.read(Path(path))
    for line in listing(intake.skipped):
        say(f"skipped {line}")
    intake.check()
    return list({document.id: document for document in intake.documents}.values())


def split_documents(ids: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """Return the ids of the development documents, at least one of several unless the share is 0."""
    if share == 0.0 or len(ids) < 2:
        return frozenset()
    count = max(1, round(share * len(ids)))
    return frozenset(random.Random(derive_seed(seed, "development")).sample(sorted(ids), count))


def passages_of(documents: Sequence[InboxDocument], share: float, seed: int) -> list[Passage]:
    """Return the sections that something is to be written from, documents with the same text in one split.

    Raises:
        InputError: No section is left.
    """
    texts: dict[str, str] = {}
    for each in documents:
        texts.setdefault(each.text, each.id)
    held = split_documents(list(texts.values()), share, seed)
    found = []
    for each in documents:
        split: SplitName = "development" if texts[each.text] in held else "train"
        sections = [part for part in sections_of(each.document, DEFAULT_CHARACTERS) if not part.left_out]
        shown = [f"{part.context}\n{part.text}".strip() for part in sections]
        if not shown:
            continue
        asked, kept = assign_questions(each.questions, shown), assign_questions(each.held_out_questions, shown)
        for number, (part, text, questions, held_out) in enumerate(zip(sections, shown, asked, kept, strict=True)):
            title = " > ".join(filter(None, (part.title, part.heading)))
            document = Document(id=f"{each.id}/{number}", text=text, title=title, source=each.source)
            task = KnowledgeTask(document=document, questions=questions, held_out_questions=held_out)
            found.append(Passage(part, task, split, each.source))
    if not found:
        raise InputError(f"write-corpus: {len(documents)} documents hold no section to write from. Give others.")
    has_train = any(passage.split == "train" for passage in found)
    return found if has_train else [passage._replace(split="train") for passage in found]


class Schedule:
    """Turns kinds into pieces: sections in rounds, shuffled anew in each, so that all get equally many pieces."""

    def __init__(self, passages: Sequence[Passage], seed: int) -> None:
        """`passages` are those that pieces are written from."""
        self._passages, self._seed = list(passages), seed
        self._place = 0
        self._samples: dict[tuple[str, str], int] = {}
        self._order: list[Passage] = []

    def next(self, kind: Kind) -> Piece:
        """Return the next piece of a kind."""
        size = len(self._passages)
        if self._place % size == 0:
            self._order = list(self._passages)
            random.Random(derive_seed(self._seed, "sections", self._place // size)).shuffle(self._order)
        passage = self._order[self._place % size]
        self._place += 1
        return self.of(passage, kind)

    def of(self, passage: Passage, kind: Kind) -> Piece:
        """Return the next piece of a kind about a given section."""
        sample = self._samples.get((passage.id, kind.name), 0)
        self._samples[passage.id, kind.name] = sample + 1
        return Piece(passage, kind, sample)


def plan_corpus(rounds: int, sections: int, tried: int, kinds: Collection[Kind]) -> Plan:
    """Return the stages of a corpus: in each, kinds are tried on a student where `tried` sections are, then written."""
    return tuple(
        Stage(
            f"part {number}",
            (
                *((Step("update", tried, len(kinds)),) if tried else ()),
                Step("sample", sections, len(kinds)),
            ),
            number,
        )
        for number in range(rounds)
    )
