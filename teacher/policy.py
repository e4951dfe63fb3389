"""The teacher's policy: one LoRA adapter, which learns, on a frozen base, which does not.

The adapter starts as the base exactly (B = 0) and is stored in PEFT's format, which transformers and vLLM load, with
the optimizer's state beside it, so that learning goes on after a restart as if there had been none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluation.checkpoints import Checkpoint, digest_tensors, model_digest
from evaluation.digests import digest_files, digest_json
from evaluation.errors import ModelError
from teacher.config import PolicyConfig

_RECORD = "policy.json"
_WEIGHTS = "adapter_model.safetensors"
_OPTIMIZER = "optimizer.pt"


class TeacherPolicy:
    """A frozen base with one LoRA adapter on all its linear layers but the output layer.

    `create` and `load` take the base over: its layers are wrapped in place, and its own weights never change.
    """

    def __init__(self, base: Checkpoint, config: PolicyConfig, seed: int) -> None:
        """Wrap `base`; see `create`."""
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
        with _global_random_state_kept(base.model.device):
            self.model: Any = get_peft_model(base.model, lora).eval()
        self.optimizer_state: dict[str, Any] | None = None
        """State of the optimizer after the last step; None before the first."""
        self.reset(seed)

    @classmethod
    def create(cls, base: Checkpoint, config: PolicyConfig, seed: int) -> TeacherPolicy:
        """Return a policy that equals its base.

        Args:
            base: Without an adapter; taken over.
            config: Of the adapter.
            seed: Of the adapter's A matrices, the same on every device.

        Raises:
            ModelError: The base already carries an adapter.
        """
        return cls(base, config, seed)

    @classmethod
    def load(cls, directory: Path, base: Checkpoint) -> TeacherPolicy:
        """Return the policy saved in `directory`, optimizer state included.

        Args:
            directory: What `save` wrote.
            base: The same base that the policy was made on, without an adapter; taken over.

        Raises:
            ModelError: The directory holds no whole policy, or one of another base.
        """
        policy = cls(base, _read_record(directory).config, seed=0)
        policy.restore(directory)
        return policy

    def restore(self, directory: Path) -> None:
        """Become the policy saved in `directory`, optimizer state included, without opening the base again.

        Raises:
            ModelError: The directory holds no whole policy, or one of another base or configuration.
        """
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
        self._set_adapter(load_file(directory / _WEIGHTS))
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

        A policy that is there already is replaced; whoever reads at that moment sees the old one, the new one or for an
        instant none, never a mixture.
        """
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            self.model.save_pretrained(new, save_embedding_layers=False)
            torch.save(self.optimizer_state, new / _OPTIMIZER)
            record = {
                "config": self.config.model_dump(),
                "base_digest": self.base_digest,
                "digest": self.digest,
                "files": digest_files(new, (_WEIGHTS, _OPTIMIZER)),
            }
            (new / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
            if directory.exists():
                os.replace(directory, old)
            os.replace(new, directory)
            shutil.rmtree(old, ignore_errors=True)

    def _named_adapter(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if ".lora_" in name]

    def _set_adapter(self, weights: dict[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        result = set_peft_model_state_dict(self.model, weights)
        missing = [name for name in result.missing_keys if ".lora_" in name]
        if missing or result.unexpected_keys:
            raise ModelError(
                f"teacher policy: the saved adapter does not fit: missing {missing}, unexpected "
                f"{result.unexpected_keys}. Open it with the base that it was trained on."
            )


@contextmanager
def _global_random_state_kept(device: torch.device) -> Iterator[None]:
    """Undo what PEFT draws from the global generators while it makes an adapter."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _SavedRecord(NamedTuple):
    config: PolicyConfig
    base_digest: str
    files: str


def _read_record(directory: Path) -> _SavedRecord:
    """Return what `save` recorded about a policy.

    Raises:
        ModelError: The directory holds no whole policy.
    """
    try:
        record = json.loads((directory / _RECORD).read_text())
        return _SavedRecord(PolicyConfig.model_validate(record["config"]), record["base_digest"], record["files"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"teacher policy: {str(directory)!r} holds no whole policy: {error}. Give a directory that was saved by "
            "this version."
        ) from error
