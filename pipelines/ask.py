"""`preceptor ask`: answers of a registered student from its weights, its external memory, or both.

A version's directory holds the adapter in PEFT's format with the memory beside it, so moving the champion alias moves
both and a rollback restores every answer.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from pydantic import Field

from evaluation.common.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, ModelError, ScoringError
from evaluation.exact_match import AnswerFormat, first_line, prompt_ids
from evaluation.formats import FORMAT_QUESTIONS, best_format, try_formats
from evaluation.retention import general_questions
from pipelines.process import WorkDir, find_optional_config, preceptor, prepare_process
from student.memory import MEMORY_FILE, ExternalMemory, Hit

if TYPE_CHECKING:
    from pipelines.settings import LoopSettings, TrackingConfig
    from student.adapters import Adapter

FORMAT_FILE = "answer_format.json"
"""Beside an adapter: the `AnswerFormat` that its student was trained in."""
By = Literal["auto", "weights", "memory", "both"]
"""Requested source: `auto` uses the memory if a passage matches the question, else the weights. It reads passages with
the base alone: an adapter trained on eight micro-world documents read them 2 to 3 points worse."""
Used = Literal["base", "weights", "memory", "both"]
"""Source used: `base` is the student with neither adapter nor passage."""


class MemoryConfig(Frozen):
    """How answers use external memory."""

    passages: int = Field(default=1, ge=1, le=32)
    """Maximum passages before a question, in [1, 32]. With BM25's top passage of 300, the shipped student answers 0.94
    correctly, with the top two 0.69, with three 0.39; larger students can use more."""
    least_score: float = Field(default=1.25, ge=0.0, le=1000.0)
    """Minimum score for `auto` to answer from memory, in [0, 1000]; see `student.memory.Hit.score`. With 300
    micro-world documents, all 9,600 questions about them reach it and none of 4,800 others; likewise with fewer."""


class AskOptions(MemoryConfig):
    """How questions are answered."""

    answer_format: AnswerFormat | None = None
    """Form that the student was trained in; None is the one among its files, else the one that its base answers best
    in."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest answer in tokens, in [1, 4096]; the first line that is not blank is the answer."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Questions per pass, in [1, 4096]; affects only speed and memory."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Where the student runs, and the number format of the base."""

    @classmethod
    def of(cls, settings: LoopSettings, memory: MemoryConfig) -> AskOptions:
        """Return how the student of a flow is asked."""
        return cls(
            answer_format=settings.student.written, device=settings.device, dtype=settings.dtype, **memory.model_dump()
        )


class Source(Frozen):
    """A passage that was put before a question."""

    id: str
    """Of the document; `title`, `source` and `effective` are the document's too."""
    title: str
    source: str
    effective: date | None
    score: float
    """Match with the question; see `student.memory.Hit.score`."""
    passage: str


class Answer(Frozen):
    """An answer and its sources."""

    question: str
    text: str
    """One line; may be empty."""
    by: Used
    """May be less than requested, without an adapter or a matching passage."""
    sources: tuple[Source, ...]
    """Best first."""
    version: int | None
    """Registered version of the student; None outside the registry."""


class Prompt(NamedTuple):
    """The student's input for a question."""

    text: str
    """Passages, if any, and the question in the student's format."""
    adapted: bool
    """Whether the adapter is used."""
    hits: tuple[Hit, ...]
    """Retrieved passages, best first."""

    @property
    def used(self) -> Used:
        """What answers it."""
        if self.adapted:
            return "both" if self.hits else "weights"
        return "memory" if self.hits else "base"


