"""Variants with real updates of tiny students: redraws, drafts, kept adapters, specifications, groups."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.common.errors import ConfigError
from evaluation.domains import load_split
from evaluation.retention import retention_probes
from evaluation.tasks import KnowledgeTask, specifications
from pipelines.models import ModelRef, open_student
from pipelines.plan import totals
from pipelines.records import Edit, Sampling, raw_passage
from pipelines.train_teacher.comparison import by_group, pairs_of
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.edits import Diagnostics, most_written, only_missed, written_line
from pipelines.train_teacher.plan import APPLIED, plan_variant
from pipelines.train_teacher.sources import (
    STANDARD,
    ActiveReading,
    AskFirst,
    BestPrompt,
    FixedPrompt,
    FixedSpecification,
    MixedPrompts,
    Variant,
)
from pipelines.train_teacher.variants import Comparing, Table, best_of, try_all
from student.adapters import load_adapter
from student.bank.scoring import ScoringFailure
from student.in_context import score_in_context
from teacher.kinds import STRATEGIES
from teacher.rewards import RewardFailure
from teacher.self_edit import Implication, SelfEdit, edit_of
from tests.pipelines.factories import grid_config, make_loop, make_variant, small_config

WITHIN = {"orientations": "none", "colourings": 0, "epochs": 2}
OVER = {"orientations": "all", "colourings": 0, "epochs": 9}
CHOICES = list(specifications({"orientations": ("none", "mirror"), "colourings": (0, 8), "epochs": (1, 2)}))
SPACE = {"orientations": ("none", "all"), "colourings": (0,), "learning_rate": (0.01,), "epochs": (1, 9)}
FIXED = Variant(name="fixed_spec", label="fixed", source=FixedSpecification(space=SPACE, tasks=2))


def comparing(config: TrainTeacherConfig, place: Path) -> Comparing:
    loop = make_loop(config, place / "work")
    return Comparing(config, loop, load_split(config.data), {}, Diagnostics(loop.tasks, None))


def written(document: str, index: int, choice: dict[str, Any] | None) -> Edit:
    if choice is not None:
        return Edit.written(document, edit_of(choice), json.dumps(choice), index=index)
    failed: dict[str, Any] = {"failure": RewardFailure.PARSE_FAILED, "rejection": "empty: nothing"}
    return Edit(document_id=document, index=index, text="", token_ids=(), finish_reason="stop", edit=None, **failed)


def test_refused_self_edits_give_their_place_to_the_next_ones(tmp_path: Path, prefect_server: None) -> None:
    mine = comparing(grid_config(tmp_path, "comparison.redraws=2"), tmp_path)
    tasks = mine.split.test[:4]
    names = [task.id for task in tasks]
    drawn: dict[str, list[dict[str, Any] | None]] = {
        names[0]: [WITHIN, OVER, OVER],  # the first one is taken, and no other is looked at
        names[1]: [OVER, None, WITHIN],  # both ahead of the last one are refused
        names[2]: [None, WITHIN, OVER],
        names[3]: [OVER, None, OVER],  # nothing is left to draw
    }
    edits = tuple(written(name, i, choice) for name, choices in drawn.items() for i, choice in enumerate(choices))
    variant = mine.score_edits(STANDARD["trained_teacher"], edits, tasks, keep=4)
    assert list(variant.accuracy) == names[:3]
    assert variant.failures == {"over_budget": 3, "parse_failed": 3}
    assert variant.notes["redrawn"] == 5
    made = {(c.edit.document_id, c.edit.index): c for c in variant.candidates}
    assert len(made) == len(variant.candidates) == 9
    assert [made[name, 0].edit.text for name in names[:3]] == [json.dumps(WITHIN)] * 3
    assert made[names[3], 0].reason is not None
    mine.scored.append(variant)
    # Controls and adapters take one self-edit a task, in the order of the tasks.
    assert [(e.document_id, e.index) for e in mine.edits_of("trained_teacher")] == [(name, 0) for name in names]
    kept = [made[name, 0].replicates[0].adapter_digest for name in names[:3]]
    assert all(digest is not None and mine.loop.adapter_dir(digest).is_dir() for digest in kept)


def test_without_redraws_a_refused_one_stays_without_a_score(tmp_path: Path, prefect_server: None) -> None:
    mine = comparing(grid_config(tmp_path), tmp_path)
    task = mine.split.test[0]
    variant = mine.score_edits(STANDARD["trained_teacher"], [written(task.id, 0, OVER)], [task])
    assert (variant.accuracy, variant.failures) == ({}, {"over_budget": 1})
    assert "redrawn" not in variant.notes


DRAFTS = st.lists(st.sampled_from([None, *range(len(CHOICES))]), min_size=1, max_size=12)


def record(names: list[int | None], document: str = "d") -> list[Edit]:
    return [written(document, i, None if name is None else CHOICES[name]) for i, name in enumerate(names)]


@given(st.lists(DRAFTS, min_size=1, max_size=3), st.integers(1, 6))
def test_the_most_written_come_first_and_each_once(documents: list[list[int | None]], count: int) -> None:
    edits = [edit for i, names in enumerate(documents) for edit in record(names, f"d{i}")]
    found = most_written(Sampling(edits=tuple(edits)), count)
    for i, names in enumerate(documents):
        mine = [edit for edit in found.edits if edit.document_id == f"d{i}"]
        assert [edit.index for edit in mine] == list(range(len(mine)))
        votes = Counter(name for name in names if name is not None)
        texts = {json.dumps(CHOICES[name]): votes[name] for name in votes}
        counted = [texts[edit.text] for edit in mine if edit.edit is not None]
        assert counted == sorted(votes.values(), reverse=True)[:count]
        assert len({edit.text for edit in mine if edit.edit is not None}) == len(counted)
        assert len(mine) == min(count, len(votes) + names.count(None))
        assert all(edit.failure is not None for edit in mine[len(counted) :])


def test_comparison_tries_what_a_teacher_writes_most_often(tmp_path: Path, prefect_server: None) -> None:
    mine = comparing(grid_config(tmp_path, "comparison.drafts=12", "comparison.redraws=1"), tmp_path)
    variant = mine.add(plan_variant(mine.config, STANDARD["untrained_teacher"]))
    assert variant is not None
    seed, prompt = mine.loop.seed("sample", "comparison"), mine.config.teacher.prompt
    wanted = most_written(mine.loop.sample(None, prompt, mine.split.test, n=12, seed=seed), 2)
    tried = {(c.edit.document_id, c.edit.index): c.edit.text for c in variant.candidates}
    first = [edit for edit in wanted.edits if edit.index == 0 and (edit.document_id, 1) not in tried]
    assert all(tried[edit.document_id, 0] == edit.text for edit in first)


def test_the_last_teacher_keeps_the_first_self_edits_of_its_first_documents(
    tmp_path: Path, prefect_server: None
) -> None:
    mine = comparing(small_config("loop.rounds=0", "comparison.keep_adapters=1"), tmp_path)
    variant = mine.add(plan_variant(mine.config, STANDARD["untrained_teacher"]))
    assert variant is not None
    kept = mine.kept_adapters(variant)
    first = next(c for c in variant.candidates if c.edit.index == 0)
    assert set(kept) == {mine.split.test[0].id}
    assert load_adapter(*kept.values()).digest == first.replicates[0].adapter_digest


MICRO = ("micro-self-qa", "micro-implications")
PROMPTED = {
    "prompt": FixedPrompt(prompt=MICRO[0]),
    "mixed": MixedPrompts(prompts=MICRO),
    "active": ActiveReading(),
    "asked": AskFirst(prompt=MICRO[0]),
    "best": BestPrompt(prompts=MICRO[:1]),
}


@pytest.mark.parametrize("equal", [False, True])
def test_prompted_baselines_are_written_and_scored_as_planned(
    equal: bool, tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = comparing(small_config("comparison.edits=2", "comparison.retention_probes=0"), tmp_path)
    done: Counter[str] = Counter()
    write = mine.loop.write
    monkeypatch.setattr(mine.loop, "write", lambda *given, **more: counted(done, write(*given, **more)))
    untrained = mine.add(plan_variant(mine.config, STANDARD["untrained_teacher"]))
    assert untrained is not None
    mine.scored[0] = untrained.model_copy(update={"name": "trained_teacher"})
    budgets = {c.edit.id: c.edit.tokens for c in untrained.candidates}
    found: dict[str, list[Edit]] = {}
    for name, source in PROMPTED.items():
        stage = plan_variant(mine.config, Variant(name=name, label=name, source=source, equal_tokens=equal))
        done.clear()
        variant = mine.add(stage)
        assert variant is not None
        planned, unread = totals(stage.steps)["sample"], 0
        if name == "active":  # what the micro teacher writes of strategies cannot always be read
            seed = mine.loop.seed("sample", "equal tokens" if equal else "comparison")
            lists = write(None, STRATEGIES, *read(mine, STRATEGIES), n=planned // 2 // (1 + APPLIED), seed=seed)
            unread = sum(edit.edit is None for edit in lists.edits)
        assert done["sample"] == planned - APPLIED * unread, name
        found[name] = [candidate.edit for candidate in variant.candidates]
        assert {edit.id for edit in found[name]} == set(budgets), name
        assert variant.edit_tokens, name
        assert len(variant.accuracy) == len(mine.split.test) or unread, name
        for edit in found[name] if equal else ():
            assert edit.tokens <= budgets[edit.id] or (edit.edit and len(edit.edit.implications) == 1)
    lines = {name: [edit.edit.implications if edit.edit else () for edit in edits] for name, edits in found.items()}
    assert all(line.answer for mine in lines["asked"] for line in mine)
    assert lines["best"] == lines["prompt"]
    if not equal:
        seed, test = mine.loop.seed("sample", "comparison"), mine.split.test
        parts = [mine.loop.sample(None, prompt, test, n=2, seed=seed).edits for prompt in MICRO]
        for mixed, first, second in zip(found["mixed"], *parts, strict=True):
            assert first.edit is not None
            assert second.edit is not None
            assert mixed.edit is not None
            assert mixed.tokens == first.tokens + second.tokens
            assert mixed.edit.implications[:2] == (first.edit.implications[0], second.edit.implications[0])


def read(mine: Comparing, prompt: str) -> tuple[list[str], tuple[KnowledgeTask, ...]]:
    return [mine.loop.prompt(prompt, task) for task in mine.split.test], mine.split.test


def counted(done: Counter[str], made: Sampling) -> Sampling:
    done["sample"] += len(made.edits)
    return made


def test_only_what_the_student_misses_is_kept(tmp_path: Path, prefect_server: None) -> None:
    mine = comparing(small_config("comparison.retention_probes=0"), tmp_path)
    probe = next(q for q in retention_probes(mine.config.data, 24, 0) if mine.loop.knows([q]) == (True,))
    known = Implication(text=probe.question, answer=probe.answer)
    other, said = Implication(text="Where does Nobody live?", answer="Nowhere"), Implication(text="It is so.")
    edits = [
        Edit.written("d", SelfEdit(implications=lines), "", tokens=9) for lines in ((known, said, other), (known,))
    ]
    some, none = only_missed(mine.loop, Sampling(edits=tuple(edits)), lambda text: len(text.split())).edits
    assert some.edit == SelfEdit(implications=(other,))
    assert some.tokens == len(written_line(other).split())
    assert (none.edit, none.failure) == (None, RewardFailure.PARSE_FAILED)


@pytest.mark.parametrize(
    ("variants", "part"),
    [
        ("[base, fixed_kind_equal_tokens]", "trained_teacher before"),
        ("[base, trained_teacher, fixed_kind_equal_tokens]", "fixed_kind_equal_tokens takes the prompt"),
        ("[{name: b, label: b, source: {type: base}, equal_tokens: true}]", "no model writes"),
        ("[{name: m, label: m, source: {type: mixed_prompts, prompts: [implicatons]}}]", "did you mean implications"),
    ],
)
def test_baselines_that_cannot_be_made_are_refused(variants: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        small_config(f"comparison.variants={variants}")


def test_best_specification_has_a_score_on_every_task() -> None:
    table: Table = {"a": [0.1, 0.9, 0.5], "b": [0.2, None, 0.6]}
    best, search = best_of(table, CHOICES[:3])
    assert best == CHOICES[2]
    assert list(search.scores.values()) == [pytest.approx(0.15), None, pytest.approx(0.55)]
    with pytest.raises(ValueError, match="no specification has a score on every task"):
        best_of({"a": [None], "b": [0.1]}, CHOICES[:1])


def test_all_specifications_are_tried_and_the_best_are_scored_like_any_variant(
    tmp_path: Path, prefect_server: None
) -> None:
    mine = comparing(grid_config(tmp_path), tmp_path)
    source = FIXED.source
    assert isinstance(source, FixedSpecification)
    table = try_all(mine.loop, mine.split.train[:2], source.choices, "here")
    # 32 examples, four a step, nine times over are more than ten steps; the other three are within the budget.
    assert [[score is None for score in scores] for scores in table.values()] == [[False, False, False, True]] * 2
    base = mine.add(plan_variant(mine.config, STANDARD["base"]))
    fixed = mine.add(plan_variant(mine.config, FIXED))
    assert base is not None
    assert fixed is not None
    assert mine.specs is not None
    assert mine.specs.scores[mine.specs.fixed] == max(s for s in mine.specs.scores.values() if s is not None)
    assert {candidate.edit.text for candidate in fixed.candidates} == {mine.specs.fixed}
    assert set(fixed.accuracy) == {task.id for task in mine.split.test}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("comparison.variants=[base, trained_teacher, oracle]", "oracle"),
        ("data.views=[as-it-is, as-it-is]", "views"),
        ("comparison.variants=[base, retrieval]", "retrieval"),
        ("student.update.objective=context_distillation", "context_distillation"),
        (
            "comparison.variants=[{name: f, label: f, source: {type: fixed_specification, space: {epochs: [0]}}}]",
            "epochs",
        ),
    ],
)
def test_what_makes_no_sense_on_grids_is_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        grid_config(tmp_path, override)


def test_an_objective_is_part_of_an_update_and_of_no_variant_without_one(tmp_path: Path, prefect_server: None) -> None:
    mine = comparing(small_config("loop.rounds=0", "comparison.variants=[base]"), tmp_path)
    edits = [raw_passage(task.id, task.document.text) for task in mine.split.test]
    plain, distilled = (
        mine.score_edits(STANDARD["raw_passage"].model_copy(update={"objective": objective}), edits, mine.split.test)
        for objective in (None, "context_distillation")
    )
    digests = [[u.adapter_digest for c in each.candidates for u in c.replicates] for each in (plain, distilled)]
    assert len({digest for found in digests for digest in found if digest is not None}) == 2 * len(edits)
    with pytest.raises(ConfigError, match="has no update"):
        small_config("comparison.variants=[{name: b, label: b, objective: likelihood, source: {type: base}}]")


GRADED = "grading={grader: {type: gold-token-recall}, engine: bank, max_new_tokens: 8}"


@pytest.mark.parametrize("name", ["passage_in_context", "retrieval"])
def test_ceilings_are_scored_and_graded_behind_their_passages(name: str, tmp_path: Path, prefect_server: None) -> None:
    found = {}
    for grading in ([], [GRADED]):
        mine = comparing(small_config("loop.rounds=0", *grading), tmp_path / str(len(grading)))
        base = mine.add(plan_variant(mine.config, STANDARD["base"]))
        variant = mine.add(plan_variant(mine.config, STANDARD[name]))
        assert base is not None
        assert variant is not None
        assert (variant.candidates, variant.failures, variant.training_tokens) == ((), {}, None)
        found[len(grading)] = variant.accuracy
        assert sum(variant.accuracy.values()) > 0.5 * len(variant.accuracy) > sum(base.accuracy.values())
    # The shipped student's greedy text is the gold answer where exact match says so, and may hold it where not.
    assert all(found[1][document] >= accuracy for document, accuracy in found[0].items())
    task = mine.split.test[0]
    student = open_student(ModelRef.of(mine.config.student, mine.config))
    form, contexts = mine.loop.settings.student.answer_format, [task.document.text]
    (scores,) = score_in_context(*student, contexts, [task.comparison_questions], form)
    assert not isinstance(scores, ScoringFailure)
    if name == "passage_in_context":
        assert found[0][task.id] == pytest.approx(sum(score.exact for score in scores) / len(scores))


def test_groups_are_told_apart_by_whether_training_has_them(tmp_path: Path) -> None:
    split = load_split(grid_config(tmp_path, "data.test_documents=17").data)
    first = split.test[0]
    scores = {task.id: 0.25 for task in split.test} | {first.id: 0.75}
    found = by_group([make_variant(accuracy=scores), make_variant("base", accuracy={})], split)
    held_out = [group for group, record in found.items() if record.held_out]
    assert set(found) - set(held_out) == {task.group for task in split.train}
    assert list(found)[-len(held_out) :] == held_out
    assert sum(record.tasks for record in found.values()) == 17
    mine = found[first.group]
    assert mine.accuracy == {"trained_teacher": pytest.approx((0.75 + 0.25 * (mine.tasks - 1)) / mine.tasks)}


def test_variants_of_other_names_are_compared_with_the_trained_teacher() -> None:
    pairs = pairs_of(["base", "trained_teacher", "my_prompt"])
    assert pairs == [("trained_teacher", "base"), ("trained_teacher", "my_prompt")]
    assert pairs_of(["my_prompt"]) == []
