"""Who writes a corpus, and what was written: completions are stored by content, so that each is written once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evaluation.common.data import derive_seed, digest_json
from evaluation.common.errors import EndpointError
from evaluation.common.storage import SqliteFile, checksum
from pipelines import models
from pipelines.execution import StoreError, content_key
from pipelines.records import Record
from pipelines.write_corpus.config import Piece, WriterRef
from teacher.kinds import lines_of_kind
from teacher.prompts import PromptTemplate
from teacher.samplers.openai import OpenAISampling
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long
from teacher.self_edit import Implication

DRAFTS = "drafts.sqlite"
"""File of the work directory with what local writers wrote."""
_TRIES = 3
"""Times that a failed completion is asked for, the engine's own retries left out."""
_FOR_GOOD = ("content_filtered", "prompt_too_long")
_Asked = tuple[str, int, str | None]
"""Prompt, sample and stop."""


class Draft(Record):
    """A completion, or why there is none."""

    text: str = ""
    cut: bool = False
    """It ended at the longest length."""
    failure: str = ""
    """Empty for a completion."""


class DraftStore(SqliteFile):
    """Completions by content key."""

    NAME = "store of drafts"
    VERSION = 1
    TABLES = "CREATE TABLE drafts (key TEXT PRIMARY KEY, record TEXT NOT NULL, checksum TEXT NOT NULL);"
    ERROR = StoreError
    NEXT_STEP = "Check the disk, then run again."

    def find(self, keys: Sequence[str]) -> dict[str, Draft]:
        """Return the drafts that are stored under some keys and match their checksum."""
        query = "SELECT record, checksum FROM drafts WHERE key = ?"
        with self._reading() as db:
            rows = {key: row for key in keys if (row := db.execute(query, (key,)).fetchone()) is not None}
        whole = {key: record for key, (record, found) in rows.items() if found == checksum(key, record)}
        return {key: Draft.model_validate_json(record) for key, record in whole.items()}

    def keep(self, drafts: dict[str, Draft]) -> None:
        """Store drafts, all or none."""
        texts = {key: draft.model_dump_json() for key, draft in drafts.items()}
        with self._transaction() as db:
            rows = [(key, text, checksum(key, text)) for key, text in texts.items()]
            db.executemany("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?)", rows)


