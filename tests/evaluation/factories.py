"""Small inputs of the tests of `evaluation`: rows and files of documents, requests to endpoints."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.common.checkpoints import Checkpoint
from evaluation.common.errors import InputError
from evaluation.engines.endpoint import EndpointConfig, EndpointRequest
from evaluation.engines.ledger import EndpointFailure, EndpointReply, Ledger, Outcome
from evaluation.exact_match import AnswerFormat, score_answers
from evaluation.sources.files import JsonLinesData, LoadedData, SquadData, load_tasks
from evaluation.statistics import Interval
from evaluation.tasks import KnowledgeTask, Question
from tests.faults import MODEL, FaultyServer


def accuracy(model: Checkpoint, questions: Sequence[Question], answer_format: AnswerFormat) -> float:
    scores = score_answers(model.model, model.tokenizer, questions, answer_format)
    return sum(score.exact for score in scores) / len(scores)


def sampled(model: Checkpoint, prompts: Sequence[str], longest: int) -> list[str]:
    """One completion of each prompt, of at most `longest` tokens, at the temperature of the shipped configurations."""
    tokenizer: Any = model.tokenizer
    encoded = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ids = model.model.generate(**encoded, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=longest)
    texts: list[str] = tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


ASKED = [{"question": "Who?", "answer": "Ada"}]


def row(**changes: Any) -> dict[str, Any]:
    return {"text": "Ada wrote a program.", "questions": ASKED} | changes


def write_lines(path: Path, *lines: object) -> JsonLinesData:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    return JsonLinesData(path=path)


def write_squad(path: Path, value: object) -> SquadData:
    path.write_text(json.dumps(value))
    return SquadData(path=path)


def refusal(config: LoadedData) -> str:
    with pytest.raises(InputError) as caught:
        load_tasks(config)
    return str(caught.value)


def mistakes(config: LoadedData, part: str = "") -> list[str]:
    """Return the mistakes that a refusal lists, without the source in front, which each must have."""
    source, listed = f"  {config.path}{part}: ", refusal(config).splitlines()[1:-1]
    assert all(line.startswith(source) for line in listed)
    return [line.removeprefix(source) for line in listed]


def pairs(task: KnowledgeTask) -> list[tuple[str, str]]:
    return [(question.question, question.answer) for question in task.questions]


def squad(*paragraphs: object, title: str = "Ada") -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": title, "paragraphs": list(paragraphs)}]}


def paragraph(context: str, *asked: tuple[str, list[str]]) -> dict[str, Any]:
    qas = [
        {"question": q, "id": f"q{i}", "answers": [{"text": text, "answer_start": 0} for text in answers]}
        for i, (q, answers) in enumerate(asked)
    ]
    return {"context": context, "qas": qas}


def config_for(server: FaultyServer, **changes: Any) -> EndpointConfig:
    fields: dict[str, Any] = {"base_url": server.base_url, "model": MODEL}
    return EndpointConfig.model_validate(fields | changes)


def requests_for(count: int, **changes: Any) -> list[EndpointRequest]:
    """Return requests that differ by prompt."""
    fields: dict[str, Any] = {"max_tokens": 10, "seed": 3} | changes
    return [EndpointRequest(prompt=f"prompt {i:03}", **fields) for i in range(count)]


def replies(outcomes: list[Outcome]) -> list[EndpointReply]:
    """Return the outcomes, all of which must be replies."""
    assert not [outcome for outcome in outcomes if isinstance(outcome, EndpointFailure)]
    return [outcome for outcome in outcomes if isinstance(outcome, EndpointReply)]


def texts(outcomes: list[Outcome]) -> list[str]:
    """Return the texts of outcomes that are all replies."""
    return [reply.text for reply in replies(outcomes)]


def counts(ledger: Ledger) -> tuple[int, int, int, int]:
    """Return calls, failures, unsettled calls and tokens of the ledger's scope."""
    spent = ledger.spent()
    return spent.calls, spent.failures, spent.unsettled, spent.tokens


def seal_scores(path: Path) -> dict[str, float]:
    """Return accuracy after the update by passage, from the recorded verdicts of each question."""
    articles = json.loads(gzip.decompress(path.read_bytes()))["articles"]
    verdicts = {a["context"]: [q["adapter_correct"] for q in a["completions"][0]["questions"]] for a in articles}
    return {context: sum(rows) / len(rows) for context, rows in verdicts.items()}


def ends(found: Interval | None) -> tuple[float, float, float]:
    """Return mean, low and high."""
    assert found is not None
    return found.mean, found.low, found.high
