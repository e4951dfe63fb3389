"""What an answer of a student is made of: routing, prompt, and reading what a model wrote. No model is opened here.

`preceptor ask` generates in its own process and `preceptor serve` in an engine's; everything else is here, so that both
give the same answer from the same source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from evaluation.common.checkpoints import Checkpoint, ready_model
from evaluation.common.data import Frozen
from evaluation.common.errors import InputError, ModelError, ScoringError
from evaluation.common.text import clean_text
from evaluation.exact_match import AnswerFormat, context_length, end_tokens_of, first_line, is_chat, prompt_ids
from pipelines.inbox.lessons import instructions_for
from student.config import PASSAGE_TEMPLATE
from student.memory import LEAST_SCORE, MEMORY_FILE, ExternalMemory, Hit

if TYPE_CHECKING:
    from pipelines.settings import AnyFlow, LoopSettings

FORMAT_FILE = "answer_format.json"
"""Beside an adapter: the `AnswerSettings` of its version."""
UNKNOWN = "I do not know"
"""The answer in place of one that is too uncertain."""
By = Literal["auto", "weights", "memory", "both"]
"""Requested source: `auto` uses the memory if a passage matches the question, else the weights. It reads passages with
the base alone: an adapter trained on eight micro-world documents read them 2 to 3 points worse."""
Used = Literal["base", "weights", "memory", "both", "unknown"]
"""Source used: `base` is the student with neither adapter nor passage; `unknown`: the weights are too uncertain, and no
passage matches."""


class MemoryConfig(Frozen):
    """How answers use external memory."""

    passages: int = Field(default=1, ge=1, le=32)
    """Maximum passages before a question, in [1, 32]. With BM25's top passage of 300, the shipped student answers 0.94
    correctly, with the top two 0.69, with three 0.39; larger students can use more."""
    least_score: float = Field(default=LEAST_SCORE, ge=0.0, le=1000.0)
    """Minimum score for `auto` to answer from memory, in [0, 1000]; see `student.memory.Hit.score`. With 300
    micro-world documents, all 9,600 questions about them reach it and none of 4,800 others; likewise with fewer."""


class AnswerSettings(MemoryConfig):
    """How a version's questions are put, and when it does not know an answer; stored beside its adapter."""

    answer_format: AnswerFormat | None = None
    """Form that the student was trained in; None is the one in which its base answers best."""
    least_confidence: float = Field(default=0.0, ge=0.0, le=1.0)
    """Confidence below which the adapter's answer is `UNKNOWN`, in [0, 1]; 0 accepts all."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, value: Any) -> Any:
        """Accept the file of a version that stored the format alone."""
        return {"answer_format": value} if isinstance(value, dict) and "prompt" in value else value


class AskOptions(AnswerSettings):
    """How questions are answered; what is not set is a version's own."""

    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Longest answer in tokens, in [1, 4096]; the first line that is not blank is the answer."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Questions per pass, in [1, 4096]; affects only speed and memory."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Where the student runs, and the number format of the base."""
    quantization: Literal["none", "nf4"] = "none"
    """Of the base; see `StudentConfig`."""

    @classmethod
    def of(cls, settings: LoopSettings, memory: MemoryConfig) -> AskOptions:
        """Return how the student of a flow is asked."""
        return cls(
            answer_format=settings.student.written,
            device=settings.device,
            dtype=settings.dtype,
            quantization=settings.student.quantization,
            **memory.model_dump(exclude_unset=True),
        )


def asked_flow(config: Path) -> tuple[AnyFlow, AskOptions]:
    """Return the file of any flow, and how its student is asked; ConfigError if it is refused."""
    from pipelines.settings import AnyFlow, load

    class AskedFlow(AnyFlow):
        memory: MemoryConfig = MemoryConfig()

    flow = load(config, AskedFlow)
    return flow, AskOptions.of(flow, flow.memory)


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
    confidence: float
    """Geometric mean of the probabilities of the tokens that the model wrote, in [0, 1]; 0 for an empty line."""
    guess: str | None = None
    """What the model wrote, where `text` is `UNKNOWN`."""


class Prompt(NamedTuple):
    """The student's input for a question."""

    question: str
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


class Vocabulary(NamedTuple):
    """What composing and reading needs of a student's base."""

    tokenizer: Any
    longest: int | None
    """Most tokens of prompt and answer; None is no limit."""
    end_tokens: frozenset[int]

    @classmethod
    def of(cls, student: Checkpoint) -> Vocabulary:
        """Return that of an open model, or of anything with its `config` and `generation_config`."""
        longest = context_length(student.model)
        return cls(student.tokenizer, longest, end_tokens_of(*student))

    @classmethod
    def open(cls, model: str) -> Vocabulary:
        """Return that of a base by name, its weights left closed; ModelError if it cannot be read."""
        from types import SimpleNamespace

        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        place = ready_model(model)
        try:
            parts = SimpleNamespace(config=AutoConfig.from_pretrained(place), generation_config=None)
            parts.generation_config = GenerationConfig.from_model_config(parts.config)
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {model!r}: could not open its tokenizer: {error}. Name its directory.") from error
        with suppress(OSError):  # an optional file
            parts.generation_config = GenerationConfig.from_pretrained(place)
        return cls.of(Checkpoint(parts, tokenizer))


