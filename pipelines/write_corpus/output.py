"""A finished corpus as files that others read unchanged: Parquet shards, JSON Lines, questions, and a dataset card.

`datasets.load_dataset(DIRECTORY)` opens the shards by the YAML header of the card. The directory appears as a whole or
not at all.
"""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluation.common.errors import InputError
from evaluation.common.storage import replacing_directory
from evaluation.tasks import KnowledgeTask, Question
from pipelines.records import Record
from pipelines.reports.format import markdown_table, percent, tokens
from pipelines.write_corpus.config import RESULT
from teacher.filters import distinct_n

if TYPE_CHECKING:
    from pipelines.write_corpus.result import CorpusResult

SplitName = Literal["train", "development"]
REPLAY = "replay"
"""Kind of the rows of general text."""
_SHARD_ROWS = 50_000
_SAMPLED, _BLEU_LINES = 2_000, 200
"""Rows that diversity is measured on, and of these the lines of self-BLEU, which takes every pair."""


class CorpusRow(Record):
    """One training text with everything that it comes from."""

    id: str
    """Section, kind, sample and line."""
    split: SplitName
    text: str
    """A statement, or question and answer in one text."""
    question: str | None = None
    answer: str | None = None
    """None for a statement, as the question."""
    messages: tuple[dict[str, str], ...]
    """The same as a chat of user and assistant."""
    kind: str
    document_id: str
    document_digest: str
    title: str
    section: str
    page: int | None = None
    span: tuple[int, int] | None = None
    """Start and end of the section in the document's text, in characters."""
    prompt_digest: str
    """SHA-256 of the prompt that the writer read."""
    writer: str
    adapter_digest: str | None = None
    """None without an adapter."""
    seed: int
    sample: int
    tokens: int
    support: str
    """`supported`: all numbers, dates and names of the text occur in the section; else `inferred`."""
    source: str
    licence: str


def messages_of(title: str, text: str, answer: str | None) -> tuple[dict[str, str], ...]:
    """Return a line as a chat: the question and its answer, or a request for what a document says."""
    asked = text if answer is not None else f"What do you know about {title}?" if title else "State a fact."
    said = text if answer is None else answer
    return {"role": "user", "content": asked}, {"role": "assistant", "content": said}


# Diversity


def diversity(texts: Sequence[str], seed: int) -> dict[str, float]:
    """Return measures of some texts, on a sample: compression ratio, `distinct_1`, `distinct_2`, self-BLEU.

    The compression ratio is bytes over compressed bytes, as in SPA (arXiv 2603.22213): higher is more repetitive. So is
    self-BLEU (arXiv 1802.01886), the mean BLEU-4 of a text against the others.
    """
    rng = random.Random(seed)
    chosen = list(texts) if len(texts) <= _SAMPLED else rng.sample(list(texts), _SAMPLED)
    whole = "\n".join(chosen).encode()
    lines = [words for text in rng.sample(chosen, min(_BLEU_LINES, len(chosen))) if (words := _words(text))]
    found = {
        "compression_ratio": len(whole) / max(1, len(zlib.compress(whole, 9))),
        "distinct_1": distinct_n(chosen, 1),
        "distinct_2": distinct_n(chosen, 2),
        "self_bleu": self_bleu(lines),
    }
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def self_bleu(lines: Sequence[Sequence[str]]) -> float | None:
    """Return the mean BLEU-4 of each of at least two token lists with the others as references, in [0, 1].

    Precisions without a match count as half a match, as in NLTK's first smoothing method with epsilon 0.5.
    """
    if len(lines) < 2:
        return None
    grams = [[Counter(zip(*(line[i:] for i in range(n)), strict=False)) for n in (1, 2, 3, 4)] for line in lines]
    best = [_two_highest(each[n] for each in grams) for n in range(4)]
    lengths = sorted(map(len, lines))
    scores = []
    for line, own in zip(lines, grams, strict=True):
        logs = []
        for n in range(4):
            total = max(1, own[n].total())
            # The highest count among the others: the second highest where this line has the highest.
            match = sum(min(c, best[n][g][1] if c >= best[n][g][0] else best[n][g][0]) for g, c in own[n].items())
            logs.append(math.log(max(match, 0.5) / total))
        others = [length for length in lengths if length != len(line)] or [len(line)]
        same = lengths.count(len(line)) > 1
        nearest = len(line) if same else min(others, key=lambda length: (abs(length - len(line)), length))
        penalty = min(1.0, math.exp(1.0 - nearest / len(line)))
        scores.append(min(1.0, penalty * math.exp(sum(logs) / 4)))
    return sum(scores) / len(scores)


def _two_highest(counters: Iterable[Counter[Any]]) -> dict[Any, tuple[int, int]]:
    """Return the two highest counts of each n-gram over some texts."""
    found: dict[Any, tuple[int, int]] = {}
    for counter in counters:
        for gram, count in counter.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (count, first) if count > first else (first, max(second, count))
    return found


# Files


