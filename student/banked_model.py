"""The frozen student inside a bank: which layers get factors, and what is computed with them attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.errors import ModelError
from evaluation.label_logits import has_direct_head, label_hidden, label_logits
from student.banked_linear import BankedLinear, FactorShape
from student.config import TargetModules
from student.token_loss import frozen_head_loss, weighted_loss


def find_targets(model: Any, target_modules: TargetModules) -> dict[str, nn.Linear]:
    """Return the linear layers that get factors, by name, in the model's order.

    Args:
        model: A Hugging Face causal language model.
        target_modules: `all-linear` (all but the output head, PEFT's meaning) or names or ends of names.

    Raises:
        ModelError: A name fits no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if target_modules == "all-linear":
        head = model.get_output_embeddings()
        targets = {name: module for name, module in linears.items() if module is not head}
    else:
        ends = tuple(target_modules)
        missing = [end for end in ends if not any(_ends_with(name, end) for name in linears)]
        if missing:
            raise ModelError(
                f"student: no linear layer is named {missing} in {type(model).__name__}. "
                f"Allowed ends: {sorted({name.rpartition('.')[2] for name in linears})}. Change recipe.target_modules."
            )
        targets = {name: module for name, module in linears.items() if any(_ends_with(name, end) for end in ends)}
    if not targets:
        raise ModelError(f"student: {type(model).__name__} has no linear layer besides its output head.")
    return targets


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


class BankedModel:
    """A frozen causal language model whose target layers are `BankedLinear`, until `restore`."""

    def __init__(self, model: Any, target_modules: TargetModules) -> None:
        """Freeze the model, put it in evaluation mode and wrap its target layers.

        Raises:
            ModelError: As for `find_targets`.
        """
        targets = find_targets(model, target_modules)
        self.model = model
        self.shapes = {name: FactorShape(layer.in_features, layer.out_features) for name, layer in targets.items()}
        parameters = list(model.parameters())
        self.device: torch.device = parameters[0].device
        base_dtype = next(iter(targets.values())).weight.dtype
        self.dtype = torch.float32 if base_dtype in (torch.float16, torch.bfloat16) else base_dtype
        """Of the factors: float32 for a half-precision base, as in PEFT, else the base's own."""
        self._training = {module: module.training for module in model.modules()}
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in parameters]
        model.eval()
        model.requires_grad_(False)
        self.direct_head = has_direct_head(model)
        self._layers = {name: BankedLinear(layer) for name, layer in targets.items()}
        for name, layer in self._layers.items():
            _set_module(model, name, layer)

    def attach(self, views: Mapping[str, tuple[Tensor, Tensor]], scales: Sequence[float]) -> None:
        """Use the factors that `FlatLayout.views` gives, with alpha / rank of each of the K slots."""
        column = torch.tensor(scales, dtype=self.dtype, device=self.device)[:, None, None]
        for name, layer in self._layers.items():
            (layer.a, layer.b), layer.scales = views[name], column

    def detach(self) -> None:
        """Use no factors: the model computes what the base does."""
        for layer in self._layers.values():
            layer.a = layer.b = layer.scales = None

    def label_logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return logits (L, V) at places of (K * N, T) rows grouped by slot; see `evaluation.answers.label_logits`."""
        return label_logits(self.model, input_ids, positions, direct_head=self.direct_head)

    def loss(self, input_ids: Tensor, positions: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of label losses, and each label's weighted loss (L,) without gradient, in nats.

        Args:
            input_ids: (K * N, T) token ids, rows grouped by slot.
            positions: (L,) places among the K * N * T.
            labels: (L,) the token after each place.
            weights: (L,) factors of the labels' losses.
        """
        if not self.direct_head:
            return weighted_loss(self.label_logits(input_ids, positions), labels, weights)
        head = self.model.get_output_embeddings()
        hidden = label_hidden(self.model, input_ids, positions)
        return frozen_head_loss(hidden, head.weight, head.bias, labels, weights)

    def restore(self) -> None:
        """Put the original layers, their modes and gradient flags back."""
        for name, layer in self._layers.items():
            _set_module(self.model, name, layer.base)
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        for module, training in self._training.items():
            module.training = training


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
