"""Which documents a night is about, and where they go."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.adapt_student.config import NightConfig, RoutingConfig
from pipelines.adapt_student.plan import (
    QUARANTINED,
    WITHOUT_QUESTIONS,
    InboxContent,
    NightPlan,
    new_plan,
    plan_night,
    plan_questions,
    route,
    waits,
)
from pipelines.adapt_student.state import StudentState
from pipelines.plan import UpdateSize, steps_of, totals
from pipelines.settings import load
from tests.pipelines.adapt_student.factories import DEMO, document, held, state

RULES = RoutingConfig()
SMALL = load(
    DEMO, NightConfig, ["writing={edits: 3, learned: 2}", "teacher.sampling.max_new_tokens=40", "replay.general=7"]
)


def planned(inbox: InboxContent, known: StudentState, config: NightConfig = SMALL) -> NightPlan:
    return new_plan(config, Path("nowhere"), inbox, None, known)


@pytest.mark.parametrize(
    ("given", "replaces", "place", "because"),
    [
        (document("a"), 0, "weights", "no rule"),
        (document("a"), 2, "memory", "2 earlier documents"),
        (document("a", effective=date(2026, 1, 5)), 0, "memory", "2026-01-05"),
        (document("a", text="The price is currently 5."), 0, "memory", "volatile ('currently')"),
        (document("a", text="AS OF TODAY the shop is open."), 0, "memory", "volatile"),
        (document("a", text="x" * 20_001), 0, "memory", "20001 characters"),
        (document("a", text="The price is currently 5.", route="weights"), 3, "weights", "sender"),
        (document("a", route="memory"), 0, "memory", "sender"),
    ],
)
def test_route_by_hint_then_rules(given, replaces, place, because) -> None:  # type: ignore[no-untyped-def]
    found, reason = route(given, RULES, replaces=replaces)
    assert found == place
    assert because in reason


def test_rules_can_send_everything_to_the_weights() -> None:
    rules = RoutingConfig(changing="weights", volatile_patterns=())
    given = document("a", text="It is currently so.", effective=date(2026, 1, 5))
    assert route(given, rules, replaces=1)[0] == "weights"


def test_invalid_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        RoutingConfig(volatile_patterns=("(",))


def test_only_what_is_new_current_and_released_is_chosen() -> None:
    old, new, learned, poisoned = document("old"), document("new", supersedes=("old",)), document("b"), document("c")
    silent = document("d", questions=0)
    inbox = InboxContent((old, learned, new, poisoned, silent), frozenset({poisoned.id}), {old.id: new.id})
    plan = planned(inbox, state(held(learned, "night-0001")))
    assert [(each.task.id, each.place) for each in plan.documents] == [(new.id, "memory")]
    assert (plan.night, plan.without_questions) == ("night-0001", (silent.id,))
    assert plan.superseded == {}  # the student never held the old one
    assert planned(inbox, state(held(old, "night-0001"))).superseded == {old.id: new.id}
    assert inbox.unasked((), SMALL) == (silent,)
    assert inbox.unasked((), SMALL.model_copy(update={"questions": None})) == inbox.unasked((silent.id,), SMALL) == ()
    assert waits(inbox, (learned.id,), plan) == {silent.id: WITHOUT_QUESTIONS, poisoned.id: QUARANTINED}


def test_documents_without_questions_are_looked_up_where_they_are_routed_or_nothing_can_be_asked() -> None:
    dated, silent, odd = (
        document("a", questions=0, effective=date(2026, 1, 5)), document("b", questions=0), document("c", questions=0)
    )  # fmt: skip
    inbox = InboxContent((dated, silent, odd), frozenset(), {}, notes={odd.id: "nothing to ask"})
    assert inbox.unasked((), SMALL) == (silent, odd)
    plan = new_plan(SMALL, Path("nowhere"), inbox, None, StudentState(), (odd.id,))
    assert [(each.task.id, each.place) for each in plan.documents] == [(dated.id, "memory"), (odd.id, "memory")]
    assert (plan.documents[1].because, plan.without_questions) == ("nothing to ask", (silent.id,))


def test_quarantined_document_replaces_nothing() -> None:
    old, wrong = document("old"), document("wrong", supersedes=("old",))
    inbox = InboxContent((old, wrong), frozenset({wrong.id}), {old.id: wrong.id})
    assert [each.task.id for each in planned(inbox, StudentState()).documents] == [old.id]


def test_correction_of_one_client_that_is_opened_is_held_anew_for_everybody() -> None:
    given = document("a", route="memory")
    own = held(given, "night-0001", "memory").model_copy(update={"client": "ann"})
    assert [entry.client for entry in state(own).memory.entries] == ["ann"]
    still = InboxContent((given.model_copy(update={"client": "ann"}),), frozenset(), {})
    assert (planned(still, state(own)).documents, planned(still, state(own)).removed) == ((), ())
    plan = planned(still._replace(documents=(given,)), state(own))
    assert [(each.task.id, each.client) for each in plan.documents] == [(given.id, "")]
    after = state(own).without(plan.removed).after(plan.documents, {})
    assert [(entry.id, entry.client) for entry in after.memory.entries] == [(given.id, "")]


def test_plan_that_an_earlier_release_wrote_is_read() -> None:
    plan = planned(InboxContent((document("a"),), frozenset(), {}), StudentState())
    written = plan.model_dump(mode="json") | {"parent_digest": "0" * 64}
    for each in written["documents"]:
        each |= {"because": "nothing says that it will change"}
        del each["night"], each["edits"], each["superseded_by"]
    found = NightPlan.model_validate(written)
    assert (found.night, found.to_weights) == (plan.night, plan.to_weights)


def test_stages_count_self_edits_updates_and_documents_scored() -> None:
    known = state(held(document("x"), "night-0001"), held(document("y"), "night-0001"))
    inbox = InboxContent((document("a"), document("b", route="memory")), frozenset(), {})
    stages = plan_night(SMALL, planned(inbox, known), known)
    assert totals(steps_of(stages)) == {"sample": 3, "update": 3 + 1, "score": 2 * 4}
    assert totals(steps_of(plan_questions(SMALL, 5)))["sample"] == 5 * 4
    (size,) = (stage.subject for stage in stages if isinstance(stage.subject, UpdateSize))
    # Two self-edits of at most 20 lines are learned; beside them a line of each earlier document, and 7 questions.
    assert size.lines == 2 * 20 + 2 + 7


def test_nothing_is_trained_where_all_goes_to_memory_and_nothing_planned_without_documents() -> None:
    memory = InboxContent((document("a", route="memory"),), frozenset(), {})
    stages = plan_night(SMALL, planned(memory, StudentState()), StudentState())
    assert totals(steps_of(stages)) == {"score": 2}
    empty = planned(InboxContent((), frozenset(), {}), StudentState())
    assert plan_night(SMALL, empty, StudentState()) == plan_questions(SMALL, 0) == ()
