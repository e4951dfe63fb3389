"""Nights with the shipped micro models: learned, remembered, superseded, rejected, rolled back."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import torch
import yaml
from mlflow import MlflowClient
from peft import PeftModel
from rich.console import Console
from typer.testing import CliRunner

from evaluation.common.checkpoints import load_checkpoint
from evaluation.common.errors import ConfigError
from evaluation.microworld.world import draw_documents
from pipelines import cli
from pipelines.adapt_student import flow
from pipelines.adapt_student.config import NightConfig
from pipelines.adapt_student.flow import adapted, write_missing_questions
from pipelines.adapt_student.page import NightResult
from pipelines.adapt_student.plan import NIGHTS, RESULT, DryRun, dry_run, read_inbox
from pipelines.adapt_student.state import student_directory, student_version
from pipelines.ask.answerer import Answerer
from pipelines.ask.answers import read_version
from pipelines.cli import app
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.interactions import InteractionStore
from pipelines.inbox.questions import continuations
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.lineage import versions
from pipelines.lineage.registry import Registry
from pipelines.lineage.run import Lineage
from pipelines.lineage.versions import CANDIDATE, CHAMPION, NIGHT_TAG, PREVIOUS
from pipelines.plan import steps_of, totals
from pipelines.settings import TrackingConfig, load
from tests.pipelines.adapt_student.factories import DEMO, SMALL, arrivals, deliver, delivered, rewritten
from tests.pipelines.inbox.test_interactions import interaction


class Nights(NamedTuple):
    place: Path
    drawn: list[list[InboxDocument]]
    first: NightResult
    second: NightResult
    answers: list[str]
    """Of the student after the first night, to all questions."""
    shown: DryRun
    """Of the second night, before it."""


def a_night(place: Path, *overrides: str) -> NightResult:
    return adapted(str(DEMO), [*SMALL, *overrides], str(place))


def answers(place: Path, drawn: list[list[InboxDocument]]) -> list[str]:
    asked = [
        question.question
        for night in drawn
        for document in night
        for question in document.as_task().comparison_questions[::4]
    ]
    options = load(DEMO, NightConfig, SMALL).asking
    student = Answerer.from_registry(TrackingConfig(), place, model="micro-student", options=options)
    return [answer.text for answer in student.answer_many(asked)]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Nights:
    place = tmp_path_factory.mktemp("nights")
    rng = random.Random(0)
    old = draw_documents("test", 2, 0)[0]
    new = delivered(rewritten(rng, old.sheet, "new"), date(2026, 1, 6), (old.task.id,))
    drawn = [arrivals(3), [*arrivals(3, skip=3), new]]
    deliver(place, drawn[0])
    first = a_night(place)
    after_first = answers(place, drawn)
    deliver(place, drawn[1])
    shown = dry_run(load(DEMO, NightConfig, SMALL), place)
    return Nights(place, drawn, first, a_night(place), after_first, shown)


def test_documents_without_questions_get_them_before_the_night(tmp_path: Path) -> None:
    silent = {"questions": (), "held_out_questions": ()}
    deliver(tmp_path, [each.model_copy(update=silent) for each in arrivals(3, 7)])
    config, console = load(DEMO, NightConfig, SMALL), Console(file=io.StringIO())
    without = config.model_copy(update={"questions": None})
    assert write_missing_questions(without, tmp_path, console) == ()
    assert not read_inbox(tmp_path).notes
    assert write_missing_questions(config, tmp_path, console) == ()
    inbox = read_inbox(tmp_path)
    dated = next(document for document in inbox.documents if document.effective is not None)
    assert not dated.questions  # it goes to memory, which needs none
    assert set(inbox.notes) == {document.id for document in inbox.documents} - {dated.id}
    for document in inbox.documents:
        if document == dated:
            continue
        assert document.questions
        assert "questions by the teacher" in inbox.notes[document.id]
        assert document.held_out_questions
        assert all(question.answer in document.text for question in document.questions)
        assert not any(question.question in document.document.model_dump_json() for question in document.questions)
    assert inbox.unasked((), config) == ()


ORDINARY = {"gate": "the gate is open until further notice", "word": "Rain"}


def test_ordinary_documents_are_learned_or_looked_up_and_what_waits_is_told(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(tmp_path, [InboxDocument(text=text, source=name) for name, text in ORDINARY.items()])
    with InboxStore(tmp_path / INBOX_FILE) as store:
        store.refuse([], {"a.xlsx": "has no supported format"})
    told: dict[str, Any] = {}
    monkeypatch.setattr(flow, "emit_event", lambda event, **given: told.update({event: given["payload"]}))
    waits = a_night(tmp_path, "questions=null", "routing.volatile_patterns=[]")
    assert (waits.outcome, len(waits.waiting)) == ("nothing new", 2)
    assert set(read_inbox(tmp_path).notes) == {*waits.waiting}
    assert told["preceptor.night.documents-waiting"]["documents"] == waits.waiting
    assert told["preceptor.night.documents-waiting"]["refused"] == waits.refused != {}
    assert told["preceptor.night.documents-waiting"]["why"] == waits.why
    state, shown, _ = shown_by_prefect(load(DEMO, NightConfig).name)
    assert (state.type.value, state.name) == ("COMPLETED", "Waiting")
    assert all(name in state.message and name in shown for name in waits.waiting)
    first = a_night(tmp_path)
    assert first.refused == waits.refused
    gate, word = first.new
    assert (gate.place, gate.questions, gate.after) == ("memory", 0, None)
    assert (word.place, word.questions) == ("memory", 0)
    assert "nothing can be asked" in word.because
    assert read_inbox(tmp_path).notes[word.id] == word.evidence == word.because
    assert (first.outcome, first.waits, first.update) == ("promoted", {}, None)
    (silent,) = arrivals(1, 7, dated=0)
    sentences = tuple(continuations(silent))
    deliver(tmp_path, [silent.model_copy(update={"questions": sentences, "held_out_questions": ()})])
    second = a_night(tmp_path, "gate=null", "grading={grader: {type: token-f1}, max_new_tokens: 4}")
    (learned,) = second.new
    assert 0.0 < (learned.before or 0.0) < (learned.after or 0.0) < 1.0  # a probability, whatever grades the answers
    assert set(second.learned) < {candidate.edit.id for candidate in second.candidates}
    state = student_version(Registry.open(TrackingConfig(), tmp_path), 2, tmp_path).state
    assert (len(state.memory), len(state.active)) == (2, 3)
    assert a_night(tmp_path).outcome == "nothing new"


def test_correction_of_one_client_is_asked_as_that_client_and_opened_by_a_person(
    tmp_path: Path, prefect_server: None
) -> None:
    drawn = draw_documents("test", 1, 3)[0]
    asked = drawn.task.questions[0]
    messages = [{"role": "user", "content": asked.question}]
    options = load(DEMO, NightConfig, SMALL).asking
    with InteractionStore(tmp_path / INBOX_FILE) as store:
        store.keep(interaction("chat-1", correction=asked.answer, messages=messages))

    def used() -> list[str]:
        student = Answerer.from_registry(TrackingConfig(), tmp_path, model="micro-student", options=options)
        return [student.prompt_for(asked.question, client=client).used for client in ("ann", "ben", "")]

    small = ("questions=null", "gate=null", "probes=4")
    first = a_night(tmp_path, *small)
    (correction,) = first.new
    assert (first.outcome, correction.place, correction.after) == ("promoted", "memory", 1.0)
    assert used() == ["memory", "weights", "weights"]
    assert a_night(tmp_path, *small).outcome == "nothing new"
    with InteractionStore(tmp_path / INBOX_FILE) as store:
        store.release([correction.id])
    second = a_night(tmp_path, *small)
    assert [(each.id, each.after) for each in second.new] == [(correction.id, 1.0)]
    assert used() == ["memory"] * 3


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
    _, asking = read_version(student_directory(nights.place, 1))
    assert asking.answer_format is not None
    assert 0.0 < asking.least_confidence < 1.0, "the weights know some questions and not others"
    stored = NightResult.model_validate_json((nights.place / NIGHTS / night.night / RESULT).read_bytes())
    assert stored == night


def test_second_night_continues_from_the_first_and_retires_what_is_superseded(nights: Nights) -> None:
    night = nights.second
    assert (night.outcome, night.parent, night.version) == ("promoted", 1, 2)
    assert len(night.superseded) == 1
    assert night.replayed == 1  # of the two in the weights, the one that is not superseded
    assert [group.night for group in night.groups] == ["night-0001"]
    assert night.groups[0].documents == 2
    replacing = next(document for document in night.new if document.supersedes)
    assert replacing.place == "memory"
    assert (replacing.after or 0.0) >= 0.7
    reg = registry(nights)
    aliases = reg.aliases("student")
    assert (aliases[CHAMPION], aliases[PREVIOUS], aliases[CANDIDATE]) == (2, 1, 2)
    state = student_version(reg, 2, nights.place).state
    assert (len(state.documents), len(state.active), state.parent) == (7, 6, 1)
    assert reg.tags("student", 2)[NIGHT_TAG] == "night-0002"


def test_dry_run_counts_what_the_night_did(nights: Nights) -> None:
    night, shown, counts = nights.second, nights.shown, totals(steps_of(nights.shown.stages))
    assert [(each.task.id, each.place) for each in shown.plan.documents] == [
        (each.id, each.place) for each in night.new
    ]
    assert (shown.plan.night, shown.plan.parent, shown.plan.superseded) == (night.night, night.parent, night.superseded)
    assert counts["sample"] == len(night.candidates)
    assert night.update is not None
    assert counts["update"] == sum(len(candidate.replicates) for candidate in night.candidates) + 1
    scored = len(night.new) + sum(group.documents for group in night.groups)
    assert counts["score"] == 2 * scored  # by the night's student and by the champion
    (size,) = (stage.subject for stage in shown.stages if stage.subject is not None)
    assert night.update.lines <= size.lines


def test_lineage_has_the_page_the_report_and_the_figures(nights: Nights) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{nights.place / 'mlflow.db'}")
    run = client.get_run(nights.second.mlflow_run_id)
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"morning.html", "result.json", "gate-report.md", "config.yaml"} <= names
    assert run.data.metrics["night/new_after"] == nights.second.new_after
    assert run.data.tags["preceptor.outcome"] == "promoted"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "night-0002"
    assert client.get_experiment(run.info.experiment_id).name == "preceptor/adapt-student"
    assert nights.second.mlflow == f"http://127.0.0.1:5000/#/experiments/1/runs/{run.info.run_id}"
    model_inputs = [given.model_id for given in run.inputs.model_inputs]
    assert model_inputs == [registry(nights).model_id("student", 1)]
    assert {"evaluation.json"} <= names
    (check,) = (check for check in nights.second.gate.checks if check.name == "new documents")  # type: ignore[union-attr]
    assert run.data.metrics["change/new documents_ci_low"] == check.low
    version = client.get_model_version("preceptor-student", "2")
    assert "# Gate: PROMOTE" in version.description
    assert "mlflow.pyfunc.load_model" in version.description


_ELSEWHERE = """
import json, sys

