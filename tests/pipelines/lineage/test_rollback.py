"""Going back: where it leads, what it leaves behind, and that a kill leaves no half of a promotion."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from evaluation.common.errors import ConfigError, LineageError
from pipelines.cli import app
from pipelines.lineage import versions
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.settings import TrackingConfig
from student.adapters import save_adapter
from tests.pipelines.factories import make_adapter

Open = Callable[..., Lineage]
TRACKING = TrackingConfig()
RECORD = {versions.DECISION_TAG: "promote", versions.DATA_TAG: "d" * 64}
REPORT = "# Gate\n\nBetter by 0.12 [0.05, 0.19].\n"


@pytest.fixture
def registry(open_run: Open, work_dir: Path, tmp_path: Path) -> Registry:
    """The registry of four teachers, none of them promoted."""
    lineage = open_run()
    for number in range(4):
        adapter = make_adapter(number)
        place = save_adapter(adapter, tmp_path / f"teacher-{number}")
        lineage.registry.register("teacher", place, digest=adapter.digest, tags={}, run_id=lineage.run_id)
    return Registry.open(TRACKING, work_dir)


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: number for alias, number in registry.aliases("teacher").items() if alias != "candidate"}


# Erasure


def test_erased_versions_are_out_of_use_for_good_and_no_move_leads_to_them(
    registry: Registry, work_dir: Path, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        registry.promote("teacher", number)
    for _ in range(2):  # a killed command repeats it
        registry.erase("teacher", [2, 3], "asked to", 1)
        assert aliases(registry) == {"champion": 1}
    registry.promote("teacher", 4)
    assert registry.rollback("teacher", "worse") == (4, 1)
    erased = {each.version: each.reason for each in registry.history("teacher") if each.erased}
    assert erased == {2: "asked to", 3: "asked to"}
    for number in erased:
        with pytest.raises(LineageError, match=r"was erased on .* because: asked to"):
            registry.promote("teacher", number, despite="all the same")
        with pytest.raises(LineageError, match="was erased"):
            registry.fetch("teacher", number, tmp_path / "refused")
    shown = CliRunner().invoke(app, ["versions", "--role", "teacher", "--work-dir", str(work_dir)])
    assert "Version 2 was erased because: asked to" in shown.output
    before = set((work_dir / "artifacts").rglob("*.safetensors"))
    for _ in range(2):
        registry.delete_files("teacher", [2, 3])
        assert len(before - {*(work_dir / "artifacts").rglob("*.safetensors")}) == 2
    registry.erase("teacher", [1, 4], "all of it", None)
    assert aliases(registry) == {}
    assert registry.champion("teacher") is None, "which is no loss of the store"
    assert registry.tags("teacher", 3)[versions.ERASED_BECAUSE_TAG] == "asked to"


# Promotion


def test_promotion_writes_decision_data_parent_and_report(registry: Registry, work_dir: Path, tmp_path: Path) -> None:
    registry.promote("teacher", 1)
    registry.promote("teacher", 2, record=RECORD, report=REPORT)
    tags = registry.tags("teacher", 2)
    assert {name: tags[name] for name in (*RECORD, versions.PARENT_TAG)} == {**RECORD, versions.PARENT_TAG: "1"}
    assert registry.tags("teacher", 1)[versions.PARENT_TAG] == versions.NO_PARENT
    version = registry._store.client.get_model_version("preceptor-teacher", "2")
    assert version.description == REPORT
    assert (registry.fetch("teacher", 2, tmp_path / "files") / versions.REPORT_FILE).read_text(
        encoding="utf-8"
    ) == REPORT
    newest, *_, second, first = registry.history("teacher")
    assert (newest.version, newest.aliases, newest.decision, newest.parent) == (4, ("candidate",), None, None)
    assert (second.version, second.aliases, second.parent) == (2, ("champion",), 1)
    assert second.decision == "promote"
    assert (first.aliases, first.parent, first.parent_known, first.reason) == (("previous",), None, True, None)
    assert abs(datetime.now(UTC) - second.created) < timedelta(hours=1)


def test_long_report_is_cut_in_the_description_and_whole_in_the_files(registry: Registry, tmp_path: Path) -> None:
    report = REPORT + "x" * versions.LONGEST_DESCRIPTION
    registry.promote("teacher", 1, report=report)
    shown = registry._store.client.get_model_version("preceptor-teacher", "1").description
    assert len(shown) == versions.LONGEST_DESCRIPTION
    assert shown.startswith(REPORT)
    assert versions.REPORT_FILE in shown
    assert (registry.fetch("teacher", 1, tmp_path / "files") / versions.REPORT_FILE).read_text(
        encoding="utf-8"
    ) == report


def test_promotion_against_another_champion_than_the_gates_is_refused(registry: Registry) -> None:
    registry.promote("teacher", 1, record={versions.PARENT_TAG: versions.NO_PARENT})
    registry.promote("teacher", 2, record={versions.PARENT_TAG: "1"})
    for seen in ("1", versions.NO_PARENT):
        with pytest.raises(LineageError, match=f"compared with the champion {seen}, and 2 is in use"):
            registry.promote("teacher", 3, record={**RECORD, versions.PARENT_TAG: seen}, report=REPORT)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert not set(registry.tags("teacher", 3)) & {*RECORD, versions.PARENT_TAG}
    # Again, as a resumed run gives it: it is the champion already.
    assert registry.promote("teacher", 2, record={versions.PARENT_TAG: "1"}) == 1


# Rolling back


def test_two_rollbacks_go_two_versions_back_and_never_forth(registry: Registry) -> None:
    assert [registry.promote("teacher", number) for number in (1, 2, 2, 3)] == [None, 1, 1, 2]
    assert registry.aliases("teacher") == {"candidate": 4, "champion": 3, "previous": 2}
    with pytest.raises(LineageError, match="promote version 9 of 'preceptor-teacher'"):
        registry.promote("teacher", 9)
    before = registry.tags("teacher", 2)
    assert registry.rollback("teacher", " It forgot the towns.\n") == versions.Rollback(3, 2)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert registry.tags("teacher", 2) == before
    left = registry.history("teacher")[1]
    assert (left.version, left.reason) == (3, "It forgot the towns.")
    assert left.rolled_back is not None
    assert registry.rollback("teacher", "Worse still.") == versions.Rollback(2, 1)
    assert aliases(registry) == {"champion": 1}
    with pytest.raises(LineageError, match="nothing to roll back to"):
        registry.rollback("teacher", "Once more.")
    assert aliases(registry) == {"champion": 1}
    assert versions.REASON_TAG not in registry.tags("teacher", 1)
    assert len(registry.history("teacher")) == 4


def test_version_that_was_rolled_back_is_passed_over_until_it_is_promoted_again(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.promote("teacher", number)
    registry.rollback("teacher", "3 is bad")
    registry.rollback("teacher", "2 is bad")
    registry.promote("teacher", 3)
    assert registry.history("teacher")[1].reason is None
    assert aliases(registry) == {"champion": 3, "previous": 1}
    assert registry.tags("teacher", 3)[versions.PARENT_TAG] == "2", "a parent is written once"
    assert registry.rollback("teacher", "3 is bad, again") == versions.Rollback(3, 1)


def test_next_night_after_a_rollback_goes_on_from_the_restored_champion(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.promote("teacher", number)
    registry.rollback("teacher", "3 is bad")
    registry.promote("teacher", 4)
    assert aliases(registry) == {"champion": 4, "previous": 2}
    assert [registry.rollback("teacher", "bad").to_version for _ in range(2)] == [2, 1]


def test_rollback_of_versions_promoted_without_a_record_uses_the_alias(registry: Registry) -> None:
    client, name = registry._store.client, "preceptor-teacher"
    client.set_registered_model_alias(name, "champion", "3")
    client.set_registered_model_alias(name, "previous", "2")
    assert registry.rollback("teacher", "bad") == versions.Rollback(3, 2)
    with pytest.raises(LineageError, match="preceptor promote teacher NUMBER"):
        registry.rollback("teacher", "bad")
    assert aliases(registry) == {"champion": 2}


def test_rollback_without_champion_or_reason_is_refused(registry: Registry) -> None:
    with pytest.raises(LineageError, match="has no champion"):
        registry.rollback("teacher", "why not")
    with pytest.raises(LineageError, match="has no champion"):
        registry.rollback("student", "why not")
    with pytest.raises(ConfigError, match="got no reason"):
        registry.rollback("teacher", " \n")
    assert registry.history("student") == []


def test_rollback_and_versions_commands(registry: Registry, preceptor: Callable[..., str], work_dir: Path) -> None:
    assert "No version of the student" in preceptor("versions")
    registry.promote("teacher", 1)
    registry.promote("teacher", 2, record=RECORD)
    said = preceptor("rollback", "--role", "teacher", "--because", "It forgot.")
    assert "Version 1 of the teacher is the champion again; version 2 was rolled back because: It forgot." in said
    shown = preceptor("versions", "--role", "teacher")
    rows = {line.split()[0]: line for line in shown.splitlines() if line}
    assert "champion" in rows["1"]
    assert "promote" in rows["2"]
    assert "Version 2 was rolled back because: It forgot." in " ".join(shown.split())
    assert CliRunner().invoke(app, ["rollback", "--work-dir", str(work_dir)]).exit_code == 2
    for arguments in (["rollback", "--because", "x"], ["promote", "teacher", "1"]):
        nowhere = CliRunner().invoke(app, [*arguments, "--work-dir", str(work_dir / "nowhere")])
        assert isinstance(nowhere.exception, ConfigError)
        assert "holds no runs" in str(nowhere.exception)
    assert not (work_dir / "nowhere").exists()


@pytest.mark.parametrize("decision", ["hold", "reject"])
def test_version_that_the_gate_refused_is_promoted_only_with_a_reason_that_is_kept(
    open_run: Open, work_dir: Path, policy_dir: Path, preceptor: Callable[..., str], decision: str
) -> None:
    lineage = open_run()
    tags = {versions.DECISION_TAG: decision, versions.NIGHT_TAG: "night-0007", versions.TEACHER_TAG: "3"}
    tags |= versions.score_tags({"new": 0.25, "probes_before": 0.9375, "probes_after": 0.5, "reward": None})
    lineage.registry.register("student", policy_dir, digest="e" * 64, run_id=lineage.run_id, tags=tags)
    command, place = ["promote", "student", "1"], ["--work-dir", str(work_dir)]
    refused = CliRunner().invoke(app, [*command, *place])
    assert isinstance(refused.exception, LineageError)
    assert "--despite-the-gate --because" in str(refused.exception)
    assert lineage.registry.aliases("student") == {"candidate": 1}
    for half in (["--despite-the-gate"], ["--because", "x"]):
        assert CliRunner().invoke(app, [*command, *half, *place]).exit_code == 2
    preceptor(*command, "--despite-the-gate", "--because", "It [was] checked by hand.")
    assert lineage.registry.aliases("student")["champion"] == 1
    (record,) = json.loads(preceptor("versions", "--json"))
    assert (record["decision"], record["night"], record["teacher"]) == (decision, "night-0007", "3")
    assert record["despite"] == "It [was] checked by hand."
    assert record["scores"] == {"new": 0.25, "probes_after": 0.5, "probes_before": 0.9375}
    shown = preceptor("versions", columns="100")
    assert max(map(len, shown.splitlines())) <= 100
    for part in (decision, "25.0", "93.8 -> 50.0", "night-0007", "[was]", "champion"):
        assert part in shown


# Where it leads, whatever happened before


@settings(max_examples=200)
@given(steps=st.lists(st.one_of(st.integers(1, 6), st.just("back")), max_size=25))
def test_rollbacks_always_end_and_never_return_to_what_was_rolled_back(steps: list[int | str]) -> None:
    """Promotions and rollbacks as the registry writes them, without its store."""
    clock = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(1000))
    tags: dict[int, dict[str, str]] = {version: {} for version in range(1, 7)}
    champion: int | None = None

    def history() -> dict[int, versions.VersionRecord]:
        return {version: versions.version_record(version, (), 0, told) for version, told in tags.items()}

    def back() -> int | None:
        assert champion is not None
        target = versions.parent_of(history(), champion, None)
        if target is not None:
            assert history()[target].rolled_back is None
            tags[champion] |= {versions.ROLLED_BACK_TAG: next(clock).isoformat(), versions.REASON_TAG: "bad"}
        return target

    for step in steps:
        if step == "back":
            champion = champion if champion is None else back() or champion
        elif step != champion:
            assert isinstance(step, int)
            if versions.PROMOTED_TAG not in tags[step]:
                tags[step][versions.PARENT_TAG] = versions.NO_PARENT if champion is None else str(champion)
            tags[step][versions.PROMOTED_TAG] = next(clock).isoformat()
            champion = step
    seen = [champion]
    while champion is not None and (target := back()) is not None:
        assert target not in seen
        champion = target
        seen.append(target)


# Kills

_KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.settings import TrackingConfig
from pipelines.lineage.registry import Registry

work_dir, method, place, *arguments = sys.argv[1:]
registry = Registry.open(TrackingConfig(), Path(work_dir))
client = registry._store.client
left = int(place)

def dies_before(call):
    def counted(*given, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)
    return counted

for name in ("set_model_version_tag", "log_model_artifact", "update_model_version", "set_registered_model_alias"):
    setattr(client, name, dies_before(getattr(client, name)))
if method == "promote":
    record = {"preceptor.gate_decision": "promote", "preceptor.data_digest": "d" * 64}
    registry.promote("teacher", 3, record=record, report=arguments[0])
else:
    registry.rollback("teacher", arguments[0])
print("done")
"""


