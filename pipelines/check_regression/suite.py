"""A suite (documents, questions and probes, what counts as worse, pins) and the subjects that are compared on it.

Pins are digests of everything that the suite asks, and of whom: a document or question that has changed would make
today's verdict about something else than yesterday's, so it is refused by name.

A subject is one word on the command line: a student, or a variant (a teacher's state or a run's configuration), whose
self-edits update the student. Students compare with students and variants with variants.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self, cast
from urllib.parse import parse_qsl

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from evaluation.common.data import Frozen, digest_json
from evaluation.common.errors import ConfigError, InputError
from evaluation.common.gguf import ModelName
from evaluation.common.storage import write_atomically
from evaluation.domains import DataConfig, load_split
from evaluation.engines.endpoint import EndpointConfig
from evaluation.retention import retention_probes
from evaluation.tasks import KnowledgeTask, Question
from pipelines.check_regression.verdict import VerdictConfig
from pipelines.checks import Finding, model_finding, place_findings
from pipelines.settings import (
    Asking,
    Graded,
    LoopSettings,
    Settings,
    StudentConfig,
    TrackingConfig,
    for_documents,
    load,
)
from pipelines.train_teacher.config import TrainTeacherConfig
from student.config import UpdateRecipe
from teacher.config import TeacherConfig
from teacher.samplers.openai import OpenAISampling

if TYPE_CHECKING:
    from pipelines.lineage.registry import Role

WRITES = {"prompt", "chat", "sampling"}
"""Fields of a teacher's section that say how its model writes; the others say how it learns."""

_SHA = r"^[0-9a-f]{64}$"
_SHOWN = 5
"""Changed documents that a message names at most."""
STUDENTS = "base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS, model:DIRECTORY, endpoint:URL#MODEL"
"""The words that name a student."""
_VARIANTS = "teacher:base, teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE"
_VERSION = re.compile(r"version:(student|teacher)(?:/([1-9]\d*)|@([A-Za-z0-9_-]+))")
_FILES = {
    "adapter": ("directory that PEFT wrote", "adapter_config.json"),
    "model": ("directory of a whole checkpoint, such as a merged one", "config.json"),
    "teacher": ("directory that `preceptor train-teacher` wrote", "policy.json"),
    "config": ("YAML file of a run", ""),
}
"""What a subject with a path names, by its first word, and a file that it has."""


class AdaptationConfig(Frozen):
    """How variants are scored, and what a teacher alone does not say: its prompt, and how the student learns."""

    teacher: TeacherConfig
    """Base of the teachers, with the prompt and sampling that they write with; how they learn plays no part."""
    update: UpdateRecipe = UpdateRecipe()
    """By which self-edits update the student."""
    edits: int = Field(default=2, ge=1, le=64)
    """Self-edits of each document, in [1, 64]; each updates an adapter of its own, and scores are averaged."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the file sets; settings that it leaves out play no part, so that new ones change nothing."""
        teacher = self.teacher.model_dump(mode="json", exclude_unset=True, include={"model", *WRITES})
        others = self.model_dump(mode="json", exclude_unset=True, exclude={"teacher"})
        return digest_json({**others, "teacher": teacher})


class Pins(Frozen):
    """SHA-256 digests of a suite's contents when it was pinned."""

    student: str = Field(pattern=_SHA)
    """`model_digest` of the student."""
    adaptation: str | None = Field(default=None, pattern=_SHA)
    """`AdaptationConfig.digest`; None for a suite without that section."""
    teacher: str | None = Field(default=None, pattern=_SHA)
    """`model_digest` of the teacher's base; None without the section, and for a teacher behind an endpoint."""
    probes: str = Field(pattern=_SHA)
    """All probes with their answers."""
    documents: dict[str, str] = Field(min_length=1)
    """By document id: its text, and the questions asked about it with their answers."""


