"""The whole command with the real vLLM: one server, followed from version to version."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from evaluation.answers import prompt_ids
from evaluation.checkpoints import load_checkpoint, model_digest
from student.adapters import Adapter
from tests.pipelines.serving.parts import ServeProcess, Shelf, command_line
from tests.vllm_parts import needs_vllm, random_adapter

pytestmark = [needs_vllm, pytest.mark.flow, pytest.mark.timeout(900)]

PROMPTS = ("Question: Who lives in the tower?\nAnswer:", "The river", "Question: What is it made of?\nAnswer:")
NEW_TOKENS = 16
KEY = "a-key-for-tests"


@dataclass
class Setting:
    """One running server and what it should answer."""

    shelf: Shelf
    process: ServeProcess
    url: str
    texts: dict[int, list[str]]
    """Version -> what PEFT writes after each prompt."""
    base_texts: list[str]
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=120.0, trust_env=False)

    def health(self) -> dict[str, Any]:
        content: dict[str, Any] = self.client.get("/health").json()
        return content

    def ask(self, **changes: Any) -> httpx.Response:
        body = {"model": "champion", "prompt": list(PROMPTS), "max_tokens": NEW_TOKENS, "temperature": 0.0} | changes
        return self.client.post("/v1/completions", json=body)

    def answers(self) -> list[str]:
        reply = self.ask()
        assert reply.status_code == 200, reply.text
        return [choice["text"] for choice in reply.json()["choices"]]

    def wait_for(self, **wanted: Any) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            try:
                health = self.health()
            except httpx.TransportError:  # it does not listen yet
                return None
            return health if all(health[name] == value for name, value in wanted.items()) else None

        found: dict[str, Any] = self.process.wait_until(reached)
        return found


def peft_texts(adapters: Sequence[Adapter], places: Sequence[Path]) -> tuple[list[list[str]], list[str]]:
    """Return what each adapter and the base write, by PEFT and `generate`."""
    import torch
    from peft import PeftModel

    base, tokenizer = load_checkpoint("micro-student")

    def write(model: Any) -> list[str]:
        texts = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt_ids(tokenizer, prompt)])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
                )
            texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        return texts

    base_texts = write(base)
    by_adapter = []
    for place in places:
        model = PeftModel.from_pretrained(base, str(place)).eval()
        by_adapter.append(write(model))
        base = model.unload()
    return by_adapter, base_texts


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Setting]:
    work = tmp_path_factory.mktemp("serve") / "work dir"
    work.mkdir()
    shutil.copy(empty_store, work / "mlflow.db")
    shelf = Shelf(work)
    student = load_checkpoint("micro-student").model
    digest = model_digest(student)
    adapters = [random_adapter(student, seed) for seed in (1, 2, 3)]
    adapters = [Adapter(adapter.factors, adapter.rank, adapter.alpha, digest) for adapter in adapters]
    versions = [shelf.add(adapter, damaged=number == 2) for number, adapter in enumerate(adapters)]
    assert versions == [1, 2, 3]
    shelf.promote(1)
    places = [work / "made" / adapter.digest[:12] for adapter in adapters[:2]]
    by_adapter, base_texts = peft_texts(adapters, places)
    texts = {1: by_adapter[0], 2: by_adapter[1]}
    arguments = ["--work-dir", str(work), "--port", "0", "--poll", "0.5", "--api-key-env", "TEST_KEY", "--with-base"]
    process = ServeProcess(arguments, work / "serve.log", TEST_KEY=KEY)
    try:
        process.wait_until(lambda: (work / "serving").is_dir() and any((work / "serving").iterdir()))
        port = next((work / "serving").iterdir()).name
        setting = Setting(shelf, process, f"http://127.0.0.1:{port}", texts, base_texts)
        yield setting
        setting.client.close()
    finally:
        process.clean_up()


def test_health_says_starting_with_503_until_the_champion_is_proved(setting: Setting) -> None:
    reply = setting.process.wait_until(lambda: _reply(setting, "/health"))
    assert reply.status_code == 503
    assert reply.json()["status"] == "starting"
    assert setting.ask().status_code == 503
    health = setting.wait_for(status="ok")
    assert (health["version"], health["base"], health["restarts"]) == (1, "micro-student", 0)
    probe = health["last_probe"]
    assert probe["passed"]
    assert probe["equal"] == probe["prompts"] == 8
    assert probe["told_apart"] == 8
    assert probe["max_logprob_difference"] < 1e-4


def _reply(setting: Setting, path: str) -> httpx.Response | None:
    try:
        return setting.client.get(path)
    except httpx.TransportError:
        return None


def test_champion_answers_as_peft_does(setting: Setting) -> None:
    setting.wait_for(status="ok")
    reply = setting.ask()
    assert reply.json()["model"] == "champion"
    assert reply.headers["x-preceptor-version"] == "1"
    assert setting.answers() == setting.texts[1]
    assert setting.texts[1] != setting.base_texts


def test_streams_carry_the_clients_name(setting: Setting) -> None:
    setting.wait_for(status="ok")
    body = {"model": "champion", "prompt": PROMPTS[0], "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
    with setting.client.stream("POST", "/v1/completions", json=body) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line) for line in lines[:-1]]
    assert {piece["model"] for piece in pieces} == {"champion"}
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == setting.texts[1][0]


def test_base_answers_under_its_own_name_even_beside_the_champion(setting: Setting) -> None:
    """vLLM on a CPU mixes up requests with and without an adapter in one batch."""
    setting.wait_for(status="ok")
    found: dict[str, list[list[str]]] = {"champion": [], "micro-student": []}

    def ask(model: str) -> None:
        for _ in range(4):
            choices = setting.ask(model=model).json()["choices"]
            found[model].append([choice["text"] for choice in choices])

    threads = [threading.Thread(target=ask, args=(model,)) for model in found for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"champion": [setting.texts[1]] * 8, "micro-student": [setting.base_texts] * 8}


def test_strangers_and_other_paths_get_nothing(setting: Setting) -> None:
    setting.wait_for(status="ok")
    client = setting.client
    for key in ("", "Bearer wrong", f"Basic {KEY}"):
        for path in ("/v1/models", "/v1/completions", "/nothing"):
            assert client.get(path, headers={"authorization": key}).status_code == 401
    assert client.get("/health", headers={"authorization": ""}).status_code == 200
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["champion", "micro-student"]
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/v1/embeddings"):
        assert client.post(path, json={"lora_name": "x", "lora_path": "/"}).status_code == 404
    assert client.get("/metrics").status_code == 404
    for model in ("preceptor-base", setting.health()["served_name"], "nobody"):
        assert setting.ask(model=model).status_code == 404


def test_log_probabilities_of_the_prompt_do_not_end_the_engine(setting: Setting) -> None:
    setting.wait_for(status="ok")
    reply = setting.ask(prompt=PROMPTS[0], echo=True, logprobs=1)
    assert reply.status_code == 200, reply.text
    assert setting.answers() == setting.texts[1]


def test_promoted_version_takes_over_without_a_restart_or_a_wrong_answer(setting: Setting) -> None:
    setting.wait_for(status="ok")
    before = {process.pid for process in setting.process.descendants()}
    replies: list[httpx.Response] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            replies.append(setting.ask())

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    setting.shelf.promote(2)
    health = setting.wait_for(status="ok", version=2)
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert health["last_probe_version"] == 2
    assert health["last_probe"]["equal"] == 8
    assert {reply.status_code for reply in replies} == {200}
    for reply in replies:
        expected = setting.texts[int(reply.headers["x-preceptor-version"])]
        assert [choice["text"] for choice in reply.json()["choices"]] == expected
    assert {reply.headers["x-preceptor-version"] for reply in replies} == {"1", "2"}
    assert setting.answers() == setting.texts[2] != setting.texts[1]
    assert before <= {process.pid for process in setting.process.descendants()}
    assert setting.health()["restarts"] == 0


def test_damaged_version_stays_out_and_health_says_why(setting: Setting) -> None:
    setting.wait_for(status="ok")
    setting.shelf.promote(3)
    health = setting.wait_for(status="degraded", wanted=3)
    assert health["version"] == 2
    assert "digest" in health["last_error"]
    assert setting.client.get("/health").status_code == 200
    assert setting.answers() == setting.texts[2]
    setting.shelf.promote(2)
    assert setting.wait_for(status="ok", wanted=2)["last_error"] is None


@pytest.mark.slow  # a second start; the supervisor's own tests restart what stands in for vLLM
def test_vllm_that_dies_is_started_again_with_the_same_version(setting: Setting) -> None:
    setting.wait_for(status="ok")
    servers = [p for p in setting.process.descendants() if "api_server" in command_line(p)]
    (server,) = (p for p in servers if "guard.py" not in command_line(p))
    server.kill()
    setting.wait_for(status="down")
    assert setting.client.get("/health").status_code == 503
    health = setting.wait_for(status="ok")
    assert (health["version"], health["restarts"]) == (2, 1)
    assert setting.answers() == setting.texts[2]


def test_after_sigterm_requests_finish_and_no_process_is_left(setting: Setting) -> None:
    setting.wait_for(status="ok")
    assert setting.process.descendants()
    replies: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: replies.append(setting.ask(prompt=PROMPTS[0], max_tokens=400, ignore_eos=True))
    )
    asking.start()
    setting.wait_for(in_flight=1)
    setting.process.process.send_signal(signal.SIGTERM)
    asking.join()
    assert replies[0].status_code == 200
    assert replies[0].json()["usage"]["completion_tokens"] == 400
    assert setting.process.process.wait(timeout=60) == 0, setting.process.output[-3000:]
    assert setting.process.gone()
    assert KEY not in setting.process.output
    (log,) = (setting.shelf.work_dir / "serving").rglob("vllm.log")
    assert KEY not in log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.slow  # a second start; the guard's own tests kill its owner without vLLM
def test_killed_server_leaves_no_process_behind(setting: Setting, tmp_path: Path) -> None:
    process = ServeProcess(["--work-dir", str(setting.shelf.work_dir), "--port", "0"], tmp_path / "log")
    try:
        process.wait_until(lambda: any("EngineCore" in command_line(p) for p in process.descendants()))
        os.kill(process.process.pid, signal.SIGKILL)
        process.process.wait(timeout=30)
        assert process.gone()
    finally:
        process.clean_up()
