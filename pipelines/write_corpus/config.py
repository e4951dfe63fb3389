"""Configuration of `write-corpus` and `study`; documents, kinds and budget are arguments of the command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError
from pipelines.checks import Finding, check, findings_of, model_finding, place_findings
from pipelines.inbox.questions import WriterSettings
from pipelines.inbox.worker import ReadingLimits
from pipelines.lineage.registry import Registry
from pipelines.lineage.store import require_store
from pipelines.process import prepare_process
from pipelines.settings import LoopSettings, StudentConfig, TrackingConfig, load
from student.config import UpdateRecipe
from teacher.policy import PolicyRecord
from teacher.samplers.openai import OpenAISampling

RESULT = "corpus.json"
"""File with all figures, by which a corpus's directory is known."""


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
