"""LoRA adapters as values: digest, export to PEFT's directory format and import from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.common.checkpoints import digest_tensors, found_model
from evaluation.common.data import digest_files, digest_json
from evaluation.common.errors import ModelError
from evaluation.common.storage import replacing_directory

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX, _ENDS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
_SCALED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
_UNSUPPORTED = (*_SCALED, "modules_to_save", "trainable_token_indices")
"""Options of PEFT that a bank cannot compute."""


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

    `directory` is replaced at once if it exists. `base_name_or_path` names the base, which is stored by `found_model`.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        target_modules=sorted(adapter.factors),
        task_type="CAUSAL_LM",
        base_model_name_or_path=found_model(base_name_or_path) if base_name_or_path else "",
        inference_mode=True,
    )
    tensors = {
        f"{_PREFIX}{name}{end}": factor.contiguous()
        for name, factors in adapter.factors.items()
        for end, factor in zip(_ENDS, factors, strict=True)
    }
    with replacing_directory(directory) as new:
        config.save_pretrained(str(new))
        metadata = {"format": "pt", "base_digest": adapter.base_digest, "digest": adapter.digest}
        metadata["config"] = digest_files(new, [CONFIG_FILE])
        save_file(tensors, new / WEIGHTS_FILE, metadata=metadata)
    return directory


def load_adapter(directory: Path) -> Adapter:
    """Return the adapter in a PEFT directory, written here or by PEFT itself.

    Raises:
        ModelError: A file is missing, the adapter is not plain LoRA of one rank without biases, or its contents do not
            match the digest written with them.
    """
    from safetensors import safe_open

    config = json.loads(_existing(directory / CONFIG_FILE).read_text(encoding="utf-8"))
    found = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or found:
        raise ModelError(
            f"adapter: {str(directory)!r} is {config.get('peft_type')!r} with bias {config.get('bias')!r} and {found}. "
            "Allowed: plain LoRA of one rank, without biases. Train it again with a plain LoraConfig."
        )
    with safe_open(_existing(directory / WEIGHTS_FILE), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    factors = _pair_factors(tensors, directory)
    adapter = Adapter(factors, int(config["r"]), float(config["lora_alpha"]), metadata.get("base_digest", ""))
    own = {"digest": adapter.digest, "config": digest_files(directory, [CONFIG_FILE])}
    if wrong := [name for name, digest in own.items() if metadata.get(name, digest) != digest]:
        raise ModelError(
            f"adapter: {str(directory)!r} has the {wrong[0]} {own[wrong[0]]}, but {metadata[wrong[0]]} was written "
            "with it. The files were changed or damaged; restore them."
        )
    return adapter


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ModelError(f"adapter: {str(file.parent)!r} has no {file.name}. Give a directory that PEFT wrote.")
    return file


def _pair_factors(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B for each layer from PEFT's tensor names."""
    names = [name.removesuffix(_ENDS[0]) for name in sorted(tensors) if name.endswith(_ENDS[0])]
    pairs = {name: (tensors[name + _ENDS[0]], tensors.get(name + _ENDS[1])) for name in names}
    factors = {name.removeprefix(_PREFIX): (a, b) for name, (a, b) in pairs.items() if b is not None}
    if not factors or 2 * len(factors) != len(tensors):
        raise ModelError(
            f"adapter: {str(directory)!r} holds {len(tensors)} tensors, {2 * len(factors)} of them pairs of lora_A and "
            "lora_B. Allowed: such pairs alone."
        )
    return factors
