"""Plain data: frozen models, content digests, and seeds derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """An immutable model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraShape(Frozen):
    """Size of a LoRA adapter (arXiv 2106.09685)."""

    rank: int = Field(ge=1, le=256)
    """LoRA rank R, in [1, 256]."""
    alpha: float = Field(gt=0.0, le=4096.0)
    """LoRA scale: the product of the factors is multiplied by alpha / rank; in (0, 4096]."""


def any_of(namespace: Mapping[str, object], base: type[BaseModel], tag: str) -> Any:
    """Return the discriminated union, by `tag`, of the proper subclasses of `base` in a module's namespace."""
    kinds = [kind for kind in namespace.values() if isinstance(kind, type) and issubclass(kind, base)]
    return Annotated[Union[tuple(kind for kind in kinds if kind is not base)], Field(discriminator=tag)]  # noqa: UP007


def digest_json(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of plain JSON in canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_files(directory: Path, patterns: Iterable[str] = ("*",)) -> str:
    """Return the SHA-256 of the files directly under `directory` that match any of `patterns`, names included."""
    names = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
    whole = hashlib.sha256()
    for path in names:
        whole.update(path.name.encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2^31) that is a deterministic function of the parts."""
    return int(digest_json([*parts])[:15], 16) % 2**31
