"""Typical mistakes at the command line: each ends soon, with one message and code 2, and starts nothing."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.process import exclusive, free_port
from student.adapters import save_adapter
from tests.flows.settings import environment, imports_of_mlflow, preceptor
from tests.pipelines.conftest import open_lineage
from tests.pipelines.factories import make_adapter

TRAIN = ["train-teacher", "demo"]
ASKED = [{"question": "Who?", "answer": "Ann"}]
FILES = {
    "three.jsonl": "".join(json.dumps({"text": f"Text {i}.", "questions": ASKED}) + "\n" for i in range(3)),
    "unasked.jsonl": '{"text": "Text."}\n' * 50,
    "keys.jsonl": json.dumps({"text": "Text.", "questions": ASKED, "colour": "red"}) + "\n",
    "cut.yaml": "loop: {rounds: 3\n",
}
SPLIT = ["--set", "data={type: jsonl, path: %s, development_documents: 20, test_documents: 50}"]


def data(name: str) -> list[str]:
    return [*TRAIN, SPLIT[0], SPLIT[1] % name]


def compared(candidate: str) -> list[str]:
    return ["check-regression", "micro-world", "--candidate", candidate, "--baseline", "base"]


PORT = free_port()
MISTAKES: dict[str, tuple[list[str], list[str], dict[str, str]]] = {
    "wrong path": (["train-teacher", "configs/dmo.yaml"], ["did you mean demo", "nights-demo"], {}),
    "two unknown keys": (
        [*TRAIN, "--set", "loops.rounds=3", "--set", "teacher.modell=x"],
        ["2 mistakes", "did you mean loop?", "did you mean model?"],
        {},
    ),
    "key without its section": ([*TRAIN, "--set", "rounds=3"], ["did you mean loop.rounds?"], {}),
    "wrong value": ([*TRAIN, "--set", "loop.rounds=abc"], ["loop.rounds", "'abc'"], {}),
    "override without value": ([*TRAIN, "--set", "a b"], ["'a b'"], {}),
    "night given to train-teacher": (["train-teacher", "nights-demo"], ["adapt-student", "nights-demo.yaml"], {}),
    "run given to adapt-student": (["adapt-student", "demo"], ["is for train-teacher"], {}),
    "unknown command": (["train"], ["train"], {}),
    "hub id offline": ([*TRAIN, "--set", "teacher.model=a/b"], ["'a/b'", "HF_HUB_OFFLINE"], {}),
    "hub id without network": (
        [*TRAIN, "--set", "teacher.model=a/b"],
        ["'a/b'", "cannot be reached"],
        {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    ),
    "slip in a shipped name": (
        [*TRAIN, "--set", "student.model=micro-studnet"],
        ["did you mean micro-student?"],
        {},
    ),
    "directory that is not there": ([*TRAIN, "--set", "student.model=./nowhere"], ["no directory './nowhere'"], {}),
    "no GPU": ([*TRAIN, "--set", "device=cuda"], ["device: got cuda"], {"CUDA_VISIBLE_DEVICES": ""}),
    "port in use": (["ui", "--work-dir", "one", "--prefect-port", str(PORT)], [f"port {PORT}", "--prefect-port"], {}),
    "no champion yet": (["ask", "Who?", "--work-dir", "one"], ["no version with the alias", "promote student"], {}),
    "rollback of the first version": (
        ["rollback", "--role", "teacher", "--because", "worse", "--work-dir", "one"],
        ["no champion before version 1", "promote teacher NUMBER"],
        {},
    ),
    "two runs at once": ([*TRAIN, "--work-dir", "one"], ["in use by another run", "--work-dir"], {}),
    "no vLLM": ([*TRAIN, "--set", "teacher.sampling={type: vllm}"], ["vllm: not installed", "pip install"], {}),
    "too few documents": (data("three.jsonl"), ["need at least 71"], {}),
    "no questions": (
        data("unasked.jsonl"),
        ["and 45 more: questions is missing", '"question": ...'],
        {},
    ),
    "unknown key in a row": (data("keys.jsonl"), ["colour is an unknown key (allowed: id, title,"], {}),
    "unknown kind of data": ([*TRAIN, "--set", "data.type=csv"], ["'jsonl'"], {}),
    "broken YAML": (["train-teacher", "cut.yaml"], ["cut.yaml"], {}),
    "nothing to show": (["ui"], ["holds no runs"], {}),
    "nothing to ask": (["ask", "Who?"], ["holds no runs"], {}),
    "rollback without a reason": (["rollback"], ["--because"], {}),
    "empty inbox": (["inbox", "list"], ["inbox add"], {}),
    "inbox path that is not there": (["inbox", "add", "nowhere"], ["nowhere: cannot be read: No such file"], {}),
    "Prefect down": (TRAIN, ["Prefect: ", "PREFECT_API_URL"], {"PREFECT_API_URL": "http://127.0.0.1:9/api"}),
    "MLflow down": (TRAIN, ["MLflow: ", "MLFLOW_TRACKING_URI"], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
    "no driver for a database": (
        [*TRAIN, "--set", "tracking.uri=postgresql+pg8000://127.0.0.1:9/x"],
        ["MLflow: ", "pip install"],
        {},
    ),
    "suite that is not pinned": (
        ["check-regression", "loose.yaml", "--candidate", "base", "--baseline", "base"],
        ["--pin"],
        {},
    ),
    "slip in a subject": (compared("bases"), ["'bases'", "allowed are base, adapter:DIRECTORY"], {}),
    "adapter that is not there": (compared("adapter:nowhere"), ["there is no 'nowhere/adapter_config.json'"], {}),
    "alias that is not there": (
        [*compared("version:student@candidat"), "--work-dir", "one"],
        ["no version with the alias 'candidat'"],
        {},
    ),
}


TOO_LATE = ("rollback of the first version", "two runs at once")
"""Nothing is wrong with the command itself: the exit code is 1."""

WITH_MLFLOW = (
    "alias that is not there",
    "no champion yet",
    "rollback of the first version",
    "MLflow down",
    "no driver for a database",
)
"""Only MLflow, which is imported for it, can tell."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with a student that was never promoted, and a teacher that was."""
    work_dir = tmp_path_factory.mktemp("store") / "one"
    lineage, adapter = open_lineage(work_dir), make_adapter(0.5)
    place = save_adapter(adapter, work_dir.parent / "adapter")
    for role in ("student", "teacher"):
        lineage.registry.register(role, place, digest=adapter.digest, run_id=lineage.run_id, tags={})
    lineage.registry.promote("teacher", 1)
    return work_dir


