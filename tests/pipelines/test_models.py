"""Models of a process: what only their weights show is refused when a run opens them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.common.errors import ModelError
from pipelines.models import ModelRef, Teacher, close_models, prove_student, student_for
from pipelines.settings import load
from pipelines.train_teacher.config import TrainTeacherConfig
from student.adapters import CONFIG_FILE
from student.config import UpdateRecipe
from tests.pipelines.check_regression.factories import saved_adapter
from tests.student.architectures import save_checkpoint

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize("kind", ["bert", "rwkv"])
def test_opened_model_is_tried_in_both_roles(kind: str, tmp_path: Path) -> None:
    ref = ModelRef(str(save_checkpoint(kind, tmp_path)), "cpu", "float32", None)
    with pytest.raises(ModelError, match=r"^student"):
        student_for(ref, UpdateRecipe())
    with pytest.raises(ModelError, match=r"^teacher"):
        Teacher(ref, load(DEMO, TrainTeacherConfig).teacher, seed=0)
    close_models()


def test_kept_adapter_that_peft_opens_otherwise_is_refused(tmp_path: Path) -> None:
    adapter, ref = saved_adapter(tmp_path / "adapter", 1.0), ModelRef("micro-student", "cpu", "float32", None)
    prove_student(ref, adapter)
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": config["target_modules"][1:]}))
    with pytest.raises(ModelError, match=r"^adapter"):
        prove_student(ref, adapter)
    close_models()
