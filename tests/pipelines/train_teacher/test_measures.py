"""What the base does not know, the gold answers' probability and all graders, with real students."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from evaluation.domains import load_split
from evaluation.tasks import CONTINUATION, PARAPHRASES, Question
from pipelines.lineage.tables import comparison_metrics, variant_metrics
from pipelines.loop.update import questions_of
from pipelines.reports.console import run_table
from pipelines.train_teacher.comparison import (
    Unknown,
    compare_unknown,
    compare_variants,
    failed_in_all,
    find_unknown,
    with_unknown,
)
from pipelines.train_teacher.edits import Diagnostics
from pipelines.train_teacher.plan import plan_run
from pipelines.train_teacher.variants import Comparing
from tests.pipelines.factories import grid_config, make_candidate, make_loop, make_replicate, make_variant, small_config

verdicts = st.lists(st.sampled_from([True, False, None]), min_size=4, max_size=4)
INTERVALS = {"confidence": 0.95, "resamples": 100, "seed": 0}


@given(st.lists(verdicts, min_size=1, max_size=8), st.data())
def test_unknown_is_what_the_base_fails_in_every_phrasing(asked: list[list[bool | None]], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, 3)) for _ in asked]
    first = [each[0] for each in asked]
    others = [v for each, count in zip(asked, counts, strict=True) for v in each[1 : 1 + count]]
    unknown = failed_in_all(first, others, counts)
    assert unknown == tuple(set(each[: 1 + count]) == {False} for each, count in zip(asked, counts, strict=True))
    base = make_variant("base", candidates=(), accuracy={"d": 0.5}, verdicts={"d": tuple(first)})
    found = with_unknown(base, Unknown({"d": unknown}, 4)).unknown
    assert found == ({"d": 0.0} if any(unknown) else {})


def test_accuracy_on_unknown_questions_is_over_all_updates_of_the_documents_that_have_them() -> None:
    updates = [make_replicate("doc-0", i, exact=exact) for i, exact in enumerate([(True, True), (True, False)])]
    candidates = [make_candidate("doc-0", u.index, replicates=(u,)) for u in updates]
    candidates.append(make_candidate("doc-1", replicates=(make_replicate("doc-1"),)))
    unknown = Unknown({"doc-0": (False, True), "doc-1": (False, False)}, 4)
    variant = make_variant(candidates=tuple(candidates), accuracy={"doc-0": 0.75, "doc-1": 0.5})
    variant = with_unknown(variant, unknown)
    assert variant.unknown == {"doc-0": 0.5}
    found = compare_unknown([variant], unknown, ["doc-0", "doc-1"], [], INTERVALS)
    assert found is not None
    assert (found.unknown, found.questions, found.documents) == (1, 4, 1)
    everything = Unknown({"doc-0": (True, True), "doc-1": (True, True)}, 1)
    assert with_unknown(variant, everything).unknown == variant.accuracy
    nothing = Unknown({"doc-0": (False, False)}, 4)
    assert compare_unknown([with_unknown(variant, nothing)], nothing, ["doc-0"], [], INTERVALS) is None


def test_questions_are_asked_in_other_words_where_words_matter(tmp_path: Path) -> None:
    asked = Question(question="Who {was} it?", answer="Ann")
    assert [q.question for q in asked.rephrased][-1] == "Who {was} it? (short answer)"
    assert {q.answer for q in asked.rephrased} == {"Ann"}
    assert Question(question="It was", answer="Ann", phrasing=CONTINUATION).rephrased == ()
    micro = load_split(small_config().data).test[0]
    for question in micro.comparison_questions:
        assert len({question.question, *(other.question for other in question.rephrased)}) == 1 + len(PARAPHRASES)
    grids = grid_config(tmp_path)
    assert questions_of(load_split(grids.data).test[0], "paraphrases") == ()
    assert "known questions" not in {stage.name for stage in plan_run(grids)}


@pytest.mark.parametrize("listed", ["base, ", ""])
def test_a_comparison_shows_every_measure(tmp_path: Path, prefect_server: None, listed: str) -> None:
    config = small_config(
        "loop.rounds=0",
        f"comparison={{variants: [{listed}raw_passage, untrained_teacher], edits: 1, resamples: 100}}",
        "grading={grader: {type: token-f1}, max_new_tokens: 4}",
    )
    loop = make_loop(config, tmp_path / "work")
    mine = Comparing(config, loop, load_split(config.data), {}, Diagnostics(loop.tasks, None))
    stages = plan_run(config)
    for stage in stages:
        if stage.name.startswith("variant"):
            mine.add(stage)
    unknown = find_unknown(mine, next(stage for stage in stages if stage.name == "known questions"))
    scored = [with_unknown(variant, unknown) for variant in mine.scored]
    comparison = compare_variants(scored, mine.intervals, unknown)
    assert comparison.unknown is not None
    assert comparison.unknown.phrasings == 1 + len(PARAPHRASES)
    assert comparison.unknown.unknown == sum(itertools.chain.from_iterable(unknown.questions.values()))
    assert 0 < comparison.unknown.unknown < comparison.unknown.questions
    assert comparison.unknown.variants.keys() == comparison.token_probability.keys() == comparison.variants.keys()
    if listed:
        assert comparison.unknown.variants["base"].mean == 0.0
    assert comparison.graders is not None
    assert comparison.graders.configured == "token-f1"
    answers = sum(len(v.grades["exact"]) for v in scored)
    assert [(a.second, a.answers) for a in comparison.graders.agreement[:2]] == [
        ("exact", answers),
        ("gold-token-recall", answers),
    ]
    out = io.StringIO()
    Console(width=80, file=out).print(run_table(comparison, scored))
    words = " ".join(out.getvalue().split())
    assert f"{comparison.unknown.unknown} of {comparison.unknown.questions} questions that the base fails in" in words
    shown = comparison_metrics(comparison)
    assert shown["eval/raw_passage/unknown_accuracy"] == comparison.unknown.variants["raw_passage"].mean
    assert "kappa/token-f1/exact" in shown
    assert variant_metrics(scored[-1], None)["eval/token_probability"] > 0.0
