from __future__ import annotations

import json

import pytest

from teacher.parsing.lines import DropReason
from teacher.parsing.parser import parse_self_edit
from teacher.self_edit import AugmentationSpec, SelfEdit, TrainingSpec
from tests.teacher.parsing.test_parser import count_lines, texts_of

SEAL_SPEC = {
    "data_generation": {
        "use_basic_augmentations": True,
        "use_size_augmentations": False,
        "use_chain_augmentations": True,
        "use_repeat_augmentations": False,
    },
    "training": {"strategy": "train_using_output_tokens", "learning_rate": 5e-5, "num_train_epochs": 3},
}
"""The form that SEAL's few-shot prompt asks for (arXiv 2506.10943, section 3.2)."""
SEAL_EDIT = SelfEdit(
    augmentations=AugmentationSpec(use_basic_augmentations=True, use_chain_augmentations=True),
    training=TrainingSpec(learning_rate=5e-5, epochs=3, loss_on="answer"),
)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SEAL_SPEC),
        json.dumps(SEAL_SPEC, indent=4),
        f"```json\n{json.dumps(SEAL_SPEC, indent=2)}\n```",
        f"Here is the configuration: {json.dumps(SEAL_SPEC)}",
        json.dumps({"config": SEAL_SPEC}),
        json.dumps(SEAL_SPEC["data_generation"]) + "\n" + json.dumps({"training": SEAL_SPEC["training"]}),
        SEAL_EDIT.model_dump_json(),
    ],
)
def test_parse_reads_specifications(text: str) -> None:
    parsed = parse_self_edit(text)
    assert parsed.edit == SEAL_EDIT, parsed.detail
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)


def test_parse_reads_lines_and_specification_together() -> None:
    text = '- Ada lives in Oslo.\n\n```json\n{"training": {\n  "rank": 8, "epochs": 2.0}}\n```\n- Bo lives in Rome.'
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == ["Ada lives in Oslo.", "Bo lives in Rome."]
    assert parsed.edit is not None
    assert parsed.edit.training == TrainingSpec(rank=8, epochs=2)
    assert (parsed.kept, parsed.spec_lines, parsed.dropped) == (2, 2, {DropReason.MARKER_ONLY: 2})


def test_parse_reads_implications_from_json() -> None:
    text = '{"implications": ["1. A is B.", {"question": "Who?", "answer": "X"}, "a is b", {"text": "C is D."}]}'
    parsed = parse_self_edit(text)
    assert texts_of(parsed) == ["A is B.", "Who? => X", "C is D."]
    assert (parsed.kept, parsed.spec_lines, parsed.dropped) == (4, 1, {DropReason.DUPLICATE: 1})


def test_parse_counts_a_second_specification() -> None:
    parsed = parse_self_edit('{"training": {"epochs": 2}}\n{"training": {"epochs": 3}}')
    assert parsed.edit == SelfEdit(training=TrainingSpec(epochs=2))
    assert (parsed.spec_lines, parsed.dropped) == (1, {DropReason.EXTRA_SPECIFICATION: 1})


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ('{"training": {"learning_rate": 5.0}}', "out_of_range", "training.learning_rate: got 5.0, allowed: "),
        ('{"training": {"num_train_epochs": 0}}', "out_of_range", "training.num_train_epochs: got 0, allowed: "),
        ('{"training": {"learning_rate": NaN}}', "out_of_range", "got nan"),
        ('{"training": {"learning_rate": -1e999}}', "out_of_range", "got -inf"),
        ('- A is B.\n{"rank": 257}', "out_of_range", "training.rank: got 257"),
        ('{"training": {"epochs": 2.5}}', "invalid_value", "training.epochs: got 2.5"),
        ('{"training": {"epochs": true}}', "invalid_value", "training.epochs: got True"),
        ('{"training": {"learning_rate": "fast"}}', "invalid_value", "training.learning_rate: got 'fast'"),
        (
            '{"training": {"strategy": "all"}}',
            "invalid_value",
            "training.strategy: got 'all', allowed are ['train_using",
        ),
        ('{"training": {"loss_on": "x"}}', "invalid_value", "training.loss_on: got 'x'"),
        ('{"training": {"epochs": 2, "num_train_epochs": 3}}', "invalid_value", "given twice"),
        ('{"training": [1]}', "invalid_value", "training: got [1], allowed is an object"),
        ('{"data_generation": {"use_basic_augmentations": "yes"}}', "invalid_value", "augmentations.use_basic"),
        ('{"implications": "A is B."}', "invalid_value", "implications: got 'A is B.'"),
        ('{"training": {"momentum": 1}}', "unknown_field", "training: got the field 'momentum', allowed are ['epochs'"),
        ('{"training": {}, "notes": 1}', "unknown_field", "got the field 'notes'"),
        ('{"training": {"epochs": 3', "invalid_json", "not JSON"),
        ("{'training': {'epochs': 3}}", "invalid_json", "not JSON"),
        ('- A is B.\n{"training": {"epochs": 3,}}', "invalid_json", "not JSON"),
        ('{"training": {"epochs": 3, "epochs": 4}}', "invalid_json", "a field is given twice"),
        ('{"training":' + "[" * 100_000, "invalid_json", "not JSON"),
        ('{"training": {"epochs": ' + "9" * 5_000 + "}}", "invalid_json", "not JSON"),
    ],
)
def test_parse_rejects_invalid_specifications(text: str, reason: str, named: str) -> None:
    parsed = parse_self_edit(text)
    assert (parsed.edit, parsed.reason) == (None, reason)
    assert named in parsed.detail
    assert parsed.kept + sum(parsed.dropped.values()) + parsed.spec_lines == count_lines(text)