class Answerer:
    """A student with adapter and memory. Decoding is greedy; answers do not depend on the batch, up to rounding."""

    def __init__(
        self,
        student: Checkpoint,
        adapter: Adapter | None = None,
        memory: ExternalMemory | None = None,
        options: AskOptions | None = None,
        *,
        version: int | None = None,
    ) -> None:
        """Combine a base with an adapter and a memory, by default empty; raises ModelError for one of another base."""
        self.adapter, self.memory = adapter, ExternalMemory() if memory is None else memory
        self.options, self.version = options or AskOptions(), version
        self._student, self._digest = student, model_digest(student.model)
        self.answer_format = self.options.answer_format or _answered_best(student)
        """How questions are put."""
        if adapter is not None and adapter.base_digest not in ("", self._digest):
            raise ModelError(
                f"ask: the adapter was trained on the base {adapter.base_digest[:12]!r}, but the student is "
                f"{self._digest[:12]!r}. Name the base that it was trained on with --student."
            )

    @classmethod
    def from_registry(
        cls,
        tracking: TrackingConfig,
        work_dir: Path,
        *,
        version: int | str = "champion",
        model: str | None = None,
        options: AskOptions | None = None,
    ) -> Answerer:
        """Open a registered student by number or alias; its files are verified against the registered digests.

        `model` is a directory, hub id or shipped name of the base; None uses the one that the version's run recorded.

        Raises:
            LineageError: Its files cannot be read or are not those that were registered.
            ConfigError: There is no such version, or no base was given or recorded.
            ModelError, InputError: The base, the adapter or the memory cannot be opened.
        """
        from pipelines.lineage.registry import Registry

        registry = Registry.open(tracking, work_dir)
        number = registry.number("student", version)
        base = model or registry.recorded_model("student", number)
        if base is None:
            raise ConfigError(
                f"ask: the run of version {number} of {registry.name('student')!r} recorded no base model. Name it "
                "with --student."
            )
        with tempfile.TemporaryDirectory() as scratch:
            directory = registry.fetch("student", number, Path(scratch, "student"))
            return cls.from_directory(directory, base, options, version=number)

    @classmethod
    def from_directory(
        cls, directory: Path, model: str, options: AskOptions | None = None, *, version: int | None = None
    ) -> Answerer:
        """Open an adapter in PEFT's format with the memory beside it, if any; see `from_registry`."""
        import torch

        from student.adapters import load_adapter

        options, file = options or AskOptions(), directory / MEMORY_FILE
        if options.answer_format is None and (form := directory / FORMAT_FILE).is_file():
            stored = AnswerFormat.model_validate_json(form.read_bytes())
            options = options.model_copy(update={"answer_format": stored})
        memory = ExternalMemory.load(file) if file.exists() else None
        student = load_checkpoint(model, device=options.device, dtype=getattr(torch, options.dtype))
        return cls(student, load_adapter(directory), memory, options, version=version)

    def answer(self, question: str, by: By = "auto") -> Answer:
        """Return the answer to a question; see `answer_many`."""
        return self.answer_many([question], by)[0]

    def answer_many(self, questions: Sequence[str], by: By = "auto") -> list[Answer]:
        """Return the answers in the order of the questions.

        `memory` and `both` use the best passages that share a word with the question, whatever their score; `auto` uses
        those that reach `least_score`. Raises ScoringError for a question that is too long for the student, and
        ModelError for an adapter that does not fit the base.
        """
        prompts = [self.prompt_for(question, by) for question in questions]
        texts: dict[int, str] = {}
        for adapted in (False, True):
            chosen = {i: prompt.text for i, prompt in enumerate(prompts) if prompt.adapted is adapted}
            texts |= self._generate(chosen, self.adapter if adapted else None)
        return [
            Answer(
                question=question,
                text=first_line(texts[i]),
                by=prompt.used,
                sources=tuple(
                    Source(**hit.entry.model_dump(exclude={"text"}), score=hit.score, passage=hit.passage)
                    for hit in prompt.hits
                ),
                version=self.version,
            )
            for i, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
        ]

    def prompt_for(self, question: str, by: By = "auto") -> Prompt:
        """Return the student's input for a question, with as many passages as fit into its context."""
        from student.in_context import TEMPLATE

        options = self.options
        hits: tuple[Hit, ...] = ()
        if by != "weights":
            hits = self.memory.search(question, options.passages, options.least_score if by == "auto" else 0.0)
        if by == "auto":
            by = "memory" if hits else "weights"
        adapted = self.adapter is not None and by != "memory"
        most = getattr(self._student.model.config.get_text_config(), "max_position_embeddings", None)
        for count in range(len(hits), -1, -1):
            # All passages as one, which the shipped student reads best.
            passages = " ".join(hit.passage for hit in hits[:count])
            behind = self.answer_format.behind(TEMPLATE.replace("{context}", passages) if count else "")
            text = behind.render(question)
            if most is None or len(prompt_ids(self._student.tokenizer, text)) + options.max_new_tokens <= most:
                return Prompt(text, adapted, hits[:count])
        raise ScoringError(
            f"ask: the question {question[:80]!r} is too long: with {options.max_new_tokens} tokens for the answer, it "
            "exceeds the student's context. Shorten it, or lower max_new_tokens."
        )

    def _generate(self, prompts: dict[int, str], adapter: Adapter | None) -> dict[int, str]:
        """Return the continuation of each prompt; prompts of similar length share a pass."""
        if not prompts:
            return {}
        from student.bank.bank import LoraBank
        from student.bank.scoring import ScoringFailure

        (model, tokenizer), size, most = self._student, self.options.batch_size, self.options.max_new_tokens
        order = sorted(prompts, key=lambda i: len(prompts[i]))
        texts: dict[int, str] = {}
        with LoraBank(model, base_digest=self._digest) as bank:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                (written,) = bank.generate([adapter], [[prompts[i] for i in part]], tokenizer, max_new_tokens=most)
                if isinstance(written, ScoringFailure):
                    raise ModelError(f"ask: {written.reason}. Name the base that the adapter was trained on.")
                texts.update(zip(part, written, strict=True))
        return texts


