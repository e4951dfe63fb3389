"""Sizes of models and of adapters on them, read from the headers of checkpoints on disk; nothing is loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.checkpoints import resolve_model
from student.config import WHOLE_DEPTH, TargetModules
from student.targets import select_layers

_LARGEST_HEADER = 100_000_000
_NOT_LINEAR = ("embed", "wte", "wpe", "norm", "lm_head", "output_layer")


class ModelSize(NamedTuple):
    """Parameters of a checkpoint."""

    parameters: int
    """Of the frozen model."""
    adapter: int
    """Of one LoRA adapter on it."""


def training_flops(model: ModelSize) -> float:
    """Return the useful FLOPs of training a LoRA adapter on one token: 4 P + 6 L."""
    return 4.0 * model.parameters + 6.0 * model.adapter


def model_size(
    name: str, rank: int, targets: TargetModules, depth: tuple[float, float] = WHOLE_DEPTH
) -> ModelSize | None:
    """Return the parameters of a checkpoint and of one LoRA adapter, or None where they cannot be told.

    Args:
        name: Directory, `micro-student`, `micro-teacher`, or a hub name (None).
        rank: LoRA rank R; a layer's adapter has R * (D_in + D_out) parameters.
        targets: `all-linear` or ends of names, see `UpdateRecipe.target_modules`.
        depth: See `UpdateRecipe.depth`.
    """
    directory = Path(resolve_model(name))
    try:
        shapes = _safetensors_shapes(directory) or _config_shapes(directory)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    if not shapes:
        return None
    linears = [weight.removesuffix(".weight") for weight, shape in shapes.items() if _is_linear(weight, shape)]
    adapted = [shapes[f"{name}.weight"] for name in select_layers(linears, targets, depth)]
    return ModelSize(sum(map(math.prod, shapes.values())), sum(rank * (rows + columns) for rows, columns in adapted))


_Shapes = Mapping[str, tuple[int, ...]]


def _is_linear(weight: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and weight.endswith(".weight") and not any(part in weight for part in _NOT_LINEAR)


def _safetensors_shapes(directory: Path) -> _Shapes:
    """Return the tensors' shapes from the headers of a checkpoint's files; empty where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _LARGEST_HEADER else None
        if not isinstance(header, dict):
            raise ValueError(f"{str(path)!r} has no safetensors header")
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def _config_shapes(directory: Path) -> _Shapes:
    """Return the shapes of a Llama-like model (Llama, Mistral, Qwen) from its `config.json`, without biases."""
    path = directory / "config.json"
    if not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    hidden, inner, vocabulary = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    layer = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden)}
    layer |= {"self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries)}
    layer |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (vocabulary, hidden), "norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"layers.{i}.norm_{place}.weight": (hidden,) for place in ("before", "after")}
    return shapes
