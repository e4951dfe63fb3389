"""What a night is about: documents chosen and routed."""

from __future__ import annotations

from datetime import date

import pytest
from pydantic import ValidationError

from pipelines.nights.plan import choose_documents
from pipelines.nights.router import RoutingConfig, route
from pipelines.nights.state import StudentState
from tests.pipelines.nights.parts import document, held, state

RULES = RoutingConfig()


@pytest.mark.parametrize(
    ("given", "replaces", "place", "because"),
    [
        (document("a"), 0, "weights", "nothing says"),
        (document("a"), 2, "memory", "replaces 2 earlier documents"),
        (document("a", effective=date(2026, 1, 5)), 0, "memory", "2026-01-05"),
        (document("a", text="The price is currently 5."), 0, "memory", "volatile ('currently')"),
        (document("a", text="AS OF TODAY the shop is open."), 0, "memory", "volatile"),
        (document("a", text="x" * 20_001), 0, "memory", "20001 characters"),
        (document("a", text="The price is currently 5.", route="weights"), 3, "weights", "sender"),
        (document("a", route="memory"), 0, "memory", "sender"),
    ],
)
def test_route_by_hint_then_rules(given, replaces, place, because) -> None:  # type: ignore[no-untyped-def]
    found = route(given, RULES, replaces=replaces)
    assert found.place == place
    assert because in found.because


def test_rules_can_send_everything_to_the_weights() -> None:
    rules = RoutingConfig(superseding="weights", dated="weights", volatile_patterns=())
    given = document("a", text="It is currently so.", effective=date(2026, 1, 5))
    assert route(given, rules, replaces=1).place == "weights"


def test_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        RoutingConfig(volatile_patterns=("(",))


def test_only_what_is_new_in_force_and_released_is_chosen() -> None:
    old, new, learned, poisoned = document("old"), document("new", supersedes=("old",)), document("b"), document("c")
    silent = document("d", questions=0)
    chosen, waiting = choose_documents(
        [old, learned, new, poisoned, silent],
        state(held(learned, "night-0001")),
        aside={poisoned.id},
        superseded={old.id: new.id},
        routing=RULES,
    )
    assert [(planned.task.id, planned.place) for planned in chosen] == [(new.id, "memory")]
    assert waiting == (silent.id,)


def test_document_that_is_set_aside_replaces_nothing() -> None:
    old, wrong = document("old"), document("wrong", supersedes=("old",))
    chosen, _ = choose_documents(
        [old, wrong], StudentState(), aside={wrong.id}, superseded={old.id: wrong.id}, routing=RULES
    )
    assert [planned.task.id for planned in chosen] == [old.id]
