"""Sections, pieces and rows of a corpus without any model."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.common.data import digest_files
from evaluation.common.errors import ConfigError, InputError
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.intake import Intake
from pipelines.lineage.run import Lineage
from pipelines.settings import load
from pipelines.write_corpus.config import (
    AUTO,
    CorpusRequest,
    Passage,
    Piece,
    Schedule,
    WriteCorpusConfig,
    WriterRef,
    kinds_of,
    passages_of,
    read_documents,
    refuse_foreign,
    resolve_writer,
    tokens_of,
)
from pipelines.write_corpus.funnel import Corpus, CorpusRow, messages_of
from pipelines.write_corpus.making import replayed_rows
from pipelines.write_corpus.output import diversity, self_bleu
from pipelines.write_corpus.study import mean_piece_tokens, rows_within
from pipelines.write_corpus.write import Draft, Written
from teacher.policy import PolicyConfig, PolicyRecord
from tests.pipelines.write_corpus.factories import MICRO, ROOT

QUESTION = Question(
    question="Who painted the old harbour tower of the town of Ravensburg in spring?", answer="Anton Keller"
)


def document(name: str, text: str = "", questions: tuple[Question, ...] = ()) -> InboxDocument:
    body = text or f"{name} has a mill. Anton Keller opened the mill of {name} in 1871."
    return InboxDocument(title=name, text=body, source=f"{name}.md", questions=questions)


def passages(count: int = 10, share: float = 0.2) -> list[Passage]:
    return passages_of([document(f"Town {i}") for i in range(count)], share, 0)


@pytest.mark.parametrize(("text", "number"), [("20000", 20_000), ("500k", 500_000), ("2M", 2_000_000), ("1.5k", 1_500)])
def test_tokens_are_read_with_their_unit(text: str, number: int) -> None:
    assert tokens_of(text) == number


@pytest.mark.parametrize("text", ["", "k", "-3", "0", "2T", "nan"])
def test_other_numbers_of_tokens_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tokens"):
        tokens_of(text)


def test_kinds_are_all_or_named_or_files(tmp_path: Path) -> None:
    assert {kind.name for kind in kinds_of(AUTO, "micro-teacher")} == {
        "micro-implications",
        "micro-rewrite",
        "micro-self-qa",
    }
    assert len(kinds_of(AUTO, "any/model")) > 15
    own = tmp_path / "own.yaml"
    own.write_text("label: own\nform: lines\ninstruction: Say it again.\ncue: 'Again:'\n", encoding="utf-8")
    assert [kind.name for kind in kinds_of(f"faq,{own}", "any/model")] == ["faq", "own"]
    assert kinds_of(f"{AUTO},faq,{own}", "any/model") == kinds_of(f"faq,{own}", "any/model")
    asked = {name: CorpusRequest((), "", 1, kinds=name).is_auto for name in (AUTO, f"{AUTO},faq", "faq")}
    assert asked == {AUTO: True, f"{AUTO},faq": True, "faq": False}
    for wrong in ("faq,faq", "no-such-kind", ","):
        with pytest.raises(ConfigError):
            kinds_of(wrong, "any/model")


def test_splits_are_by_document_and_equal_texts_stay_together() -> None:
    found = passages(10, 0.3)
    held = {p.section.document_id for p in found if p.split == "development"}
    assert len(held) == 3
    twins = [document("A", "the same text"), document("B", "the same text"), *(document(f"T{i}") for i in range(8))]
    for seed in range(6):
        split = {p.section.title: p.split for p in passages_of(twins, 0.3, seed)}
        assert split["A"] == split["B"]
    assert {p.split for p in passages_of([document("alone")], 0.3, 0)} == {"train"}


REPORT = """# Ravensburg Mill AG

Revenue and profit, in EUR million