@pytest.fixture
def without_vllm(tmp_path: Path) -> Path:
    """A directory that hides vLLM, where it is installed, from a Python that has it on its path."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['vllm'] = None\n")
    return tmp_path / "hidden"


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_ends_with_one_message_in_little_cpu_time(
    name: str, tmp_path: Path, store: Path, without_vllm: Path
) -> None:
    arguments, words, variables = MISTAKES[name]
    (tmp_path / "one").symlink_to(store)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    suite = (Path(__file__).parents[2] / "configs" / "suites" / "micro-world.yaml").read_text()
    (tmp_path / "loose.yaml").write_text(suite.partition("\npins:")[0] + "\n")
    paths = [*([without_vllm] if name == "no vLLM" else []), Path(__file__).parents[2]]
    env = {**environment(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}
    with ExitStack() as stack:
        if name == "two runs at once":
            stack.enter_context(exclusive(store))
        if name == "port in use":
            stack.enter_context(socket.create_server(("127.0.0.1", PORT)))
        limit = 2.0 if name in WITH_MLFLOW else 1.25
        cost, code, output = imports_of_mlflow(preceptor(*arguments), tmp_path / "home", limit, env, cwd=tmp_path)
    assert code == (1 if name in TOO_LATE else 2), output
    assert "Traceback" not in output
    assert all(word in output for word in words), output
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)), output  # nothing is said twice
    assert not (tmp_path / ".preceptor" / "mlflow.db").exists()
    assert cost < limit
