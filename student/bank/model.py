"""The frozen student inside a bank: which layers get factors, and what is computed with them attached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from evaluation.common.checkpoints import towers
from evaluation.common.errors import ModelError
from evaluation.exact_match import has_direct_head, label_hidden, label_logits
from student.adapters import Adapter
from student.bank.layers import (
    LINEAR,
    Attached,
    AttachedHere,
    BankedLinear,
    FactorShape,
    FlatLayout,
    FrozenLinear,
    frozen_head_loss,
    stack,
    weighted_loss,
)
from student.bank.packing import BankBatch, packed, takes_packed_rows
from student.bank.reuse import LowerBlocks
from student.config import WHOLE_DEPTH, TargetModules, UpdateRecipe, select_layers, unknown_names


def find_targets(model: Any, target_modules: TargetModules, depth: tuple[float, float] = WHOLE_DEPTH) -> dict[str, Any]:
    """Return the linear layers that get factors, by name, in the model's order; see `UpdateRecipe` for both options.

    A layer that already carries an adapter of PEFT counts as one layer, adapter included, so that a bank can start
    from a student whose champion is not merged.

    Raises:
        ModelError: A name fits no linear layer, or no layer is left; the message continues "the model".
    """
    linears = dict(_linear_layers(model))
    if missing := unknown_names(linears, target_modules):
        ends = sorted({name.rpartition(".")[2] for name in linears})
        raise ModelError(f"has no linear layers named {missing}; set target_modules to some of {ends}")
    chosen = _chosen(linears, model.get_output_embeddings(), target_modules, depth)
    if not chosen:
        raise ModelError(
            f"has no linear layer besides its output head among {target_modules!r} at the depth {list(depth)}; "
            "set target_modules to others, or widen depth"
        )
    return {name: linears[name] for name in chosen}


def _chosen(
    linears: Mapping[str, Any], head: Any, target_modules: TargetModules, depth: tuple[float, float]
) -> list[str]:
    """Return the names of the layers that are meant: the output head only where it is named."""
    names = [name for name, layer in linears.items() if target_modules != "all-linear" or layer is not head]
    return select_layers(names, target_modules, depth)


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers of a model's text part, those inside of PEFT's layers left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: tuple[str, ...] = ()
    others = set(towers(model))
    for name, module in model.named_modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, LINEAR) and not name.startswith(inside) and name not in others:
            inside = (*inside, f"{name}.")
            yield name, module


class BankedModel:
    """A frozen causal language model whose target layers are `BankedLinear`, until `restore`."""

    def __init__(self, model: Any, target_modules: TargetModules, depth: tuple[float, float] = WHOLE_DEPTH) -> None:
        """Freeze the model, put it in evaluation mode and wrap its target layers; see `find_targets`.

        PEFT's wrapper of a model is taken with its active adapters, which then belong to the frozen base.
        """
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        targets = find_targets(model, target_modules, depth)
        self.model = model
        self._linears, self._head = dict(_linear_layers(model)), model.get_output_embeddings()
        self.shapes = {name: FactorShape.of(layer) for name, layer in targets.items()}
        parameters = list(model.parameters())
        self.device: torch.device = parameters[0].device
        weight: Tensor = next(iter(targets.values())).weight
        base_dtype: torch.dtype = weight.dtype if weight.is_floating_point() else model.dtype  # else quantized
        self.dtype: torch.dtype = torch.float32 if base_dtype in (torch.float16, torch.bfloat16) else base_dtype
        """Of the factors: float32 for a half-precision base, as in PEFT, else the base's own."""
        self._training = {module: module.training for module in model.modules()}
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in parameters]
        self._checkpointed_before = bool(getattr(model, "is_gradient_checkpointing", False))
        self.checkpoints = False
        """Whether layers are computed again in the backward pass instead of kept."""
        model.eval()
        model.requires_grad_(False)
        self.direct_head = has_direct_head(model)
        self.packed = takes_packed_rows(model)
        """Whether a slot's sequences stand end to end in one row; else one a row, padded."""
        # On a GPU the backward pass runs in a thread of its own, which computes checkpointed layers again.
        self._attached = AttachedHere() if self.device.type == "cpu" else Attached()
        self._layers: dict[str, BankedLinear | FrozenLinear] = {
            name: FrozenLinear(layer)
            for name, layer in self._linears.items()
            if name not in targets and FrozenLinear.gains_from(layer, is_head=layer is self._head)
        }
        self._layers |= {name: BankedLinear(layer, name, self._attached) for name, layer in targets.items()}
        for name, layer in self._layers.items():
            model.set_submodule(name, layer)
        self._contexts = ExitStack()
        if self.packed:
            self._contexts.enter_context(packed(model))
        self.lower = LowerBlocks(self)

    @contextmanager
    def attached(self, views: Mapping[str, tuple[Tensor, Tensor]], scales: Sequence[float]) -> Iterator[None]:
        """Use the factors that `FlatLayout.views` gives for some or all layers, with alpha / rank of each slot."""
        self._attached.scales = torch.tensor(scales, dtype=self.dtype, device=self.device)[:, None, None]
        self._attached.factors = views
        try:
            yield
        finally:
            self._attached.factors, self._attached.scales = {}, None

    @contextmanager
    def using(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Use K adapters that fit the model, one for each slot; None is the base."""
        layers = {name for adapter in adapters if adapter is not None for name in adapter.factors}
        shapes = {name: shape for name, shape in self.shapes.items() if name in layers}
        if not shapes:
            yield
            return
        layout = FlatLayout(shapes, max(adapter.rank for adapter in adapters if adapter is not None))
        flat = stack(layout, adapters).to(self.device, self.dtype)
        scales = [1.0 if adapter is None else adapter.alpha / adapter.rank for adapter in adapters]
        with self.attached(layout.views(flat), scales):
            yield

    def layers_of(self, recipe: UpdateRecipe) -> list[str] | None:
        """Return the names of the wrapped layers that a recipe adapts, or None when it names others."""
        wanted = _chosen(self._linears, self._head, recipe.target_modules, recipe.depth)
        known = not unknown_names(self._linears, recipe.target_modules)
        return wanted if wanted and known and self.shapes.keys() >= set(wanted) else None

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Give the model its own attention back for a while: one sequence a row, with a mask."""
        self._contexts.close()
        try:
            yield
        finally:
            if self.packed:
                self._contexts.enter_context(packed(self.model))

    def checkpoint(self) -> bool:
        """Compute layers again in the backward pass from now on; return whether the model can do that.

        Takes about a third more time and, of each layer, keeps only its input.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers or not self.model.supports_gradient_checkpointing:
            return False
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:  # Its own flag alone: what is inside stays in evaluation mode.
            layer.training = True
        self.checkpoints = True
        return True

    def label_logits(self, batch: BankBatch) -> Tensor:
        """Return the logits (C, V) at the labelled places of a batch."""
        return label_logits(
            self.model, batch.input_ids, batch.positions, direct_head=self.direct_head, extra=batch.extra
        )

    def states(self, batch: BankBatch) -> Tensor:
        """Return the last hidden states (C, D) at the labelled places, or the logits where the head is not linear."""
        if not self.direct_head:
            return self.label_logits(batch)
        return label_hidden(self.model, batch.input_ids, batch.positions, batch.extra)

    def loss(self, batch: BankBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of label losses times `weights` (C,), and each of them (C,) without gradient, in nats."""
        states, labels = self.states(batch), batch.labels if batch.targets is None else batch.targets
        if not self.direct_head:
            return weighted_loss(states, labels, weights)
        head = self.model.get_output_embeddings()
        return frozen_head_loss(states, head.weight, head.bias, labels, weights)

    def restore(self) -> None:
        """Put the original layers, their modes, gradient flags and attention back."""
        self._contexts.close()
        self.lower.remove()
        if self.checkpoints and not self._checkpointed_before:
            self.model.gradient_checkpointing_disable()
        for name, layer in self._layers.items():
            self.model.set_submodule(name, layer.base)
        for parameter, flag in self._requires_grad:
            parameter.requires_grad_(flag)
        for module, training in self._training.items():
            module.training = training
