"""Models are tried at their opening: what passes gives PEFT the bank's student, and what does not is never trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from evaluation.common.checkpoints import Checkpoint, load_checkpoint, model_digest
from evaluation.common.errors import ModelError
from student.adapters import CONFIG_FILE, load_adapter, save_adapter
from student.bank.bank import LoraBank
from student.config import TargetModules, UpdateRecipe
from student.opening import check_model, prove_adapter
from student.updates import UpdateRequest
from tests.student.architectures import ARCHITECTURES, save_checkpoint
from tests.student.factories import adapter_of, sequences

BEHAVIOUR, LAYERS = "other tokens", r"set target_modules to some of \[(.*)\]"
_OTHER = ("mixtral", "olmoe", "qwen3_moe", "qwen3_next", "deepseek_v2", "deepseek_v3", "glm4_moe")
_MAMBA = ("mamba", "mamba2", "falcon_h1")
REFUSED = dict.fromkeys(("bert", "xlnet", "rwkv"), BEHAVIOUR) | dict.fromkeys((*_OTHER, *_MAMBA), LAYERS)
"""Architectures that are no students with `all-linear`, and what their refusal says."""
FEW = ("llama", "gpt2", "gemma3", "gpt_oss", "mixtral", "deepseek_v3", "mamba", "bert", "rwkv")


def updated(student: Checkpoint, target_modules: TargetModules, place: Path) -> tuple[set[str], float]:
    """Return the layers of a trained and saved adapter, and by how much PEFT's logits differ, in the trained change."""
    recipe = UpdateRecipe(rank=2, epochs=2, learning_rate=0.02, target_modules=target_modules)
    ids = torch.arange(2, 13)[None] * 37 % 512
    with LoraBank(student.model, target_modules) as bank:
        (result,) = bank.train([UpdateRequest("one", sequences(0, [6, 9]), recipe, 0)])
        adapter = adapter_of(result)
        with bank._opened()[0].using([adapter]), torch.inference_mode(), bank._opened()[0].unpacked():
            ours = student.model(input_ids=ids, use_cache=False).logits
    directory = save_adapter(adapter, place / "adapter")
    prove_adapter(student.model, directory)
    with torch.inference_mode():
        base = student.model(input_ids=ids, use_cache=False).logits
        opened = PeftModel.from_pretrained(student.model, str(directory)).eval()
        theirs = opened(input_ids=ids, use_cache=False).logits
    adapted = {name.partition(".lora_A")[0] for name, _ in opened.named_parameters() if ".lora_A" in name}
    assert {name.removeprefix("base_model.model.") for name in adapted} == set(adapter.factors)
    assert float((theirs - base).abs().max()) > 1e-3
    return set(adapter.factors), float((ours - theirs).abs().max() / ours.abs().max())


def tried(kind: str, place: Path) -> None:
    """See that an architecture trains what PEFT opens, or is refused untouched; then so do the layers it may have."""
    student = load_checkpoint(str(save_checkpoint(kind, place / kind)))
    modules, digest, state = dict(student.model.named_modules()), model_digest(student.model), torch.get_rng_state()
    targets: TargetModules = "all-linear"
    if kind in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind]) as refusal:
            check_model(student, targets)
        named = re.search(LAYERS, str(refusal.value))
        if named is None:
            return
        targets = tuple(named.group(1).split(", "))
    check_model(student, targets)
    assert torch.equal(state, torch.get_rng_state())
    assert digest == model_digest(student.model)
    assert all(module is modules[name] for name, module in student.model.named_modules())
    assert all(parameter.requires_grad for parameter in student.model.parameters())
    layers, difference = updated(student, targets, place)
    assert difference < 1e-4
    assert not any("vision" in name for name in layers)


@pytest.mark.parametrize("kind", FEW)
def test_student_is_in_peft_what_the_bank_trained_or_is_refused(kind: str, tmp_path: Path) -> None:
    tried(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - set(FEW)))
def test_every_architecture_is_in_peft_what_the_bank_trained_or_is_refused(kind: str, tmp_path: Path) -> None:
    tried(kind, tmp_path)


def test_teacher_trains_what_its_peft_adapts_in_its_text_part(tmp_path: Path) -> None:
    opened = {kind: load_checkpoint(str(save_checkpoint(kind, tmp_path / kind))) for kind in ("gemma3", "mamba")}
    assert "vision" in check_model(opened["gemma3"], banked=False)
    with pytest.raises(ModelError, match="out_proj"):
        check_model(opened["mamba"], banked=False)
    assert not hasattr(opened["mamba"].model, "peft_config")


def test_tokenizer_with_more_ids_than_the_model_embeds_is_refused(tmp_path: Path) -> None:
    student = load_checkpoint(str(save_checkpoint("llama", tmp_path)))
    student.model.resize_token_embeddings(600)
    with pytest.raises(ModelError, match="600"):
        check_model(student, "all-linear")


def test_model_that_cannot_take_a_prompt_is_refused_in_one_line(tmp_path: Path) -> None:
    few = load_checkpoint(str(save_checkpoint("gpt2", tmp_path, n_positions=4, max_position_embeddings=4)))
    with pytest.raises(ModelError, match=r"^fails on .*\)[^\n]*$"):
        check_model(few)


def test_saved_adapter_that_peft_opens_otherwise_is_refused(tmp_path: Path) -> None:
    student = load_checkpoint("micro-student")
    updated(load_checkpoint("micro-student"), "all-linear", tmp_path)
    config = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    prove_adapter(student.model, tmp_path / "adapter")
    for change in (
        {"target_modules": config["target_modules"][1:]},
        {"use_rslora": True, "target_modules": ["q_proj"]},
    ):
        (tmp_path / "adapter" / CONFIG_FILE).write_text(json.dumps(config | change))
        with pytest.raises(ModelError):
            prove_adapter(student.model, tmp_path / "adapter")
    (tmp_path / "adapter" / CONFIG_FILE).write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 3}))
    with pytest.raises(ModelError, match="digest"):
        load_adapter(tmp_path / "adapter")


def test_checkpoint_that_lacks_a_weight_is_refused_and_not_filled_up(tmp_path: Path) -> None:
    place = save_checkpoint("llama", tmp_path / "llama")
    file = place / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights.*layers\.0\.mlp\.up_proj"):
        load_checkpoint(str(place))