def _answered_best(student: Checkpoint) -> AnswerFormat:
    """Return the form in which the base answers most general questions."""
    tried = try_formats(student, AnswerFormat(), general_questions(FORMAT_QUESTIONS))
    return tried[best_format(tried)].answer_format


def ask(
    question: Annotated[str, typer.Argument(help="A plain question.")],
    by: Annotated[By, typer.Option(help="auto: the memory if a passage matches, else the weights.")] = "auto",
    version: Annotated[str, typer.Option(help="Number or alias of the student's version.")] = "champion",
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of any flow, for its student and its store.", callback=find_optional_config),
    ] = None,
    work_dir: WorkDir = Path(".preceptor"),
    student: Annotated[str | None, typer.Option(help="Directory, hub id or micro-student [the version's own].")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answer and its sources as one JSON object.")] = False,
) -> None:
    """Ask a registered student, and show whether its weights, its memory or both answered."""
    if not question.strip():
        raise typer.BadParameter("is blank; ask in words", param_hint="QUESTION")
    from pipelines.lineage.store import require_store
    from pipelines.settings import AnyFlow, TrackingConfig, load

    class AskedFlow(AnyFlow):
        memory: MemoryConfig = MemoryConfig()

    tracking, options, model = TrackingConfig(), AskOptions(), student
    if config is not None:
        flow = load(config, AskedFlow)
        tracking, model = flow.tracking, student or flow.student.model
        options = AskOptions.of(flow, flow.memory)
    require_store(tracking, work_dir)
    prepare_process()
    named = int(version) if version.isdecimal() else version
    answerer = Answerer.from_registry(tracking, work_dir, version=named, model=model, options=options)
    answer = answerer.answer(question, by)
    if json:
        sys.stdout.write(answer.model_dump_json() + "\n")
        return
    given = {"--by": "weights" if answer.sources else "memory", "--work-dir": work_dir, "--config": config}
    given |= {"--version": version if version != "champion" else None, "--student": student}
    given_again = [part for option, value in given.items() if value is not None for part in (option, str(value))]
    again = preceptor("ask", question, *given_again)
    sys.stdout.write(f"{answer.text or '(no answer)'}\n{_origin(answer)}\nTo compare: {again}\n")


def _origin(answer: Answer) -> str:
    """Return one line on what the answer is based on."""
    version = "the student" if answer.version is None else f"version {answer.version} of the student"
    sources = "; ".join(f"{s.id}{f' ({s.title})' if s.title else ''}, score {s.score:.2f}" for s in answer.sources)
    if answer.by == "both":
        return f"From the weights of {version} and its memory: {sources}."
    if answer.by == "memory":
        return f"From the memory of {version}: {sources}."
    origin = f"the weights of {version}" if answer.by == "weights" else f"the base of {version} alone"
    return f"From {origin}; no passage of its memory was used."