def killed(work_dir: Path, method: str, writes: int, argument: str) -> None:
    """Run a call in a process that kills itself with SIGKILL instead of its next write after so many."""
    command = [sys.executable, "-c", _KILLED, str(work_dir), method, str(writes), argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def slow(*values: int) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("writes", "champion"),
    [
        (5, 2),  # three tags, the file and the description are written; the alias `previous` would be next
        *(slow(writes, champion) for writes, champion in ((0, 2), (1, 2), (2, 2), (3, 2), (4, 2), (6, 2), (7, 3))),
    ],
)
def test_promotion_killed_anywhere_is_completed_by_the_same_call(
    registry: Registry, work_dir: Path, writes: int, champion: int
) -> None:
    for number in (1, 2):
        registry.promote("teacher", number)
    killed(work_dir, "promote", writes, REPORT)
    assert aliases(registry)["champion"] == champion
    assert registry.promote("teacher", 3, record=RECORD, report=REPORT) == 2
    assert aliases(registry) == {"champion": 3, "previous": 2}
    tags = registry.tags("teacher", 3)
    assert {name: tags.get(name) for name in (*RECORD, versions.PARENT_TAG)} == {**RECORD, versions.PARENT_TAG: "2"}
    assert versions.PROMOTED_TAG in tags
    assert registry._store.client.get_model_version("preceptor-teacher", "3").description == REPORT
    assert registry.rollback("teacher", "bad") == versions.Rollback(3, 2)


# At 3, both tags and the alias `previous` are written; `champion` would be next.
@pytest.mark.parametrize("writes", [slow(0), slow(1), slow(2), 3])
def test_rollback_killed_anywhere_is_completed_by_the_same_call(
    registry: Registry, work_dir: Path, writes: int
) -> None:
    for number in (1, 2, 3):
        registry.promote("teacher", number)
    killed(work_dir, "rollback", writes, "It forgot.")
    assert aliases(registry)["champion"] == 3
    assert registry.rollback("teacher", "It forgot.") == versions.Rollback(3, 2)
    assert aliases(registry) == {"champion": 2, "previous": 1}
    assert registry.history("teacher")[1].reason == "It forgot."
