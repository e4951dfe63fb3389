"""A base in 4 bits: what a bank trains on it is what PEFT opens on it. Needs bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from evaluation.common.checkpoints import load_checkpoint, model_digest
from evaluation.common.errors import ModelError
from student.opening import check_model
from tests.student.architectures import save_checkpoint
from tests.student.test_opening import updated

INSTALLED = find_spec("bitsandbytes") is not None


@pytest.mark.skipif(not INSTALLED, reason="needs bitsandbytes: pip install 'preceptor[nf4]'")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_adapter_on_a_quantized_base_is_in_peft_what_the_bank_trained(kind: str, tmp_path: Path) -> None:
    place = str(save_checkpoint(kind, tmp_path / kind))
    whole, student = load_checkpoint(place), load_checkpoint(place, quantization="nf4")
    digest = model_digest(student.model)
    assert student.model.get_memory_footprint() < whole.model.get_memory_footprint()
    assert check_model(student) == ""
    with torch.inference_mode():  # in which bitsandbytes would repack weights
        student.model(input_ids=torch.arange(9)[None])
    assert digest == model_digest(student.model) == model_digest(load_checkpoint(place, quantization="nf4").model)
    assert digest != model_digest(whole.model)
    assert updated(student, "all-linear", tmp_path)[1] < 1e-4


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_quantization_without_bitsandbytes_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"got nf4.*pip install 'preceptor\[nf4\]'.*Nothing was loaded"):
        load_checkpoint("nobody/absent", quantization="nf4")
