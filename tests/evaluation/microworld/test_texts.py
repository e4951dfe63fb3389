"""Lines of self-edits and their classification, oracle lines and swaps."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation.microworld.texts import (
    ALTERED,
    LINES_PER_EDIT,
    MIXTURES,
    USEFUL,
    LineKind,
    classify_line,
    oracle_lines,
    write_edit,
    write_line,
)
from evaluation.microworld.world import (
    ATTRIBUTES,
    ENTITY_KINDS,
    FILLERS,
    NAME_PARTS,
    OPENINGS,
    PHRASINGS,
    VALUES,
    Attribute,
    Sheet,
    draw_documents,
)

# Lines

SEEDS = st.integers(min_value=0, max_value=2**31)
DOCUMENTS = draw_documents("development", 12, 0)
SHEETS = [document.sheet for document in DOCUMENTS]
SHEET = st.sampled_from(SHEETS)
MIXTURE = st.sampled_from(sorted(MIXTURES))
WRITTEN = [kind for kind in LineKind if kind is not LineKind.BROKEN]
STATES = (LineKind.STATEMENT, LineKind.QUESTION, LineKind.COPY)


def line_of_kind(rng: random.Random, sheet: Sheet, kind: str) -> str:
    """Return a line that `write_line` draws from a mixture of `kind` alone; altered ones take either true form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXTURES, "one kind", {"statement": 0.0, "question": 0.0, kind: 1.0})
        return write_line(rng, sheet, "one kind")


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET)
def test_classify_line_agrees_with_the_kind_drawn(kind: LineKind, seed: int, sheet: Sheet) -> None:
    line = line_of_kind(random.Random(seed), sheet, kind)
    classified = classify_line(line, sheet)
    assert classified.kind is kind, line
    if kind in STATES:
        assert (classified.name, classified.value) != (None, None)
        assert sheet.value_of(str(classified.name), str(classified.attribute)) == classified.value
    if kind in ALTERED:
        assert classified.name in sheet.names
        stated = {f.value for f in sheet.facts if f.attribute == classified.attribute}
        assert (classified.value in stated) == (kind is LineKind.SWAPPED)
        assert sheet.value_of(str(classified.name), str(classified.attribute)) != classified.value


@pytest.mark.parametrize("sheet", SHEETS[:3], ids=[sheet.kind for sheet in SHEETS[:3]])
def test_classify_line_knows_every_form_of_every_fact(sheet: Sheet) -> None:
    for fact in sheet.facts:
        forms = [(LineKind.STATEMENT, form) for form in fact.words.statements]
        forms += [(LineKind.COPY, form) for form in fact.words.passage]
        forms += [(LineKind.QUESTION, f"Question: {q} Answer: {{value}}") for q in fact.words.questions]
        for kind, form in forms:
            line = form.format(name=fact.name, value=fact.value)
            assert classify_line(line, sheet) == (kind, fact.attribute, fact.name, fact.value)


def test_classify_line_nameless_with_a_value_of_nobody_is_wrong() -> None:
    assert SHEETS[0].kind == "person"
    line = ATTRIBUTES["person"][SHEETS[0].facts[0].attribute].anonymous.format(value="nowhere")
    assert classify_line(line, SHEETS[0]).kind is LineKind.WRONG


@pytest.mark.parametrize("kind", ENTITY_KINDS)
def test_classify_line_two_templates_fused_is_broken(kind: str) -> None:
    sheet = next(sheet for sheet in SHEETS if sheet.kind == kind)
    for one, other in itertools.permutations(sheet.facts, 2):
        for first, second in itertools.product(one.words.statements, other.words.statements):
            head, tail = first.split("{value}")[0], second.split("{name}")[1]
            fused = (head + tail.lstrip()).format(name=one.name, value=other.value)
            joined = (
                f"{first.format(name=one.name, value=one.value)} {second.format(name=other.name, value=other.value)}"
            )
            assert classify_line(fused, sheet).kind is LineKind.BROKEN, fused
            assert classify_line(joined, sheet).kind is LineKind.BROKEN, joined


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, kind=st.sampled_from([*STATES, LineKind.SWAPPED, LineKind.WRONG]))
def test_classify_line_malformed_names_are_broken(seed: int, sheet: Sheet, kind: LineKind) -> None:
    line = line_of_kind(random.Random(seed), sheet, kind)
    name = next(name for name in sheet.names if name in line)
    first, last = name.split()
    stranger = next(other.names[0] for other in SHEETS if other.kind == sheet.kind and other is not sheet)
    mixed = f"{first} {next(n for n in sheet.names if n != name).split()[1]}"
    repeated = (f"{name} {last}", f"{first} {name}", f"{name} {name}")
    for malformed in (first, last, *repeated, f"{last} {first}", stranger, mixed):
        assert classify_line(line.replace(name, malformed), sheet).kind is LineKind.BROKEN, malformed


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, kind=st.sampled_from(WRITTEN), data=st.data())
def test_classify_line_cut_short_is_broken(seed: int, sheet: Sheet, kind: LineKind, data: st.DataObject) -> None:
    words = line_of_kind(random.Random(seed), sheet, kind).split()
    kept = data.draw(st.integers(min_value=0, max_value=len(words) - 1))
    assert classify_line(" ".join(words[:kept]), sheet).kind is LineKind.BROKEN


