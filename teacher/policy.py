"""The teacher's policy: one LoRA adapter, which learns, on a frozen base, which does not.

The adapter starts as the base exactly (B = 0) and is stored in PEFT's format, which transformers and vLLM load, with
the optimizer's state beside it, so that learning continues after a restart as if there had been none.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from evaluation.common.checkpoints import Checkpoint, digest_tensors, model_digest
from evaluation.common.data import digest_files, digest_json
from evaluation.common.errors import ModelError
from teacher.config import PolicyConfig

_RECORD = "policy.json"
_WEIGHTS = "adapter_model.safetensors"
_OPTIMIZER = "optimizer.pt"


class _Record(BaseModel):
    """What `save` writes beside the weights."""

    config: PolicyConfig
    base_digest: str
    digest: str
    files: str
    """Digest of the other files."""


class TeacherPolicy:
    """A frozen base with one LoRA adapter on all its linear layers but the output layer."""

    def __init__(self, base: Checkpoint, config: PolicyConfig, seed: int) -> None:
        """Make a policy that equals its base.

        Args:
            base: Without an adapter; its layers are wrapped in place, and its own weights never change.
            config: Of the adapter.
            seed: Of the adapter's A matrices, the same on every device.

        Raises:
            ModelError: The base already carries an adapter.
        """
        from peft import LoraConfig, get_peft_model

        if hasattr(base.model, "peft_config"):
            raise ModelError("teacher policy: the base already carries an adapter; open the checkpoint afresh")
        self.config = config
        self.tokenizer = base.tokenizer
        self.base_digest = model_digest(base.model)
        """SHA-256 of the base's weights (64 hex digits)."""
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            bias="none",
        )
        # PEFT draws from the global generators, whose state is kept.
        with torch.random.fork_rng(devices=[base.model.device] if base.model.device.type == "cuda" else []):
            self.model: Any = get_peft_model(base.model, lora).eval()
        self.optimizer_state: dict[str, Any] | None = None
        """State of the optimizer after the last step; None before the first."""
        self.reset(seed)

    def restore(self, directory: Path) -> None:
        """Become the policy saved in `directory`, optimizer state included, without opening the base again.

        Raises:
            ModelError: The directory holds no whole policy, or one of another base or configuration.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        record = _read_record(directory)
        if digest_files(directory, (_WEIGHTS, _OPTIMIZER)) != record.files:
            raise ModelError(
                f"teacher policy: {_WEIGHTS!r} or {_OPTIMIZER!r} in {str(directory)!r} is missing, changed or damaged: "
                f"the digest is not the recorded {record.files[:12]!r}. Restore the directory."
            )
        if self.base_digest != record.base_digest or self.config != record.config:
            raise ModelError(
                f"teacher policy {str(directory)!r}: it was trained on the base {record.base_digest[:12]!r} with "
                f"{record.config}, got {self.base_digest[:12]!r} with {self.config}. Open it with its own base."
            )
        set_peft_model_state_dict(self.model, load_file(directory / _WEIGHTS))
        self.optimizer_state = torch.load(directory / _OPTIMIZER, map_location="cpu", weights_only=True)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def digest(self) -> str:
        """SHA-256 of base, configuration and adapter weights (64 hex digits): two equal policies have the same."""
        whole = hashlib.sha256()
        digest_tensors(whole, dict(self._named_adapter()))
        return digest_json({"base": self.base_digest, "config": self.config.model_dump(), "adapter": whole.hexdigest()})

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the weights that learn, in an order that is the same in every process."""
        return [parameter for _, parameter in self._named_adapter()]

    def reset(self, seed: int) -> None:
        """Make the policy equal to its base again: fresh A matrices, B = 0, no optimizer state."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self._named_adapter():
                fresh = torch.zeros(weight.shape)
                if ".lora_A." in name:  # PEFT's own initialization, but from a generator of ours
                    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
                weight.copy_(fresh)
        self.optimizer_state = None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Return a context in which the model is its base, without the adapter."""
        with self.model.disable_adapter():
            yield

    def save(self, directory: Path) -> None:
        """Write the policy to `directory` in PEFT's format, with the optimizer's state, all or nothing.

        An existing policy is replaced; a reader at that moment sees the old one, the new one or for an instant none,
        never a mixture.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            self.model.save_pretrained(new, save_embedding_layers=False)
            torch.save(self.optimizer_state, new / _OPTIMIZER)
            record = _Record(
                config=self.config,
                base_digest=self.base_digest,
                digest=self.digest,
                files=digest_files(new, (_WEIGHTS, _OPTIMIZER)),
            )
            (new / _RECORD).write_text(record.model_dump_json(indent=2) + "\n")
            if directory.exists():
                os.replace(directory, old)
            os.replace(new, directory)
            shutil.rmtree(old, ignore_errors=True)

    def _named_adapter(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if ".lora_" in name]


def saved_config(directory: Path) -> PolicyConfig:
    """Return the configuration of the policy saved in `directory`.

    Raises:
        ModelError: The directory holds no whole policy.
    """
    return _read_record(directory).config


def _read_record(directory: Path) -> _Record:
    try:
        return _Record.model_validate_json((directory / _RECORD).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"teacher policy: {str(directory)!r} holds no whole policy: {error}. Give a directory that was saved by "
            "this version."
        ) from error
