"""The embedded engine: what it writes, what it refuses, and that requests share passes without changing each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.exact_match import prompt_ids
from pipelines.ask.answers import Vocabulary
from pipelines.serve.embedded import EmbeddedEngine, Kind, Waiting, engine_app
from student.adapters import save_adapter
from student.bank.bank import LoraBank
from student.bank.scoring import Written
from tests.vllm_parts import random_adapter

PROMPTS = ("Question: Who lives in the tower?\nAnswer:", "The river")
ASKED: dict[str, Any] = {"model": "one", "prompt": list(PROMPTS), "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def student() -> Checkpoint:
    return load_checkpoint("micro-student")


@pytest.fixture(scope="module")
def places(student: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of two adapters of the student, and of one that fits another model."""
    made, models = tmp_path_factory.mktemp("adapters"), {"one": student.model, "two": student.model}
    models["other"] = load_checkpoint("micro-grid-student").model
    adapters = {name: random_adapter(model, seed) for seed, (name, model) in enumerate(models.items())}
    return {name: save_adapter(adapter, made / name) for name, adapter in adapters.items()}


@pytest.fixture(scope="module")
def bank(student: Checkpoint, places: dict[str, Path]) -> Iterator[LoraBank]:
    """Open after the adapters are made, since it wraps the student's layers."""
    with LoraBank(student.model) as opened:
        yield opened


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Running:
    """The engine's application with two adapters loaded, and the passes that it ran."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        transport = httpx.ASGITransport(engine_app(engine, "k"))
        self.client = httpx.AsyncClient(
            transport=transport, base_url="http://engine", headers={"authorization": "Bearer k"}
        )
        self.passes: list[int] = []
        write = engine._write

        def counted(kind: Kind, batch: Sequence[Waiting]) -> list[Written]:
            self.passes.append(len(batch))
            return write(kind, batch)

        engine._write = counted  # type: ignore[method-assign]

    async def ask(self, **changes: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json=ASKED | changes)

    async def choices(self, **changes: Any) -> list[dict[str, Any]]:
        reply = await self.ask(**changes)
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()["choices"]
        return found


@pytest.fixture
async def it(student: Checkpoint, bank: LoraBank, places: dict[str, Path]) -> Any:
    engine = EmbeddedEngine(bank, Vocabulary.of(student))
    working, running = asyncio.create_task(engine.work()), Running(engine)
    for name in ("one", "two"):
        load = {"lora_name": name, "lora_path": str(places[name])}
        assert (await running.client.post("/v1/load_lora_adapter", json=load)).status_code == 200
    yield running
    working.cancel()


def peft_text(place: Path, prompt: str, tokens: int) -> str:
    from peft import PeftModel

    base, tokenizer = load_checkpoint("micro-student")
    model = PeftModel.from_pretrained(base, place)
    out = model.generate(
        input_ids=torch.tensor([prompt_ids(tokenizer, prompt)]), max_new_tokens=tokens, do_sample=False
    )
    return str(tokenizer.decode(out[0, len(prompt_ids(tokenizer, prompt)) :], skip_special_tokens=True))


@pytest.mark.anyio
async def test_texts_are_those_of_peft_from_text_or_tokens(
    it: Running, student: Checkpoint, places: dict[str, Path]
) -> None:
    wanted = [peft_text(places["one"], prompt, 12) for prompt in PROMPTS]
    assert [choice["text"] for choice in await it.choices()] == wanted
    tokens = [prompt_ids(student.tokenizer, prompt) for prompt in PROMPTS]
    assert [choice["text"] for choice in await it.choices(prompt=tokens)] == wanted
    assert [(await it.choices(prompt=one))[0]["text"] for one in (PROMPTS[1], tokens[1])] == [wanted[1]] * 2
    assert [choice["text"] for choice in await it.choices(model="base")] != wanted


@pytest.mark.anyio
async def test_requests_that_wait_together_share_a_pass_for_each_adapter_and_stay_apart(it: Running) -> None:
    alone = {model: (await it.choices(model=model, prompt=PROMPTS[0]))[0]["text"] for model in ("one", "two", "base")}
    assert len(set(alone.values())) == 3
    it.passes.clear()
    models = ["one", "two", "base"] * 20
    found = await asyncio.gather(*(it.choices(model=model, prompt=PROMPTS[0]) for model in models))
    assert [choices[0]["text"] for choices in found] == [alone[model] for model in models]
    assert sum(it.passes) == 60
    assert len(it.passes) <= 6


@pytest.mark.anyio
async def test_a_seed_draws_the_same_whatever_is_computed_beside_it(it: Running) -> None:
    drawn = {"prompt": PROMPTS[0], "temperature": 1.5}
    alone = [(await it.choices(**drawn, seed=seed))[0]["text"] for seed in range(4)]
    assert len(set(alone)) > 1
    beside = await asyncio.gather(*(it.choices(**drawn, seed=seed) for seed in (3, 2, 1, 0)), it.choices())
    assert [choices[0]["text"] for choices in beside[:4]] == alone[::-1]
    assert [choice["text"] for choice in beside[4]] == [choice["text"] for choice in await it.choices()]


@pytest.mark.anyio
async def test_log_probabilities_are_the_models_and_draws_follow_them(it: Running, student: Checkpoint) -> None:
    ids = prompt_ids(student.tokenizer, PROMPTS[0])
    with torch.inference_mode():
        logits = student.model(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = logits.log_softmax(-1).topk(3)
    (choice,) = await it.choices(
        model="base", prompt=ids, max_tokens=1, logprobs=3, return_tokens_as_token_ids=True, return_token_ids=True
    )
    (top,), (token,) = choice["logprobs"]["top_logprobs"], choice["token_ids"]
    assert list(top) == [f"token_id:{each}" for each in expected.indices.tolist()]
    assert list(top.values()) == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert choice["logprobs"]["token_logprobs"] == [top[f"token_id:{token}"]]
    # 640 draws; a share's standard error is at most 0.02.
    drawn = {"prompt": [ids] * 640, "model": "base", "max_tokens": 1, "temperature": 2.0, "return_token_ids": True}
    draws = [choice["token_ids"][0] for choice in await it.choices(**drawn, seed=0)]
    for each in expected.indices.tolist():
        assert draws.count(each) / 640 == pytest.approx(float((logits / 2).softmax(-1)[each]), abs=0.08)


@pytest.mark.anyio
async def test_stop_strings_and_end_tokens_end_a_text(it: Running, student: Checkpoint) -> None:
    (whole,) = await it.choices(prompt=PROMPTS[1], return_token_ids=True, ignore_eos=True)
    text, tokens = whole["text"], whole["token_ids"]
    assert (whole["finish_reason"], len(tokens)) == ("length", 12)
    begins = [len(student.tokenizer.decode(tokens[:count], skip_special_tokens=True)) for count in range(12)]
    (told,) = await it.choices(prompt=PROMPTS[1], logprobs=1, ignore_eos=True)
    assert told["logprobs"]["text_offset"] == begins
    stop = text[4:6]
    (cut,) = await it.choices(prompt=PROMPTS[1], stop=[stop, "never"], return_token_ids=True, ignore_eos=True)
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert stop in student.tokenizer.decode(cut["token_ids"])
    assert cut["token_ids"] == tokens[: len(cut["token_ids"])] != tokens
    end = tokens[3]
    (ended,) = await it.choices(prompt=PROMPTS[1], stop_token_ids=[end], return_token_ids=True, ignore_eos=True)
    assert ended["token_ids"] == tokens[: tokens.index(end) + 1]
    assert ended["finish_reason"] == "stop"
    assert ended["text"] == student.tokenizer.decode(tokens[: tokens.index(end)], skip_special_tokens=True)


@pytest.mark.anyio
async def test_stream_has_the_same_text(it: Running) -> None:
    reply = await it.ask(prompt=PROMPTS[0], stream=True)
    *events, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == (await it.choices(prompt=PROMPTS[0]))[0]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] <= 12


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"n": 2}, 400, "n: not supported by the embedded engine"),
        ({"echo": True, "best_of": 3}, 400, "echo, best_of: not supported"),
        ({"guided_json": {}}, 400, "guided_json: not supported"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"max_tokens": 5000}, 400, "context is 1024"),
        ({"prompt": []}, 400, "prompt: "),
        ({"prompt": [99_999_999]}, 400, "prompt: "),
        ({"prompt": None}, 400, "prompt: "),
        ({"model": "nobody"}, 404, "does not exist"),
    ],
)
async def test_other_requests_are_refused_with_a_reason(
    it: Running, changes: dict[str, Any], status: int, said: str
) -> None:
    reply = await it.ask(**changes)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, status)
    assert said in reply.json()["error"]["message"]
    neutral = {"n": 1, "top_p": 1.0, "echo": False, "presence_penalty": 0.0, "user": "ann", "logprobs": None}
    assert (await it.ask(**neutral)).status_code == 200


@pytest.mark.anyio
async def test_engine_takes_only_its_key_and_adapters_that_fit(it: Running, places: dict[str, Path]) -> None:
    assert (await it.client.get("/health", headers={"authorization": ""})).status_code == 200
    assert (
        await it.client.post("/v1/completions", json=ASKED, headers={"authorization": "Bearer x"})
    ).status_code == 401
    lost = {"lora_name": "three", "lora_path": str(places["one"].parent / "nowhere")}
    assert (await it.client.post("/v1/load_lora_adapter", json=lost)).status_code == 400
    load = {"lora_name": "other", "lora_path": str(places["other"])}
    assert (await it.client.post("/v1/load_lora_adapter", json=load)).status_code == 200
    refused = await it.ask(model="other")
    assert (refused.status_code, "does not fit" in refused.text) == (500, True)
    assert (await it.client.post("/v1/unload_lora_adapter", json={"lora_name": "one"})).status_code == 200
    assert (await it.ask()).status_code == 404
    assert (await it.ask(model="two")).status_code == 200
    assert (await it.client.post("/v1/chat/completions", json={})).status_code == 400