class Written(NamedTuple):
    """A piece with its completion."""

    piece: Piece
    draft: Draft
    prompt: str

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of the prompt."""
        return digest_json(self.prompt)

    @property
    def lines(self) -> tuple[Implication, ...]:
        """Of the completion; empty for a failed one."""
        ended: Literal["stop", "length"] = "length" if self.draft.cut else "stop"
        return () if self.draft.failure else lines_of_kind(self.piece.kind, self.draft.text, self.prompt, ended)


class Writer:
    """Writes pieces; each completion is stored before anything is done with it. A context manager."""

    def __init__(self, ref: WriterRef, work_dir: Path, begin: Callable[[str], None]) -> None:
        """Open the store; `begin` is told of each batch."""
        self.ref, self._work_dir, self._begin = ref, work_dir, begin
        self._settings = ref.config.for_loop
        self._seed = self._settings.seed_of("corpus")
        self._drafts = DraftStore(work_dir / DRAFTS)
        self.written = 0
        """Completions that were not in the store."""

    def close(self) -> None:
        """Close the store; models are closed by the loop."""
        self._drafts.close()

    @property
    def is_endpoint(self) -> bool:
        """Whether the writer is behind an endpoint, whose ledger stores the replies."""
        return isinstance(self._settings.teacher.sampling, OpenAISampling)

    @property
    def batch(self) -> int:
        """Pieces that are written and stored together: the most that a kill can cost."""
        return self._settings.teacher.sampling.at_once

    @property
    def policy(self) -> Any:
        """The local writer's model and tokenizer."""
        return self._teacher.open().policy

    @property
    def _teacher(self) -> models.TeacherState:
        teacher = self._settings.teacher
        ref = models.ModelRef.of(teacher.model, self._settings)
        return models.TeacherState(ref, teacher, self._settings.seed_of("policy"), self.ref.state)

    def sampler(self) -> Sampler:
        """Return the engine, at the writer's state."""
        sampling = self._settings.teacher.sampling
        if isinstance(sampling, OpenAISampling):
            return models.open_endpoint(sampling, self._work_dir, f"{self._settings.name}/teacher")
        opened = self._teacher.open()
        opened.at(self.ref.state)
        return opened.sampler

    def write(self, pieces: Sequence[Piece]) -> list[Written]:
        """Return the pieces with their completions, in order.

        Raises:
            EndpointError: Most completions failed in each of three tries; what was written is kept.
            BudgetError: The next call could exceed the endpoint's budget.
        """
        self._begin(f"writing {len(pieces)} pieces")
        asked = [(self._prompt(p, p.kind.first), 0, p.kind.first.stop) for p in pieces if p.kind.first is not None]
        plans = iter(zip(asked, self._complete(asked), strict=True))
        made, todo = list[Written](), dict[int, _Asked]()
        for place, piece in enumerate(pieces):
            item = ""
            if piece.kind.first is not None:
                (prompt, _, _), plan = next(plans)
                items = () if plan.failure else _items(piece, plan, prompt)
                made.append(Written(piece, Draft(failure=plan.failure or "nothing in the first step"), prompt))
                if not items:
                    continue
                item = _chosen(items, piece.sample, derive_seed(self._seed, piece.passage.id, piece.kind.name))
            else:
                made.append(Written(piece, Draft(), ""))
            todo[place] = self._prompt(piece, piece.kind.prompt(item)), piece.sample, piece.kind.template.stop
        for (place, (prompt, _, _)), draft in zip(todo.items(), self._complete(list(todo.values())), strict=True):
            made[place] = Written(pieces[place], draft, prompt)
        return made

    def _prompt(self, piece: Piece, template: PromptTemplate) -> str:
        document = piece.passage.task.document
        if not self._settings.teacher.chat:
            return template.render(document)
        return template.render_chat(document, self.policy.tokenizer)

    def _complete(self, asked: Sequence[_Asked]) -> list[Draft]:
        """Return a completion of each prompt; those with the same stop share a call."""
        if self._settings.teacher.chat:
            asked = [(prompt, sample, None) for prompt, sample, _ in asked]
        keys = [self._key(*each) for each in asked]
        found = {} if self.is_endpoint else self._drafts.find(keys)
        missing = {key: each for key, each in zip(keys, asked, strict=True) if key not in found}
        for _ in range(_TRIES):
            for group in _groups(missing, self.batch):
                fresh = self._sample([missing[key] for key in group])
                drafts = dict(zip(group, fresh, strict=True))
                found |= drafts
                stored = {key: draft for key, draft in drafts.items() if not draft.failure}
                self.written += len(stored)
                if not self.is_endpoint:
                    self._drafts.keep(stored)
            missing = {k: each for k, each in missing.items() if found[k].failure and found[k].failure not in _FOR_GOOD}
            if not missing:
                break
        if 2 * len(missing) > len(keys):
            reason = found[next(iter(missing))].failure
            raise EndpointError(
                f"write-corpus: {len(missing)} of {len(keys)} completions failed {_TRIES} times, the first with "
                f"{reason!r}. What was written is kept; repeat the command when the writer answers again."
            )
        return [found[key] for key in keys]

    def _key(self, prompt: str, sample: int, stop: str | None) -> str:
        if self.is_endpoint:
            return digest_json([prompt, sample, stop])
        sampling = self._settings.teacher.sampling.model_dump(mode="json", exclude={"batch_size"})
        base = [self.policy.base_digest, self.ref.digest or "plain"]
        content = {"writer": base, "sampling": sampling, "prompt": prompt, "sample": sample, "stop": stop}
        return content_key(self._settings, "draft", {**content, "seed": self._seed})

    def _sample(self, asked: Sequence[_Asked]) -> list[Draft]:
        sampler, prompts, stop = self.sampler(), [prompt for prompt, _, _ in asked], asked[0][2]
        long = prompts_too_long(sampler, prompts)
        fitting = [i for i in range(len(prompts)) if i not in long]
        seeds = [derive_seed(self._seed, asked[i][1]) for i in fitting]
        sampled = sampler.sample([prompts[i] for i in fitting], n=1, seed=seeds, stop=stop) if fitting else []
        drafts = {i: _draft(completions[0]) for i, completions in zip(fitting, sampled, strict=True)}
        return [drafts.get(i) or Draft(failure="prompt_too_long") for i in range(len(prompts))]


def _draft(completion: Completion | FailedCompletion) -> Draft:
    if isinstance(completion, FailedCompletion):
        return Draft(failure=completion.reason)
    return Draft(text=completion.text, cut=completion.finish_reason == "length")


def _groups(asked: dict[str, _Asked], most: int) -> Iterator[list[str]]:
    """Yield keys that share a stop, at most so many at once."""
    groups: dict[str | None, list[str]] = {}
    for key, (_, _, stop) in asked.items():
        groups.setdefault(stop, []).append(key)
    for keys in groups.values():
        yield from (keys[start : start + most] for start in range(0, len(keys), most))


def _items(piece: Piece, plan: Draft, prompt: str) -> tuple[str, ...]:
    """Return what the first step of a piece wrote, as the items of its second step."""
    return piece.kind.items(
        Written(piece._replace(kind=piece.kind.model_copy(update={"form": "lines"})), plan, prompt).lines
    )


def _chosen(items: Sequence[str], sample: int, seed: int) -> str:
    """Return the item of one sample: all in a shuffled order, then again."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order[sample % len(order)]
