from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.comparison import teacher_variant
from pipelines.drafts import agreement, most_written
from pipelines.records import EditRecord, SamplingRecord
from pipelines.workspace import Workspace
from teacher.spec_space import SpecSpace
from tests.pipelines.small import units_of
from tests.pipelines.test_redraws import written
from tests.pipelines.test_spec_search import config

CHOICES = list(SpecSpace(orientations=("none", "mirror"), epochs=(1, 2)).choices())
drafts = st.lists(st.sampled_from([None, *range(len(CHOICES))]), min_size=1, max_size=12)


def record(names: list[int | None], document: str = "d") -> list[EditRecord]:
    return [written(document, i, None if name is None else CHOICES[name]) for i, name in enumerate(names)]


@given(st.lists(drafts, min_size=1, max_size=3), st.integers(1, 6))
def test_the_most_written_come_first_and_each_once(documents: list[list[int | None]], count: int) -> None:
    edits = [edit for i, names in enumerate(documents) for edit in record(names, f"d{i}")]
    found = most_written(SamplingRecord(edits=tuple(edits), seconds=1.0), count)
    for i, names in enumerate(documents):
        mine = [edit for edit in found.edits if edit.document_id == f"d{i}"]
        assert [edit.index for edit in mine] == list(range(len(mine)))
        votes = Counter(name for name in names if name is not None)
        texts = {written("d", 0, CHOICES[name]).text: votes[name] for name in votes}
        counted = [texts[edit.text] for edit in mine if edit.edit is not None]
        assert counted == sorted(votes.values(), reverse=True)[:count]
        assert len({edit.text for edit in mine if edit.edit is not None}) == len(counted)
        assert len(mine) == min(count, len(votes) + names.count(None))
        assert all(edit.failure is not None for edit in mine[len(counted) :])


def test_agreement_is_the_share_of_the_most_written() -> None:
    edits = [*record([0, 0, 1, None]), *record([2], "e")]
    assert agreement(edits) == (0.5 + 1.0) / 2
    assert agreement(record([None, None])) is None
    assert agreement([]) is None


def test_comparison_tries_what_a_teacher_writes_most_often(tmp_path: Path, prefect_server: None) -> None:
    ws = Workspace(config(tmp_path, "comparison.drafts=12", "comparison.redraws=1"), tmp_path / "work")
    tasks = ws.split.test[:2]
    with ws:
        units, prompt = units_of(ws), ws.config.teacher.prompt
        variant = teacher_variant(ws, units, "untrained_teacher", "untrained", None, prompt, tasks)
        seed = ws.seed("sample", "comparison")
        wanted = most_written(units.sample(None, prompt, tasks, n=12, seed=seed), 2)
    tried = {(c.edit.document_id, c.edit.index): c.edit.text for c in variant.candidates}
    untouched = [edit for edit in wanted.edits if (edit.document_id, 1) not in tried]
    assert untouched, "on every task the first one was refused"
    assert all(tried[edit.document_id, edit.index] == edit.text for edit in untouched if edit.index == 0)
    assert 0.0 < variant.notes["agreement"] <= 1.0