class RegressionSuite(Settings, Asking, Graded):
    """The YAML file of a suite; sampling and updates of candidate and baseline have the same seeds."""

    command: ClassVar[str] = "check-regression"
    student: ModelName
    """Base of the students: directory, hub id, GGUF file, or `micro-student`."""
    data: DataConfig
    side: Literal["train", "development", "test"] = "test"
    """Side of the data whose documents are asked about."""
    questions_per_document: int | None = Field(default=None, ge=1)
    """First held-out questions of a document that are asked, at least 1; None asks all."""
    probes: int = Field(default=0, ge=0, le=10_000)
    """Questions on what the base knew before, in [0, 10000], where the data has such; 0 asks none."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> ids of documents with a verdict of their own. No document is in two; those in none count in the whole."""
    adaptation: AdaptationConfig | None = None
    """How variants are scored; None compares students alone."""
    limits: VerdictConfig = VerdictConfig()
    tracking: TrackingConfig = TrackingConfig(experiment="preceptor/check-regression")
    """Where registered versions are found and results are logged."""
    pins: Pins | None = None
    """Written by `preceptor check-regression SUITE --pin`; without them nothing is compared."""

    _graded = field_validator("grading")(for_documents)

    @model_validator(mode="after")
    def _one_group_each(self) -> Self:
        listed = Counter(document for ids in self.groups.values() for document in ids)
        if twice := sorted(document for document, count in listed.items() if count > 1):
            raise ValueError(f"groups: documents {twice} are listed twice; name each once")
        return self

    def read_data(self) -> object:
        """See `load_content`."""
        return load_content(self)

    @property
    def digest(self) -> str:
        """SHA-256 of what may change a verdict."""
        return digest_json(self.model_dump(mode="json", exclude={"tracking", "threads"}))


class SuiteContent(NamedTuple):
    """What is asked."""

    tasks: tuple[KnowledgeTask, ...]
    """`comparison_questions` are the questions that the suite asks."""
    probes: tuple[Question, ...]


def load_content(suite: RegressionSuite) -> SuiteContent:
    """Return the documents, questions and probes that the suite names, whatever its pins say.

    Raises:
        InputError: The data were refused.
        ConfigError: A group names a document that is not there, or there is no document.
    """
    tasks: tuple[KnowledgeTask, ...] = getattr(load_split(suite.data), suite.side)
    if not tasks:
        raise ConfigError(f"suite {suite.name!r}: the side {suite.side!r} has no documents. Name another side.")
    grouped = {document for ids in suite.groups.values() for document in ids}
    if absent := sorted(grouped - {task.id for task in tasks}):
        raise ConfigError(f"suite {suite.name!r}: groups name the documents {absent}, which the data do not have.")
    some = slice(suite.questions_per_document)
    tasks = tuple(t.model_copy(update={"held_out_questions": t.comparison_questions[some]}) for t in tasks)
    return SuiteContent(tasks, retention_probes(suite.data, suite.probes, suite.seed))


def suite_findings(suite: RegressionSuite, work_dir: Path) -> Iterator[Finding]:
    """Yield what a comparison on a suite needs besides its data."""
    chat = "format" if suite.format == "chat" else ""
    adaptation = suite.adaptation
    recipes = {} if adaptation is None else {"adaptation.update": adaptation.update}
    yield model_finding("student", suite.student, recipes, chat=chat)
    if adaptation is not None and adaptation.teacher.sampling.type != "openai":
        yield model_finding("adaptation.teacher", adaptation.teacher.model)
    yield from place_findings(suite, work_dir)


def pins_of(suite: RegressionSuite, content: SuiteContent, student: str, teacher: str | None = None) -> Pins:
    """Return the pins of a suite as it is now, given the `model_digest` of its student and of its teacher's base."""
    documents = {t.id: digest_json([t.document.digest, _asked(t.comparison_questions)]) for t in content.tasks}
    return Pins(
        student=student,
        adaptation=None if suite.adaptation is None else suite.adaptation.digest,
        teacher=teacher,
        probes=digest_json(_asked(content.probes)),
        documents=documents,
    )


