"""A corpus in the making: questions, trials on a student, and pieces until the budget is spent; or a preview of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from evaluation.common.data import derive_seed, digest_json
from evaluation.common.errors import GenerationError, InputError
from evaluation.tasks import KnowledgeTask, Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.intake import Intake
from pipelines.inbox.questions import WriterSettings, write_questions
from pipelines.loop.loop import Loop
from pipelines.models import open_student
from pipelines.plan import Step
from pipelines.records import Record
from pipelines.reports.console import Reporter
from pipelines.reports.format import counted, duration
from pipelines.terminal import open_console
from pipelines.write_corpus.allocate import Tried, draw_kinds, even_kinds, gains_of
from pipelines.write_corpus.config import (
    AUTO,
    CorpusRequest,
    Passage,
    Schedule,
    SplitName,
    WriterRef,
    kinds_of,
    passages_of,
    read_documents,
)
from pipelines.write_corpus.funnel import TABLES, Corpus, CorpusRow, messages_of
from pipelines.write_corpus.output import CorpusResult, diversity, write_corpus_files
from pipelines.write_corpus.write import Writer
from teacher.kinds import Kind

REPLAY = "replay"
"""Kind of the rows of general text."""
_LEAST = 0.05
"""Share of the budget below which a corpus is an error."""
_DRY_PIECES = 16
"""Pieces of a kind after which it is left out when nothing was kept of it."""
_LEAST_BATCH = 8
"""Pieces that are written together at least."""
_DRY = 3
"""Batches in a row with less than `_DRY_SHARE` of the tokens of average pieces, after which nothing new comes."""
_DRY_SHARE = 0.1
_ASKED = 64
"""Sections of each split without questions that some are generated for at most."""
_CHARACTERS = 4
"""Of a token where the writer's tokenizer is not known."""
_PREVIEWED, _PREVIEWS = 2, 2
"""Pieces of a kind that are written at once for the lines of a preview, and how often at most."""


@contextmanager
def opened(ref: WriterRef, request: CorpusRequest, work_dir: Path) -> Iterator[Making]:
    """Open documents, writer, student and stores of a corpus."""
    config, console = ref.config, open_console()
    kinds = kinds_of(request.kinds, config.teacher.model)
    say = partial(console.print, markup=False, highlight=False)
    documents = read_documents(request, Intake(limits=config.limits), say)
    passages = passages_of(documents, config.corpus.development, config.seed_of("corpus"))
    tries = config.student is not None and request.is_auto
    parts = config.corpus.rounds if tries else 1
    with (
        Reporter(console, parts * (1 + tries)) as reporter,
        Loop(config.for_loop, work_dir, [passage.task for passage in passages], (), reporter) as loop,
        closing(Writer(ref, work_dir, reporter.begin)) as writer,
    ):
        yield Making(request, loop, writer, kinds, passages, parts)


class Asked(Record):
    """Questions that were generated for some sections."""

    questions: dict[str, tuple[Question, ...]]
    """By section id."""


