"""Units of work as Prefect tasks: run once and then read, and run again when what they left is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.digests import derive_seed
from pipelines.comparison import kept_adapters, teacher_variant
from pipelines.sampling import written_edit
from pipelines.units import Units
from pipelines.work import UpdateRequest
from pipelines.workspace import Workspace
from student.adapters import load_adapter
from teacher.rewards import RewardFailure
from teacher.selection import WeightedExample
from tests.pipelines.small import small_config, units_of


@pytest.fixture
def fresh(tmp_path: Path, prefect_server: None) -> Callable[..., tuple[Workspace, Units]]:
    """Return a function that opens the work directory as a new process would, with a seed of the test's own."""

    def opened(*overrides: str) -> tuple[Workspace, Units]:
        seed = derive_seed(str(tmp_path))
        ws = Workspace(
            small_config(f"seed={seed}", "teacher.policy={rank: 2, alpha: 4}", *overrides), tmp_path / "work"
        )
        return ws, units_of(ws)

    return opened


def record_of(kind: str) -> list[Path]:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

    return sorted(PREFECT_LOCAL_STORAGE_PATH.value().glob(f"{kind}/v*/*/*"))


def test_unit_is_run_once_and_then_read(fresh: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, units = fresh()
    known = set(record_of("sample"))
    arguments: Any = (None, "micro-implications", ws.split.train[:1])
    first = units.sample(*arguments, n=2, seed=1)
    (path,) = set(record_of("sample")) - known
    changed = path.stat().st_mtime_ns
    _, again = fresh()
    assert again.sample(*arguments, n=2, seed=1) == first  # the seconds too: they are the first run's
    assert path.stat().st_mtime_ns == changed
    assert again.sample(*arguments, n=2, seed=2) != first
    assert len(set(record_of("sample")) - known) == 2


def test_unit_whose_record_a_kill_left_empty_is_run_again(fresh: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, units = fresh()
    known = set(record_of("bank"))
    requests = [UpdateRequest(task.id, 0, None, 0) for task in ws.split.test]
    base = units.banks(requests, "rewards")
    (path,) = set(record_of("bank")) - known
    whole = path.read_bytes()
    for left in (b"", whole[: len(whole) // 2]):
        path.write_bytes(left)
        ws, units = fresh()
        assert units.banks(requests, "rewards").replicates == base.replicates
        assert path.stat().st_size > len(whole) // 2


def test_teacher_whose_files_are_gone_is_made_again(fresh: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, units = fresh()
    prompt = ws.prompt("micro-implications", ws.split.train[0].document)
    examples = [WeightedExample(prompt, (10, 11, 2), 1.0, "d")]
    first = units.learn(None, examples, seed=1)
    shutil.rmtree(ws.policy_dir(first.policy))
    ws, units = fresh()
    again = units.learn(None, examples, seed=1)
    assert again.policy == first.policy
    assert ws.policy_dir(first.policy).is_dir()


def test_kept_adapters_are_those_asked_for_and_are_made_again_when_they_are_gone(
    fresh: Callable[..., tuple[Workspace, Units]],
) -> None:
    ws, units = fresh()
    edits = {task.id: written_edit(task, task.document.text).edit for task in ws.split.test}
    requests = [UpdateRequest(name, 0, edit, 1) for name, edit in edits.items()]
    known = set(record_of("bank"))
    plain = units.bank(requests, "comparison")
    assert not (ws.work_dir / "adapters").exists()
    (path,) = set(record_of("bank")) - known
    wanted = [requests[0]._replace(keep=True), requests[1]]
    first = units.bank(wanted, "comparison")
    assert first.replicates == plain.replicates
    digest = first.replicates[0].adapter_digest
    assert digest is not None
    assert [place.name for place in (ws.work_dir / "adapters").iterdir()] == [digest[:20]]
    assert load_adapter(ws.adapter_dir(digest)).digest == digest
    made = path.stat().st_mtime_ns
    ws, units = fresh()
    assert units.bank(wanted, "comparison") == first  # from the record: it is there, and so is the adapter
    assert path.stat().st_mtime_ns == made
    shutil.rmtree(ws.adapter_dir(digest))
    assert units.bank(wanted, "comparison").replicates == first.replicates
    assert load_adapter(ws.adapter_dir(digest)).digest == digest
    assert path.stat().st_mtime_ns > made
    assert set(record_of("bank")) - known == {path}


def test_update_that_failed_leaves_nothing_to_keep_and_is_not_made_again(
    fresh: Callable[..., tuple[Workspace, Units]],
) -> None:
    ws, units = fresh()
    task = ws.split.test[0]
    long = written_edit(task, (task.document.text + " ") * (1 + 12_000 // len(task.document.text)))
    requests = [UpdateRequest(task.id, 0, long.edit, 1, keep=True)]
    first = units.bank(requests, "comparison")
    assert first.replicates[0].failure is RewardFailure.UPDATE_FAILED
    assert units.bank(requests, "comparison") == first


def test_trained_variant_keeps_the_first_self_edit_of_its_first_documents(
    fresh: Callable[..., tuple[Workspace, Units]],
) -> None:
    ws, units = fresh("comparison={edits: 2, keep_adapters: 1, fixed_prompts: []}")
    known = set(record_of("bank"))
    prompt, test = "micro-implications", ws.split.test
    variant = teacher_variant(ws, units, "trained_teacher", "trained teacher", None, prompt, test, keep=1)
    kept = kept_adapters(ws, variant)
    assert set(kept) <= {test[0].id}
    first = next(c for c in variant.candidates if c.edit.index == 0)
    if first.edit.edit is not None:
        (place,) = kept.values()
        assert load_adapter(place).digest == first.replicates[0].adapter_digest
        assert list((ws.work_dir / "adapters").iterdir()) == [place]
    assert len(set(record_of("bank")) - known) == 1


def test_updates_are_cut_into_units_and_come_back_in_order(fresh: Callable[..., tuple[Workspace, Units]]) -> None:
    ws, units = fresh("student.unit_updates=3", "student.bank_slots=2")
    known = set(record_of("bank"))
    tasks = ws.split.train
    requests = [UpdateRequest(task.id, 0, written_edit(task, task.document.text).edit, 1) for task in tasks]
    whole = units.banks(requests, "rewards")
    assert [replicate.document_id for replicate in whole.replicates] == [task.id for task in tasks]
    assert whole == units_of(ws).banks(requests, "rewards")  # the seconds too: a resumed run reports the same
    assert len(set(record_of("bank")) - known) == 2
    assert whole.usage.slots == 2
    assert whole.usage.tokens == sum(replicate.tokens for replicate in whole.replicates)
    assert whole.usage.places == sum(replicate.padded_tokens for replicate in whole.replicates)