def read_version(
    directory: Path, options: AskOptions | None = None, removed: Collection[str] = ()
) -> tuple[ExternalMemory, AskOptions]:
    """Return a version's memory, and the options with whatever they do not set taken from the version.

    `removed` has ids of documents that were removed since: the memory is without them.

    Raises:
        InputError: The memory or the settings cannot be read.
    """
    given = {} if options is None else options.model_dump(exclude_unset=True, exclude_none=True)
    stored: Mapping[str, Any] = {}
    if (file := directory / FORMAT_FILE).is_file():
        try:
            stored = AnswerSettings.model_validate_json(file.read_bytes()).model_dump(exclude_none=True)
        except ValidationError as error:
            raise InputError(f"answer settings: {str(file)!r} is damaged; restore it. {error}") from error
    memory = ExternalMemory.load(file) if (file := directory / MEMORY_FILE).exists() else ExternalMemory()
    return memory.without(removed), AskOptions.model_validate({**stored, **given})


class Composer:
    """Decides what answers a question, composes the student's input, and reads what was written."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        memory: ExternalMemory,
        options: AskOptions,
        *,
        has_adapter: bool,
        version: int | None = None,
    ) -> None:
        """Use a version's memory and options; their format is the plain one where it is not set."""
        self.vocabulary, self.memory, self.options, self.version = vocabulary, memory, options, version
        self.answer_format = options.answer_format or AnswerFormat()
        """How questions are put."""
        self._follows = is_chat(vocabulary.tokenizer, self.answer_format)
        self._has_adapter = has_adapter

    def prompt_for(self, question: str, by: By = "auto", client: str = "") -> Prompt:
        """Return the student's input for a question, with as many passages as fit into its context.

        `memory` and `both` use the best passages that share a word with the question, whatever their score; `auto` uses
        those that reach `least_score`. Entries for one client are used for that `client` alone; what it prefers is said
        before each of its questions to a student with a chat template, since others follow no instruction. Raises
        ScoringError for a question that is too long for the student.
        """
        options, (tokenizer, longest, _) = self.options, self.vocabulary
        question = clean_text(question)  # as texts and questions are learned
        hits: tuple[Hit, ...] = ()
        if by != "weights":
            least = options.least_score if by == "auto" else 0.0
            hits = self.memory.search(question, options.passages, least, client)
        if by == "auto":
            by = "memory" if hits else "weights"
        adapted, wishes = self._has_adapter and by != "memory", self._wishes(client)
        for count in range(len(hits), -1, -1):
            # All passages as one, which the shipped student reads best.
            passages = " ".join(hit.passage for hit in hits[:count])
            passage = PASSAGE_TEMPLATE.replace("{context}", passages) if count else ""
            behind = self.answer_format.behind(passage + wishes)
            text = behind.render(question)
            if longest is None or len(prompt_ids(tokenizer, text)) + options.max_new_tokens <= longest:
                return Prompt(question, text, adapted, hits[:count])
        raise ScoringError(
            f"ask: the question {question[:80]!r} is too long: with {options.max_new_tokens} tokens for the answer, it "
            "exceeds the student's context. Shorten it, or lower max_new_tokens."
        )

    def _wishes(self, client: str) -> str:
        """Return what the client prefers, as instructions."""
        kept = [entry for entry in self.memory.entries if client and entry.client == client and self._follows]
        return instructions_for(client, ((entry.title, entry.text) for entry in kept))

    def read(self, prompt: Prompt, tokens: Sequence[int], log_probabilities: Sequence[float]) -> Answer:
        """Return the answer in the tokens that a model wrote after a prompt; see `Answer.confidence`."""
        tokenizer, _, ends = self.vocabulary
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))

        def line(count: int) -> str:
            return first_line(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True))

        text = line(end)
        width = next(count for count in range(end + 1) if line(count) == text)
        confidence = round(math.exp(sum(log_probabilities[:width]) / width), 4) if width else 0.0
        # A passage that matches is the better evidence; without an adapter there is nothing that was calibrated.
        unknown = prompt.used == "weights" and confidence < self.options.least_confidence
        return Answer(
            question=prompt.question,
            text=UNKNOWN if unknown else text,
            by="unknown" if unknown else prompt.used,
            sources=tuple(
                Source(**hit.entry.model_dump(exclude={"text", "client"}), score=hit.score, passage=hit.passage)
                for hit in prompt.hits
            ),
            version=self.version,
            confidence=confidence,
            guess=text if unknown else None,
        )


def calibrated_confidence(answers: Iterable[tuple[float, bool]]) -> float:
    """Return the confidence below which refusing answers makes the fewest errors, in [0, 1]; 0 where none helps.

    An error is a wrong answer that is given or a right one that is refused. `answers` are confidences in [0, 1], and
    whether the answer is right. Of equals the lowest wins, half-way between two observed confidences; a threshold that
    refuses every answer is none.
    """
    given = tuple(answers)
    observed = sorted({confidence for confidence, _ in given}) if any(right for _, right in given) else []
    between = ((below + above) / 2 for below, above in itertools.pairwise(observed))

    def errors(threshold: float) -> int:
        return sum(right == (confidence < threshold) for confidence, right in given)

    return min((0.0, *between), key=errors)
