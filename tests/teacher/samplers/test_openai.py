from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.common.errors import BudgetError, ConfigError
from teacher.samplers.openai import OpenAISampler, OpenAISampling
from teacher.samplers.sampler import Completion, FailedCompletion, Sampler, prompts_too_long
from tests.faults import COMPLETION_TOKENS, MODEL, FaultyServer

PROMPTS = ["Passage: Ann lives in Rome.\nImplications:\n", "Passage: Bob is 7.\nImplications:\n"]


def sampling(server: FaultyServer, endpoint: dict[str, Any] | None = None, **changes: Any) -> OpenAISampling:
    where = {"base_url": server.base_url, "model": MODEL}
    fields = {"type": "openai", "endpoint": where | (endpoint or {}), "max_new_tokens": 20}
    return OpenAISampling.model_validate(fields | changes)


def test_sample_is_distinct_by_prompt_index_and_seed_and_repeatable(tmp_path: Path) -> None:
    with FaultyServer() as server:
        sampler: Sampler = OpenAISampler(sampling(server), tmp_path / "l.db")
        first = sampler.sample(PROMPTS, n=3, seed=5)
        texts = [c.text for row in first for c in row if isinstance(c, Completion)]
        assert [len(row) for row in first] == [3, 3]
        assert len(set(texts)) == 6
        seeds = {seen.body["seed"] for seen in server.seen}
        assert len(seeds) == 6
        assert all(0 <= seed < 2**31 for seed in seeds)
        assert sampler.sample(PROMPTS[::-1], n=2, seed=5) == [first[1][:2], first[0][:2]]
        sampler.close()
        assert OpenAISampler(sampling(server), tmp_path / "l.db").sample(PROMPTS, n=3, seed=5) == first
        assert len(server.seen) == 6
        other = sampler.sample(PROMPTS, n=3, seed=6)
        assert other != first
        assert sampler.sample(PROMPTS, n=3, seed=[5, 6]) == [first[0], other[1]]
        sampler.close()


def test_completions_contain_the_reply_or_its_failure(tmp_path: Path) -> None:
    with FaultyServer() as server:
        server.always["Bob"] = "truncated"
        sampler = OpenAISampler(sampling(server), tmp_path / "l.db")
        (good,), (bad,) = sampler.sample(PROMPTS, n=1, seed=0)
        assert isinstance(good, Completion)
        assert (good.token_ids, good.finish_reason, good.completion_tokens) == ((), "stop", COMPLETION_TOKENS)
        assert isinstance(bad, FailedCompletion)
        assert bad.reason == "malformed"
        assert bad.detail
        assert (sampler.spent.calls, sampler.spent.failures) == (4, 3)
        sampler.close()


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_stop_is_sent_where_text_is_continued_and_cuts_every_reply(tmp_path: Path, api: str) -> None:
    with FaultyServer() as server:
        sampler = OpenAISampler(sampling(server, {"api": api}), tmp_path / "l.db")
        ((whole,),) = sampler.sample(PROMPTS[:1], n=1, seed=5)
        assert isinstance(whole, Completion)
        ((cut,),) = sampler.sample(PROMPTS[:1], n=1, seed=5, stop=whole.text[9:12])
        assert isinstance(cut, Completion)
        sampler.close()
    assert (cut.text, cut.finish_reason) == (whole.text.partition(whole.text[9:12])[0], "stop")
    sent = [seen.body.get("stop") for seen in server.seen]
    assert sent == [None, [whole.text[9:12]] if api == "completions" else None]


def test_greedy_sampling_sends_one_request(tmp_path: Path) -> None:
    with FaultyServer() as server:
        sampler = OpenAISampler(sampling(server, temperature=0.0), tmp_path / "l.db")
        ((first, second),) = sampler.sample(PROMPTS[:1], n=2, seed=0)
        assert first == second
        assert len(server.seen) == 1
        sampler.close()


def test_budget_key_and_arguments_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENERATOR_KEY", raising=False)
    with FaultyServer() as server:
        with pytest.raises(ConfigError, match="GENERATOR_KEY"):
            OpenAISampler(sampling(server, {"key_env": "GENERATOR_KEY"}), tmp_path / "l.db")
        assert not (tmp_path / "l.db").exists()
        sampler = OpenAISampler(sampling(server, {"budget_tokens": 200}), tmp_path / "l.db")
        assert sampler.max_prompt_tokens is None
        assert sampler.count_tokens(PROMPTS[1]) == len(PROMPTS[1])
        assert prompts_too_long(sampler, PROMPTS) == {}
        with pytest.raises(ValueError, match="n: got 0"):
            sampler.sample(PROMPTS, n=0, seed=0)
        with pytest.raises(BudgetError):
            sampler.sample(PROMPTS, n=20, seed=0)
        assert sampler.spent.tokens <= 200
        sampler.close()
