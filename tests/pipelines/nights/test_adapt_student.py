"""Nights with the shipped micro models: learned, remembered, superseded, rejected, rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from evaluation.microworld.nights import NightDocument, draw_nights
from evaluation.tasks import Question
from pipelines.asking import Answerer
from pipelines.config import TrackingConfig, read_config
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.adapt_student import adapt_student
from pipelines.nights.ahead import look_ahead
from pipelines.nights.concluding import NIGHT_TAG
from pipelines.nights.config import NightConfig
from pipelines.nights.costs import NightCost, estimate_night
from pipelines.nights.opening import NIGHTS, RESULT, student_version
from pipelines.nights.results import NightResult
from pipelines.nights.simulate import as_delivered
from pipelines.nights.undone import set_undone_aside
from pipelines.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry

DEMO = Path(__file__).resolve().parents[3] / "configs" / "nights-demo.yaml"
SMALL = (
    "threads=1",
    "probes=24",
    "writing={edits: 2, learned: 1}",
    "replay={documents: 8, general: 48}",
    "update.epochs=6",
    "update.rank=8",
    # Margins that a handful of documents can show: what is tested here is the night, not the statistics.
    "gate={new_margin: 0.0, earlier_margin: 0.9, group_margin: 0.95, probe_margin: 0.9, most_collapsed: 0.5}",
)


class Nights(NamedTuple):
    place: Path
    drawn: list[list[NightDocument]]
    first: NightResult
    second: NightResult
    answers: list[str]
    """Of the student after the first night, to all questions."""
    cost: NightCost
    """Of the second night, as it was told before."""


def deliver(place: Path, documents: list[NightDocument]) -> None:
    with InboxStore(place / INBOX_FILE) as inbox:
        inbox.add(as_delivered(document) for document in documents)


def a_night(place: Path, *overrides: str) -> NightResult:
    return adapt_student(str(DEMO), [*SMALL, *overrides], str(place))


def questions(drawn: list[list[NightDocument]]) -> list[Question]:
    return [question for night in drawn for document in night for question in document.task.comparison_questions[::4]]


def answers(place: Path, drawn: list[list[NightDocument]]) -> list[str]:
    config = read_config(DEMO, NightConfig, SMALL)
    student = Answerer.from_registry(TrackingConfig(), place, model="micro-student", options=config.asking())
    return [answer.text for answer in student.answer_many([question.question for question in questions(drawn)])]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Nights:
    place = tmp_path_factory.mktemp("nights")
    drawn = draw_nights(2, 3, 0, superseding=(1,), poisoned=None)
    deliver(place, drawn[0])
    first = a_night(place)
    after_first = answers(place, drawn)
    deliver(place, drawn[1])
    config = read_config(DEMO, NightConfig, SMALL)
    cost = estimate_night(config, look_ahead(config, place))
    return Nights(place, drawn, first, a_night(place), after_first, cost)


def test_documents_without_questions_get_them_before_the_night(tmp_path: Path) -> None:
    from pipelines.nights.questioning import write_missing_questions

    given = [as_delivered(document) for document in draw_nights(1, 3, 7, poisoned=None)[0]]
    bare = [document.model_copy(update={"questions": (), "held_out_questions": ()}) for document in given]
    with InboxStore(tmp_path / INBOX_FILE) as inbox:
        inbox.add(bare)
    said: list[str] = []
    assert write_missing_questions(read_config(DEMO, NightConfig, ["questions=null"]), tmp_path, said.append) == 0
    assert write_missing_questions(read_config(DEMO, NightConfig, SMALL), tmp_path, said.append) == 3
    assert "3 of 3 documents without any" in said[0]
    with InboxStore(tmp_path / INBOX_FILE) as inbox:
        for document in inbox.documents():
            assert document.questions
            assert document.held_out_questions
            assert all(question.answer in document.text for question in document.questions)
            assert not any(question.question in document.document.model_dump_json() for question in document.questions)
    assert write_missing_questions(read_config(DEMO, NightConfig, SMALL), tmp_path, said.append) == 0


def registry(nights: Nights) -> Registry:
    return Registry.open(TrackingConfig(), nights.place)


def test_first_night_learns_and_remembers(nights: Nights) -> None:
    night = nights.first
    assert (night.outcome, night.parent, night.version) == ("promoted", None, 1)
    assert [document.place for document in night.new] == ["weights", "weights", "memory"]
    assert night.update is not None
    assert (night.update.last_loss or 9.0) < (night.update.first_loss or 0.0)
    assert (night.new_after or 0.0) > (night.new_before or 0.0)
    looked_up = night.new[2]
    assert (looked_up.after or 0.0) >= 0.7  # the student reads passages well, whatever its weights have learned
    assert len(night.candidates) == 4
    assert night.probes_base == night.probes_before
    assert Path(night.page).is_file()
    stored = NightResult.model_validate_json((nights.place / NIGHTS / night.night / RESULT).read_bytes())
    assert stored == night


def test_second_night_goes_on_from_the_first_and_retires_what_is_replaced(nights: Nights) -> None:
    night = nights.second
    assert (night.outcome, night.parent, night.version) == ("promoted", 1, 2)
    assert len(night.superseded) == 1
    assert night.replayed == 1  # of the two that weights learned, the one that is not replaced
    assert [group.night for group in night.groups] == ["night-0001"]
    assert night.groups[0].documents == 2
    replacing = next(document for document in night.new if document.supersedes)
    assert replacing.place == "memory"
    assert (replacing.after or 0.0) >= 0.7
    reg = registry(nights)
    aliases = reg.aliases("student")
    assert (aliases[CHAMPION], aliases[PREVIOUS], aliases[CANDIDATE]) == (2, 1, 2)
    held = student_version(reg, 2, nights.place).state
    assert len(held.documents) == 7
    assert held.parent == 1
    assert sum(not each.asked for each in held.documents) == 1
    assert reg.tags("student", 2)[NIGHT_TAG] == "night-0002"


def test_what_a_dry_run_told_before_is_what_the_night_took_at_most(nights: Nights) -> None:
    night, cost = nights.second, nights.cost
    places = [document.place for document in night.new]
    assert (cost.to_weights, cost.to_memory) == (places.count("weights"), places.count("memory"))
    assert cost.self_edits == len(night.candidates)
    tried = [replicate for candidate in night.candidates for replicate in candidate.replicates]
    assert night.update is not None
    for told, took in (
        (cost.try_steps, sum(replicate.steps for replicate in tried)),
        (cost.lines, night.update.lines),
        (cost.night_steps, night.update.steps),
        (cost.training_tokens, night.update.tokens + sum(replicate.tokens for replicate in tried)),
        (cost.try_answers, sum(len(replicate.exact) for replicate in tried)),
    ):
        assert took <= told <= 12 * took
    assert night.version is not None
    whole = student_version(registry(nights), night.version, nights.place)
    assert whole.directory is not None
    held = sum(path.stat().st_size for path in whole.directory.rglob("*") if path.is_file())
    assert cost.bytes_on_disk is not None
    assert held < cost.bytes_on_disk < 4 * held  # the adapter is there twice, and the champion's copy once


def test_lineage_has_the_page_the_report_and_the_figures(nights: Nights) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{nights.place / 'mlflow.db'}")
    run = client.get_run(nights.second.mlflow_run_id)
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"morning.html", "result.json", "gate-report.md", "config.yaml"} <= names
    assert run.data.metrics["night/new_after"] == nights.second.new_after
    assert run.data.tags["preceptor.outcome"] == "promoted"
    assert run.info.status == "FINISHED"


def test_later_nights_reject_find_nothing_and_roll_back_exactly(nights: Nights) -> None:
    before = answers(nights.place, nights.drawn)
    assert a_night(nights.place).outcome == "nothing new"
    deliver(nights.place, draw_nights(1, 2, 5, volatile=0, poisoned=None)[0])
    # A step size at which the student falls apart, and a gate that looks at what it knew.
    night = a_night(nights.place, "update.learning_rate=0.5", "gate.probe_margin=0.05", "gate.earlier_margin=0.05")
    assert night.outcome == "rejected"
    assert registry(nights).aliases("student")[CHAMPION] == 2
    assert answers(nights.place, nights.drawn) == before
    with InboxStore(nights.place / INBOX_FILE) as inbox:
        aside = inbox.aside()
    assert set(aside) == {document.id for document in night.new}
    assert {each.night for each in aside.values()} == {night.night}
    assert a_night(nights.place).outcome == "nothing new"

    found = registry(nights).rollback("student", "a test")
    assert (found.from_version, found.to_version) == (2, 1)
    undone = set_undone_aside(registry(nights), found, nights.place, "a test")
    assert set(undone) == {document.id for document in nights.second.new}
    assert answers(nights.place, nights.drawn) == nights.answers != before
    assert a_night(nights.place).outcome == "nothing new"
