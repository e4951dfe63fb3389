"""A corpus of the micro-world with trials on the micro-student, opened by `datasets`, resumed, studied."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evaluation.common.errors import ConfigError, GenerationError
from pipelines.write_corpus.config import CorpusRequest, open_config
from pipelines.write_corpus.flow import write_corpus
from pipelines.write_corpus.making import print_preview
from pipelines.write_corpus.output import CorpusResult, read_corpus
from pipelines.write_corpus.study import BUDGETS, study
from tests.faults import FaultyServer
from tests.pipelines.write_corpus.factories import MICRO, TINY, endpoint_config, write_documents, written

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]
TOKENS = 400


class Made(NamedTuple):
    place: Path
    documents: Path
    out: Path
    result: CorpusResult

    def again(self, out: Path) -> CorpusResult:
        again: CorpusResult = write_corpus([str(self.documents)], str(out), TOKENS, "auto", **settings(self.place))
        return again


def settings(place: Path) -> dict[str, Any]:
    return {"config_path": str(MICRO), "overrides": list(TINY), "work_dir": str(place / "work")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Made:
    place = tmp_path_factory.mktemp("corpus")
    documents, out = write_documents(place / "documents.jsonl", 5), place / "corpus"
    arguments: dict[str, Any] = {"licence": "CC0-1.0", **settings(place)}
    result = write_corpus([str(documents)], str(out), TOKENS, **arguments)
    return Made(place, documents, out, result)


def test_datasets_opens_the_directory_and_every_row_says_where_it_comes_from(made: Made, tmp_path: Path) -> None:
    from datasets import load_dataset

    found = load_dataset(str(made.out), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "development"}
    rows = [{**row, "split": split} for split in found for row in found[split]]
    assert {row["document_id"] for row in found["train"]}.isdisjoint(row["document_id"] for row in found["development"])
    assert sum(row["tokens"] for row in found["train"]) == made.result.train_tokens >= TOKENS
    documents = {line["text"]: line for line in load_dataset("json", data_files=str(made.documents), split="train")}
    for row in rows:
        assert row["licence"] == "CC0-1.0"
        assert row["writer"] == "micro-teacher"
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert (row["answer"] or row["text"]) == row["messages"][1]["content"]
        assert any(row["title"] == each["title"] and row["span"] == [0, len(text)] for text, each in documents.items())
    asked = load_dataset(str(made.out), "questions", cache_dir=str(tmp_path / "cache"))
    texts = {row["text"] for row in rows}
    evaluation = {q["question"] for split in asked for q in asked[split] if q["set"] == "comparison"}
    assert evaluation
    assert not any(question in text for question in evaluation for text in texts)


def test_budget_follows_trials_on_development_documents(made: Made) -> None:
    result = made.result
    assert {gain.kind for gain in result.gains} <= {"micro-implications", "micro-rewrite", "micro-self-qa"}
    assert result.gains
    assert result.metric == "probability"
    assert result.shares
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in result.shares)
    funnel = result.funnel
    drops = ("refusal", "length", "language", "leak", "exact", "near", "kept")
    assert funnel.total("lines") == sum(funnel.total(stage) for stage in drops)
    assert funnel.total("kept") == funnel.total("supported") + funnel.total("inferred") == result.rows


def test_the_same_command_writes_nothing_again_and_the_same_corpus(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.write_corpus.write.Writer._sample", lambda *_: pytest.fail("written again"))
    monkeypatch.setattr("pipelines.loop.update.train_and_score", lambda *_: pytest.fail("trained again"))
    made.again(tmp_path / "corpus")
    for file in ("jsonl/train.jsonl", "data/train-00000-of-00001.parquet", "questions/train.parquet"):
        one, two = ((place / file).read_bytes() for place in (made.out, tmp_path / "corpus"))
        assert one.replace(b"CC0-1.0", b"unknown") == two or file.endswith("parquet")


def test_study_asks_after_each_budget_and_resumes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(str(made.out), **settings(made.place))
    assert [budget.name for budget in found.budgets] == ["0x", *(f"{times}x" for times in BUDGETS)]
    assert [b.tokens for b in found.budgets] == sorted(b.tokens for b in found.budgets)
    assert found.budgets[0].tokens == 0 < found.budgets[1].tokens
    assert found.documents == 4  # the fifth is for development
    assert all(interval.low <= interval.mean <= interval.high for interval in found.accuracy.values())
    assert (made.place / "work" / "plots" / "study-write-corpus-micro.png").is_file()
    monkeypatch.setattr("pipelines.write_corpus.study.bank_of", lambda *_: pytest.fail("trained again"))
    again = study(str(made.out), **settings(made.place))
    assert again.budgets == found.budgets


def test_preview_shows_lines_of_each_kind_and_writes_no_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyServer() as server:
        server.replies = written
        ref = open_config(endpoint_config(tmp_path / "config.yaml", server), "", "", (), tmp_path / "work")
        documents, out = write_documents(tmp_path / "documents.jsonl", 3), tmp_path / "corpus"
        request = CorpusRequest((str(documents),), str(out), 100_000, kinds="implications,spa-mind-map")
        print_preview(ref, request, tmp_path / "work", 3)
    printed = capsys.readouterr().out
    assert printed.count("[inferred]") + printed.count("[supported]") == 6
    assert printed.count("spa-mind-map") == 2  # above its lines, and in the table
    assert not out.exists()
    assert not (tmp_path / "work" / "mlflow.db").exists()


def test_a_tiny_corpus_is_an_error_with_the_funnel(tmp_path: Path, prefect_server: None) -> None:
    with FaultyServer() as server:
        server.replies = lambda prompt: "I'm sorry, but I can't help with that."
        config = endpoint_config(tmp_path / "config.yaml", server)
        documents, out = write_documents(tmp_path / "documents.jsonl", 3), tmp_path / "corpus"
        where: dict[str, Any] = {"config_path": str(config), "work_dir": str(tmp_path / "work")}
        with pytest.raises(GenerationError, match="completions"):
            write_corpus([str(documents)], str(out), 1000, "implications", **where)
    assert not out.exists()


def test_a_directory_that_is_no_corpus_is_not_replaced(made: Made, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="no corpus"):
        made.again(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert read_corpus(made.out)[0]
