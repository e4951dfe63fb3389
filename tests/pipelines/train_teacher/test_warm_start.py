"""The warm start: what is imitated, what it changes, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.common.errors import ConfigError, InputError
from evaluation.domains import load_split
from pipelines.lineage.registry import Registry
from pipelines.loop.loop import Loop
from pipelines.records import WarmStart
from pipelines.settings import TrackingConfig
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.flow import train_teacher
from pipelines.train_teacher.rounds import Training, round_documents
from pipelines.train_teacher.warm_start import examples_of
from teacher.parsing.parser import parse_self_edit
from tests.pipelines.factories import CONFIGS, SMALL, grid_config, make_loop, small_config

WARM = "warm_start={documents: 2, epochs: 4, batch_size: 1}"
ENDPOINT = "{type: openai, endpoint: {model: m, base_url: 'http://127.0.0.1:1/v1'}}"


def warm_start(loop: Loop, config: TrainTeacherConfig) -> WarmStart:
    assert config.warm_start is not None
    made = examples_of(loop, config.teacher.prompt, config.warm_start.targets(load_split(config.data)))
    learning = config.warm_start.learning(config.teacher.learning)
    return loop.warm_start(made.examples, learning, seed=loop.seed("warm start"))


def test_the_last_documents_questions_are_imitated_as_many_as_fit(tmp_path: Path) -> None:
    config = small_config(WARM)
    loop, split = make_loop(config, tmp_path), load_split(config.data)
    assert config.warm_start is not None
    found = examples_of(loop, config.teacher.prompt, config.warm_start.targets(split))
    assert list(found.texts) == [task.id for task in split.train[-2:]]
    policy = loop.open_teacher.policy
    for example in found.examples:
        assert len(example.token_ids) <= config.teacher.sampling.max_new_tokens
        assert example.token_ids[-1] == policy.tokenizer.eos_token_id
        written = policy.tokenizer.decode(list(example.token_ids), skip_special_tokens=True)
        read = parse_self_edit(written, prompt=example.prompt).edit
        asked = [(q.question, q.answer) for q in loop.tasks[example.group_id].questions]
        assert read is not None
        assert [(line.text, line.answer) for line in read.implications] == asked[: len(read.implications)]


def test_the_kl_divergence_is_from_the_warm_started_teacher(tmp_path: Path, prefect_server: None) -> None:
    config = small_config(WARM, "teacher.learning={algorithm: grpo, epochs: 1, minibatch_size: 8}")
    loop = make_loop(config, tmp_path)
    begun = warm_start(loop, config)
    assert begun.loss_after < begun.loss_before
    assert begun.kl is not None
    assert begun.kl > 0.0
    assert config.warm_start is not None
    examples = examples_of(loop, config.teacher.prompt, config.warm_start.targets(load_split(config.data))).examples
    from_start = loop.learn(begun.policy, examples, seed=1, reference=begun.policy)
    from_base = loop.learn(begun.policy, examples, seed=1)
    assert from_start.kl == pytest.approx(0.0, abs=1e-6)
    assert from_base.kl is not None
    assert from_base.kl > 1e-3
    step = loop.open_teacher.at(loop.state_dir(from_start.policy)).optimizer_state
    assert step is not None
    assert {float(state["step"]) for state in step["state"].values()} == {1.0}, "the optimizer began anew"


def test_rounds_take_other_documents_first() -> None:
    train = load_split(small_config().data).train
    last = {task.id for task in train[-2:]}
    ids = [task.id for number in range(2) for task in round_documents(small_config(), train, number, last)]
    assert set(ids[:3]) == {task.id for task in train} - last


def test_a_run_tells_three_teachers_apart_and_goes_on_from_a_warm_start_that_is_finished(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        *SMALL,
        WARM,
        "loop={rounds: 1, documents: 2, development: {every: 1, edits: 1}}",
        "comparison={edits: 1, resamples: 100, keep_adapters: 0, variants: [base, untrained_teacher, "
        "warm_started_teacher, trained_teacher]}",
    ]

    begun: list[WarmStart | None] = []

    def stop(training: Training, *_: Any) -> None:
        begun.append(training.start)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            train_teacher(str(CONFIGS / "demo.yaml"), settings, str(tmp_path))
    result = train_teacher(str(CONFIGS / "demo.yaml"), settings, str(tmp_path))
    assert result.warm_start is not None
    assert result.warm_start.development is not None
    assert [result.warm_start.model_copy(update={"development": None})] == begun, "the same to the last digit of time"
    assert {"warm_started_minus_untrained", "trained_minus_warm_started"} <= set(result.gains)
    versions = {v.version: v.state for v in Registry.open(TrackingConfig(), tmp_path).history("teacher")}
    assert versions == {1: "warm-started", 2: "RL-trained"}


def test_without_rounds_the_warm_started_teacher_is_the_last_one() -> None:
    config = small_config(WARM, "loop.rounds=0", "comparison.variants=[base, warm_started_teacher, trained_teacher]")
    assert config.last_state == "warm_started"
    assert [variant.name for variant in config.listed] == ["base", "warm_started_teacher"]
    labels = [v.label for v in small_config(WARM, "comparison.variants=[warm_started_teacher, trained_teacher]").listed]
    assert labels == ["warm-started teacher", "RL-trained teacher"]
    assert [v.name for v in small_config("comparison.variants=[base, warm_started_teacher]").listed] == ["base"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"id": "nobody", "lines": "Who? Answer: he"}], "'nobody' is no document of the data"),
        ([{"id": "TEST", "lines": "Who? Answer: he"}], "kept for development or test"),
        ([{"id": "TRAIN", "lines": ["---"]}], "nothing to imitate"),
        ([{"id": "TRAIN", "lines": "A line."}] * 2, "has lines already"),
        ([{"id": "TRAIN", "lines": "A line."}], "only 1 training documents with lines"),
    ],
)
def test_own_lines_are_refused_with_the_reason(tmp_path: Path, rows: list[dict[str, Any]], reason: str) -> None:
    split, path = load_split(small_config().data), tmp_path / "lines.jsonl"
    names = {"TEST": split.test[0].id, "TRAIN": split.train[0].id}
    path.write_text("".join(json.dumps(row | {"id": names.get(row["id"], row["id"])}) + "\n" for row in rows))
    with pytest.raises((ConfigError, InputError), match=reason):
        small_config(f"warm_start={{documents: 2, lines: {path}}}").load_documents()


def test_what_cannot_be_warm_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 5 training documents with questions"):
        small_config("warm_start.documents=6").load_documents()
    with pytest.raises(ConfigError, match="behind an endpoint does not learn"):
        small_config("warm_start={}", "loop.rounds=0", "teacher.model=m", f"teacher.sampling={ENDPOINT}")
    with pytest.raises(ConfigError, match="write specifications"):
        grid_config(tmp_path, "warm_start={}")