def check_pins(suite: RegressionSuite, found: Pins) -> None:
    """Refuse a suite whose contents are not what was pinned; a teacher that was not opened is not compared.

    Raises:
        ConfigError: It was never pinned.
        InputError: Something has changed; the message names it.
    """
    pinned = suite.pins
    if pinned is None:
        raise ConfigError(
            f"suite {suite.name!r} is not pinned, so that nobody would notice if its questions changed. Run `preceptor "
            "check-regression SUITE --pin` once, and commit the file."
        )
    now, before = found.documents, pinned.documents
    changes = {
        "changed": [name for name in now.keys() & before.keys() if before[name] != now[name]],
        "new": now.keys() - before.keys(),
        "missing": before.keys() - now.keys(),
    }
    told = []
    for what, ids in changes.items():
        if ids:
            shown = ", ".join([*map(repr, sorted(ids)[:_SHOWN]), *(["..."] if len(ids) > _SHOWN else [])])
            told.append(f"{len(ids)} documents or their questions are {what}: {shown}")
    if found.probes != pinned.probes:
        told.append("the retention probes are changed")
    if found.adaptation != pinned.adaptation:
        told.append("the section 'adaptation' is changed")
    opened = {f"student {suite.student!r}": (found.student, pinned.student), "teacher": (found.teacher, pinned.teacher)}
    for what, (got, was) in opened.items():
        if got is not None and got != was:
            told.append(f"the {what} has the digest {got[:12]}, not {(was or 'none')[:12]}")
    if told:
        raise InputError(
            f"suite {suite.name!r} is not what was pinned: {'; '.join(told)}. Restore them; or, if the change is "
            "meant, pin the suite again with --pin and compare with a baseline that was made for it."
        )


def write_pins(path: Path, pins: Pins) -> None:
    """Replace the pins at the end of a suite's file, or append them; the rest keeps its text."""
    head = path.read_text(encoding="utf-8").partition("\npins:")[0].rstrip()
    dumped = yaml.safe_dump({"pins": pins.model_dump(exclude_none=True)}, sort_keys=False)
    write_atomically(path, f"{head}\n{dumped}")


def _asked(questions: tuple[Question, ...]) -> list[list[str]]:
    return [[question.question, question.answer] for question in questions]


class Subject(NamedTuple):
    """A student or a variant, not opened yet."""

    text: str
    """As written."""
    role: Role = "student"
    """Whose adapter it is: the student's, or that of a teacher that writes for it."""
    directory: Path | None = None
    """Of the adapter; None is the base, and a version that is not downloaded yet."""
    version: int | str | None = None
    """Number or alias of a registered version; a number once it is downloaded."""
    config: Path | None = None
    """YAML file of a run."""
    model: Path | None = None
    """Directory of a checkpoint that is a student of its own, without an adapter."""
    endpoint: EndpointConfig | None = None
    """Of a student that a server answers for, in text alone."""

    @property
    def is_variant(self) -> bool:
        """Whether it adapts the student, instead of being one."""
        return self.role == "teacher"


def parse_subject(text: str) -> Subject:
    """Return the subject that a word names; raises ConfigError for other forms, and for files that are not there."""
    if text in ("base", "teacher:base"):
        return Subject(text, "student" if text == "base" else "teacher")
    if version := _VERSION.fullmatch(text):
        role, number, alias = version.groups()
        return Subject(text, cast("Role", role), version=int(number) if number else alias)
    kind, _, rest = text.partition(":")
    if kind == "endpoint":
        return _endpoint(rest)
    if kind not in _FILES or not rest:
        raise ConfigError(f"subject {text!r}: allowed are {STUDENTS} for students, and {_VARIANTS} for variants.")
    path, (what, part) = Path(rest).expanduser(), _FILES[kind]
    if not (path / part).is_file():
        raise ConfigError(f"subject {text!r}: there is no {str(path / part)!r}. Give a {what}.")
    if kind in ("config", "model"):
        return Subject(text, "teacher", config=path) if kind == "config" else Subject(text, model=path)
    return Subject(text, "student" if kind == "adapter" else "teacher", directory=path)


def _endpoint(address: str) -> Subject:
    """Return the student at `URL#MODEL`; further fields of `EndpointConfig` follow as `?key_env=NAME&api=chat`."""
    url, _, named = address.partition("#")
    model, _, fields = named.partition("?")
    try:
        config = EndpointConfig.model_validate({"base_url": url, "model": model, **dict(parse_qsl(fields))})
    except ValidationError as error:  # which says what was wrong without repeating a key
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'address'}: {each['msg']}" for each in error.errors())
        raise ConfigError(
            f"subject 'endpoint:...': {wrong}. Allowed is endpoint:URL#MODEL, such as "
            "endpoint:http://127.0.0.1:8000/v1#name, and after it ?key_env=NAME, budget_tokens=N or api=chat."
        ) from error
    return Subject(f"endpoint:{address}", endpoint=config)