class NotInstalled:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pipelines", "student", "teacher", "evaluation"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import mlflow, torch
from peft import AutoPeftModelForCausalLM
mlflow.set_tracking_uri(sys.argv[1])
place = mlflow.artifacts.download_artifacts("models:/preceptor-student/1")
logits = AutoPeftModelForCausalLM.from_pretrained(place).eval()(torch.arange(5, 25)[None]).logits
student = mlflow.pyfunc.load_model("models:/preceptor-student/1")
answers = student.predict(json.loads(sys.argv[2]))
print(json.dumps([logits.sum(dtype=torch.float64).item(), answers]))
"""


def test_registered_student_is_opened_by_peft_and_mlflow_without_preceptor(nights: Nights, tmp_path: Path) -> None:
    options = load(DEMO, NightConfig, SMALL).asking
    ours = Answerer.from_registry(TrackingConfig(), nights.place, version=1, model="micro-student", options=options)
    documents = [document for document in nights.drawn[0] if document.effective is None]
    asked = [q.question for document in documents for q in document.as_task().comparison_questions][::3]
    store = f"sqlite:///{nights.place / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ELSEWHERE, store, json.dumps(asked)], cwd=tmp_path, check=False, text=True,
        capture_output=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total, texts = json.loads(done.stdout.splitlines()[-1])
    assert texts == [answer.guess or answer.text for answer in ours.answer_many(asked, by="weights")]
    base = load_checkpoint("micro-student").model
    student = PeftModel.from_pretrained(base, str(student_directory(nights.place, 1))).eval()
    with torch.inference_mode():
        logits = student(torch.arange(5, 25)[None])
    assert total == pytest.approx(logits.logits.sum(dtype=torch.float64).item(), rel=1e-5)


def shown_by_prefect(name: str) -> tuple[Any, str, list[str]]:
    """Return a flow run's newest state, its report and its log, by the run's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, LogFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all()
    with get_client(sync_client=True) as client:
        named = FlowRunFilter.model_validate({"name": {"any_": [name]}})
        run = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC)[0]
        mine = {"flow_run_id": {"any_": [run.id]}}
        (shown,) = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(mine))
        logs = client.read_logs(LogFilter.model_validate(mine))
    return run.state, str(shown.data), [line.message for line in logs if line.name == "preceptor"]


