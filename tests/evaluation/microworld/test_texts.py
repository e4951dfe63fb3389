"""Lines of self-edits and their classification, oracle lines and swaps."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation.microworld import texts, world

# Lines

SEEDS = st.integers(min_value=0, max_value=2**31)
DOCUMENTS = world.draw_documents("development", 12, 0)
SHEETS = [document.sheet for document in DOCUMENTS]
SHEET = st.sampled_from(SHEETS)
MIXTURE = st.sampled_from(sorted(texts.MIXTURES))
WRITTEN = [kind for kind in texts.LineKind if kind is not texts.LineKind.BROKEN]
STATES = (texts.LineKind.STATEMENT, texts.LineKind.QUESTION, texts.LineKind.COPY)


def line_of_kind(rng: random.Random, sheet: world.Sheet, kind: str) -> str:
    """Return a line that `write_line` draws from a mixture of `kind` alone; altered ones take either true form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(texts.MIXTURES, "one kind", {"statement": 0.0, "question": 0.0, kind: 1.0})
        return texts.write_line(rng, sheet, "one kind")


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET)
def test_classify_line_agrees_with_the_kind_drawn(kind: texts.LineKind, seed: int, sheet: world.Sheet) -> None:
    line = line_of_kind(random.Random(seed), sheet, kind)
    classified = texts.classify_line(line, sheet)
    assert classified.kind is kind, line
    if kind in STATES:
        assert (classified.name, classified.value) != (None, None)
        assert sheet.value_of(str(classified.name), str(classified.attribute)) == classified.value
    if kind in texts.ALTERED:
        assert classified.name in sheet.names
        stated = {f.value for f in sheet.facts if f.attribute == classified.attribute}
        assert (classified.value in stated) == (kind is texts.LineKind.SWAPPED)
        assert sheet.value_of(str(classified.name), str(classified.attribute)) != classified.value


@pytest.mark.parametrize("sheet", SHEETS[:3], ids=[sheet.kind for sheet in SHEETS[:3]])
def test_classify_line_knows_every_form_of_every_fact(sheet: world.Sheet) -> None:
    for fact in sheet.facts:
        forms = [(texts.LineKind.STATEMENT, form) for form in fact.words.statements]
        forms += [(texts.LineKind.COPY, form) for form in fact.words.passage]
        forms += [(texts.LineKind.QUESTION, f"Question: {q} Answer: {{value}}") for q in fact.words.questions]
        for kind, form in forms:
            line = form.format(name=fact.name, value=fact.value)
            assert texts.classify_line(line, sheet) == (kind, fact.attribute, fact.name, fact.value)


def test_classify_line_nameless_with_a_value_of_nobody_is_wrong() -> None:
    assert SHEETS[0].kind == "person"
    line = world.ATTRIBUTES["person"][SHEETS[0].facts[0].attribute].anonymous.format(value="nowhere")
    assert texts.classify_line(line, SHEETS[0]).kind is texts.LineKind.WRONG


@pytest.mark.parametrize("kind", world.ENTITY_KINDS)
def test_classify_line_two_templates_fused_is_broken(kind: str) -> None:
    sheet = next(sheet for sheet in SHEETS if sheet.kind == kind)
    for one, other in itertools.permutations(sheet.facts, 2):
        for first, second in itertools.product(one.words.statements, other.words.statements):
            head, tail = first.split("{value}")[0], second.split("{name}")[1]
            fused = (head + tail.lstrip()).format(name=one.name, value=other.value)
            joined = (
                f"{first.format(name=one.name, value=one.value)} {second.format(name=other.name, value=other.value)}"
            )
            assert texts.classify_line(fused, sheet).kind is texts.LineKind.BROKEN, fused
            assert texts.classify_line(joined, sheet).kind is texts.LineKind.BROKEN, joined


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, kind=st.sampled_from([*STATES, texts.LineKind.SWAPPED, texts.LineKind.WRONG]))
def test_classify_line_malformed_names_are_broken(seed: int, sheet: world.Sheet, kind: texts.LineKind) -> None:
    line = line_of_kind(random.Random(seed), sheet, kind)
    name = next(name for name in sheet.names if name in line)
    first, last = name.split()
    stranger = next(other.names[0] for other in SHEETS if other.kind == sheet.kind and other is not sheet)
    mixed = f"{first} {next(n for n in sheet.names if n != name).split()[1]}"
    repeated = (f"{name} {last}", f"{first} {name}", f"{name} {name}")
    for malformed in (first, last, *repeated, f"{last} {first}", stranger, mixed):
        assert texts.classify_line(line.replace(name, malformed), sheet).kind is texts.LineKind.BROKEN, malformed


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, kind=st.sampled_from(WRITTEN), data=st.data())
def test_classify_line_cut_short_is_broken(
    seed: int, sheet: world.Sheet, kind: texts.LineKind, data: st.DataObject
) -> None:
    words = line_of_kind(random.Random(seed), sheet, kind).split()
    kept = data.draw(st.integers(min_value=0, max_value=len(words) - 1))
    assert texts.classify_line(" ".join(words[:kept]), sheet).kind is texts.LineKind.BROKEN