class Making:
    """A corpus in the making."""

    def __init__(
        self,
        request: CorpusRequest,
        loop: Loop,
        writer: Writer,
        kinds: Sequence[Kind],
        passages: Sequence[Passage],
        parts: int,
    ) -> None:
        self.request, self.loop, self.writer, self._config = request, loop, writer, writer.ref.config
        self.kinds, self.passages, self._parts = list(kinds), list(passages), parts
        self._seed = loop.seed("corpus")
        self._tokenizer, self._count = self._counting()
        self.corpus = Corpus(writer.ref, request.licence, self._seed, self._count)
        self._notes: list[str] = []
        self._shares: list[dict[str, float]] = []
        self._replayed: list[CorpusRow] = []

    def _counting(self) -> tuple[str, Callable[[str], int]]:
        """Return whose tokens are counted, and the function that does."""
        if self._config.student is not None:
            name, tokenizer = self._config.student.model, open_student(self.loop.student_ref).tokenizer
        elif not self.writer.is_endpoint:
            name, tokenizer = self._config.teacher.model, self.writer.policy.tokenizer
        else:
            return f"none, {_CHARACTERS} characters a token", lambda text: -(-len(text) // _CHARACTERS)
        return name, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def run(self) -> CorpusResult:
        """Return the figures of the finished corpus.

        Raises:
            GenerationError: Nothing or next to nothing was kept; the message has the funnel.
        """
        started, request, reporter = time.perf_counter(), self.request, self.loop.reporter
        self._ask()
        tried = self._trials()
        measured = {passage.id for passage in tried.passages} if tried else set[str]()
        rest = [p for p in self.passages if p.split == "train" or p.id not in measured]
        schedule, kinds = Schedule(rest, self._seed), len(self.kinds)
        if request.kinds == AUTO or TABLES in request.kinds:
            for passage in self.passages:
                self.corpus.add_statements(passage)
        for part in range(self._parts):
            if tried:
                with reporter.step(Step("update", len(measured), kinds), f"part {part}"):
                    tried.round(part, self._active(), schedule, self.writer, self.corpus.add)
            with reporter.step(Step("sample", len(rest), kinds), f"part {part}"):
                if not self._write(part, request.tokens * (part + 1) // self._parts, schedule, tried):
                    break
        return self._result(tried, time.perf_counter() - started)

    def _ask(self) -> None:
        """Generate questions for sections of documents without any, if a student is there to say what is asked."""
        settings, asked = self._config.questions, {p.section.document_id for p in self.passages if p.task.questions}
        unasked = [p for p in self.passages if p.section.document_id not in asked]
        if self._config.student is None or settings is None or not unasked:
            return
        random.Random(derive_seed(self._seed, "asked")).shuffle(unasked)
        chosen = [p for split in ("development", "train") for p in [p for p in unasked if p.split == split][:_ASKED]]
        found = self._questions(chosen, settings).questions
        for place, passage in enumerate(self.passages):
            task = passage.task.model_copy(update={"questions": found.get(passage.id, passage.task.questions)})
            self.passages[place], self.loop.tasks[passage.id] = passage._replace(task=task), task

    def _questions(self, passages: Sequence[Passage], settings: WriterSettings) -> Asked:
        """Return questions about sections that the student cannot answer without them; stored as other work is."""
        loop, teacher = self.loop, self.loop.settings.teacher
        form, seed = loop.settings.student.answer_format, loop.seed("questions")
        documents = {
            p.id: InboxDocument(title=p.task.document.title, text=p.task.document.text, source=p.source)
            for p in passages
        }

        def ask(_: Mapping[str, InboxDocument]) -> Asked:
            chat = self.writer.policy.tokenizer if teacher.chat else None
            how = (settings.prompt_for(teacher.model), settings.samples, seed, chat)
            student = open_student(loop.student_ref)
            found = write_questions(list(documents.values()), self.writer.sampler(), student, form, *how)
            return Asked(questions={name: each.questions for name, each in zip(documents, found, strict=True)})

        content = {
            "student": [loop.student_digest, form.model_dump(mode="json")],
            "writer": [teacher.model, self.writer.ref.digest, teacher.sampling.model_dump(mode="json")],
            "questions": settings.model_dump(mode="json"),
            "documents": [[name, document.id] for name, document in documents.items()],
            "seed": seed,
        }
        describe = f"asking about {len(documents)} sections"
        return loop.execution.run("corpus-questions", content, ask, documents, describe=describe)

    def _trials(self) -> Tried | None:
        """Return the student's trials; None where the budget is spent evenly."""
        if self._config.student is None or not self.request.is_auto:
            return None
        asked = [p for p in self.passages if p.task.questions]
        development = [p for p in asked if p.split == "development"]
        if not asked:
            self._note("No section has a question, so that no kind could be tried: the budget was spent evenly.")
            return None
        if not development:
            self._note("No development section has a question: kinds were tried on training sections.")
        return Tried(self.loop, development or asked, self._config.corpus.tried)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self.loop.reporter.say(text)

    def _active(self) -> list[Kind]:
        """Return the kinds that something was kept of, or that were hardly tried."""
        funnel = self.corpus.funnel
        pieces, spent = funnel.column("completions"), funnel.column("tokens")
        dry = [kind for kind in self.kinds if pieces[kind.name] >= _DRY_PIECES and not spent[kind.name]]
        if len(dry) < len(self.kinds):
            for kind in dry:
                self.kinds.remove(kind)
                self._note(f"{kind.name}: nothing was kept of {pieces[kind.name]} pieces; left out from here on.")
        return self.kinds

    def _write(self, part: int, target: int, schedule: Schedule, tried: Tried | None) -> bool:
        """Write pieces until the training split has so many tokens; return whether more can come."""
        corpus, dry, batches, before, drawn = self.corpus, 0, 0, self.corpus.train_tokens, Counter[str]()
        while corpus.train_tokens < target and dry < _DRY:
            start, by_name, funnel = corpus.train_tokens, {kind.name: kind for kind in self._active()}, corpus.funnel
            pieces, spent = funnel.column("completions"), funnel.column("tokens")
            size = self._size(target - start, spent.total() / max(1, pieces.total()), bool(pieces.total()))
            if tried is not None and tried.trials:
                chosen = draw_kinds([*by_name], tried.trials, size, part, derive_seed(self._seed, "batch", batches))
            else:
                chosen = even_kinds([*by_name], spent, pieces, size)
            for written in self.writer.write([schedule.next(by_name[name]) for name in chosen]):
                if corpus.train_tokens < self.request.tokens:
                    corpus.add(written)
                    drawn[written.piece.kind.name] += 1
            batches += 1
            usual = (corpus.train_tokens - before) / max(1, drawn.total())
            dry = dry + 1 if corpus.train_tokens - start <= _DRY_SHARE * usual * len(chosen) else 0
        if drawn:
            self._shares.append({kind: count / drawn.total() for kind, count in sorted(drawn.items())})
        if dry == _DRY:
            self._note(
                f"Hardly anything new came after {counted(corpus.train_tokens, 'token')}: writing stopped there."
            )
        return dry < _DRY

    def _size(self, missing: int, usual: float, known: bool) -> int:
        """Return how many pieces are written next: about as many as bring the missing tokens, if it is known."""
        usual = usual if known else self._config.teacher.sampling.max_new_tokens / 2
        most = self.writer.batch
        return max(_LEAST_BATCH, min(most, round(missing / usual) + 1)) if usual else most

    def _result(self, tried: Tried | None, seconds: float) -> CorpusResult:
        corpus, request, config = self.corpus, self.request, self._config
        if corpus.train_tokens < max(1, _LEAST * request.tokens):
            raise GenerationError(
                f"write-corpus: {counted(corpus.train_tokens, 'token')} of {request.tokens:,} came through, so nothing "
                f"was written. From completions to rows:\n{corpus.funnel.markdown}\nLook at three lines of each kind "
                "with --preview 3; then change kinds or writer, give more documents, or lower --tokens."
            )
        self._replayed = replayed_rows(request, corpus.train_tokens, self._seed, self._count)
        rows = [*corpus.rows, *self._replayed]
        if tried is not None and tried.failed:
            self._note(f"{counted(tried.failed, 'trial')} had no score.")
        return CorpusResult(
            name=config.name,
            out=request.out,
            writer=self.writer.ref.label,
            adapter_digest=self.writer.ref.digest,
            tokenizer=self._tokenizer,
            student=None if config.student is None else config.student.model,
            documents=len({p.section.document_id for p in self.passages}),
            sections=len(self.passages),
            rows=len(rows),
            tokens=sum(row.tokens for row in rows),
            train_tokens=corpus.train_tokens,
            replay_tokens=sum(row.tokens for row in self._replayed),
            funnel=corpus.funnel,
            gains=gains_of(tried.trials) if tried else (),
            metric=config.teacher.reward.metric if tried else "",
            shares=tuple(self._shares),
            diversity=diversity([row.text for row in corpus.rows], self._seed),
            licences=tuple(sorted({row.licence for row in rows})),
            spent=self.loop.spent().get("teacher") if self.writer.is_endpoint else None,
            notes=tuple(self._notes),
            seconds=seconds,
        )

    def save(self, result: CorpusResult) -> None:
        """Write the corpus, all or nothing."""
        questions: dict[SplitName, list[KnowledgeTask]] = {"train": [], "development": []}
        for passage in self.passages:
            document = passage.task.document.model_copy(update={"id": passage.section.document_id})
            questions[passage.split].append(passage.task.model_copy(update={"document": document}))
        write_corpus_files(Path(self.request.out), [*self.corpus.rows, *self._replayed], questions, result)


def replayed_rows(request: CorpusRequest, train_tokens: int, seed: int, count: Callable[[str], int]) -> list[CorpusRow]:
    """Return a random sample of paragraphs of general text, of the wanted share of the training split.

    Raises:
        InputError: The file cannot be read, or holds too little.
    """
    if not request.replay or request.replay_share == 0.0:
        return []
    intake = Intake(most_characters=4_000).read(Path(request.replay)).check()
    texts = list(dict.fromkeys(part for each in intake.documents for part in each.text.split("\n\n") if part.strip()))
    random.Random(derive_seed(seed, REPLAY)).shuffle(texts)
    wanted, found, rows = request.replay_share / (1.0 - request.replay_share) * train_tokens, 0, list[CorpusRow]()
    while texts and found < wanted:
        text = texts.pop(0)
        row = CorpusRow(
            id=f"{REPLAY}/{len(rows)}",
            split="train",
            text=text,
            messages=messages_of("", text, None),
            kind=REPLAY,
            document_id=REPLAY,
            document_digest=digest_json(text),
            title="",
            section="",
            prompt_digest="",
            writer="source",
            seed=seed,
            sample=0,
            tokens=count(text),
            support="supported",
            source=request.replay,
            licence="of the replayed text",
        )
        rows.append(row)
        found += row.tokens
    if found < wanted:
        raise InputError(
            f"--replay {request.replay}: got {found:,} tokens, needed are {wanted:,.0f} for a share of "
            f"{request.replay_share:g}. Give more text, or lower --replay-share."
        )
    return rows


def print_preview(ref: WriterRef, request: CorpusRequest, work_dir: Path, lines: int) -> None:
    """Print so many lines of each kind, the funnel, and time and cost of the whole budget; no corpus, no MLflow run.

    Completions stay in the store, and replies in the endpoint's ledger: the corpus does not write them again.
    """
    say = partial(open_console().print, markup=False, highlight=False, soft_wrap=True)
    with opened(ref, request, work_dir) as making:
        making.loop.check_endpoints()
        corpus, started = making.corpus, time.perf_counter()
        schedule = Schedule(making.passages, making.loop.seed("corpus"))
        shown: dict[str, list[CorpusRow]] = {kind.name: [] for kind in making.kinds}
        for _ in range(_PREVIEWS):
            few = [kind for kind in making.kinds if len(shown[kind.name]) < lines]
            for written in making.writer.write([schedule.next(kind) for kind in few for _ in range(_PREVIEWED)]):
                shown[written.piece.kind.name] += corpus.add(written)
        took, spent, funnel = time.perf_counter() - started, making.loop.spent().get("teacher"), corpus.funnel
    for kind in making.kinds:
        say(f"\n{kind.name}: {kind.label}")
        for row in shown[kind.name][:lines]:
            say(f"  [{row.support}] {row.text}")
    say(funnel.table)
    whole, pieces = funnel.total("tokens"), funnel.total("completions")
    if not whole:
        say("Nothing was kept, so that no corpus can come of it.")
        return
    needed = request.tokens * pieces / whole
    parts = [f"{request.tokens:,} tokens spent evenly: about {needed:,.0f} completions"]
    if making.writer.written:
        parts.append(f"about {duration(needed * took / pieces)} at this pace")
    if spent is not None and spent.calls:
        parts.append(f"about {needed * spent.tokens / spent.calls:,.0f} tokens at the endpoint")
    say(", ".join(parts) + ".")
