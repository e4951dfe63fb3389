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


def any_of(namespace: Mapping[str, object], base: type[BaseModel], tag: str) -> Any:
    """Return the type of a section that is one of the models in a namespace.

    Args:
        namespace: Of a module, such as `vars(module)`; what is no subclass of `base` is passed over.
        base: Common base of the models, itself not one of them.
        tag: Field whose value tells them apart.
    """
    kinds = [kind for kind in namespace.values() if isinstance(kind, type) and issubclass(kind, base)]
    return Annotated[Union[tuple(kind for kind in kinds if kind is not base)], Field(discriminator=tag)]  # noqa: UP007


def digest_json(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of `value` in canonical JSON: sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: `value` holds something that is not plain JSON, which would make the digest differ between processes.
    """
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
    """Return a seed in [0, 2^31) that depends on every part and on nothing else: the same in every process."""
    return int(digest_json([*parts])[:15], 16) % 2**31
