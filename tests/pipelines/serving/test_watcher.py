"""From version to version with a real registry, and a plain server where vLLM would be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from evaluation.errors import LineageError, ServeError
from pipelines.config import TrackingConfig
from pipelines.serving.champions import Champion, Champions, zero_adapter
from pipelines.serving.options import ServingOptions
from pipelines.serving.probes import ProbeRecord
from pipelines.serving.state import ServingState
from pipelines.serving.upstream import Upstream
from pipelines.serving.watcher import Limits, Watcher
from student.adapters import load_adapter
from tests.pipelines.serving.parts import Shelf, small_adapter
from tests.pipelines.serving.stand_in import StandIn, stand_in
from tests.pipelines.serving.test_proxy import PROBE


class Proof:
    """Passes all but some versions; the real comparison has tests of its own."""

    def __init__(self) -> None:
        self.failing: set[int] = set()

    async def prove(self, upstream: Upstream, name: str, champion: Champion) -> ProbeRecord:
        if champion.version in self.failing:
            return PROBE.model_copy(update={"passed": False, "reason": "other tokens"})
        return PROBE


class Setting(NamedTuple):
    shelf: Shelf
    champions: Champions
    stand: StandIn
    upstream: Upstream
    state: ServingState
    watcher: Watcher
    proof: Proof
    said: list[str]
    files: Path

    @property
    def version(self) -> int | None:
        return self.state.current.champion.version if self.state.current else None

    def serving(self) -> str:
        assert self.state.current is not None
        return self.state.current.name


@asynccontextmanager
async def setting(work_dir: Path, **options: Any) -> AsyncIterator[Setting]:
    shelf = Shelf(work_dir)
    for seed in (1, 2, 3):
        shelf.add(small_adapter(seed))
    shelf.promote(1)
    files = work_dir / "serving"
    files.mkdir()
    champions = Champions(TrackingConfig(), work_dir, "student", files)
    state, proof, said = ServingState("student", "micro-student"), Proof(), list[str]()
    first = champions.fetch(1)
    watcher = Watcher(
        champions, proof, state, Limits(first.rank, first.modules), ServingOptions(**options), said.append
    )
    async with stand_in() as (stand, upstream):
        await watcher.place(upstream, first)
        yield Setting(shelf, champions, stand, upstream, state, watcher, proof, said, files)


def run(work_dir: Path, test: Callable[[Setting], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        async with setting(work_dir, **options) as made:
            await asyncio.wait_for(test(made), 60)

    asyncio.run(whole())


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.01)


def test_alias_that_moves_is_followed_and_the_old_version_leaves(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        first = it.serving()
        await it.watcher.check()
        assert (it.version, it.state.status) == (1, "ok")
        it.shelf.promote(2)
        await it.watcher.check()
        assert (it.version, it.state.status, it.state.wanted) == (2, "ok", 2)
        await until(lambda: it.stand.loaded == [it.serving()] and len(list(it.files.iterdir())) == 1)
        it.shelf.promote(1)  # a rollback
        await it.watcher.check()
        assert it.version == 1
        assert it.serving() not in (first, "")
        assert len(set(it.stand.ever)) == len(it.stand.ever) == 3, "a name was used twice"

    run(work_dir, test)


def test_old_version_stays_loaded_while_it_answers(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        old = it.state.current
        assert old is not None
        with old.answering():
            it.shelf.promote(2)
            await it.watcher.check()
            await asyncio.sleep(0.2)
            assert old.name in it.stand.loaded
            assert old.champion.directory.exists()
        await until(lambda: old.name not in it.stand.loaded and not old.champion.directory.exists())

    run(work_dir, test)


def test_grace_ends_for_requests_that_do_not(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        old = it.state.current
        assert old is not None
        with old.answering():
            it.shelf.promote(2)
            await it.watcher.check()
            await until(lambda: old.name not in it.stand.loaded)
            assert old.champion.directory.exists(), "vLLM may read the files again"

    run(work_dir, test, grace_seconds=0.1)


def test_version_that_fails_its_probes_stays_out_and_is_tried_again_after_a_while(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        first = it.serving()
        it.proof.failing = {2}
        it.shelf.promote(2)
        await it.watcher.check()
        assert (it.serving(), it.state.status) == (first, "degraded")
        assert "other tokens" in str(it.state.error)
        assert it.state.last_probe is not None
        assert (it.state.last_probe[0], it.state.last_probe[1].passed) == (2, False)
        assert it.stand.loaded == [first], "the refused adapter was to be unloaded"
        assert len(list(it.files.iterdir())) == 1
        tries = len(it.stand.ever)
        await it.watcher.check()
        assert len(it.stand.ever) == tries, "tried again at once"
        assert len(it.said) == 1, "said the same twice"
        it.proof.failing = set()
        await asyncio.sleep(0.6)
        await it.watcher.check()
        assert (it.version, it.state.status, it.state.error) == (2, "ok", None)

    run(work_dir, test, retry_seconds=0.5)


def test_refused_version_is_not_waited_for_when_the_alias_moves_on(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        it.proof.failing = {2}
        it.shelf.promote(2)
        await it.watcher.check()
        it.shelf.promote(3)
        await it.watcher.check()
        assert (it.version, it.state.status) == (3, "ok")
        it.shelf.promote(2)
        await it.watcher.check()
        it.shelf.promote(3)
        await it.watcher.check()
        assert (it.version, it.state.status, it.state.error) == (3, "ok", None)

    run(work_dir, test)


def test_damaged_files_are_never_loaded(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        it.shelf.promote(it.shelf.add(small_adapter(4), damaged=True))
        await it.watcher.check()
        assert (it.version, it.state.status) == (1, "degraded")
        assert len(it.stand.ever) == 1
        assert "changed or damaged" in str(it.state.error)

    run(work_dir, test)


def test_version_that_vllm_refuses_or_that_does_not_fit_stays_out(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        it.stand.refuse_loads = True
        it.shelf.promote(2)
        await it.watcher.check()
        assert (it.version, it.state.status) == (1, "degraded")
        assert "out of memory" in str(it.state.error)
        it.stand.refuse_loads = False
        it.shelf.promote(it.shelf.add(small_adapter(5, rank=9)))
        await it.watcher.check()
        assert (it.version, it.state.status) == (1, "degraded")
        assert "its rank is 9, allowed is 8" in str(it.state.error)
        assert len(it.stand.ever) == 1

    run(work_dir, test)


def test_alias_taken_away_leaves_the_champion_in_place(work_dir: Path) -> None:
    async def test(it: Setting) -> None:
        it.shelf.store.client.delete_registered_model_alias("preceptor-student", "champion")
        await it.watcher.check()
        assert (it.version, it.state.status) == (1, "degraded")
        it.shelf.promote(1)
        await it.watcher.check()
        assert it.state.status == "ok"

    run(work_dir, test)


def test_store_that_cannot_be_read_leaves_the_champion_in_place(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(it: Setting) -> None:
        def lost() -> int:
            raise LineageError("the store is gone")

        with monkeypatch.context() as patched:
            patched.setattr(it.champions, "current", lost)
            await it.watcher.check()
        assert (it.version, it.state.status, it.state.error) == (1, "degraded", "the store is gone")
        await it.watcher.check()
        assert it.state.status == "ok"

    run(work_dir, test)


def test_champion_comes_with_what_the_registry_knows_of_it(work_dir: Path, tmp_path: Path) -> None:
    shelf = Shelf(work_dir)
    adapter = small_adapter(1)
    prompts = '["Who?", 3, "", "Where?"]'
    version = shelf.add(adapter, tags={"preceptor.probe_prompts": prompts})
    champions = Champions(TrackingConfig(), work_dir, "student", tmp_path / "files")
    assert champions.current() is None
    assert champions.recorded_model(version) == "micro-student"
    champion = champions.fetch(version)
    assert (champion.version, champion.digest, champion.rank) == (1, adapter.digest, adapter.rank)
    assert champion.modules == {name.rpartition(".")[2] for name in adapter.factors}
    assert champion.prompts == ("Who?", "Where?")
    assert not champion.zero
    zero = load_adapter(zero_adapter(champion, tmp_path / "zero"))
    assert zero.factors.keys() == adapter.factors.keys()
    assert not any(tensor.any() for pair in zero.factors.values() for tensor in pair)
    champions.discard(champion.directory)
    assert list((tmp_path / "files").iterdir()) == []


def test_files_of_another_adapter_are_refused(work_dir: Path, tmp_path: Path) -> None:
    """Whole and readable, but not what was registered: the digest written in them says nothing here."""
    shelf = Shelf(work_dir)
    version = shelf.add(small_adapter(1))
    (stored,) = (work_dir / "artifacts").rglob("adapter_model.safetensors")
    stored.write_bytes((_saved(small_adapter(2), tmp_path) / stored.name).read_bytes())
    champions = Champions(TrackingConfig(), work_dir, "student", tmp_path / "files")
    with pytest.raises(ServeError, match="was registered"):
        champions.fetch(version)
    assert list((tmp_path / "files").iterdir()) == []


def _saved(adapter: Any, place: Path) -> Path:
    from student.adapters import save_adapter

    return save_adapter(adapter, place / "other")