@settings(max_examples=100, deadline=None)
@given(text=st.text(), sheet=SHEET)
def test_classify_line_takes_any_text_and_finds_nothing_true_in_it(text: str, sheet: Sheet) -> None:
    assume(text not in FILLERS)
    assert classify_line(text, sheet).kind is LineKind.BROKEN


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, mixture=MIXTURE)
def test_write_line_clean_is_true_and_edits_are_lists_of_unbroken_lines(seed: int, sheet: Sheet, mixture: str) -> None:
    line = write_line(random.Random(seed), sheet, mixture, clean=True)
    assert classify_line(line, sheet).kind in STATES
    lines = write_edit(random.Random(seed), sheet, mixture).split("\n")
    assert LINES_PER_EDIT[0] <= len(lines) <= LINES_PER_EDIT[1]
    assert all(line.startswith("- ") for line in lines)
    assert LineKind.BROKEN not in {classify_line(line[2:], sheet).kind for line in lines}


@pytest.mark.parametrize("mixture", list(MIXTURES))
def test_mixtures_sum_to_one_and_lines_are_drawn_by_their_shares(mixture: str) -> None:
    """Within four standard errors of a share from 3,000 draws: at most 0.036."""
    assert sum(MIXTURES[mixture].values()) == pytest.approx(1.0)
    assert set(MIXTURES[mixture]) <= {kind.value for kind in WRITTEN}
    assert min(MIXTURES[mixture].values()) > 0
    assert 0 < sum(MIXTURES[mixture].get(kind, 0.0) for kind in USEFUL) < 1
    rng, draws = random.Random(0), 3000
    kinds: Counter[LineKind] = Counter()
    for _ in range(draws):
        sheet = rng.choice(SHEETS)
        kinds[classify_line(write_line(rng, sheet, mixture), sheet).kind] += 1
    for kind in LineKind:
        share = MIXTURES[mixture].get(kind, 0.0)
        assert kinds[kind] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


# Oracle lines and swaps

EVERY_VALUE = {value for values in VALUES.values() for value in values}


def sentences(words: Attribute) -> list[str]:
    return [*words.passage, *words.statements, words.anonymous, *words.questions]


@pytest.mark.parametrize("sheet", [d.sheet for d in DOCUMENTS[:3]], ids=[d.sheet.kind for d in DOCUMENTS[:3]])
def test_oracle_lines_tell_every_fact_as_a_question_and_as_a_statement(sheet: Sheet) -> None:
    stated: Counter[tuple[LineKind, str | None, str | None, str | None]] = Counter()
    for text, answer in oracle_lines(sheet):
        stated[classify_line(text if answer is None else f"Question: {text} Answer: {answer}", sheet)] += 1
    kinds = (LineKind.QUESTION, LineKind.STATEMENT)
    assert stated == Counter((kind, f.attribute, f.name, f.value) for f in sheet.facts for kind in kinds)


def test_oracle_questions_are_asked_by_rewards_and_not_by_comparisons() -> None:
    for task, sheet in DOCUMENTS:
        asked = {(text, answer) for text, answer in oracle_lines(sheet) if answer is not None}
        assert asked == {(q.question, q.answer) for q in task.questions if q.phrasing == PHRASINGS[0]}
        assert not asked & {(q.question, q.answer) for q in task.comparison_questions}


def test_no_sentence_or_name_holds_a_value_but_one_question_at_its_end() -> None:
    stated = [s for kind in ENTITY_KINDS for words in ATTRIBUTES[kind].values() for s in sentences(words)]
    stated += [*FILLERS, *(opening for openings in OPENINGS.values() for opening in openings)]
    stated += [word for parts in NAME_PARTS.values() for words in parts for word in words]
    found = [(s, word) for s in stated for word in re.findall(r"\w+", s) if word.casefold() in EVERY_VALUE]
    assert found == [("What mark does {name} bear?", "bear")]
