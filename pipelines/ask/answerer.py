"""`preceptor ask`: answers of a registered student from its weights, its external memory, or both.

A version's directory holds the adapter in PEFT's format with the memory beside it, so moving the champion alias moves
both and a rollback restores every answer.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.common.checkpoints import Checkpoint, model_digest
from evaluation.common.errors import ConfigError, ModelError, PreceptorError
from pipelines.ask import answers
from pipelines.inbox.store import removed_documents
from pipelines.process import WorkDir, find_optional_config, preceptor, prepare_process
from student.memory import ExternalMemory

if TYPE_CHECKING:
    from pipelines.settings import TrackingConfig
    from student.adapters import Adapter
    from student.bank.scoring import Written


class Answerer(answers.Composer):
    """A student with adapter and memory. Decoding is greedy; answers do not depend on the batch, up to rounding."""

    def __init__(
        self,
        student: Checkpoint,
        adapter: Adapter | None = None,
        memory: ExternalMemory | None = None,
        options: answers.AskOptions | None = None,
        *,
        version: int | None = None,
    ) -> None:
        """Combine a base with an adapter and a memory, by default empty; raises ModelError for one of another base."""
        parts = answers.Vocabulary.of(student), memory or ExternalMemory(), options or answers.AskOptions()
        super().__init__(*parts, has_adapter=adapter is not None, version=version)
        self.adapter, self._student, self._digest = adapter, student, model_digest(student.model)
        if adapter is not None and adapter.base_digest not in ("", self._digest):
            raise ModelError(
                f"ask: the adapter was trained on the base {adapter.base_digest[:12]!r}, but the student is "
                f"{self._digest[:12]!r}. Name the base that it was trained on with --student, or "
                "the file of its run, for dtype and quantization, with --config."
            )

    @classmethod
    def from_registry(
        cls,
        tracking: TrackingConfig,
        work_dir: Path,
        *,
        version: int | str = "champion",
        model: str | None = None,
        options: answers.AskOptions | None = None,
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
            removed = removed_documents(work_dir)
            return cls.from_directory(directory, base, options, version=number, removed=removed)

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        model: str,
        options: answers.AskOptions | None = None,
        *,
        version: int | None = None,
        removed: Collection[str] = (),
    ) -> Answerer:
        """Open an adapter in PEFT's format with the memory beside it, if any, without `removed`; see `from_registry`.

        Where neither options nor version have a format, it is the one in which the base answers best.
        """
        from pipelines.models import ModelRef, answer_format, open_student
        from pipelines.settings import Asking
        from student.adapters import load_adapter

        memory, options = answers.read_version(directory, options, removed)
        ref = ModelRef(model, options.device, options.dtype, None, options.quantization)
        if options.answer_format is None:
            options = options.model_copy(update={"answer_format": answer_format(Asking(), ref)})
        return cls(open_student(ref), load_adapter(directory), memory, options, version=version)

    def answer(self, question: str, by: answers.By = "auto") -> answers.Answer:
        """Return the answer to a question; see `answer_many`."""
        return self.answer_many([question], by)[0]

    def answer_many(self, questions: Sequence[str], by: answers.By = "auto") -> list[answers.Answer]:
        """Return the answers in the order of the questions; see `prompt_for`.

        Raises ScoringError for a question that is too long for the student, and ModelError for an adapter that does not
        fit the base.
        """
        return self.complete([self.prompt_for(question, by) for question in questions])

    def complete(self, prompts: Sequence[answers.Prompt]) -> list[answers.Answer]:
        """Return the answers to composed prompts, in their order; raises ModelError."""
        written: dict[int, Written] = {}
        for adapted in (False, True):
            chosen = {i: prompt.text for i, prompt in enumerate(prompts) if prompt.adapted is adapted}
            written |= self._generate(chosen, self.adapter if adapted else None)
        return [self.read(prompt, written[i].tokens, written[i].log_probabilities) for i, prompt in enumerate(prompts)]

    def _generate(self, prompts: dict[int, str], adapter: Adapter | None) -> dict[int, Written]:
        """Return the continuation of each prompt; prompts of similar length share a pass."""
        if not prompts:
            return {}
        from student.bank.bank import LoraBank
        from student.bank.scoring import ScoringFailure

        (model, tokenizer), size, most = self._student, self.options.batch_size, self.options.max_new_tokens
        order = sorted(prompts, key=lambda i: len(prompts[i]))
        found: dict[int, Written] = {}
        with LoraBank(model, base_digest=self._digest) as bank:
            for start in range(0, len(order), size):
                part = order[start : start + size]
                (written,) = bank.write([adapter], [[prompts[i] for i in part]], tokenizer, max_new_tokens=most)
                if isinstance(written, ScoringFailure):
                    raise ModelError(f"ask: {written.reason}. Name the base that the adapter was trained on.")
                found.update(zip(part, written, strict=True))
        return found


def open_registered(version: int | str, config: Path | None, work_dir: Path, student: str | None = None) -> Answerer:
    """Open a registered student as the file of a flow describes it; see `Answerer.from_registry`.

    `student` is its base; None is the one of the file, or else the one that the version recorded. ConfigError also if
    the work directory has no store.
    """
    from pipelines.lineage.store import require_store
    from pipelines.settings import TrackingConfig

    tracking, options = TrackingConfig(), answers.AskOptions()
    if config is not None:
        flow, options = answers.asked_flow(config)
        tracking, student = flow.tracking, student or flow.student.model
    require_store(tracking, work_dir)
    return Answerer.from_registry(tracking, work_dir, version=version, model=student, options=options)


def ask(
    question: Annotated[
        str | None, typer.Argument(help="A plain question [standard input, a line each; a prompt on a terminal].")
    ] = None,
    by: Annotated[answers.By, typer.Option(help="auto: the memory if a passage matches, else the weights.")] = "auto",
    version: Annotated[str, typer.Option(help="Number or alias of the student's version.")] = "champion",
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of any flow, for its student and its store.", callback=find_optional_config),
    ] = None,
    work_dir: WorkDir = Path(".preceptor"),
    student: Annotated[str | None, typer.Option(help="Directory, hub id or micro-student [the version's own].")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each answer and its sources as a JSON object.")] = False,
) -> None:
    """Ask a registered student, and show whether its weights, its memory or both answered.

    Without a question, several are asked with the model opened once. An answer that the student is too uncertain of is
    "I do not know"; --json has its best guess.
    """
    if question is not None and not question.strip():
        raise typer.BadParameter("is blank; ask in words", param_hint="QUESTION")
    prepare_process()
    answerer = open_registered(int(version) if version.isdecimal() else version, config, work_dir, student)
    if question is None:
        _ask_each(answerer, by, json=json)
        return
    answer = answerer.answer(question, by)
    _show(answer, json=json)
    if json:
        return
    given = {"--by": "weights" if answer.sources else "memory", "--work-dir": work_dir, "--config": config}
    given |= {"--version": version if version != "champion" else None, "--student": student}
    given_again = [part for option, value in given.items() if value is not None for part in (option, str(value))]
    sys.stdout.write(f"To compare: {preceptor('ask', question, *given_again)}\n")


def _ask_each(answerer: Answerer, by: answers.By, *, json: bool) -> None:
    """Answer the questions of standard input: at a prompt one by one, else in batches; blank lines are no questions."""
    if sys.stdin.isatty():
        for question in _typed():
            try:
                _show(answerer.answer(question, by), json=json)
            except PreceptorError as error:
                sys.stderr.write(f"{error}\n")
        return
    questions = [line.strip() for line in sys.stdin if line.strip()]
    if not questions:
        raise typer.BadParameter("is missing, and standard input has none", param_hint="QUESTION")
    for start in range(0, len(questions), answerer.options.batch_size):
        for answer in answerer.answer_many(questions[start : start + answerer.options.batch_size], by):
            _show(answer, json=json)


def _typed() -> Iterator[str]:
    """Yield the questions that are typed at a prompt, until an empty line or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` editing and a history
    sys.stderr.write("Ask the student; an empty line ends.\n")
    with suppress(EOFError, KeyboardInterrupt):
        yield from itertools.takewhile(str.strip, iter(lambda: input("> " if sys.stdout.isatty() else ""), None))


def _show(answer: answers.Answer, *, json: bool) -> None:
    """Print an answer as JSON, or with a line on what it is based on."""
    text = dumps(answer.model_dump(mode="json")) if json else f"{answer.text or '(no answer)'}\n{_origin(answer)}"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _origin(answer: answers.Answer) -> str:
    """Return one line on what the answer is based on."""
    version = "the student" if answer.version is None else f"version {answer.version} of the student"
    sources = "; ".join(f"{s.id}{f' ({s.title})' if s.title else ''}, score {s.score:.2f}" for s in answer.sources)
    if answer.by == "both":
        return f"From the weights of {version} and its memory: {sources}."
    if answer.by == "memory":
        return f"From the memory of {version}: {sources}."
    nothing = f"confidence {answer.confidence:.2f}; no passage of its memory was used"
    if answer.by == "unknown":
        return f"The weights of {version} are too uncertain of {answer.guess!r} ({nothing})."
    origin = f"the weights of {version}" if answer.by == "weights" else f"the base of {version} alone"
    return f"From {origin}; {nothing}."
