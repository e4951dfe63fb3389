"""Content digests: the identity of documents, models, self-edits and work units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest_json(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of `value` in canonical JSON: sorted keys, no spaces, UTF-8.

    Args:
        value: Anything that `json.dumps` takes without a fallback; sets and objects are refused, because their order
            or identity would make the digest unstable between processes.

    Raises:
        TypeError: `value` holds something that is not plain JSON.
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
