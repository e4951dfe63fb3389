"""What a corpus is made of: configuration, request, writer, sections of documents by split, kinds, and pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from evaluation.common.checkpoints import is_micro
from evaluation.common.data import Frozen, derive_seed
from evaluation.common.errors import ConfigError, InputError
from evaluation.sources.sections import Section, sections_of
from evaluation.tasks import Document, KnowledgeTask
from pipelines.checks import Finding, check, findings_of, model_finding, place_findings
from pipelines.inbox.documents import MAX_TEXT_CHARACTERS, InboxDocument
from pipelines.inbox.intake import DEFAULT_CHARACTERS, Intake, assign_questions, listing
from pipelines.inbox.questions import WriterSettings
from pipelines.inbox.worker import ReadingLimits
from pipelines.lineage.registry import Registry
from pipelines.lineage.store import require_store
from pipelines.process import prepare_process
from pipelines.settings import LoopSettings, StudentConfig, TrackingConfig, load
from student.config import UpdateRecipe
from teacher.kinds import Kind, kinds, load_kind
from teacher.policy import PolicyRecord
from teacher.prompts import PROMPTS
from teacher.samplers.openai import OpenAISampling

SplitName = Literal["train", "development"]
RESULT = "corpus.json"
"""File with all figures, by which a corpus's directory is known."""

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
    """See `kinds_of`."""
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

    @property
    def is_auto(self) -> bool:
        """Whether the student, if there is one, decides which kinds get the budget."""
        return AUTO in self.kinds.split(",")


class CorpusConfig(Frozen):
    """How the budget is spread over documents and kinds."""

    development: float = Field(default=0.1, ge=0.0, le=0.5)
    """Share of the documents, in [0, 0.5], whose rows are the development split; `--kinds auto` learns on these alone
    what a kind is worth. At least one document of several, unless it is 0."""
    rounds: int = Field(default=6, ge=1, le=100)
    """Parts of the budget, in [1, 100], before each of which `--kinds auto` tries every kind on the student anew."""
    tried: int = Field(default=8, ge=1, le=1000)
    """Development sections with questions, in [1, 1000], on which each kind is tried in a round."""


class WriteCorpusConfig(LoopSettings):
    """Who writes a corpus, and which student tries it.

    The prompt of `teacher` is that of no kind; its sampling, filters' leakage threshold and reward metric count.
    `student.update` is the recipe of the updates that try a piece of one kind.
    """

    command: ClassVar[str] = "write-corpus"
    student: StudentConfig | None = None  # type: ignore[assignment]
    """None: no student tries the kinds, and all get the same share of the budget; `--student` names one."""
    corpus: CorpusConfig = CorpusConfig()
    questions: WriterSettings | None = WriterSettings()
    """How questions are generated for documents without any, for the student's trials and `study`; None asks nothing
    about such documents."""
    update: UpdateRecipe = UpdateRecipe(max_steps=100_000)
    """Recipe of the one update on a corpus by `preceptor study`."""
    limits: ReadingLimits = ReadingLimits()
    """For reading the documents."""
    tracking: TrackingConfig = TrackingConfig(experiment="preceptor/write-corpus")

    @property
    def for_loop(self) -> LoopSettings:
        """The settings of the loop; without a student one stands in that nothing opens."""
        student = self.student or StudentConfig(model=self.teacher.model, format="plain")
        own = {"name": self.name, "seed": self.seed, "device": self.device, "dtype": self.dtype}
        return LoopSettings(**own, threads=self.threads, tracking=self.tracking, teacher=self.teacher, student=student)


class WriterRef(NamedTuple):
    """A writer as named on the command line, resolved."""

    config: WriteCorpusConfig
    """With the writer's base as its teacher."""
    state: Path | None
    """Directory of a trained teacher; None is the plain model."""
    label: str
    digest: str | None
    """Of the trained teacher."""


def resolve_writer(config: WriteCorpusConfig, name: str, work_dir: Path) -> WriterRef:
    """Return the writer that a name stands for: see `CorpusRequest.writer`.

    Raises:
        ConfigError: There is no such version, or the config's writer is an endpoint.
        ModelError: A directory holds a damaged teacher.
    """
    teacher = config.teacher
    if isinstance(teacher.sampling, OpenAISampling):
        if name:
            raise ConfigError(
                "--writer: the config's writer is an endpoint's model; leave --writer out, or change one."
            )
        return WriterRef(config, None, teacher.model, None)
    state, label = None, name or teacher.model
    if name.startswith(("teacher@", "teacher/")):
        require_store(config.tracking, work_dir)
        prepare_process()
        registry = Registry.open(config.tracking, work_dir)
        wanted = name.removeprefix("teacher")[1:]
        number = registry.number("teacher", int(wanted) if wanted.isdigit() else wanted)
        teacher = teacher.model_copy(update={"model": registry.recorded_model("teacher", number) or teacher.model})
        state = registry.fetch("teacher", number, work_dir / "teachers" / registry.state_name(number))
        label = f"{teacher.model}, version {number} of the teacher"
    elif (Path(name) / "policy.json").is_file() and name:
        state = Path(name).resolve()
        label = f"{teacher.model} with {name}"
    elif name:
        teacher = teacher.model_copy(update={"model": name})
    digest = None
    if state is not None:
        record = PolicyRecord.read(state)
        teacher, digest = teacher.model_copy(update={"policy": record.config}), record.digest
    return WriterRef(config.model_copy(update={"teacher": teacher}), state, label, digest)


def open_config(path: Path, student: str, writer: str, overrides: Sequence[str], work_dir: Path) -> WriterRef:
    """Return the checked configuration with the student and the writer that a command names, if it names them.

    Raises:
        ConfigError: The file is refused, or something that the corpus needs is missing.
    """
    named = [f"student.model={json.dumps(student)}"] if student else []
    ref = resolve_writer(load(path, WriteCorpusConfig, [*overrides, *named]), writer, work_dir)
    check(ref.config, work_dir, corpus_findings)
    return ref


def corpus_findings(config: WriteCorpusConfig, work_dir: Path) -> Iterator[Finding]:
    """Yield what a corpus needs besides its documents."""
    if config.student is not None:
        yield from findings_of(config, work_dir)
        return
    teacher = config.teacher
    if not isinstance(teacher.sampling, OpenAISampling):
        yield model_finding("teacher", teacher.model, chat="teacher.chat" if teacher.chat else "")
    yield from place_findings(config, work_dir)


def refuse_foreign(out: Path) -> None:
    """Raise ConfigError for an existing directory with anything but a corpus: it would be replaced as a whole."""
    if out.exists() and not (out / RESULT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out {str(out)!r}: exists and is no corpus. Give a new directory, or remove it.")


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

    `auto` among names lets the student choose among these.

    Raises:
        ConfigError: A name or file is none of a kind.
    """
    names = wanted.split(",")
    if names == [AUTO]:
        return tuple((MICRO_KINDS if is_micro(writer) else kinds()).values())
    found = [MICRO_KINDS.get(name) or load_kind(name) for name in names if name not in ("", AUTO)]
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


def passages_of(documents: Sequence[InboxDocument], share: float, seed: int) -> list[Passage]:
    """Return the sections that something is to be written from, documents with the same text in one split.

    Raises:
        InputError: No section is left.
    """
    texts: dict[str, str] = {}
    for each in documents:
        texts.setdefault(each.text, each.id)
    count = max(1, round(share * len(texts))) if share and len(texts) > 1 else 0
    held = frozenset(random.Random(derive_seed(seed, "development")).sample(sorted(texts.values()), count))
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