def write_corpus_files(
    out: Path, rows: Sequence[CorpusRow], questions: Mapping[SplitName, Sequence[KnowledgeTask]], result: CorpusResult
) -> None:
    """Write a corpus as a whole; what was in the directory is replaced.

    `questions` are those of the documents of each split, which no row repeats.
    """
    with replacing_directory(out) as place:
        splits: dict[str, list[CorpusRow]] = {"train": [], "development": []}
        for row in rows:
            splits[row.split].append(row)
        for split, mine in splits.items():
            if mine:
                _write_shards(place / "data", split, mine)
                lines = (json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in mine)
                _write_lines(place / "jsonl" / f"{split}.jsonl", lines)
        asked = {split: [task for task in tasks if task.questions] for split, tasks in questions.items()}
        for name, tasks in asked.items():
            if tasks:
                _write_questions(place / "questions" / f"{name}.parquet", tasks)
        (place / RESULT).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = dataset_card(result, [name for name, mine in splits.items() if mine], [n for n, t in asked.items() if t])
        (place / "README.md").write_text(card, encoding="utf-8")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def _write_questions(path: Path, tasks: Sequence[KnowledgeTask]) -> None:
    """Write a row for each question; in Parquet, because `datasets` reads all of a directory in one format."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"document_id": task.id, "set": name, "question": question.question, "answer": question.answer}
        for task in tasks
        for name, questions in {"rewards": task.questions, "comparison": task.held_out_questions}.items()
        for question in questions
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _write_shards(place: Path, split: str, rows: Sequence[CorpusRow]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.mkdir(parents=True, exist_ok=True)
    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    special = {"messages": chat, "span": pa.list_(pa.int64()), "page": pa.int64()}
    special |= dict.fromkeys(("seed", "sample", "tokens"), pa.int64())
    schema = pa.schema([(name, special.get(name, pa.string())) for name in CorpusRow.model_fields if name != "split"])
    count = -(-len(rows) // _SHARD_ROWS)
    for shard in range(count):
        part = rows[shard * _SHARD_ROWS : (shard + 1) * _SHARD_ROWS]
        table = pa.Table.from_pylist([row.model_dump(mode="json", exclude={"split"}) for row in part], schema=schema)
        pq.write_table(table, place / f"{split}-{shard:05d}-of-{count:05d}.parquet")


def read_corpus(place: Path) -> tuple[list[CorpusRow], dict[SplitName, dict[str, tuple[list[Question], ...]]]]:
    """Return the rows of a corpus, and by split and document id its questions: for rewards, and held-out ones.

    Raises:
        InputError: The directory holds no corpus, or a damaged one.
    """
    import pyarrow.parquet as pq

    try:
        rows = [
            CorpusRow.model_validate_json(line)
            for file in sorted((place / "jsonl").glob("*.jsonl"))
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        questions: dict[SplitName, dict[str, tuple[list[Question], ...]]] = {"train": {}, "development": {}}
        for split, mine in questions.items():
            file = place / "questions" / f"{split}.parquet"
            for row in pq.read_table(file).to_pylist() if file.is_file() else ():
                sets = mine.setdefault(row["document_id"], ([], []))
                sets[row["set"] == "comparison"].append(Question(question=row["question"], answer=row["answer"]))
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"corpus {str(place)!r} cannot be read: {error}. Write it again.") from error
    if not rows:
        raise InputError(f"corpus {str(place)!r}: there is none. Give the --out of a `preceptor write-corpus`.")
    return rows, questions


_CARD = """\
---
{header}---

# {name}

A training corpus that `preceptor write-corpus` wrote from {documents} documents ({sections} sections): {rows} texts
with {tokens} tokens, {replay} of them general text for replay. Writer: `{writer}`. Tokens are those of `{tokenizer}`.

Every row has `text` and `messages` (a chat of user and assistant), its document with digest, page or section and span,
the kind, the digests of prompt, writer and adapter, seed, tokens, support and licence. `data/` holds Parquet shards,
`jsonl/` the same rows, `questions/` questions about the documents that no row repeats, `corpus.json` all figures.

## Kinds

{kinds}

## From completions to rows

{funnel}

Of the rows {supported} % are supported: every number, date and name occurs in the section. The others are inferred.

## Gain

{gains}

## Diversity

{diversity}

A higher compression ratio and self-BLEU mean more repetition. Distinct-n falls with the amount of text.

## Cost, licences, limits

- Cost: {cost}; {seconds} s.
- Licence of the sources: {licences}. A writer's own licence may restrict what its texts may train.
- The texts are a model's. A supported text names what the section names, and can still be wrong; an inferred one adds
  to it.
- Rows of one document repeat its facts. Split by document, as here, never by row.
"""


def dataset_card(result: CorpusResult, splits: Sequence[str], asked: Sequence[str]) -> str:
    """Return README.md of a corpus; its YAML header says where the splits are."""
    import yaml

    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    header: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": files}]}
    if asked:
        files = [{"split": split, "path": f"questions/{split}.parquet"} for split in asked]
        header["configs"].append({"config_name": "questions", "data_files": files})
    header |= {"license": "other", "task_categories": ["text-generation"], "tags": ["synthetic", "preceptor"]}
    kinds = [
        [kind, f"{each.pieces:,}", f"{each.rows:,}", f"{each.tokens:,}", percent(each.tokens / max(1, result.tokens))]
        for kind, each in result.kinds.items()
    ]
    gains = [
        [
            each.kind,
            str(each.pieces),
            f"{100 * each.gain:+.1f}",
            f"{100 * each.per_tokens:+.1f} ± {100 * each.error:.1f}",
        ]
        for each in result.gains
    ]
    gain_heads = ["kind", "pieces tried", "gain (points)", "gain a 1,000 tokens (points, ± standard error)"]
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=result.name,
        documents=result.documents,
        sections=result.sections,
        rows=f"{result.rows:,}",
        tokens=f"{result.tokens:,}",
        replay=tokens(result.replay_tokens),
        writer=result.writer,
        tokenizer=result.tokenizer,
        kinds=markdown_table(["kind", "pieces", "rows", "tokens", "% of tokens"], kinds),
        funnel=result.funnel.markdown,
        supported=percent(result.funnel.supported_share),
        gains=markdown_table(gain_heads, gains) if gains else "Not measured: no student tried the kinds.",
        diversity=markdown_table(["measure", "value"], [[k, f"{v:g}"] for k, v in result.diversity.items()]),
        cost=result.cost or "no endpoint",
        seconds=round(result.seconds),
        licences=", ".join(result.licences),
    )
