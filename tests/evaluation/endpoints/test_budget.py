from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from evaluation.endpoints.client import Endpoint
from evaluation.endpoints.ledger import Ledger
from evaluation.errors import BudgetError
from tests.evaluation.endpoints.settings import config_for, replies, requests_for, texts
from tests.faults import COMPLETION_TOKENS, FaultyServer

USED = COMPLETION_TOKENS + 2
MOST = 16 + len("prompt 000") + 10
"""Upper bound of one call: template, bytes of the prompt, longest completion."""


@pytest.mark.parametrize("concurrency", [1, 32])
def test_budget_is_never_exceeded_and_the_stop_is_clean(tmp_path: Path, concurrency: int) -> None:
    budget = 150
    with FaultyServer(delay=0.02) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, concurrency=concurrency, budget_tokens=budget), ledger)
        with pytest.raises(BudgetError, match="of 150 tokens are spent, the next call may take 36") as caught:
            endpoint.complete(requests_for(40))
        spent, made = ledger.spent(), len(server.seen)
        assert spent.tokens == made * USED <= budget
        assert spent.tokens + MOST > budget
        assert (spent.unsettled, ledger.stored()) == (0, made)
        assert f"{made} replies are stored in" in str(caught.value)
        assert "Raise budget_tokens (now 150)" in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_run_goes_on_when_the_budget_is_raised(tmp_path: Path) -> None:
    requests = requests_for(40)
    with FaultyServer() as server, Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(BudgetError):
            Endpoint(config_for(server, budget_tokens=150), ledger).complete(requests)
        paid = set(server.prompts)
        with pytest.raises(BudgetError):  # what an earlier process spent counts
            Endpoint(config_for(server, budget_tokens=150), ledger).complete(requests)
        assert set(server.prompts) == paid
        enough = Endpoint(config_for(server, budget_tokens=40 * USED + MOST), ledger)
        assert len(set(texts(enough.complete(requests)))) == 40
        assert sorted(server.prompts) == sorted(request.prompt for request in requests)
        used_up = Endpoint(config_for(server, budget_tokens=1), ledger)
        assert len(replies(used_up.complete(requests))) == 40  # what is stored needs no budget


def test_budget_of_money(tmp_path: Path) -> None:
    prices = {"price_input": 1e6, "price_output": 2e6, "currency": "EUR"}  # 1 and 2 a token
    with FaultyServer(delay=0.02) as server, Ledger(tmp_path / "l.db") as ledger:
        endpoint = Endpoint(config_for(server, concurrency=8, budget_cost=100.0, **prices), ledger)
        with pytest.raises(BudgetError, match=r"64 of 100 EUR are spent, the next call may cost 46") as caught:
            endpoint.complete(requests_for(40))
        assert "Raise budget_cost (now 100)" in str(caught.value)
        spent = ledger.spent()
        assert spent.cost == len(server.seen) * (2 + 2 * COMPLETION_TOKENS) <= 100
        assert spent.currency == "EUR"
        assert {reply.cost for reply in ledger.find(list(_digests(ledger))).values()} == {16.0}


def test_untold_use_counts_with_its_upper_bound(tmp_path: Path) -> None:
    with FaultyServer(tells_usage=False) as server, Ledger(tmp_path / "l.db") as ledger:
        with pytest.raises(BudgetError, match="4 calls whose use is unknown count with the most"):
            Endpoint(config_for(server, concurrency=8, budget_tokens=150), ledger).complete(requests_for(10))
        assert ledger.spent().tokens == 4 * MOST
    with FaultyServer() as server, Ledger(tmp_path / "other.db") as ledger:
        server.always["prompt"] = "truncated"
        with pytest.raises(BudgetError):
            Endpoint(config_for(server, budget_tokens=100), ledger).complete(requests_for(10))
        assert len(server.seen) == 2


def test_untold_use_is_not_made_up(tmp_path: Path) -> None:
    with FaultyServer(tells_usage=False) as server, Ledger(tmp_path / "l.db") as ledger:
        prices = {"price_input": 1.0, "price_output": 2.0}
        (reply,) = replies(Endpoint(config_for(server, **prices), ledger).complete(requests_for(1)))
        assert (reply.prompt_tokens, reply.completion_tokens, reply.cost) == (None, None, None)
        assert ledger.spent()[2:6] == (1, 0, 0, MOST)


def _digests(ledger: Ledger) -> list[str]:
    import sqlite3

    with sqlite3.connect(ledger.path) as db:
        return [row[0] for row in db.execute("SELECT digest FROM replies")]
