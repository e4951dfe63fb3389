"""The teacher's policy: a trainable LoRA adapter on a frozen base model.

The adapter starts equal to the base (B = 0) and is saved in PEFT's format, which transformers and vLLM load, together
with the optimizer state, which makes a resumed run continue exactly where it stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from evaluation.common.checkpoints import Checkpoint, digest_tensors, model_digest, towers
from evaluation.common.data import LoraShape, digest_files, digest_json
from evaluation.common.errors import ModelError
from evaluation.common.storage import replacing_directory

if TYPE_CHECKING:
    import torch

_RECORD = "policy.json"
_WEIGHTS = "adapter_model.safetensors"
_OPTIMIZER = "optimizer.pt"


class PolicyConfig(LoraShape):
    """The trainable part of the teacher: one LoRA adapter on all linear layers of a frozen base."""

    rank: int = Field(default=16, ge=1, le=256)
    alpha: float = Field(default=32.0, gt=0.0, le=4096.0)


class PolicyRecord(BaseModel):
    """Metadata of a saved policy."""

    config: PolicyConfig
    base_digest: str
    digest: str
    """Of the policy: base, configuration and adapter weights."""
    files: str
    """Digest of weights and optimizer state."""

    @classmethod
    def read(cls, directory: Path) -> PolicyRecord:
        """Return the metadata of the policy saved in `directory`.

        Raises:
            ModelError: The directory holds no complete policy.
        """
        try:
            return cls.model_validate_json((directory / _RECORD).read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"teacher policy: {str(directory)!r} holds no complete policy: {error}. Give a directory that was "
                "saved by this version."
            ) from error


class TeacherPolicy:
    """A frozen base with one LoRA adapter on all its linear layers except the output layer."""

    def __init__(self, base: Checkpoint, config: PolicyConfig, seed: int) -> None:
        """Create a policy equal to its base, which is wrapped in place; `seed` initializes the A matrices.

        Raises:
            ModelError: The base already carries an adapter.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        if hasattr(base.model, "peft_config"):
            raise ModelError("teacher policy: the base already carries an adapter; reopen the checkpoint")
        self.config = config
        self.tokenizer = base.tokenizer
        self.base_digest = model_digest(base.model)
        """SHA-256 of the base's weights (64 hex digits)."""
        # As in the student, what serves images or sound alone is left frozen.
        layers: dict[str, Any] = {"target_modules": "all-linear", "exclude_modules": list(towers(base.model)) or None}
        lora = LoraConfig(task_type="CAUSAL_LM", r=config.rank, lora_alpha=config.alpha, **layers)
        # PEFT draws from the global generators; their state is preserved.
        with torch.random.fork_rng(devices=[base.model.device] if base.model.device.type == "cuda" else []):
            self.model: Any = get_peft_model(base.model, lora).eval()
        self.optimizer_state: dict[str, Any] | None = None
        """State of the optimizer after the last step; None before the first."""
        self.reference_weights: list[torch.Tensor] | None = None
        """Adapter weights of `reference`, in the order of `adapter_parameters`; None is the base without an adapter."""
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Reset the policy to its base: new A matrices, B = 0, no optimizer state."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self._named_adapter():
                fresh = torch.zeros(weight.shape)
                if ".lora_A." in name:  # PEFT's initialization, from an explicit generator
                    torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
                weight.copy_(fresh)
        self.optimizer_state = None

    def restore(self, directory: Path) -> None:
        """Load the adapter and optimizer state saved in `directory`; raises as `check` does."""
        import torch
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        self.check(directory)
        set_peft_model_state_dict(self.model, load_file(directory / _WEIGHTS))
        self.optimizer_state = torch.load(directory / _OPTIMIZER, map_location="cpu", weights_only=True)

    def check(self, directory: Path) -> PolicyRecord:
        """Return the metadata of a policy of this base and configuration that is saved whole in `directory`.

        Raises:
            ModelError: The directory holds no complete policy, or one of another base or configuration.
        """
        record = PolicyRecord.read(directory)
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
        return record

    def save(self, directory: Path) -> None:
        """Save adapter and optimizer state to `directory`, all or nothing; an existing policy is replaced."""
        import torch

        with replacing_directory(directory) as new:
            self.model.save_pretrained(new, save_embedding_layers=False)
            torch.save(self.optimizer_state, new / _OPTIMIZER)
            files = digest_files(new, (_WEIGHTS, _OPTIMIZER))
            record = PolicyRecord(config=self.config, base_digest=self.base_digest, digest=self.digest, files=files)
            (new / _RECORD).write_text(record.model_dump_json(indent=2) + "\n")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def digest(self) -> str:
        """SHA-256 of base, configuration and adapter weights (64 hex digits)."""
        whole = hashlib.sha256()
        digest_tensors(whole, dict(self._named_adapter()))
        return digest_json({"base": self.base_digest, "config": self.config.model_dump(), "adapter": whole.hexdigest()})

    def adapter_parameters(self) -> list[torch.nn.Parameter]:
        """Return the trainable weights in a deterministic order."""
        return [parameter for _, parameter in self._named_adapter()]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Show the reference of the KL divergence within a `with` block: the base, or `reference_weights`."""
        if self.reference_weights is None:
            with self.model.disable_adapter():
                yield
            return
        self._swap(self.reference_weights)
        try:
            yield
        finally:
            self._swap(self.reference_weights)

    def _swap(self, others: list[torch.Tensor]) -> None:
        # The storage is exchanged, not copied: this happens twice in every forward pass of a learning step.
        for weight, other in zip(self.adapter_parameters(), others, strict=True):
            weight.data, other.data = other.data, weight.data

    def _named_adapter(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if ".lora_" in name]