| Item | 2022 | 2023 |
|---|---|---|
| Revenue | 12.4 | 13.1 |
| Profit | 1.2 | (0.4) |
"""


def test_files_become_sections_with_pages_and_table_values(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(REPORT, encoding="utf-8")
    said: list[str] = []
    request = CorpusRequest((str(ROOT / "configs" / "examples" / "papers"), str(tmp_path)), "", 1000)
    found = passages_of(read_documents(request, Intake(), said.append), 0.1, 0)
    assert {Path(p.source).suffix for p in found} >= {".pdf", ".docx", ".md", ".html", ".json"}
    assert all(p.section.page for p in found if p.source.endswith("register.pdf"))
    assert any("scan.pdf" in line for line in said), "a picture of a page has no text"
    corpus, _ = kept(["One fact about the mill of Ravensburg."], found[0])
    values = [row for p in found for row in corpus.add_statements(p)]
    assert len(values) == 4
    assert any("Profit" in row.text and "2023" in row.text and "-0.4" in row.text for row in values)
    assert {(row.kind, row.writer, row.prompt_digest) for row in values} == {("table-values", "table", "")}
    assert {row.support for row in values} == {"supported"}


def test_schedule_gives_every_section_as_many_pieces_and_no_piece_twice() -> None:
    found, (kind, other) = passages(), kinds_of("faq,tutorial", "any/model")
    schedule = Schedule(found, 3)
    pieces = [schedule.next(kind if i % 3 else other) for i in range(4 * len(found))]
    assert set(Counter(piece.passage.id for piece in pieces).values()) == {4}
    assert len({piece.id for piece in pieces}) == len(pieces)
    again = Schedule(found, 3)
    assert pieces == [again.next(kind if i % 3 else other) for i in range(4 * len(found))]


def kept(texts: list[str], passage: Passage) -> tuple[Corpus, list[CorpusRow]]:
    corpus = Corpus(
        WriterRef(load(MICRO, WriteCorpusConfig), None, "someone", "d" * 64),
        "CC0-1.0",
        1,
        lambda text: len(text.split()),
    )
    (kind,) = kinds_of("implications", "any/model")
    draft = Draft(text="".join(f"{i}. {text}\n" for i, text in enumerate(texts, 1)))
    return corpus, corpus.add(Written(Piece(passage, kind, 2), draft, "the prompt"))


def test_every_line_is_kept_or_counted_with_its_reason() -> None:
    (passage,) = passages_of([document("Ravensburg", questions=(QUESTION,))], 0.0, 0)
    true, wrong = "Anton Keller opened the mill of Ravensburg.", "The mill of Ravensburg was opened in 1872."
    leak = f"{QUESTION.question} It was Anton Keller."
    corpus, rows = kept([true, wrong, true, leak], passage)
    assert [(row.text, row.support) for row in rows] == [(true, "supported"), (wrong, "inferred")]
    counts = corpus.funnel.counts["implications"]
    assert (counts["completions"], counts["lines"]) == (1, 3), "the parser leaves out what a completion repeats"
    assert (counts["kept"], counts["supported"], counts["inferred"], counts["leak"]) == (2, 1, 1, 1)
    again = corpus.add(
        Written(Piece(passage, kinds_of("implications", "m")[0], 9), Draft(text=f"{true}\n{wrong}\n"), "p")
    )
    assert again == []
    assert corpus.funnel.counts["implications"]["exact"] == 2
    assert corpus.train_tokens == sum(row.tokens for row in rows) == corpus.funnel.counts["implications"]["tokens"]
    assert (rows[0].adapter_digest, rows[0].sample, rows[0].section) == ("d" * 64, 2, "")
    failed = Written(Piece(passage, kinds_of("implications", "m")[0], 3), Draft(failure="timeout"), "p")
    assert corpus.add(failed) == []
    assert corpus.funnel.counts["implications"]["failed"] == 1


def rows_of(sections: int, pieces: int) -> list[CorpusRow]:
    shared = {
        "split": "train",
        "kind": "k",
        "document_digest": "",
        "title": "",
        "section": "",
        "writer": "w",
        "seed": 0,
    }
    shared |= {"support": "inferred", "source": "", "licence": "", "prompt_digest": "p"}
    found = []
    for s in range(sections):
        for p in range(pieces):
            for line in range(2):
                text = f"section {s} piece {p} line {line}"
                chat, id_ = messages_of("", text, None), f"doc-{s}/0/k/{p}/{line}"
                row = CorpusRow(id=id_, text=text, messages=chat, document_id=f"doc-{s}", tokens=10, sample=p, **shared)
                found.append(row)
    return found


def test_budgets_of_a_study_are_of_every_section() -> None:
    rows = rows_of(3, 40)
    assert mean_piece_tokens(rows) == 20
    sizes = []
    for times in (0, 1, 3, 10, 30):
        chosen = rows_within(rows, times * 20, 5)
        assert set(Counter(row.document_id for row in chosen).values()) <= {2 * times}
        sizes.append({row.id for row in chosen})
    assert all(small < large for small, large in itertools.pairwise(sizes))
    assert len(rows_within(rows, 1e6, 5)) == len(rows)
    with pytest.raises(InputError):
        mean_piece_tokens([])


def test_replay_has_the_wanted_share_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "general.txt"
    file.write_text("\n\n".join(f"General text number {i} of many." for i in range(100)), encoding="utf-8")
    request = CorpusRequest((), "", 100, replay=str(file), replay_share=0.25)
    rows = replayed_rows(request, 300, 0, lambda text: len(text.split()))
    assert 100 <= sum(row.tokens for row in rows) < 106
    assert {(row.kind, row.split) for row in rows} == {("replay", "train")}
    assert replayed_rows(request._replace(replay=""), 300, 0, len) == []
    with pytest.raises(InputError, match="--replay-share"):
        replayed_rows(request, 30_000, 0, lambda text: len(text.split()))


def test_diversity_tells_repetition() -> None:
    varied = [
        f"{a} {b} stands by the {c} since {i}"
        for i, (a, b, c) in enumerate(zip("abcdefgh", "hgfedcba", "cdefghab", strict=True))
    ]
    same = ["The mill was opened in the year by the man"] * 8
    for measure, higher in {"compression_ratio": same, "self_bleu": same, "distinct_2": varied}.items():
        one, other = diversity(higher, 0), diversity(varied if higher is same else same, 0)
        assert one[measure] > other[measure]
    assert diversity(same, 0)["self_bleu"] == pytest.approx(1.0)
    words = [text.split() for text in ("the cat sat on the mat today", "the cat sat on the mat today", "xx yy zz")]
    found = self_bleu(words)
    assert found is not None
    assert found == pytest.approx((1.0 + 1.0 + _bleu_without_matches(3)) / 3, abs=0.05)
    assert self_bleu(words[:1]) is None


def _bleu_without_matches(length: int) -> float:
    """BLEU of a line that shares nothing: half a match in each precision, and the penalty for a shorter text."""
    logs = [math.log(0.5 / max(1, length - n)) for n in range(4)]
    return math.exp(1.0 - 7 / length) * math.exp(sum(logs) / 4)


def test_only_a_corpus_or_nothing_is_replaced(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new")
    refuse_foreign(tmp_path)
    (tmp_path / "corpus.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    refuse_foreign(tmp_path)
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(ConfigError, match="is no corpus"):
        refuse_foreign(tmp_path)
    with pytest.raises(ConfigError):
        refuse_foreign(tmp_path / "README.md")


def test_rows_survive_json() -> None:
    row = rows_of(1, 1)[0]
    assert CorpusRow.model_validate_json(json.dumps(row.model_dump(mode="json"))) == row


def test_writer_is_a_model_a_saved_teacher_or_a_version(
    tmp_path: Path, work_dir: Path, policy_dir: Path, open_run: Callable[..., Lineage]
) -> None:
    config = load(MICRO, WriteCorpusConfig)
    assert resolve_writer(config, "", work_dir) == WriterRef(config, None, "micro-teacher", None)
    assert resolve_writer(config, "other/model", work_dir).config.teacher.model == "other/model"
    with pytest.raises(ConfigError):
        resolve_writer(config, "teacher@champion", tmp_path / "no store")
    files = digest_files(policy_dir, ("adapter_model.safetensors", "optimizer.pt"))
    record = PolicyRecord(config=PolicyConfig(rank=2, alpha=4), base_digest="b" * 64, digest="d" * 64, files=files)
    (policy_dir / "policy.json").write_text(record.model_dump_json(), encoding="utf-8")
    saved = resolve_writer(config, str(policy_dir), work_dir)
    assert (saved.state, saved.digest, saved.config.teacher.policy) == (policy_dir, "d" * 64, record.config)
    lineage = open_run()
    version = lineage.registry.register("teacher", policy_dir, digest="d" * 64, run_id=lineage.run_id, tags={})
    with pytest.raises(ConfigError, match="champion"):
        resolve_writer(config, "teacher@champion", work_dir)
    lineage.registry.promote("teacher", version)
    for name in ("teacher@champion", f"teacher/{version}"):
        found = resolve_writer(config, name, work_dir)
        assert found.state is not None
        assert (found.state / "policy.json").is_file()
        assert (found.digest, found.config.teacher.model) == ("d" * 64, "micro-teacher")
