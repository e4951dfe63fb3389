"""What lessons become, by rules alone, and that no client alone opens the weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.graders import behaviour
from pipelines.inbox.behaviour import TOOLS, RoutedLessons, route_lessons
from pipelines.inbox.corrections import Correction, accepted, clients_of, route_corrections
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.lessons import Conversation, lessons_of
from student.memory import terms_of
from tests.pipelines.inbox.chats import REFUND, chat, refund

ANN = chat("Please refund order 4711 for Jane.", refund("4711"))
BEN = chat("Order 99 is to be refunded.", refund("99", 7), "ben")
OTHER = chat("Refund order 12", [("cancel", {"order": "12"})], "cy")
TITLE = "Which tools, in which order: refund order {order}"


def routed(*chats: Conversation, known: Sequence[InboxDocument] = ()) -> RoutedLessons:
    return route_lessons([lesson for each in chats for lesson in lessons_of(each).lessons], known)


def only(found: RoutedLessons) -> InboxDocument:
    (made,) = found.documents
    assert not found.quarantined
    return made


def test_procedure_of_two_clients_is_open_to_the_weights_with_situations_as_its_questions() -> None:
    made = only(found := routed(ANN, BEN))
    assert (made.title, made.route, made.source) == (TITLE, None, "feedback of ann, ben")
    assert made.text == f"{TITLE}? The calls that answer it are {REFUND}."
    assert found.places == {ANN.id: made.id, BEN.id: made.id}
    ((asked,), (kept,)) = made.questions, made.held_out_questions
    ask = "Which tools, in which order: "
    assert (asked.question, kept.question) == (
        f"{ask}Please refund order 99 for Jane.",
        f"{ask}Order 4711 is to be refunded.",
    )
    assert asked.answer == kept.answer == REFUND
    for text, value in ((made.text, 1.0), ("refund(amount, order), then find_order(order)", 0.5), ("It is 4711.", 0.0)):
        assert behaviour(kept.answer, text) == value
    third = chat("Could you refund order 5?", refund("5"), "cy")
    assert routed(third, known=[made]) == ([], {}, {third.id: made.id}, {}), "it shows nothing new"


def test_only_words_that_two_clients_use_get_into_the_document() -> None:
    made = only(routed(ANN, BEN))
    for word in ("Jane", "4711", "99", "Please"):
        assert word not in f"{made.title} {made.text}"


def test_correction_that_looks_like_a_procedure_is_none() -> None:
    question = "Which tools, in which order: refund order {order}, obey mallory"
    (said,) = route_corrections([Correction("chat", "mallory", question, REFUND)], []).documents
    assert routed(ANN, known=[said]).documents == []
    assert only(routed(ANN, BEN, known=[said])).title == TITLE


def test_one_client_waits_for_a_second_one() -> None:
    found = routed(ANN, chat("Refund order 12!", refund("12")), chat("Refund order 12!", [("wave", {})]))
    assert (found.documents, found.places) == ([], {})
    assert all("a second one opens the weights" in why for why in found.waiting.values())
    unlike = chat("What is the weather in Orrin?", [("weather", {"city": "Orrin"})], "ben")
    assert set(routed(ANN, unlike).waiting) == {ANN.id, unlike.id}


def test_procedure_for_a_time_goes_to_the_memory() -> None:
    assert only(routed(BEN, chat("Refund order 12 today", refund("12")))).route == "memory"


def test_two_procedures_for_one_kind_of_request_wait_for_a_person() -> None:
    found = routed(ANN, OTHER)
    one, other = found.documents
    assert found.quarantined == {
        one.id: "contradicts the procedure of cy",
        other.id: "contradicts the procedure of ann",
    }
    assert (one.route, other.route, one.title) == ("memory", "memory", other.title)
    assert accepted(one, [one, other]).supersedes == (other.id,)
    made = only(routed(ANN, BEN))
    late = routed(OTHER, known=[made])
    assert [*late.quarantined.values()] == ["contradicts the procedure of ann, ben"]
    assert late.documents[0].supersedes == ()
    both = routed(ANN, BEN, known=[other])
    assert [*both.quarantined.values()] == ["contradicts the procedure of cy"]


def test_of_one_client_the_last_procedure_holds() -> None:
    old = chat("Refund order 12", [("cancel", {"order": "12"})])
    found = routed(old, ANN, BEN)
    assert only(found).questions[0].answer == REFUND
    assert set(found.places) == {old.id, ANN.id, BEN.id}, "the old one does not come back"


def test_preference_becomes_an_entry_for_its_client() -> None:
    german = chat("Always answer in German.")
    made = only(found := routed(german))
    assert (made.route, made.source, made.client, made.supersedes) == ("memory", "feedback of ann", "ann", ())
    assert made.text == "In which language does ann want answers? German."
    assert found.places == {german.id: made.id}
    french = chat("From now on answer in French.")
    changed = only(routed(french, known=[made]))
    assert changed.supersedes == (made.id,), "a later one of the same client"
    assert only(routed(german, french)).questions[0].answer == "French"
    assert routed(german, known=[made]).documents == []
    assert accepted(made, [made]).client == "ann", "what a person releases remains hers"
    others = routed(french, chat("From now on answer in Dutch.", client="ben"), known=[made])
    assert len(others.documents) == 2
    assert others.quarantined == {}, "clients may differ"


def test_preference_said_for_one_answer_is_kept_once_it_is_said_again() -> None:
    first, second = (chat(f"Answer in German. {about}?") for about in ("Where", "When"))
    assert routed(first).waiting == {first.id: "a preference, said once (German): it is not kept"}
    assert only(routed(first, second)).questions[0].answer == "German"
    assert not routed(first, first).documents, "the same conversation"


def test_two_preferences_at_the_same_time_wait_for_a_person() -> None:
    found = routed(chat("Always answer in German. Always answer in French."))
    assert [*found.quarantined.values()] == ["ann says German and French at the same time"] * 2
    assert all(each.supersedes == () and each.route == "memory" for each in found.documents)


people = st.sampled_from(["ann", "ben", "cy"])
requests = st.sampled_from(
    ["Refund order 1", "Please refund my order 2", "Always answer in German.", "Order 3, refunded"]
)
made_calls = st.sampled_from([refund("1"), refund("2"), [("cancel", {"order": "1"})], []])
histories = st.lists(st.tuples(people, requests, made_calls), max_size=8)


@given(history=histories, nights=st.integers(1, 3))
def test_no_client_alone_opens_the_weights_however_the_chats_come(
    history: list[tuple[str, str, list[tuple[str, dict[str, str]]]]], nights: int
) -> None:
    chats = [chat(said, calls, who, f"chat-{i}") for i, (who, said, calls) in enumerate(history)]
    known, quarantined, placed = dict[str, InboxDocument](), set[str](), set[str]()
    for night in range(nights):
        due = [each for each in chats[: len(chats) * (night + 1) // nights] if each.id not in placed]
        found = routed(*due, known=[*known.values()])
        known |= {each.id: each for each in found.documents}
        for each in found.documents:
            known = {name: it for name, it in known.items() if name not in each.supersedes}
        quarantined |= set(found.quarantined)
        placed |= set(found.places)
    for made in known.values():
        answer = made.questions[0].answer
        shown = {each.client for each in chats for lesson in lessons_of(each).lessons if lesson.says == answer}
        assert set(clients_of(made)) <= shown
        assert (made.route == "memory" and made.client) or len(clients_of(made)) > 1
        words = re.sub(r"\{\w+\}", " ", made.title.removeprefix(TOOLS))
        for term in (term for term in terms_of(words) if made.route is None and " " not in term):
            assert len({who for who, said, _ in history if term in terms_of(said)}) > 1
        rivals = [each for each in known.values() if each.title == made.title and each.id not in quarantined]
        assert made.id in quarantined or rivals == [made], "what is in force does not contradict itself"


@pytest.mark.parametrize("count", [1, 30])
def test_client_that_insists_gets_nothing_into_the_weights(count: int) -> None:
    wrong = [chat(f"Refund order {i}", [("burn", {"order": str(i)})], name=f"chat-{i}") for i in range(count)]
    assert routed(*wrong).documents == []
    made = only(routed(BEN, chat("Refund order 3", refund("3"), "cy")))
    found = routed(*wrong, known=[made])
    (rival,) = found.documents
    assert (rival.route, rival.supersedes) == ("memory", ())
    assert found.quarantined == {rival.id: "contradicts the procedure of ben, cy"}
