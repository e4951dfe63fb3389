"""Loading and hashing of language models: directories, hub names, and the shipped micro models."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.common.errors import ModelError
from evaluation.common.gguf import PACKAGED, converted, prepare

if TYPE_CHECKING:
    import torch

_NOT_LINEAR = ("embed", "wte", "wpe", "norm", "lm_head", "output_layer")
_EVALUATION = Path(__file__).parents[1]
MICRO_MODELS = {
    "micro-student": _EVALUATION / "microworld" / "models" / "student",
    "micro-teacher": _EVALUATION / "microworld" / "models" / "teacher",
    "micro-grid-student": _EVALUATION / "microgrids" / "models" / "grid-student",
    "micro-grid-teacher": _EVALUATION / "microgrids" / "models" / "grid-teacher",
}
"""Directories of the shipped checkpoints by name."""


class Checkpoint(NamedTuple):
    """A language model with its tokenizer."""

    model: Any
    """A causal language model of transformers, in evaluation mode."""
    tokenizer: Any


def resolve_model(name: str) -> str:
    """Return the directory of a shipped model or of a GGUF file's checkpoint, or else `name` with its `~` expanded.

    Raises:
        ModelError: The GGUF file cannot be read.
    """
    place = MICRO_MODELS.get(name) or converted(name)
    return os.path.expanduser(name) if place is None else str(place)


def found_model(name: str) -> str:
    """Return where anybody finds a model: the absolute path of its directory, or else its hub id."""
    place = resolve_model(name)
    return str(Path(place).absolute()) if Path(place).is_dir() else place


def ready_model(name: str) -> str:
    """Return the same, with the checkpoint made now if a GGUF file has none yet.

    Raises:
        ModelError: The GGUF file cannot be opened, or a packaged model was not fetched.
    """
    prepare(name)
    return found_model(name)


def local_model(name: str) -> Path | None:
    """Return the directory of a model on this machine, which may be in the hub's cache; None if it is not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if (place := Path(resolve_model(name))).is_dir():
        return place
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def weight_shapes(place: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a directory's weights, from the headers of its safetensors files; empty without such files.

    Raises:
        ModelError: A file is damaged or missing; the message continues "the model".
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    index = place / "model.safetensors.index.json"
    files = set(place.glob("model*.safetensors"))
    try:
        if index.is_file():
            files |= {place / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        for path in sorted(files):
            with safe_open(path, "numpy") as file:
                shapes |= {weight: tuple(file.get_slice(weight).get_shape()) for weight in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"has weights that are damaged or cut short ({error}); copy or download them again") from error
    return shapes


def linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the linear layers among weights, without embeddings and output head; see `weight_shapes`."""
    return [
        weight.removesuffix(".weight")
        for weight, shape in shapes.items()
        if len(shape) == 2 and weight.endswith(".weight") and not any(part in weight for part in _NOT_LINEAR)
    ]


def is_micro(name: str) -> bool:
    """Return whether a model is a shipped one, by name or directory."""
    return resolve_model(name) in map(str, MICRO_MODELS.values())


def quantization_problem(quantization: str, device: str) -> str:
    """Return why a base cannot be opened with a quantization, tried on a few numbers; empty if it can."""
    advice = "allowed here is none; set student.quantization: none"
    if quantization == "none":
        return ""
    if find_spec("bitsandbytes") is None:
        return f"got {quantization}, which needs bitsandbytes; pip install 'preceptor[nf4]'. Without it, {advice}"
    try:
        import torch
        from bitsandbytes import functional

        some = torch.ones(64, 64, device=device)
        functional.dequantize_4bit(*functional.quantize_4bit(some, quant_type=quantization))
    except (ImportError, OSError, AttributeError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        return f"got {quantization}, but bitsandbytes does not run on {device} ({reason}); {advice}"
    return ""


def _in_4_bits(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return how transformers opens a model with a quantization that computes in `dtype`; empty for none."""
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    options = {"bnb_4bit_quant_type": quantization, "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options), "device_map": {"": "cpu"}}


def _keep_weights(model: Any) -> None:
    """Have bitsandbytes leave weights as they are: on some CPUs it swaps them for bfloat16 ones without a gradient."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_checkpoint(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    weights: bool = True,
    quantization: str = "none",
) -> Checkpoint:
    """Return model (float32 by default) and tokenizer of one of `MICRO_MODELS`, a directory, a GGUF file or a hub name.

    Without `weights` none are read: the model is on torch's device `meta`, and only its layers can be looked at. With a
    `quantization` (`nf4`) linear layers but the output head are kept in 4 bits, quantized on the CPU whatever the
    device, so that a base has one digest.

    Raises:
        ModelError: The checkpoint or device cannot be opened, or the quantization does not run on it.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():  # a bar that nobody watches fills logs
        logging.disable_progress_bar()
    if problem := quantization_problem(quantization, device):
        raise ModelError(f"model {name!r}: student.quantization: {problem}. Nothing was loaded.")
    place = ready_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        if weights:
            dtype = dtype or torch.float32
            model, told = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, output_loading_info=True, **_in_4_bits(quantization, dtype)
            )
            _keep_weights(model)
            if lacking := sorted(told["missing_keys"]):  # transformers makes them up
                raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")
        else:
            with torch.device(device := "meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model {name!r}: could not open the checkpoint: {error}. Give the directory or hub name of a causal "
            f"language model with its tokenizer, a GGUF file, or one of {sorted([*MICRO_MODELS, *PACKAGED])}."
        ) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model {name!r}: got the device {device!r}, but this machine shows no CUDA device. Use cpu.")
    if (tokenizer.pad_token_id or 0) >= model.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token  # some tokenizers add one that the model never had
    return Checkpoint(model.to(device).eval(), tokenizer)


def towers(model: Any) -> tuple[str, ...]:
    """Return the names of the linear layers that serve images or sound alone: neither text model nor output head."""
    import torch

    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return ()
    text = {*model.get_decoder().modules(), model.get_output_embeddings()}
    return tuple(n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module not in text)


def digest_tensors(whole: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Update a hash with names, shapes, types and bytes, in the order of the names."""
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)


def model_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 (64 hex digits) of a model's parameters and persistent buffers."""
    whole = hashlib.sha256()
    digest_tensors(whole, model.state_dict())
    return whole.hexdigest()