def resolve(suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path) -> tuple[Subject, Subject]:
    """Return the subjects that two words name, checked as far as that goes without opening anything.

    Raises:
        ConfigError: One is invalid or does not fit the suite, they are of two kinds, or there are no versions.
    """
    both = parse_subject(candidate), parse_subject(baseline)
    if both[0].is_variant is not both[1].is_variant:
        told = [f"{subject.text!r} is a {'variant' if subject.is_variant else 'student'}" for subject in both]
        raise ConfigError(
            f"subjects: {told[0]} and {told[1]}, whose scores are not comparable. Compare students ({STUDENTS}) with "
            f"students, and variants ({_VARIANTS}) with variants."
        )
    for subject in both:
        if subject.is_variant:
            settings_of(suite, subject)
        if subject.version is not None:
            from pipelines.lineage.store import require_store

            require_store(suite.tracking, work_dir)
    return both


def require_versions(subjects: Iterable[Subject], suite: RegressionSuite, work_dir: Path) -> None:
    """Raise ConfigError if the registry lacks a subject's version."""
    from pipelines.lineage.registry import Registry

    for subject in subjects:
        if subject.version is not None:
            Registry.open(suite.tracking, work_dir).number(subject.role, subject.version)


def download(subject: Subject, tracking: TrackingConfig, work_dir: Path, scratch: Path) -> Subject:
    """Return a subject whose adapter is on disk: that of a registered version is downloaded into `scratch`.

    Raises ConfigError if the registry has no such version, and LineageError if it cannot be read.
    """
    if subject.version is None:
        return subject
    from pipelines.lineage.registry import Registry

    registry = Registry.open(tracking, work_dir)
    number = registry.number(subject.role, subject.version)
    directory = registry.fetch(subject.role, number, scratch / f"{subject.role}-{number}")
    return subject._replace(directory=directory, version=number)


def settings_of(suite: RegressionSuite, subject: Subject) -> LoopSettings:
    """Return the settings under which a variant is scored: documents, student and seeds are the suite's.

    Raises:
        ConfigError: The suite has no section `adaptation`; or the configuration is refused, or for another student.
    """
    adaptation = suite.adaptation
    if adaptation is None:
        raise ConfigError(
            f"suite {suite.name!r}: it has no section 'adaptation', which {subject.text!r} needs: it says how teachers "
            "write, by which recipe the student learns, and how many self-edits are scored. Add it "
            "(docs/regression.md) and pin the suite again."
        )
    teacher = adaptation.teacher
    student = StudentConfig(
        model=suite.student, update=adaptation.update, format=suite.format, answer_format=suite.answer_format
    )
    if subject.config is not None:
        run = load(subject.config, TrainTeacherConfig)
        for name in ("model", "format", "answer_format"):
            got, allowed = getattr(run.student, name), getattr(student, name)
            if got != allowed:
                raise ConfigError(
                    f"subject {subject.text!r}: student.{name} is {got!r}, but that of the suite {suite.name!r} is "
                    f"{allowed!r}. Give a configuration for the suite's student, or a suite for this one."
                )
        teacher, student = run.teacher, run.student
    elif isinstance(teacher.sampling, OpenAISampling) and (subject.directory or subject.version):
        raise ConfigError(
            f"subject {subject.text!r}: the suite's teacher {teacher.model!r} is behind an endpoint, which takes no "
            "adapter. Compare teacher:base and configurations, or name a local teacher in the suite."
        )
    shared = {name: getattr(suite, name) for name in Settings.model_fields}
    return LoopSettings(**shared, teacher=teacher, student=student, grading=suite.grading)


def variant_digest(settings: LoopSettings, teacher: str | None) -> str:
    """Return the SHA-256 of what decides a variant's scores; `teacher` is that of its weights, None at an endpoint."""
    writes = settings.teacher.model_dump(mode="json", include=WRITES)
    update = settings.student.update.model_dump(mode="json")
    return digest_json({"teacher": teacher or settings.teacher.model, "writes": writes, "update": update})