@settings(max_examples=100, deadline=None)
@given(text=st.text(), sheet=SHEET)
def test_classify_line_takes_any_text_and_finds_nothing_true_in_it(text: str, sheet: world.Sheet) -> None:
    assume(text not in world.FILLERS)
    assert texts.classify_line(text, sheet).kind is texts.LineKind.BROKEN


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, sheet=SHEET, mixture=MIXTURE)
def test_write_line_clean_is_true_and_edits_are_lists_of_unbroken_lines(
    seed: int, sheet: world.Sheet, mixture: str
) -> None:
    line = texts.write_line(random.Random(seed), sheet, mixture, clean=True)
    assert texts.classify_line(line, sheet).kind in STATES
    lines = texts.write_edit(random.Random(seed), sheet, mixture).split("\n")
    assert texts.LINES_PER_EDIT[0] <= len(lines) <= texts.LINES_PER_EDIT[1]
    assert all(line.startswith("- ") for line in lines)
    assert texts.LineKind.BROKEN not in {texts.classify_line(line[2:], sheet).kind for line in lines}


@pytest.mark.parametrize("mixture", list(texts.MIXTURES))
def test_mixtures_sum_to_one_and_lines_are_drawn_by_their_shares(mixture: str) -> None:
    """Within four standard errors of a share from 3,000 draws: at most 0.036."""
    assert sum(texts.MIXTURES[mixture].values()) == pytest.approx(1.0)
    assert set(texts.MIXTURES[mixture]) <= {kind.value for kind in WRITTEN}
    assert min(texts.MIXTURES[mixture].values()) > 0
    assert 0 < sum(texts.MIXTURES[mixture].get(kind, 0.0) for kind in texts.USEFUL) < 1
    rng, draws = random.Random(0), 3000
    kinds: Counter[texts.LineKind] = Counter()
    for _ in range(draws):
        sheet = rng.choice(SHEETS)
        kinds[texts.classify_line(texts.write_line(rng, sheet, mixture), sheet).kind] += 1
    for kind in texts.LineKind:
        share = texts.MIXTURES[mixture].get(kind, 0.0)
        assert kinds[kind] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


# Oracle lines and swaps

EVERY_VALUE = {value for values in world.VALUES.values() for value in values}


def sentences(words: world.Attribute) -> list[str]:
    return [*words.passage, *words.statements, words.anonymous, *words.questions]


@pytest.mark.parametrize("sheet", [d.sheet for d in DOCUMENTS[:3]], ids=[d.sheet.kind for d in DOCUMENTS[:3]])
def test_oracle_lines_tell_every_fact_as_a_question_and_as_a_statement(sheet: world.Sheet) -> None:
    stated: Counter[tuple[texts.LineKind, str | None, str | None, str | None]] = Counter()
    for text, answer in texts.oracle_lines(sheet):
        stated[texts.classify_line(text if answer is None else f"Question: {text} Answer: {answer}", sheet)] += 1
    kinds = (texts.LineKind.QUESTION, texts.LineKind.STATEMENT)
    assert stated == Counter((kind, f.attribute, f.name, f.value) for f in sheet.facts for kind in kinds)


def test_oracle_questions_are_asked_by_rewards_and_not_by_comparisons() -> None:
    for task, sheet in DOCUMENTS:
        asked = {(text, answer) for text, answer in texts.oracle_lines(sheet) if answer is not None}
        assert asked == {(q.question, q.answer) for q in task.questions if q.phrasing == world.PHRASINGS[0]}
        assert not asked & {(q.question, q.answer) for q in task.comparison_questions}


def test_no_sentence_or_name_holds_a_value_but_one_question_at_its_end() -> None:
    stated = [s for kind in world.ENTITY_KINDS for words in world.ATTRIBUTES[kind].values() for s in sentences(words)]
    stated += [*world.FILLERS, *(opening for openings in world.OPENINGS.values() for opening in openings)]
    stated += [word for parts in world.NAME_PARTS.values() for words in parts for word in words]
    found = [(s, word) for s in stated for word in re.findall(r"\w+", s) if word.casefold() in EVERY_VALUE]
    assert found == [("What mark does {name} bear?", "bear")]
