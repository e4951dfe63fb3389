"""A finished corpus: its figures, and files that others read unchanged (Parquet, JSON Lines, questions, a card).

`datasets.load_dataset(DIRECTORY)` opens the shards by the YAML header of the card. The directory appears as a whole or
not at all.
"""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.common.errors import InputError
from evaluation.common.storage import replacing_directory
from evaluation.engines.ledger import Spent
from evaluation.tasks import KnowledgeTask, Question
from pipelines.records import Record
from pipelines.reports.format import markdown_table, percent, points
from pipelines.write_corpus.allocate import KindGain
from pipelines.write_corpus.config import RESULT, SplitName
from pipelines.write_corpus.funnel import CorpusRow, Funnel
from teacher.filters import distinct_n

_SHARD_ROWS = 50_000
_SAMPLED, _BLEU_LINES = 2_000, 200
"""Rows that diversity is measured on, and of these the lines of self-BLEU, which takes every pair."""
_ORDERS = (1, 2, 3, 4)


class CorpusResult(Record):
    """The result for scripts (`--json`), also `corpus.json` of the corpus."""

    name: str
    out: str
    writer: str
    adapter_digest: str | None
    tokenizer: str
    """Whose tokens are counted."""
    student: str | None
    """That tried the kinds; None without one."""
    documents: int
    sections: int
    rows: int
    """Of both splits, replayed text included."""
    tokens: int
    """Of all rows."""
    train_tokens: int
    """Of the training split, replayed text left out; what `--tokens` asks for."""
    replay_tokens: int = 0
    funnel: Funnel
    gains: tuple[KindGain, ...] = ()
    """What the student gained by kind, the most per token first; empty without one."""
    metric: str = ""
    """Score of questions that gains are in."""
    shares: tuple[dict[str, float], ...] = ()
    """By part of the budget: share of the pieces by kind."""
    diversity: dict[str, float]
    licences: tuple[str, ...]
    spent: Spent | None = None
    """At an endpoint, killed runs included."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the figures."""
    seconds: float = 0.0
    mlflow_run_id: str = ""

    @property
    def cost(self) -> str:
        """What an endpoint took, for people."""
        return "no endpoint" if self.spent is None else f"{self.spent.calls:,} calls, {self.spent.tokens:,} tokens"

    @property
    def lines(self) -> list[str]:
        """What a command prints below the funnel."""
        cells = map(_gain_cells, self.gains)
        found = [f"{kind}: {rate} points a 1,000 tokens ({tried} tried)" for kind, tried, _, rate in cells]
        found += [f"Note: {note}" for note in self.notes]
        measures = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.diversity.items())
        found.append(f"Supported: {percent(self.funnel.supported_share)} % of the texts. Diversity: {measures}.")
        return [*found, f"Corpus: {self.rows:,} texts, {self.tokens:,} tokens in {self.out}; {self.cost}"]


def _gain_cells(gain: KindGain) -> list[str]:
    rate = f"{points(gain.per_tokens)} ± {100 * gain.error:.1f}"
    return [gain.kind, str(gain.pieces), points(gain.gain), rate]


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
    grams = [Counter(tuple(line[i : i + n]) for n in _ORDERS for i in range(len(line) - n + 1)) for line in lines]
    seen: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for own in grams:
        for gram, count in own.items():
            seen[gram].append(count)
    highest = {gram: sorted([0, *counts])[-2:] for gram, counts in seen.items()}
    scores = []
    for place, (line, own) in enumerate(zip(lines, grams, strict=True)):
        matches = Counter[int]()
        for gram, count in own.items():
            second, first = highest[gram]
            # The highest count among the others: the second highest where this line has the highest.
            matches[len(gram)] += min(count, second if count >= first else first)
        logs = [math.log(max(matches[n], 0.5) / max(1, len(line) - n + 1)) for n in _ORDERS]
        others = (len(other) for i, other in enumerate(lines) if i != place)
        nearest = min(others, key=lambda length: (abs(length - len(line)), length))
        scores.append(min(1.0, math.exp(min(0.0, 1.0 - nearest / len(line)) + fmean(logs))))
    return fmean(scores)


def write_corpus_files(
    out: Path, rows: Sequence[CorpusRow], questions: Mapping[SplitName, Sequence[KnowledgeTask]], result: CorpusResult
) -> None:
    """Write a corpus as a whole; what was in the directory is replaced.

    `questions` are those of the documents of each split, which no row repeats.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    with replacing_directory(out) as place:
        splits: dict[str, list[CorpusRow]] = {"train": [], "development": []}
        for row in rows:
            splits[row.split].append(row)
        for split, mine in splits.items():
            if mine:
                _write_shards(place / "data", split, mine)
                lines = (json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in mine)
                (place / "jsonl").mkdir(exist_ok=True)
                (place / "jsonl" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        asked = {split: found for split, tasks in questions.items() if (found := _question_rows(tasks))}
        for name, asking in asked.items():
            # In Parquet, because `datasets` reads all of a directory in one format.
            _write_parquet(place / "questions" / f"{name}.parquet", pa.Table.from_pylist(asking))
        (place / RESULT).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = dataset_card(result, [name for name, mine in splits.items() if mine], [*asked])
        (place / "README.md").write_text(card, encoding="utf-8")


def _question_rows(tasks: Sequence[KnowledgeTask]) -> list[dict[str, str]]:
    return [
        {"document_id": task.id, "set": name, "question": question.question, "answer": question.answer}
        for task in tasks
        if task.questions
        for name, questions in {"rewards": task.questions, "comparison": task.held_out_questions}.items()
        for question in questions
    ]


def _write_shards(place: Path, split: str, rows: Sequence[CorpusRow]) -> None:
    import pyarrow as pa

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    special = {"messages": chat, "span": pa.list_(pa.int64())}
    special |= dict.fromkeys(("page", "seed", "sample", "tokens"), pa.int64())
    schema = pa.schema([(name, special.get(name, pa.string())) for name in CorpusRow.model_fields if name != "split"])
    count = -(-len(rows) // _SHARD_ROWS)
    for shard in range(count):
        part = rows[shard * _SHARD_ROWS : (shard + 1) * _SHARD_ROWS]
        table = pa.Table.from_pylist([row.model_dump(mode="json", exclude={"split"}) for row in part], schema=schema)
        _write_parquet(place / f"{split}-{shard:05d}-of-{count:05d}.parquet", table)


def _write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


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
    gain_heads = ["kind", "pieces tried", "gain (points)", "gain a 1,000 tokens (points, ± standard error)"]
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=result.name,
        documents=result.documents,
        sections=result.sections,
        rows=f"{result.rows:,}",
        tokens=f"{result.tokens:,}",
        replay=f"{result.replay_tokens:,}",
        writer=result.writer,
        tokenizer=result.tokenizer,
        funnel=result.funnel.markdown,
        supported=percent(result.funnel.supported_share),
        gains=markdown_table(gain_heads, map(_gain_cells, result.gains))
        if result.gains
        else "Not measured: no student tried the kinds.",
        diversity=markdown_table(["measure", "value"], [[k, f"{v:g}"] for k, v in result.diversity.items()]),
        cost=result.cost,
        seconds=round(result.seconds),
        licences=", ".join(result.licences),
    )
