"""What one configuration needs beyond the installation: models, a device, variables. Downloads nothing."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from evaluation.checkpoints import MICRO_MODELS, resolve_model
from evaluation.endpoints.config import EndpointConfig, check_key
from evaluation.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.doctor.checks import Check, Status
from pipelines.doctor.children import Outcome

AREA = "configuration"
VLLM_CPU_HEAD_DIMENSIONS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM 0.32 computes on a CPU: its own list, and 48, which was seen to work."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def on_vllm(config: RunConfig) -> dict[Literal["teacher", "student"], str]:
    """Return the models that run on vLLM, by role."""
    grading = config.grading
    teacher = {"teacher": config.teacher.model} if config.teacher.sampling.type == "vllm" else {}
    student = {"student": config.student.model} if grading is not None and grading.engine == "vllm" else {}
    return {**teacher, **student}  # type: ignore[dict-item]


def wants_vllm(config: RunConfig | None) -> bool:
    """Return whether the teacher is sampled with vLLM, or students write their answers with it."""
    return config is not None and bool(on_vllm(config))


def model_checks(config: RunConfig) -> Iterator[Check]:
    """Yield whether the models of teacher and student can be opened, as far as files tell."""
    names: dict[Literal["teacher", "student"], str] = {"teacher": config.teacher.model, "student": config.student.model}
    if config.teacher.sampling.type == "openai":
        del names["teacher"]  # it is at its endpoint
    for role, name in names.items():
        yield _model_check(role, name)
    if config.device == "cpu":
        yield from (head_dimension_check(name, role) for role, name in on_vllm(config).items())


def _model_check(role: str, name: str) -> Check:
    """Return whether a model is at hand."""
    place = Path(resolve_model(name))
    if place.is_dir():
        lacking = lacking_files(place)
        if not lacking:
            where = "ships with Preceptor" if name in MICRO_MODELS else "a directory with weights and tokenizer"
            return Check(area=AREA, name=f"{role} model", status="ok", found=f"{name}: {where}")
        text = f"{str(place)!r} lacks {'; '.join(lacking)}"
        return Check(area=AREA, name=f"{role} model", status="missing", found=text)
    try:
        return _hub_check(role, name)
    except ValueError:  # of huggingface_hub, for what cannot be the name of a model
        text = f"{name!r}: there is no such directory, and it is no hub name"
        return Check(area=AREA, name=f"{role} model", status="missing", found=text)


def _hub_check(role: str, name: str) -> Check:
    """Return whether a hub model was downloaded before; the hub is not asked."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    status: Status = "ok"
    fix = ""
    if _cached_config(name) is not None:
        text = f"{name}: in the local cache of the hub"
    elif offline:
        text = f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids downloading it"
        status, fix = "missing", f"HF_HUB_OFFLINE=0 hf download {shlex.quote(name)}"
    else:
        text = f"{name}: a hub name, not in the local cache; the run downloads it"
    return Check(area=AREA, name=f"{role} model", status=status, found=text, fix=fix)


def lacking_files(place: Path) -> list[str]:
    """Return which parts of a checkpoint a directory does not hold; empty when it is whole."""
    lacking = []
    if _read_json(place / "config.json") is None:
        lacking.append("a readable config.json")
    if not any((place / name).is_file() for name in _TOKENIZER_FILES):
        lacking.append(f"a tokenizer ({', '.join(_TOKENIZER_FILES)})")
    if not any(any(place.glob(pattern)) for pattern in _WEIGHT_FILES):
        lacking.append(f"weights ({', '.join(_WEIGHT_FILES)})")
    for index in _INDEX_FILES:
        content = _read_json(place / index) or {}
        named = sorted(set(content.get("weight_map", {}).values()))
        lacking += [f"{name}, which {index} names" for name in named if not (place / name).is_file()]
    return lacking


def head_dimension_check(name: str, role: str = "teacher") -> Check:
    """Return whether vLLM computes a model's attention heads on a CPU."""
    place = Path(resolve_model(name))
    content = _read_json(place / "config.json") if place.is_dir() else _cached_config(name)
    size = None if content is None else head_dimension(content)
    row = f"{role}'s heads"
    other = "teacher.sampling to type: transformers" if role == "teacher" else "grading.engine to bank"
    if size is None:
        text = f"{name}: the size of its attention heads is not known yet"
        return Check(area=AREA, name=row, status="warning", found=text)
    if size in VLLM_CPU_HEAD_DIMENSIONS:
        return Check(area=AREA, name=row, status="ok", found=f"{size} numbers each, which vLLM computes on a CPU")
    text = (
        f"{name} has heads of {size} numbers, vLLM computes {', '.join(map(str, VLLM_CPU_HEAD_DIMENSIONS))} on a CPU; "
        f"set {other}, or take another model"
    )
    return Check(area=AREA, name=row, status="broken", found=text)


def head_dimension(content: Mapping[str, Any]) -> int | None:
    """Return the size of an attention head by a checkpoint's config.json; None when it does not say."""
    text = content.get("text_config")
    content = text if isinstance(text, Mapping) else content
    if content.get("head_dim"):
        return int(content["head_dim"])
    hidden = content.get("hidden_size") or content.get("n_embd")
    heads = content.get("num_attention_heads") or content.get("n_head")
    return int(hidden) // int(heads) if hidden and heads else None


def device_checks(config: RunConfig, torch: Outcome, native_bfloat16: bool) -> Iterator[Check]:
    """Yield whether the configured device is there, and whether the number format suits it."""
    if config.device == "cuda":
        there = torch.data is not None and bool(torch.data["devices"])
        text = "cuda" if there else "cuda, but torch shows no GPU; set device to cpu, or see the lines on torch and GPU"
        yield Check(area=AREA, name="device", status="ok" if there else "missing", found=text)
        return
    yield Check(area=AREA, name="device", status="ok", found="cpu")
    if config.dtype == "bfloat16" and not native_bfloat16:
        text = "bfloat16, which this CPU has no instructions for; float32 is several times faster here"
        yield Check(area=AREA, name="dtype", status="warning", found=text)


def key_checks(config: BaseModel) -> Iterator[Check]:
    """Yield whether the keys of all endpoints in a configuration are in the environment; never shows one."""
    for endpoint in endpoints(config):
        if endpoint.key_env is None:
            continue
        try:
            check_key(endpoint)
        except ConfigError as error:
            fix = f"export {endpoint.key_env}='the key'"
            yield Check(area=AREA, name="endpoint's key", status="missing", found=str(error), fix=fix)
        else:
            yield Check(area=AREA, name="endpoint's key", status="ok", found=f"{endpoint.key_env} is set")


def endpoints(config: object) -> Iterator[EndpointConfig]:
    """Yield every endpoint within a configuration, in the order of its fields."""
    if isinstance(config, EndpointConfig):
        yield config
    elif isinstance(config, BaseModel):
        for field in type(config).model_fields:
            yield from endpoints(getattr(config, field))
    elif isinstance(config, list | tuple):
        for item in config:
            yield from endpoints(item)


def _cached_config(name: str) -> Mapping[str, Any] | None:
    """Return a hub model's config.json from the local cache; None when it is not there.

    Raises:
        ValueError: This cannot be the name of a hub model.
    """
    from huggingface_hub import try_to_load_from_cache

    place = try_to_load_from_cache(name, "config.json")
    return _read_json(Path(place)) if isinstance(place, str) else None


def _read_json(place: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
