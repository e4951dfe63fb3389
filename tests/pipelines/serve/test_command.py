"""`preceptor serve` with the real engines, vLLM and the embedded one: each followed from version to version."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from evaluation.common.checkpoints import load_checkpoint, model_digest
from evaluation.exact_match import AnswerFormat
from evaluation.microworld.world import draw_documents
from pipelines.ask.answerer import Answerer
from pipelines.ask.answers import FORMAT_FILE, AnswerSettings
from pipelines.lineage.registry import Registry
from pipelines.lineage.store import open_store
from pipelines.process import free_port
from pipelines.settings import TrackingConfig
from student.adapters import save_adapter
from student.memory import MEMORY_FILE, ExternalMemory, MemoryEntry
from tests.vllm_parts import needs_vllm, random_adapter

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1500)]

PROMPTS = ("Question: Who lives in the tower?\nAnswer:", "The river", "Question: What is it made of?\nAnswer:")
NEW_TOKENS, KEY, SECRET = 16, "a-key-for-tests", "of another service"
*KEPT, LEFT_OUT = draw_documents("train", 5, 3)
"""Documents of the first version's memory, the second has one less; and one that is in none."""


class Setting(NamedTuple):
    """One running server and what it should answer."""

    engine: str
    registry: Registry
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client
    texts: list[list[str]]
    """By version, from 0 for the base: what transformers and PEFT write after each prompt."""
    places: list[Path]
    """Of the versions from 1: the registered files."""

    def ask(self, **changes: Any) -> httpx.Response:
        body = {"model": "champion", "prompt": list(PROMPTS), "max_tokens": NEW_TOKENS, "temperature": 0.0} | changes
        return self.client.post("/v1/completions", json=body)

    def chat(self, question: str, **more: Any) -> httpx.Response:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        return self.client.post("/v1/chat/completions", json={"model": "champion", "messages": messages, **more})

    def wait_for(self, **wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + 1200
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            try:
                health: dict[str, Any] = self.client.get("/health").json()
            except httpx.TransportError:  # it does not listen yet
                health = {}
            if wanted.items() <= health.items():
                return health
            time.sleep(0.1)


def is_engine(process: psutil.Process) -> bool:
    return bool({"vllm.entrypoints.openai.api_server", "pipelines.serve.embedded"} & {*process.cmdline()})


def texts_of(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [choice["text"] for choice in reply.json()["choices"]]


def peft_texts(places: Sequence[Path]) -> list[list[str]]:
    """Return what the base and each adapter write, by transformers and PEFT."""
    from peft import PeftModel

    base, tokenizer = load_checkpoint("micro-student")

    def write(model: Any) -> list[str]:
        outputs = []
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=True)
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            outputs.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        return outputs

    return [write(base), *(write(PeftModel.from_pretrained(load_checkpoint("micro-student").model, p)) for p in places)]


@pytest.fixture(scope="module", params=["embedded", pytest.param("vllm", marks=needs_vllm)])
def setting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[Setting]:
    work = tmp_path_factory.mktemp("serve") / "work dir"
    work.mkdir()
    shutil.copy(empty_store, work / "mlflow.db")
    store = open_store(TrackingConfig(), work)
    registry, student = Registry(store, "preceptor"), load_checkpoint("micro-student").model
    run_id = store.client.create_run("0").info.run_id
    store.client.log_param(run_id, "student.model", "micro-student")
    places = [work / "made" / str(version) for version in (1, 2, 3)]
    for version, base in enumerate((model_digest(student), model_digest(student), "0" * 64), 1):
        adapter = replace(random_adapter(student, version), base_digest=base)
        place = save_adapter(adapter, places[version - 1])
        texts = [d.task.document.model_dump(include={"id", "title", "text", "source"}) for d in KEPT[version - 1 :]]
        ExternalMemory(map(MemoryEntry.model_validate, texts)).save(place / MEMORY_FILE)
        asking = AnswerSettings(answer_format=AnswerFormat(), least_confidence=0.5)
        (place / FORMAT_FILE).write_text(asking.model_dump_json())
        registry.register("student", place, digest=adapter.digest, run_id=run_id, tags={})
    registry.promote("student", 1)
    written, port, log = peft_texts(places[:2]), free_port(), work / "serve.log"
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--work-dir", str(work), "--port", str(port)]
    command += [
        "--poll",
        "0.2",
        "--api-key-env",
        "TEST_KEY",
        "--variants",
        "champion,previous,base",
        "--engine",
        request.param,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TEST_KEY": KEY, "CLOUD_SECRET": SECRET}
    headers, url = {"authorization": f"Bearer {KEY}"}, f"http://127.0.0.1:{port}"
    with (
        log.open("wb") as file,
        httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client,
        subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process,
    ):
        try:
            running = Setting(request.param, registry, process, log, client, written, places)
            running.wait_for(status="ok")
            yield running
        finally:
            process.kill()


def test_champion_is_proved_and_answers_as_peft_does(setting: Setting) -> None:
    proof = setting.wait_for(status="ok", version=1, base="micro-student")["last_probe"]
    assert proof["passed"]
    assert proof["equal"] == proof["told_apart"] == proof["prompts"] == 8
    assert proof["max_logprob_difference"] < 1e-4
    assert setting.wait_for(status="ok")["engine"] == setting.engine
    assert texts_of(setting.ask()) == setting.texts[1] != setting.texts[0]
    assert setting.ask(prompt=PROMPTS[0], stream=True).text.rstrip().endswith("data: [DONE]")
    # Prompt log-probabilities kill a vLLM that wraps the output head.
    echo = setting.ask(prompt=PROMPTS[0], echo=True, logprobs=1)
    assert (echo.status_code, "echo: not supported" in echo.text) == (
        (200, False) if setting.engine == "vllm" else (400, True)
    )
    assert texts_of(setting.ask()) == setting.texts[1]


def test_base_answers_under_its_own_name_beside_the_champion(setting: Setting) -> None:
    """vLLM on a CPU mixes up requests with and without an adapter in one batch."""
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda model: setting.ask(model=model), ["champion", "base"] * 8))
    assert [texts_of(reply) for reply in replies] == [setting.texts[1], setting.texts[0]] * 8


