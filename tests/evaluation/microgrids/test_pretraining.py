"""The micro-grids' tokenizer, pretraining texts, builds, and the models that ship."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.common.checkpoints import MICRO_MODELS, load_checkpoint
from evaluation.exact_match import AnswerFormat
from evaluation.grids.domain import as_task
from evaluation.grids.grids import GridTask, write_pairs
from evaluation.microgrids import pretraining
from evaluation.microgrids.world import FAMILIES, PRETRAINED, SPACE, TESTED, UNSEEN, draw_tasks, steps_of
from evaluation.microworld.pretraining import SPECIAL_TOKENS, Shape, batch_of, new_model, weighted_loss
from evaluation.tasks import specifications
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import prompt_template
from teacher.self_edit import edit_of
from tests.evaluation.factories import accuracy, sampled

MODELS = MICRO_MODELS["micro-grid-student"].parent
TOKENIZER = pretraining.build_tokenizer()
TINY = Shape(hidden=32, layers=1, intermediate=32, rope_theta=200.0)
PHASES = [
    pretraining.Phase(3, 4, (1,), {"given": 1.0}, PRETRAINED),
    pretraining.Phase(4, 4, (2,), {"named": 1.0}, pretraining.READ),
]


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


# Tokenizer


@settings(max_examples=200, deadline=None)
@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_tokenizer_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text)) == text


def test_tokenizer_vocabulary_has_no_hole() -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))


@pytest.mark.parametrize("task", draw_tasks("test", TESTED, len(TESTED), 0, tests=2), ids=lambda task: task.family)
def test_tokenizer_gives_each_cell_a_token_and_a_pair_24(task: Any) -> None:
    prompt = pretraining.teacher_prompt(task.demonstrations, None)
    # Three rows of three cells, two line breaks and a heading on each side of a pair; then the heading of the rule.
    assert len(ids_of(prompt)) == 24 * len(task.demonstrations) + 1
    question = as_task(task).questions[0]
    whole = ids_of(question.question + question.answer)
    assert whole == ids_of(question.question) + ids_of(question.answer)
    assert len(ids_of(question.answer)) == 11


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tokenizer_splits_a_rules_name_into_its_parts(family: str) -> None:
    parts = [TOKENIZER.decode([i]) for i in ids_of(f"{pretraining.rule_name(family)}\n")]
    assert "".join(parts) == f"{pretraining.rule_name(family)}\n"
    assert len(parts) == 2 + family.count("-") + 2 * family.count("+") + 1


def test_tokenizer_takes_a_specification_field_by_field() -> None:
    assert all(len(ids_of(json.dumps(choice))) == len(SPACE) for choice in specifications(SPACE))


# Texts

EXERCISES = st.sampled_from(["given", "inferred", "named"])


@given(st.sampled_from(sorted(FAMILIES)), EXERCISES, st.integers(1, 6), st.integers())
@settings(max_examples=60, deadline=None)
def test_texts_weigh_what_can_be_known(family: str, exercise: pretraining.Exercise, pairs: int, seed: int) -> None:
    text = pretraining.draw_text(random.Random(seed), family, exercise, pairs)
    batch = batch_of([text], TOKENIZER, 0.3)
    whole = "".join(piece for piece, _ in text)
    assert TOKENIZER.decode(batch.ids[0, 1:-1]) == whole
    assert batch.ids.shape[1] <= pretraining.CONTEXT_TOKENS
    # Outputs of eleven tokens: all if the rule is given, all but the first pair's where it has to be found.
    assert int((batch.weights == 1.0).sum()) == 11 * (pairs if exercise == "given" else pairs - 1)
    if exercise == "named":
        completion = whole.rpartition("Rule: ")[2]
        name, _, spec = completion.partition("\n")
        assert name == pretraining.rule_name(family)
        assert parse_self_edit(completion, prompt=whole.removesuffix(completion)).edit == edit_of(json.loads(spec))
    assert whole.startswith(f"Rule: {family}\n") == (exercise == "given")


def test_teachers_prompt_is_the_one_that_runs_use() -> None:
    task = draw_tasks("test", TESTED, 1, 0, tests=2)[0]
    document = as_task(task).document
    for budget in (None, 48):
        steps = "" if budget is None else "\nSteps: 48"
        rendered = prompt_template("micro-grid-spec").render(document, budget)
        assert rendered == pretraining.teacher_prompt(task.demonstrations, budget)
        assert rendered == f"{write_pairs(task.demonstrations)}{steps}\nRule: "


def test_no_text_is_about_a_family_that_is_kept_from_everybody() -> None:
    families = {
        family for phases in pretraining.stages("grid-teacher") for phase in phases for family in phase.families
    }
    assert not families & set(UNSEEN)
    assert families == set(pretraining.READ)


# Pretraining and builds


def test_pretraining_lowers_the_loss_and_is_the_same_for_a_seed() -> None:
    batch = batch_of(pretraining.draw_texts(random.Random(9), PHASES[0]), TOKENIZER)
    trained = []
    for seed in (1, 1, 2):
        model = new_model(TINY, TOKENIZER, 0)
        before = weighted_loss(model, batch).item()
        pretraining.pretrain(
            model, TOKENIZER, [pretraining.Phase(20, 16, (1,), {"given": 1.0}, PRETRAINED)], seed, report=print
        )
        assert weighted_loss(model, batch).item() < before - 0.3
        trained.append(model.state_dict())
    same, again, other = trained
    assert all(torch.equal(same[key], again[key]) for key in same)
    assert any(not torch.equal(same[key], other[key]) for key in same)


@pytest.mark.parametrize("role", pretraining.GRID_ROLES)
def test_build_one_writes_a_directory_that_opens(
    role: pretraining.GridRole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(pretraining, "SHAPE", TINY)
    monkeypatch.setattr(pretraining, "stages", lambda role: [[phase] for phase in PHASES])
    try:
        directory = pretraining.build_one(role, tmp_path, 5)
    finally:
        torch.set_num_threads(threads)
    assert AutoModelForCausalLM.from_pretrained(directory).config.hidden_size == TINY.hidden
    assert AutoTokenizer.from_pretrained(directory).get_vocab() == TOKENIZER.get_vocab()


# The shipped models


@pytest.mark.parametrize("role", pretraining.GRID_ROLES)
def test_shipped_model_opens_and_is_of_the_recipes_size(role: pretraining.GridRole) -> None:
    config = AutoModelForCausalLM.from_pretrained(MODELS / role).config
    sizes = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    shape = Shape(*sizes, rope_theta=200.0, heads=config.num_attention_heads)
    assert shape == pretraining.SHAPE
    assert config.rope_parameters["rope_theta"] == 200.0
    assert AutoTokenizer.from_pretrained(MODELS / role).get_vocab() == TOKENIZER.get_vocab()


def tasks_of(families: Sequence[str]) -> tuple[GridTask, ...]:
    return draw_tasks("checks", families, 6 * len(families), 7, tests=8)


def test_shipped_student_infers_rules_of_pretrained_families_alone() -> None:
    student = load_checkpoint(str(MODELS / "grid-student"))

    def solved(families: Sequence[str]) -> float:
        questions = [question for task in tasks_of(families) for question in as_task(task).questions]
        return accuracy(student, questions, AnswerFormat(prompt="{question}", joiner=""))

    assert solved(PRETRAINED) >= 0.8
    assert solved(UNSEEN) <= 0.15


def test_shipped_teacher_names_rules_and_chooses_specifications_evenly() -> None:
    teacher = load_checkpoint(str(MODELS / "grid-teacher"))
    tasks = tasks_of(pretraining.READ) + tasks_of(UNSEEN)
    prompts = [pretraining.teacher_prompt(task.demonstrations, 72) for task in tasks]
    texts = [text.partition("\n") for text in sampled(teacher, prompts, 16)]
    named = [name == pretraining.rule_name(task.family) for task, (name, *_) in zip(tasks, texts, strict=True)]
    assert mean(right for task, right in zip(tasks, named, strict=True) if task.family in pretraining.READ) >= 0.7
    allowed = [choice for choice in specifications(SPACE) if steps_of(choice, 4) <= 72]
    written = {json.dumps(choice): choice for choice in specifications(SPACE)}
    specs = [written[text] for *_, text in texts if text in written]
    assert len(specs) >= 0.98 * len(tasks)

    def spread(choices: Sequence[Mapping[str, Any]], name: str) -> float:
        return float(entropy(list(Counter(choice[name] for choice in choices).values())))

    assert min(spread(specs, name) / spread(allowed, name) for name in SPACE) >= 0.9
