"""A corpus in the making: questions, trials on a student, and pieces until the budget is spent."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evaluation.common.data import derive_seed, digest_json
from evaluation.common.errors import GenerationError, InputError
from evaluation.tasks import KnowledgeTask
from pipelines.inbox.intake import Intake
from pipelines.loop.loop import Loop
from pipelines.models import open_student
from pipelines.plan import Plan, steps_of
from pipelines.reports.console import Reporter
from pipelines.reports.format import counted
from pipelines.terminal import open_console
from pipelines.write_corpus.allocate import draw_kinds, even_kinds, gains_of
from pipelines.write_corpus.config import WriteCorpusConfig, WriterRef
from pipelines.write_corpus.funnel import TABLES, Corpus
from pipelines.write_corpus.output import REPLAY, CorpusRow, SplitName, diversity, messages_of, write_corpus_files
from pipelines.write_corpus.plan import (
    AUTO,
    CorpusRequest,
    Passage,
    Schedule,
    kinds_of,
    passages_of,
    plan_corpus,
    read_documents,
)
from pipelines.write_corpus.result import CorpusResult, KindCount
from pipelines.write_corpus.trials import Tried, ask_about, with_questions
from pipelines.write_corpus.write import BATCH, Writer
from teacher.kinds import Kind
from teacher.samplers.openai import OpenAISampling

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


@contextmanager
def opened(ref: WriterRef, request: CorpusRequest, work_dir: Path) -> Iterator[Making]:
    """Open documents, writer, student and stores of a corpus."""
    config, console = ref.config, open_console()
    kinds = kinds_of(request.kinds, config.teacher.model)
    intake = Intake(limits=config.limits)
    documents = read_documents(request, intake, lambda line: console.print(line, markup=False, highlight=False))
    passages = passages_of(documents, config.corpus.development, config.seed_of("corpus"))
    tried = config.corpus.tried if config.student is not None and request.kinds == AUTO else 0
    plan = plan_corpus(config.corpus.rounds if tried else 1, len(passages), tried, kinds)
    tasks = [passage.task for passage in passages]
    with (
        Reporter(console, len(steps_of(plan))) as reporter,
        Loop(config.for_loop, work_dir, tasks, (), reporter) as loop,
        closing(Writer(ref, work_dir, reporter.begin)) as writer,
    ):
        yield Making(config, request, loop, writer, kinds, passages, plan)


class Making:
    """A corpus in the making."""

    def __init__(
        self,
        config: WriteCorpusConfig,
        request: CorpusRequest,
        loop: Loop,
        writer: Writer,
        kinds: Sequence[Kind],
        passages: Sequence[Passage],
        plan: Plan,
    ) -> None:
        self.config, self.request, self.loop, self.writer, self.ref = config, request, loop, writer, writer.ref
        self.kinds, self.passages, self._plan = list(kinds), list(passages), plan
        self._tokenizer, self._count = self._counting()
        self._seed = loop.seed("corpus")
        self.corpus = Corpus(self.ref, request.licence, self._seed, self._count)
        self._notes: list[str] = []
        self._shares: list[dict[str, float]] = []
        self._replayed: list[CorpusRow] = []

    def _counting(self) -> tuple[str, Callable[[str], int]]:
        """Return whose tokens are counted, and the function that does."""
        if self.config.student is not None:
            name, tokenizer = self.config.student.model, open_student(self.loop.student_ref).tokenizer
        elif not self.writer.is_endpoint:
            name, tokenizer = self.config.teacher.model, self.writer.policy.tokenizer
        else:
            return f"none, {_CHARACTERS} characters a token", lambda text: -(-len(text) // _CHARACTERS)
        return name, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def run(self) -> CorpusResult:
        """Return the figures of the finished corpus.

        Raises:
            GenerationError: Nothing or next to nothing was kept; the message has the funnel.
        """
        started, request = time.perf_counter(), self.request
        self._ask()
        tried = self._trials()
        measured = {passage.id for passage in tried.passages} if tried else set[str]()
        rest = [p for p in self.passages if p.split == "train" or p.id not in measured]
        schedule, reporter, parts = Schedule(rest, self._seed), self.loop.reporter, len(self._plan)
        if request.kinds == AUTO or TABLES in request.kinds:
            for passage in self.passages:
                self.corpus.add_statements(passage)
        for stage in self._plan:
            number = int(stage.subject)
            if tried:
                with reporter.step(stage.steps[0], stage.name):
                    tried.round(number, self._active(), schedule, self.writer, self.corpus.add)
            with reporter.step(stage.steps[-1], stage.name):
                more = self._write(number, request.tokens * (number + 1) // parts, schedule, tried)
            if not more:
                break
        return self._result(tried, time.perf_counter() - started)

    def _ask(self) -> None:
        """Generate questions for sections of documents without any, if a student is there to say what is asked."""
        settings, asked = self.config.questions, {p.section.document_id for p in self.passages if p.task.questions}
        unasked = [p for p in self.passages if p.section.document_id not in asked]
        if self.config.student is None or settings is None or not unasked:
            return
        rng = random.Random(derive_seed(self._seed, "asked"))
        rng.shuffle(unasked)
        chosen = [p for split in ("development", "train") for p in [p for p in unasked if p.split == split][:_ASKED]]
        self.passages = with_questions(self.passages, ask_about(self.loop, self.writer, chosen, settings))
        self.loop.tasks = {p.id: p.task for p in self.passages}

    def _trials(self) -> Tried | None:
        """Return the student's trials; None where the budget is spent evenly."""
        if self.config.student is None or self.request.kinds != AUTO:
            return None
        asked = [p for p in self.passages if p.task.questions]
        development = [p for p in asked if p.split == "development"]
        if not asked:
            self._note("No section has a question, so that no kind could be tried: the budget was spent evenly.")
            return None
        if not development:
            self._note("No development section has a question: kinds were tried on training sections.")
        return Tried(self.loop, development or asked, self.config.corpus.tried)

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self.loop.reporter.say(text)

    def _active(self) -> list[Kind]:
        """Return the kinds that something was kept of, or that were hardly tried."""
        dry = {k for k, pieces in self.corpus.pieces.items() if pieces >= _DRY_PIECES and not self.corpus.spent[k]}
        left = [kind for kind in self.kinds if kind.name not in dry]
        for kind in [kind for kind in self.kinds if kind.name in dry] if left else ():
            self._note(
                f"{kind.name}: nothing was kept of {self.corpus.pieces[kind.name]} pieces; left out from here on."
            )
        self.kinds = left or self.kinds
        return self.kinds

    def _write(self, part: int, target: int, schedule: Schedule, tried: Tried | None) -> bool:
        """Write pieces until the training split has so many tokens; return whether more can come."""
        corpus, dry, batches, before, drawn = self.corpus, 0, 0, self.corpus.train_tokens, Counter[str]()
        while corpus.train_tokens < target and dry < _DRY:
            start, kinds = corpus.train_tokens, self._active()
            names, by_name = [kind.name for kind in kinds], {kind.name: kind for kind in kinds}
            if tried is not None and tried.trials:
                seed = derive_seed(self._seed, "batch", batches)
                chosen = draw_kinds(names, tried.trials, self._size(target), part, seed)
            else:
                chosen = even_kinds(names, corpus.spent, corpus.pieces, self._size(target))
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

    def _size(self, target: int) -> int:
        """Return how many pieces are written next: about as many as are missing."""
        corpus, pieces = self.corpus, self.corpus.pieces.total()
        usual = sum(corpus.spent.values()) / pieces if pieces else self.config.teacher.sampling.max_new_tokens / 2
        missing = target - corpus.train_tokens
        return max(_LEAST_BATCH, min(BATCH, round(missing / usual) + 1)) if usual else BATCH

    def _result(self, tried: Tried | None, seconds: float) -> CorpusResult:
        corpus, request, funnel = self.corpus, self.request, self.corpus.funnel
        if corpus.train_tokens < max(1, _LEAST * request.tokens):
            raise GenerationError(
                f"write-corpus: {counted(corpus.train_tokens, 'token')} of {request.tokens:,} came through, so nothing "
                f"was written. From completions to rows:\n{funnel.text}\nLook at three lines of each kind with "
                "--preview 3; then change kinds or writer, give more documents, or lower --tokens."
            )
        self._replayed = replayed_rows(request, corpus.train_tokens, self._seed, self._count)
        rows, kinds = [*corpus.rows, *self._replayed], {*corpus.pieces}
        texts = {kind: [row.text for row in corpus.rows if row.kind == kind] for kind in sorted(kinds)}
        counts = {k: KindCount(pieces=corpus.pieces[k], rows=len(t), tokens=corpus.spent[k]) for k, t in texts.items()}
        if tried is not None and tried.failed:
            self._note(f"{counted(tried.failed, 'trial')} had no score.")
        sampling = self.config.teacher.sampling
        return CorpusResult(
            name=self.config.name,
            out=request.out,
            writer=self.ref.label,
            adapter_digest=self.ref.digest,
            tokenizer=self._tokenizer,
            student=None if self.config.student is None else self.config.student.model,
            documents=len({p.section.document_id for p in self.passages}),
            sections=len(self.passages),
            rows=len(rows),
            tokens=sum(row.tokens for row in rows),
            train_tokens=corpus.train_tokens,
            replay_tokens=sum(row.tokens for row in self._replayed),
            kinds=counts,
            funnel=funnel,
            gains=gains_of(tried.trials) if tried else (),
            metric=self.config.teacher.reward.metric if tried else "",
            shares=tuple(self._shares),
            diversity=diversity([row.text for row in corpus.rows], self._seed),
            by_kind={kind: diversity(mine, self._seed) for kind, mine in texts.items() if mine},
            licences=tuple(sorted({row.licence for row in rows})),
            spent=self.loop.spent().get("teacher") if isinstance(sampling, OpenAISampling) else None,
            notes=tuple(self._notes),
            seconds=seconds,
        )

    def save(self, result: CorpusResult) -> None:
        """Write the corpus, all or nothing."""
        questions: dict[SplitName, list[KnowledgeTask]] = {"train": [], "development": []}
        for passage in self.passages:
            task, document = passage.task, passage.task.document
            document = document.model_copy(update={"id": passage.section.document_id})
            questions[passage.split].append(task.model_copy(update={"document": document}))
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
    wanted, found, rows = request.replay_share / (1.0 - request.replay_share) * train_tokens, 0, []
    for number, text in enumerate(texts):
        if found >= wanted:
            break
        shared: dict[str, Any] = {"document_id": REPLAY, "document_digest": digest_json(text), "title": ""}
        shared |= {"prompt_digest": "", "writer": "source", "seed": seed, "sample": 0, "support": "supported"}
        shared |= {"kind": REPLAY, "section": "", "source": request.replay, "licence": "of the replayed text"}
        size, chat = count(text), messages_of("", text, None)
        rows.append(CorpusRow(id=f"{REPLAY}/{number}", split="train", text=text, messages=chat, tokens=size, **shared))
        found += size
    if found < wanted:
        raise InputError(
            f"--replay {request.replay}: got {found:,} tokens, needed are {wanted:,.0f} for a share of "
            f"{request.replay_share:g}. Give more text, or lower --replay-share."
        )
    return rows