def test_chat_and_ask_agree_on_fifty_questions(setting: Setting) -> None:
    asked = [q.question for d in KEPT for q in d.task.held_out_questions[:5]]
    asked += [q.question for q in (*LEFT_OUT.task.held_out_questions, *LEFT_OUT.task.questions)[:26]]
    asked += ["Who?", "What is 2 + 2?", "?", "Why is the sky blue?"]
    assert len(asked) == 50
    wanted = Answerer.from_directory(setting.places[0], "micro-student", version=1).answer_many(asked)
    assert {answer.by for answer in wanted} == {"memory", "weights", "unknown"}
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(setting.chat, asked))
    for answer, reply in zip(wanted, replies, strict=True):
        assert reply.status_code == 200, reply.text
        body, shown = reply.json(), answer.model_dump(mode="json")
        assert (body["model"], body["choices"][0]["message"]["content"]) == ("champion", answer.text)
        assert [body["preceptor"][name] for name in ("version", "by", "sources", "guess")] == [
            shown[name] for name in ("version", "by", "sources", "guess")
        ]
        assert body["preceptor"]["confidence"] == pytest.approx(answer.confidence, abs=1e-3)
        assert reply.headers["x-preceptor-by"] == answer.by
        assert reply.headers["x-preceptor-sources"] == ",".join(quote(source.id) for source in answer.sources)
    of_base = setting.chat(asked[0], model="base")
    assert (of_base.json()["preceptor"]["by"], of_base.json()["preceptor"]["version"]) == ("base", None)
    assert of_base.headers["x-preceptor-version"] == "base"
    *chunks, done = setting.chat(asked[0], stream=True).text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    assert json.loads(chunks[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == wanted[0].text
    last = json.loads(chunks[-1].removeprefix("data: "))
    assert (last["choices"][0]["finish_reason"], last["preceptor"]) == ("stop", replies[0].json()["preceptor"])
    for refused in ("", "long " * 5000):
        assert setting.chat(refused).status_code == 400


def test_client_that_hangs_up_leaves_no_traceback_and_no_secret_is_passed_on(setting: Setting) -> None:
    for path, body in (("completions", {"prompt": "The", "max_tokens": 400, "stream": True}), ("chat/completions", {})):
        sent = {"model": "champion", "messages": [{"role": "user", "content": "Who?"}], **body}
        with suppress(httpx.ReadTimeout), setting.client.stream("POST", f"/v1/{path}", json=sent, timeout=0.05):
            pass
    address = setting.client.base_url
    with socket.create_connection((address.host, address.port or 0)) as half:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
        half.sendall(f"{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{".encode())
        time.sleep(0.5)
    setting.wait_for(in_flight=0)
    assert setting.ask().status_code == 200
    assert "Traceback" not in setting.log.read_text()
    children = psutil.Process(setting.process.pid).children(recursive=True)
    engines = [child.environ() for child in children if is_engine(child)]
    assert [(name in each) for each in engines for name in ("CLOUD_SECRET", "TEST_KEY", "PATH")] == [False, False, True]


def test_promoted_version_takes_over_without_a_restart_or_a_wrong_answer(setting: Setting) -> None:
    (before,) = [each.pid for each in psutil.Process(setting.process.pid).children() if is_engine(each)]
    replies: list[httpx.Response] = []
    switched = False

    def keep_asking(_: int) -> None:
        while not switched:
            replies.append(setting.ask())

    with ThreadPoolExecutor(3) as pool:
        pool.map(keep_asking, range(3))
        setting.registry.promote("student", 2)
        health = setting.wait_for(status="ok", version=2)
        replies.append(setting.ask())
        switched = True
    assert (health["last_probe_version"], health["last_probe"]["equal"], health["memory"]) == (2, 8, len(KEPT) - 1)
    # The memory moves with the weights.
    moved = setting.chat(KEPT[0].task.questions[0].question).json()["preceptor"]
    assert (moved["version"], KEPT[0].task.id in str(moved["sources"])) == (2, False)
    assert all(texts_of(reply) == setting.texts[int(reply.headers["x-preceptor-version"])] for reply in replies)
    assert {reply.headers["x-preceptor-version"] for reply in replies} == {"1", "2"}
    assert setting.texts[2] != setting.texts[1]
    previous = setting.ask(model="previous")
    assert (texts_of(previous), previous.headers["x-preceptor-version"]) == (setting.texts[1], "1")
    assert before in {process.pid for process in psutil.Process(setting.process.pid).children()}


@pytest.mark.slow
def test_64_streams_through_a_promotion_and_a_kill_are_each_of_one_version_or_503(setting: Setting) -> None:
    if setting.registry.aliases("student")["champion"] != 2:
        setting.registry.promote("student", 2)
    setting.wait_for(status="ok", version=2)
    replies = asyncio.run(streams_meanwhile(setting))
    whole = [(prompt, reply) for prompt, reply in replies if reply.status_code == 200 and '"error"' not in reply.text]
    for prompt, reply in whole:
        *events, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        text = "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
        assert (done, text) == ("[DONE]", setting.texts[int(reply.headers["x-preceptor-version"])][prompt])
    assert {reply.headers["x-preceptor-version"] for _, reply in whole} == {"1", "2"}
    refused = [reply for _, reply in replies if reply.status_code == 503]
    assert refused
    assert all(reply.headers["retry-after"] and reply.json()["error"]["type"] == "server_error" for reply in refused)
    broken = len(replies) - len(whole) - len(refused)  # a stream of vLLM's has begun, and ends with an error
    assert broken == 0 or setting.engine == "vllm"


async def streams_meanwhile(setting: Setting) -> list[tuple[int, httpx.Response]]:
    """Return the replies to 64 clients that ask for streams during a promotion, and a kill of the engine."""
    replies: list[tuple[int, httpx.Response]] = []
    url, headers, ended = setting.client.base_url, setting.client.headers, False

    async def keep_asking(prompt: int) -> None:
        body = {"model": "champion", "prompt": PROMPTS[prompt], "max_tokens": NEW_TOKENS, "temperature": 0.0}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
            while not ended:
                replies.append((prompt, await client.post("/v1/completions", json=body | {"stream": True})))
                await asyncio.sleep(0 if replies[-1][1].status_code == 200 else 0.5)

    async with asyncio.TaskGroup() as clients:
        for number in range(64):
            clients.create_task(keep_asking(number % len(PROMPTS)))
        try:
            while len(replies) < 64:
                await asyncio.sleep(0.05)
            for version in (1, 2):  # the first is loaded as the previous version, the other is proved anew
                setting.registry.promote("student", version)
                await asyncio.to_thread(setting.wait_for, status="ok", version=version)
            (engine,) = [each for each in psutil.Process(setting.process.pid).children() if is_engine(each)]
            engine.kill()
            await asyncio.to_thread(setting.wait_for, status="restarting", version=None)
            health = await asyncio.to_thread(setting.wait_for, status="ok", version=2, previous=1, restarts=1)
            assert health["last_probe"]["passed"]
        finally:
            ended = True
    return replies


def test_after_sigterm_requests_finish_and_no_process_is_left(setting: Setting) -> None:
    children = psutil.Process(setting.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(setting.ask, prompt="The", max_tokens=400, ignore_eos=True)
        setting.wait_for(in_flight=1)
        setting.process.send_signal(signal.SIGTERM)
    assert reply.result().json()["usage"]["completion_tokens"] == 400
    assert setting.process.wait(timeout=60) == 0, setting.log.read_text()
    assert psutil.wait_procs(children, timeout=20)[1] == []
    logs = [setting.log, *setting.log.parent.glob("engine-*.log")]
    assert [KEY in log.read_text(errors="replace") for log in logs] == [False, False]
