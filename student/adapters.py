"""LoRA adapters as values: digest, export to PEFT's directory format and import from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.common.checkpoints import digest_tensors
from evaluation.common.data import digest_json
from evaluation.common.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter of a frozen base: `W + alpha / rank * B A` for each of its layers."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Layer name in the base -> A (R, D_in) and B (D_out, R), PEFT's orientation, on the CPU."""
    rank: int
    alpha: float
    base_digest: str
    """`model_digest` of the base that it was trained on; empty when it is not known."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of rank, alpha, base digest and all factors in the order of their names."""
        head = {"rank": self.rank, "alpha": self.alpha, "base": self.base_digest}
        whole = hashlib.sha256(digest_json(head).encode())
        digest_tensors(
            whole, {f"{name}.{part}": t for name, ab in self.factors.items() for part, t in zip("AB", ab, strict=True)}
        )
        return whole.hexdigest()


def save_adapter(adapter: Adapter, directory: Path, base_name_or_path: str = "") -> Path:
    """Write an adapter so that PEFT's `PeftModel.from_pretrained(base, directory)` and vLLM open it; return the path.

    Everything is written beside `directory`, which is replaced if it exists, and moved into place at once: a killed run
    leaves the old adapter, none, or the whole new one. `base_name_or_path` is PEFT's `base_model_name_or_path`.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
            target_modules=sorted(adapter.factors),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_name_or_path,
            inference_mode=True,
        ).save_pretrained(str(staging))
        tensors = {}
        for name, (a, b) in adapter.factors.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.contiguous()
        metadata = {"format": "pt", "base_digest": adapter.base_digest, "digest": adapter.digest}
        save_file(tensors, staging / WEIGHTS_FILE, metadata=metadata)
        staging.chmod(0o755)
        old = None
        if directory.exists():  # A full directory cannot be replaced.
            old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
            os.replace(directory, old)
        os.replace(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return directory


def load_adapter(directory: Path) -> Adapter:
    """Return the adapter in a PEFT directory, written here or by PEFT itself.

    Raises:
        ModelError: A file is missing, the adapter is not plain LoRA of one rank without biases, or its contents do not
            match the digest written with them.
    """
    from safetensors import safe_open

    config = _read_config(directory)
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"adapter: {str(directory)!r} has no {WEIGHTS_FILE}. Give a directory that PEFT wrote.")
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    factors = _pair_factors(tensors, directory)
    adapter = Adapter(factors, int(config["r"]), float(config["lora_alpha"]), metadata.get("base_digest", ""))
    if metadata.get("digest", adapter.digest) != adapter.digest:
        raise ModelError(
            f"adapter: {str(directory)!r} has digest {adapter.digest}, but {metadata['digest']} was written with it. "
            "The files were changed or damaged; restore them."
        )
    return adapter


def _read_config(directory: Path) -> dict[str, Any]:
    """Return PEFT's configuration, refusing what a bank cannot compute."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"adapter: {str(directory)!r} has no {CONFIG_FILE}. Give a directory that PEFT wrote.")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    scaled = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
    unsupported = (*scaled, "modules_to_save", "trainable_token_indices")
    found = [name for name in unsupported if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or found:
        raise ModelError(
            f"adapter: {str(directory)!r} is {config.get('peft_type')!r} with bias {config.get('bias')!r} and {found}. "
            "Allowed: plain LoRA of one rank, without biases. Train it again with a plain LoraConfig."
        )
    return config


def _pair_factors(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B for each layer from PEFT's tensor names."""
    ends = ".lora_A.weight", ".lora_B.weight"
    names = [name.removesuffix(ends[0]) for name in sorted(tensors) if name.endswith(ends[0])]
    pairs = {name: (tensors[name + ends[0]], tensors.get(name + ends[1])) for name in names}
    factors = {name.removeprefix(_PREFIX): (a, b) for name, (a, b) in pairs.items() if b is not None}
    if not factors or 2 * len(factors) != len(tensors):
        raise ModelError(
            f"adapter: {str(directory)!r} holds {len(tensors)} tensors, {2 * len(factors)} of them pairs of lora_A and "
            "lora_B. Allowed: such pairs alone."
        )
    return factors
