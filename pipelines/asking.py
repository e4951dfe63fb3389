"""Answers of a student in use: from its weights, from its memory, or from both, and which it was.

A version of a student is a directory in PEFT's format with a memory beside the adapter, so whatever the champion's
alias stands on answers as it did when it was registered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from evaluation.answers import first_line, prompt_ids
from evaluation.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.errors import ConfigError, LineageError, ModelError, ScoringError
from pipelines.asking_options import AskingOptions
from pipelines.config import TrackingConfig
from pipelines.registry import ADAPTER_TAG, CHAMPION, MEMORY_TAG, Registry
from student.adapters import Adapter, load_adapter
from student.external_memory import MEMORY_FILE, ExternalMemory, Hit

By = Literal["auto", "weights", "memory", "both"]
"""How to answer: `auto` takes the memory where it has something that fits, and the weights elsewhere."""
Used = Literal["base", "weights", "memory", "both"]
"""How it was answered: `base` is the student with neither an adapter nor a passage."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """A passage that stood before a question."""

    id: str
    """Of the document."""
    title: str
    source: str
    """Where the document came from."""
    effective: date | None
    """From when on it holds."""
    score: float
    """How well it fits; see `student.external_memory.Hit.score`."""
    passage: str
    """As the student read it."""


class Answer(_Frozen):
    """An answer and what it rests on."""

    question: str
    text: str
    """One line; empty where the student says nothing."""
    by: Used
    """What was used, whatever was asked for: without an adapter, or without a fitting passage, less is left."""
    sources: tuple[Source, ...]
    """What stood before the question, best first."""
    version: int | None
    """Of the student in the registry; None outside it."""


class Prompt(NamedTuple):
    """What a student reads for a question."""

    text: str
    """Passages, where there are any, and the question in the student's format."""
    adapted: bool
    """Whether the adapter is used."""
    sources: tuple[Hit, ...]
    """Whose passages are in it, best first."""


class Answerer:
    """A student with its adapter and its memory, open for questions; greedy, so the same question gets the same answer.

    Questions that are asked together are answered as they would be alone, up to rounding.
    """

    def __init__(
        self,
        student: Checkpoint,
        adapter: Adapter | None = None,
        memory: ExternalMemory | None = None,
        options: AskingOptions | None = None,
        *,
        version: int | None = None,
    ) -> None:
        """Put a student together.

        Args:
            student: The base.
            adapter: Trained on this base; None is the base alone.
            memory: None is an empty one.
            options: None are the defaults.
            version: Of the student in the registry, to be told with the answers.

        Raises:
            ModelError: The adapter belongs to another base.
        """
        self.adapter, self.version = adapter, version
        self.memory = ExternalMemory() if memory is None else memory
        self.options = options or AskingOptions()
        self._student = student
        self._digest = model_digest(student.model)
        if adapter is not None and adapter.base_digest not in ("", self._digest):
            raise ModelError(
                f"ask: the adapter was trained on the base {adapter.base_digest[:12]!r}, and the student is "
                f"{self._digest[:12]!r}. Give the base that it was trained on with --student."
            )

    @classmethod
    def from_registry(
        cls,
        tracking: TrackingConfig,
        work_dir: Path,
        *,
        version: int | str = CHAMPION,
        model: str | None = None,
        options: AskingOptions | None = None,
    ) -> Answerer:
        """Open a registered student; its files are checked against the digests that it was registered with.

        Args:
            tracking: Where the registry is.
            work_dir: Of the runs.
            version: Number or alias.
            model: Directory, hub name or shipped name of the base; None is the one that the version's run recorded.
            options: None are the defaults.

        Raises:
            LineageError: There is no such version, or its files are not those that were registered.
            ConfigError: No base was given or recorded.
            ModelError: The base or the adapter cannot be opened.
            InputError: The memory cannot be read.
        """
        from pipelines.serving.champions import Champions

        registry = Registry.open(tracking, work_dir)
        name = registry.name("student")
        number = _found(registry, version)
        tags = registry.tags("student", number)
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            base = model or Champions(tracking, work_dir, "student", place).recorded_model(number)
            if base is None:
                raise ConfigError(
                    f"ask: the run of version {number} of {name!r} recorded no base model. Name it with --student."
                )
            directory = registry.download("student", number, place)
            found = cls.from_directory(directory, base, options, version=number)
        _refuse_other_files(found, name, tags)
        return found

    @classmethod
    def from_directory(
        cls, directory: Path, model: str, options: AskingOptions | None = None, *, version: int | None = None
    ) -> Answerer:
        """Open a directory in PEFT's format, with the memory in it where there is one.

        Args:
            directory: Of a version, or of any adapter.
            model: Directory, hub name or shipped name of the base.
            options: None are the defaults.
            version: See `Answerer`.

        Raises:
            ModelError: The base or the adapter cannot be opened, or they do not belong together.
            InputError: The memory cannot be read.
        """
        adapter = load_adapter(directory)
        file = directory / MEMORY_FILE
        memory = ExternalMemory.load(file) if file.exists() else ExternalMemory()
        return cls(_open(model, options or AskingOptions()), adapter, memory, options, version=version)

    @classmethod
    def from_base(
        cls, model: str, memory: ExternalMemory | None = None, options: AskingOptions | None = None
    ) -> Answerer:
        """Open a base without an adapter.

        Args:
            model: Directory, hub name or shipped name.
            memory: None is an empty one.
            options: None are the defaults.

        Raises:
            ModelError: The base cannot be opened.
        """
        return cls(_open(model, options or AskingOptions()), None, memory, options)

    def answer(self, question: str, by: By = "auto") -> Answer:
        """Return the answer to a question; see `answer_many`."""
        return self.answer_many([question], by)[0]

    def answer_many(self, questions: Sequence[str], by: By = "auto") -> list[Answer]:
        """Return the answer to each question, in order.

        Args:
            questions: As a person asks them, without any prompt.
            by: `memory` and `both` take the best passages however badly they fit, as long as they share a word with the
                question; `auto` takes them from `AskingOptions.least_score` on.

        Raises:
            ScoringError: A question is too long for the student.
            ModelError: The adapter does not fit the base.
        """
        prompts = [self.prompt_for(question, by) for question in questions]
        texts: list[str] = [""] * len(prompts)
        for adapted in (False, True):
            chosen = [i for i, prompt in enumerate(prompts) if prompt.adapted is adapted]
            written = self._write([prompts[i].text for i in chosen], self.adapter if adapted else None)
            for i, text in zip(chosen, written, strict=True):
                texts[i] = first_line(text)
        return [
            Answer(question=q, text=text, by=_used(prompt), sources=_sources(prompt.sources), version=self.version)
            for q, text, prompt in zip(questions, texts, prompts, strict=True)
        ]

    def prompt_for(self, question: str, by: By = "auto") -> Prompt:
        """Return what the student reads for a question: with the passages that fit into its context."""
        options = self.options
        least = options.least_score if by == "auto" else 0.0
        hits = () if by == "weights" else self.memory.search(question, options.passages, least)
        if by == "auto":
            by = options.with_passages if hits else "weights"
        adapted = self.adapter is not None and by != "memory"
        plain = options.answer_format.render(question)
        while True:
            text = _opening(hits) + plain
            if self._fits(text):
                return Prompt(text, adapted, hits)
            if not hits:
                raise ScoringError(
                    f"ask: the question {question[:80]!r} is too long: with {options.max_new_tokens} tokens for the "
                    "answer, it goes beyond what the student reads. Shorten it, or lower max_new_tokens."
                )
            hits = hits[:-1]

    def _fits(self, prompt: str) -> bool:
        most = getattr(self._student.model.config.get_text_config(), "max_position_embeddings", None)
        return most is None or len(prompt_ids(self._student.tokenizer, prompt)) + self.options.max_new_tokens <= most

    def _write(self, prompts: Sequence[str], adapter: Adapter | None) -> list[str]:
        """Return what the student writes after each prompt; those of like length share a pass."""
        if not prompts:
            return []
        from student.lora_bank import LoraBank
        from student.scoring import ScoringFailure

        model, tokenizer = self._student
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts: dict[int, str] = {}
        with LoraBank(model, base_digest=self._digest) as bank:
            for start in range(0, len(order), self.options.batch_size):
                part = order[start : start + self.options.batch_size]
                asked = [[prompts[i] for i in part]]
                (written,) = bank.generate([adapter], asked, tokenizer, max_new_tokens=self.options.max_new_tokens)
                if isinstance(written, ScoringFailure):
                    raise ModelError(f"ask: {written.reason}. Give the base that the adapter was trained on.")
                texts.update(zip(part, written, strict=True))
        return [texts[i] for i in range(len(prompts))]