def test_prefect_shows_a_night_by_its_name_with_log_and_report(nights: Nights) -> None:
    state, shown, log = shown_by_prefect("night-0002")
    assert (state.type.value, state.name) == ("COMPLETED", "Completed")
    assert state.message.startswith("The new student is the champion.")
    assert "# night-0002: promoted" in shown
    assert "# Gate: PROMOTE" in shown
    assert nights.second.mlflow in shown
    assert Path(nights.second.page).as_uri() in shown
    assert any("of version 1 of the student" in line for line in log)
    assert any(line.startswith("night-0002: promoted (version 2") for line in log)


def test_backup_gives_the_same_answers_elsewhere_even_after_gc_and_a_rollback(nights: Nights, tmp_path: Path) -> None:
    archive, new, before = tmp_path / "b.tar.gz", tmp_path / "a %20 place", answers(nights.place, nights.drawn)
    for command in (["backup", archive, "--work-dir", nights.place], ["restore", archive, "--work-dir", new]):
        assert CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False).exit_code == 0
    restored = Registry.open(TrackingConfig(), new)
    for version in (1, 2):
        student_version(restored, version, new)
    assert len(list((new / "adapters").iterdir())) == 2
    assert CliRunner().invoke(app, ["gc", "--work-dir", str(new)], catch_exceptions=False).exit_code == 0
    assert not list((new / "adapters").iterdir())
    assert answers(new, nights.drawn) == before
    assert a_night(new).outcome == "nothing new"
    restored.rollback("student", "a test")
    assert answers(new, nights.drawn) == nights.answers
    assert registry(nights).aliases("student")[CHAMPION] == 2


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def told(prefect_server: None) -> Iterator[list[dict[str, str]]]:
    """What people are told by the shipped automations, which listen from now on."""
    from prefect.automations import Automation
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    receiver.told = []  # type: ignore[attr-defined]
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{receiver.server_port}/"
    block = CustomWebhookNotificationBlock(
        name="people", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    text = (DEMO.parents[1] / "docs" / "automations" / "night.yaml").read_text(encoding="utf-8")
    for each in yaml.safe_load(text.replace("YOUR-BLOCK-ID", str(block.save("people", overwrite=True))))["automations"]:
        Automation.model_validate(each).create()
    yield receiver.told  # type: ignore[attr-defined]
    receiver.shutdown()


def heard(told: list[dict[str, str]], subject: str, part: str = "") -> str:
    """Return the body of a notification, which comes a moment after its night."""
    deadline = time.monotonic() + 120.0
    while not (bodies := [each["body"] for each in told if subject in each["subject"] and part in each["body"]]):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return bodies[0]


def test_later_nights_reject_find_nothing_and_roll_back_exactly(nights: Nights, told: list[dict[str, str]]) -> None:
    before = answers(nights.place, nights.drawn)
    assert a_night(nights.place).outcome == "nothing new"
    deliver(nights.place, arrivals(2, 5, dated=0))
    # A step size at which the student falls apart, and a gate that checks what it knew.
    night = a_night(nights.place, "update.learning_rate=0.5", "gate.probe_margin=0.05", "gate.earlier_margin=0.05")
    assert night.outcome == "rejected"
    state, shown, _ = shown_by_prefect(night.night)
    assert (state.type.value, state.name) == ("FAILED", "Rejected")
    assert night.trouble[0].sentence in state.message
    body = heard(told, f"{night.night} preceptor.night.rejected")
    assert all(part in body for part in (night.why, night.mlflow, Path(night.page).as_uri(), "/runs/flow-run/"))
    assert "# Gate: REJECT" in shown
    record, *_ = registry(nights).history("student")
    assert (record.version, record.decision, record.night, record.teacher) == (3, "reject", night.night, "untrained")
    assert (record.scores["new"], record.scores["probes_before"]) == (night.new_after, night.probes_before)
    assert registry(nights).aliases("student")[CHAMPION] == 2
    assert answers(nights.place, nights.drawn) == before
    assert read_inbox(nights.place).quarantined == {document.id for document in night.new} == {*night.quarantined}
    assert a_night(nights.place).outcome == "nothing new"

    rollback = ["rollback", "--because", "a test", "--work-dir", str(nights.place)]
    assert CliRunner().invoke(app, rollback, catch_exceptions=False).exit_code == 0
    assert registry(nights).aliases("student")[CHAMPION] == 1
    assert read_inbox(nights.place).quarantined >= {document.id for document in nights.second.new}
    assert answers(nights.place, nights.drawn) == nights.answers != before
    assert a_night(nights.place).outcome == "nothing new"
    with pytest.raises(ConfigError):
        adapted("nowhere.yaml", [], str(nights.place))
    assert "'nowhere.yaml' cannot be read" in heard(told, "Failed")


def test_held_night_is_grey_and_people_are_told_why(tmp_path: Path, told: list[dict[str, str]]) -> None:
    deliver(tmp_path, [InboxDocument(text="The gate is open until further notice.", source="gate", route="memory")])
    night = a_night(tmp_path, "questions=null", "probes=0")  # nothing shows that nothing was forgotten
    assert night.outcome == "held"
    state, shown, log = shown_by_prefect(night.night)
    assert (state.type.value, state.name, state.message) == ("CANCELLED", "Held", night.why)
    assert "# Gate: HOLD" in shown
    assert any(line.startswith(f"{night.night}: held") for line in log)
    assert night.trouble[0].sentence in heard(told, "preceptor.night.held")


def started(place: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Return a night that runs in a process of its own, as under a worker, and the id of its flow run."""
    from prefect.settings import PREFECT_API_URL

    call = "import sys\nfrom pipelines.adapt_student.flow import adapt_student\n"
    call += "adapt_student(sys.argv[1], sys.argv[3:], sys.argv[2])"
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(place / "home")}
    command, note = [sys.executable, "-c", call, str(DEMO), str(place), *SMALL], place / "prefect" / "flow-run.json"
    process = subprocess.Popen(command, env=environment)
    while not (place / NIGHTS / "current.json").is_file() or json.loads(note.read_text())["process"] != process.pid:
        assert process.poll() is None
        time.sleep(0.05)
    return process, json.loads(note.read_text())["flow_run"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nights_that_wait_or_died_say_why_and_people_are_told(tmp_path: Path, told: list[dict[str, str]]) -> None:
    waiting, place = tmp_path / "waiting", tmp_path / "died"
    deliver(waiting, [InboxDocument(text=text, source=name) for name, text in ORDINARY.items()])
    waits = a_night(waiting, "questions=null", "routing.volatile_patterns=[]")
    state, shown, log = shown_by_prefect(load(DEMO, NightConfig).name)
    assert (state.type.value, state.name, state.message) == ("COMPLETED", "Waiting", waits.why)
    body = heard(told, "preceptor.night.documents-waiting")
    assert all(document in text for document in waits.waiting for text in (shown, body, state.message))
    assert any(line.startswith("2 documents wait: 2 without questions") for line in log)

    deliver(place, arrivals(3))
    dead = []
    for number in (signal.SIGKILL, signal.SIGTERM):  # of which Prefect tells its worker alone
        process, flow_run = started(place)
        process.send_signal(number)
        assert process.wait(timeout=600) == -number
        assert state_of(flow_run)[:2] == ("RUNNING", "Running")
        dead.append((process.pid, flow_run))
    assert a_night(place).night == "night-0001"
    state, _, log = shown_by_prefect("night-0001")
    assert state.name == "Completed"
    assert any("of a process that died is marked as crashed" in line for line in log)
    for pid, flow_run in dead:
        kind, name, message = state_of(flow_run)
        assert (kind, name) == ("CRASHED", "Crashed")
        assert message.startswith(f"Process {pid} on ")
        assert heard(told, "Crashed", message)
    assert dead[1][1] in state_of(dead[0][1])[2]  # each is marked by the start after it


def state_of(flow_run: str) -> tuple[str, str, str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run)).state
    assert state is not None
    return state.type.value, state.name or "", state.message or ""


class Killed(BaseException):
    """Raised in place of a step, as a kill would end the process there."""


_LAST_STEPS = [
    *((versions, "write_move"), (MlflowClient, "create_model_version"), (versions, "note_champion")),
    *((InboxStore, "note"), (flow, "page_of"), (Lineage, "log_night"), (Lineage, "finish"), (flow, "emit_event")),
    *((flow, "close_plan"), (cli, "_write_json")),
]


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=step[1], marks=[] if step[1] == "_write_json" else pytest.mark.slow)
        for step in _LAST_STEPS
    ],
)
def test_night_that_is_killed_at_its_end_is_reported_by_the_same_command(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    for name in ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_MEMO_STORE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "prefect"))  # the command sets what is not set
    text = "The gate is open until further notice."
    deliver(tmp_path, [InboxDocument(text=text, source="gate", route="memory")])
    file, overrides = tmp_path / "result.json", ("questions=null", "gate=null", "threads=1", "probes=4")
    told = [part for override in overrides for part in ("--set", override)]
    command = ["adapt-student", str(DEMO), "--work-dir", str(tmp_path), "--json", str(file), *told]

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(Killed):
            CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert not file.exists()
    for outcome in ("promoted", "nothing new"):
        done = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert done.exit_code == 0
        result = NightResult.model_validate_json(file.read_bytes())
        assert result.outcome == outcome
        assert outcome in done.output.lower()
    found = Registry.open(TrackingConfig(), tmp_path)
    assert [version.version for version in found.history("student")] == [1]
    assert found.aliases("student") == {CHAMPION: 1, CANDIDATE: 1}
