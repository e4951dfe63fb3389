"""Typical mistakes at the command line: each ends soon, with one message and code 2, and starts nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.extras import HAS_VLLM
from tests.flows.settings import environment, preceptor

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
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_ends_with_one_message_in_three_seconds_of_cpu_time(name: str, tmp_path: Path) -> None:
    if name == "no vLLM" and HAS_VLLM:
        pytest.skip("vLLM is installed")
    arguments, words, variables = MISTAKES[name]
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    suite = (Path(__file__).parents[2] / "configs" / "suites" / "micro-world.yaml").read_text()
    (tmp_path / "loose.yaml").write_text(suite.partition("\npins:")[0] + "\n")
    env = {**environment(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    with (tmp_path / "printed").open("wb") as printed:
        process = subprocess.Popen(preceptor(*arguments), cwd=tmp_path, env=env, stdout=printed, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    output = (tmp_path / "printed").read_text()
    assert process.returncode == 2, output
    assert "Traceback" not in output
    assert all(word in output for word in words), output
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)), output  # nothing is said twice
    assert not (tmp_path / ".preceptor" / "mlflow.db").exists()
    assert usage.ru_utime + usage.ru_stime < 3.0