def _found(registry: Registry, version: int | str) -> int:
    """Return the number of a student's version, or refuse one that is not there."""
    name = registry.name("student")
    if isinstance(version, str):
        number, told = registry.aliases("student").get(version), f"no version of {name!r} has the alias {version!r}"
    else:
        known = {record.version for record in registry.history("student")}
        number, told = version if version in known else None, f"{name!r} has no version {version}"
    if number is None:
        raise LineageError(
            f"ask: {told}. See what there is with `preceptor versions`, then give one the alias with `preceptor "
            "promote student NUMBER`, or name it with --version NUMBER."
        )
    return number


def _refuse_other_files(answerer: Answerer, name: str, tags: Mapping[str, str]) -> None:
    """Refuse files that are not those that were registered."""
    for what, digest, tag in (
        ("adapter", answerer.adapter.digest if answerer.adapter else "", ADAPTER_TAG),
        ("memory", answerer.memory.digest, MEMORY_TAG),
    ):
        if digest != tags.get(tag, digest):
            raise LineageError(
                f"ask: the {what} of version {answerer.version} of {name!r} has the digest {digest[:12]!r}, and "
                f"{tags[tag][:12]!r} was registered. The files were changed or damaged; restore them, or use another "
                "version."
            )


def _open(model: str, options: AskingOptions) -> Checkpoint:
    import torch

    return load_checkpoint(model, device=options.device, dtype=getattr(torch, options.dtype))


def _opening(hits: Sequence[Hit]) -> str:
    """Return what stands before the question: all passages as one, which the shipped student reads best."""
    from student.in_context import TEMPLATE

    return TEMPLATE.replace("{context}", " ".join(hit.passage for hit in hits)) if hits else ""


def _used(prompt: Prompt) -> Used:
    if prompt.adapted:
        return "both" if prompt.sources else "weights"
    return "memory" if prompt.sources else "base"


def _sources(hits: Sequence[Hit]) -> tuple[Source, ...]:
    return tuple(
        Source(
            id=hit.entry.id,
            title=hit.entry.title,
            source=hit.entry.source,
            effective=hit.entry.effective,
            score=hit.score,
            passage=hit.passage,
        )
        for hit in hits
    )
