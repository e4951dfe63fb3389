from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.inbox.superseding import Arrival, Claim, newest, unknown_targets

_NAMES = st.sampled_from("abcdef")


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Arrival], list[Claim]]:
    names = draw(st.lists(_NAMES, min_size=1, max_size=6, unique=True))
    claimants = st.tuples(
        st.sampled_from(names), st.sampled_from(["w1", "w2", ""]), st.sampled_from([*"abcdef", "s", "t"])
    )
    raw = draw(st.lists(claimants, max_size=8, unique=True))
    places = draw(st.permutations(range(1, len(names) + len(raw) + 1)))
    arrivals = [Arrival(name, "", "", draw(st.sampled_from("st")), places[i]) for i, name in enumerate(names)]
    claims = [Claim(d, w or d, t, places[len(names) + i]) for i, (d, w, t) in enumerate(raw)]
    return arrivals, sorted(claims, key=lambda claim: claim.place)


@given(_histories())
def test_chains_end_at_documents_in_force(history: tuple[list[Arrival], list[Claim]]) -> None:
    arrivals, claims = history
    found = newest(arrivals, claims)
    assert not set(found.values()) & set(found)
    assert set(found.values()) <= {claim.document for claim in claims}
    if arrivals:
        assert len(found) < len(arrivals)


def test_of_several_claims_the_latest_whole_and_in_it_the_same_title_stand_for_a_document() -> None:
    arrivals = [
        Arrival("old", "Fees", "", "book", 1),
        Arrival("two-a", "Intro", "", "book", 2),
        Arrival("two-b", "Fees", "", "book", 3),
        Arrival("two-c", "End", "", "book", 4),
    ]
    claims = [Claim(name, "w2", "book", i) for i, name in enumerate(("two-a", "two-b", "two-c"), start=5)]
    assert newest(arrivals, claims) == {"old": "two-b"}
    later = [*arrivals, Arrival("three", "All", "", "book", 8)]
    assert set(newest(later, [*claims, Claim("three", "w3", "book", 9)]).values()) == {"three"}


def test_target_of_the_own_whole_alone_is_unknown() -> None:
    arrivals = [Arrival("a", "", "", "book", 1), Arrival("b", "", "", "book", 2)]
    claims = [Claim("a", "w", "book", 3), Claim("b", "w", "nowhere", 4)]
    assert newest(arrivals, claims) == {}
    assert unknown_targets(arrivals, claims) == {"a": ("book",), "b": ("nowhere",)}
